"""Toy stand-ins: tiny random models of every family and inputs for them; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from nas.exports.reload import scored_outputs
from search_spaces import FAMILIES, TASKS, Layout, SubnetConfig
from search_spaces.dimensions.experts import MULTIPLE

if TYPE_CHECKING:
    from nas.recipe.schema import Recipe
    from nas.tasks.context import TaskContext

_TEXT = "[PAD] [UNK] [CLS] [SEP] [MASK] good great fine bad awful poor film plot cast the a is was very not"
WORDS = _TEXT.split()

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
SIZES |= {"initializer_range": 0.1}  # so that attention changes the outputs visibly
WITHOUT_FFN = {name: size for name, size in SIZES.items() if name != "intermediate_size"}
TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 64}
PROJECTED = {"input_embedding_size": 24, "output_embedding_size": 32}
IMAGE = {"image_size": 8, "patch_size": 2, "num_labels": 3}
QUERIES = {"image_size": [8, 8], "patch_size": 2, "num_detection_tokens": 6, "num_labels": 3}
RESNET = {"model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 24, 32], "depths": [1] * 4}
MAPS = {"image_size": 96, "num_labels": 3, "num_queries": 6, "encoder_in_channels": [16, 24, 32], "num_denoising": 0}
MAPS |= {"backbone_config": {**RESNET, "layer_type": "basic", "out_indices": [2, 3, 4]}, "encoder_hidden_dim": 48}
MAPS |= {"decoder_in_channels": [48, 48, 48], "initializer_range": 0.1}
RELATIVE = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5, "drop_path_rate": 0.0}
DISTIL = {"dim": 48, "n_layers": 4, "n_heads": 4, "hidden_dim": 96, "initializer_range": 0.1}
START = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 4, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
ENCODER = {"encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
BART = {"d_model": 48, **ENCODER, "decoder_layers": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 96, **START}
SCALED = {**BART, "forced_eos_token_id": None, "scale_embedding": True}
SOUND = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64, "begin_suppress_tokens": None}
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "pad_token_id": 0}
MODERN = {"local_attention": 8, **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
DISENTANGLED |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
TWO_TOWERS = {"vision_config": {**SIZES, "image_size": 8, "patch_size": 2}, "text_config": SIZES, "num_labels": 3}
CUT = {**TWO_TOWERS, "vision_config": {**SIZES, "num_patches": 16, "patch_size": 2}}
WAVE = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
WAVE |= {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 4}
WAVE |= {"vocab_size": len(WORDS), "mask_time_prob": 0.0, "classifier_proj_size": 32, "layerdrop": 0.0}
SHRINKING = {"image_size": 32, "num_labels": 3, "depths": [4, 4, 4, 4], "drop_path_rate": 0.0}
SWIN = {**SHRINKING, "patch_size": 2, "embed_dim": 6, "num_heads": [1, 2, 4, 8], "window_size": 2, "mlp_ratio": 2.0}
MIXED_FFN = {
    **SHRINKING,
    "hidden_sizes": [12, 24, 36, 48],
    "num_attention_heads": [1, 2, 3, 4],
    "sr_ratios": [4, 2, 1, 1],
}
MIXED_FFN |= {"mlp_ratios": [2, 2, 2, 2], "strides": [2, 2, 2, 2], "decoder_hidden_size": 16}
SPECTROGRAM = {"patch_size": 4, "num_mel_bins": 8, "max_length": 12, "frequency_stride": 3, "time_stride": 3}
LLAMA = {**SIZES, **TEXT, **GROUPED}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = {"layer_types": [SLIDING, FULL, SLIDING, FULL], "sliding_window": 5, "use_sliding_window": True}


def text_inputs() -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded to 12 tokens."""
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    return {"input_ids": torch.randint(5, len(WORDS), (3, 12)) * mask, "attention_mask": mask}


def image_inputs() -> dict[str, torch.Tensor]:
    """Three random images."""
    return {"pixel_values": torch.randn(3, 3, 8, 8)}


def patch_inputs() -> dict[str, torch.Tensor]:
    """Three random images of different shapes, cut into at most sixteen patches of 2 x 2 pixels."""
    shapes = torch.tensor([[4, 4], [2, 6], [3, 5]])
    mask = (torch.arange(16) < shapes.prod(1)[:, None]).int()
    return {
        "pixel_values": torch.randn(3, 16, 12) * mask[..., None],
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


def larger_image_inputs() -> dict[str, torch.Tensor]:
    """Three random images for models of several stages."""
    return {"pixel_values": torch.randn(3, 3, 32, 32)}


def maps_inputs() -> dict[str, torch.Tensor]:
    """Two random images for detectors that read maps of a convolutional backbone."""
    return {"pixel_values": torch.randn(2, 3, 96, 96)}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """All outputs of a model, flattened."""
    with torch.inference_mode():
        outputs = model(**inputs)
    if "last_hidden_state" in outputs and "attention_mask" in inputs and not model.can_generate():
        return scored_outputs(outputs, ["last_hidden_state"], inputs)["last_hidden_state"].flatten()
    names = ("logits", "start_logits", "end_logits", "pred_boxes", "pooler_output", "logits_per_image")
    names = tuple(name for name in names if name in outputs)
    return torch.cat([outputs[name].flatten() for name in names])


def towers_inputs() -> dict[str, torch.Tensor]:
    """Two random images and three texts of different lengths."""
    return {"pixel_values": torch.randn(2, 3, 8, 8), **text_inputs()}


def translation_inputs() -> dict[str, torch.Tensor]:
    """Three source texts of different lengths, and their targets of up to twelve tokens."""
    targets = {f"decoder_{name}": value for name, value in text_inputs().items()}
    return {**text_inputs(), **targets}


def sound_inputs() -> dict[str, torch.Tensor]:
    """Three sounds of 20 frames, and their targets of twelve tokens."""
    return {"input_features": torch.randn(3, 8, 20), "decoder_input_ids": torch.randint(5, len(WORDS), (3, 12))}


def wave_inputs() -> dict[str, torch.Tensor]:
    """Three waves of different lengths, padded to the 130 samples of twelve frames."""
    mask = torch.tensor([[1] * 130, [1] * 90 + [0] * 40, [1] * 110 + [0] * 20])
    return {"input_values": torch.randn(3, 130) * mask, "attention_mask": mask}


def spectrogram_inputs() -> dict[str, torch.Tensor]:
    """Three spectrograms of twelve frames."""
    return {"input_values": torch.randn(3, 12, 8)}


class Targets(list[Any]):
    """Objects of images, as the loss of a detector takes them."""

    def to(self, device: Any) -> Targets:
        """Itself: tests run on the CPU."""
        return self


ALIKE_AT_FIRST = ("relative_position_bias_table", "lambda_1", "lambda_2")
"""Ends of the names of parameters whose entries are all alike in a new model, so that a wrong one would not show."""


WHOLE = ("text-ranking", "image-feature-extraction")
"""Tasks with one label for a whole input, besides classifications."""


@dataclass(frozen=True)
class Toy:
    """A tiny random model of one family: 4 layers (of each stack), 4 or 8 heads, hidden size 48, FFN 96."""

    model_type: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]] = text_inputs
    attentions: tuple[str, ...] = ("sdpa", "eager")

    def model(self, task: str = "", attention: str = "") -> Any:
        """A model for a task; by default for the first task of the family, with its first attention implementation."""
        import transformers

        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        auto = getattr(transformers, TASKS[task or FAMILIES[self.model_type].tasks[0]].auto_class)
        attention = attention or self.attentions[0]
        of_parts = {"": attention} if "backbone_config" in self.config else attention  # a ResNet has none
        model = auto.from_config(config, attn_implementation=of_parts).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(ALIKE_AT_FIRST) or (parameter.dim() == 3 and not parameter.any()):
                torch.nn.init.uniform_(parameter)
            elif parameter.dim() == 2 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def labelled(self, task: str = "") -> dict[str, torch.Tensor]:
        """Inputs with labels of the task."""
        inputs, task = self.inputs(), task or FAMILIES[self.model_type].tasks[0]
        if (task.endswith("-classification") and task != "token-classification") or task in WHOLE:
            return {**inputs, "labels": torch.tensor([0, 1, 1])}
        if task == "object-detection":
            boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.5, 0.4, 0.2]])
            objects: Any = Targets(
                len(inputs["pixel_values"]) * [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}]
            )
            return {**inputs, "labels": objects}
        if task == "question-answering":
            return {**inputs, "start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 4, 5])}
        if task == "automatic-speech-recognition-ctc":
            return {**inputs, "labels": torch.randint(5, len(WORDS), (3, 4))}
        targets = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        assert targets is not None
        return {**inputs, "labels": targets % 2 if task == "token-classification" else targets}


TOYS: dict[str, Toy] = {
    toy.model_type: toy
    for toy in (
        Toy("bert", {**SIZES, **TEXT}),
        Toy("roberta", {**SIZES, **TEXT}),
        Toy("xlm-roberta", {**SIZES, **TEXT}),
        Toy("distilbert", {**DISTIL, **TEXT}),
        Toy("electra", {**SIZES, **TEXT, "embedding_size": 24}),
        Toy("albert", {**SIZES, **TEXT, "embedding_size": 24}),
        Toy("mpnet", {**SIZES, **TEXT}, attentions=("eager",)),
        Toy("modernbert", {**SIZES, **TEXT, **MODERN}),
        Toy("eurobert", LLAMA),
        Toy("deberta-v2", {**SIZES, **TEXT, **DISENTANGLED}, attentions=("eager",)),
        Toy("rembert", {**SIZES, **TEXT, **PROJECTED}, attentions=("eager",)),
        Toy("gpt2", {**SIZES, **TEXT, "pad_token_id": 0}),
        Toy("gptj", {**SIZES, **TEXT, "n_inner": 96, "rotary_dim": 4, "pad_token_id": 0}, attentions=("eager",)),
        Toy("bloom", {**WITHOUT_FFN, **TEXT, "pad_token_id": 0}, attentions=("eager",)),
        Toy("falcon", {**SIZES, **TEXT, "ffn_hidden_size": 96, "pad_token_id": 0}),
        Toy("t5", {**T5, **START, "vocab_size": len(WORDS)}, translation_inputs),
        Toy("mt5", {**T5, **START, "vocab_size": len(WORDS), "initializer_factor": 0.5}, translation_inputs),
        Toy("umt5", {**T5, **START, "vocab_size": len(WORDS)}, translation_inputs),
        Toy("bart", {**SCALED, **TEXT}, translation_inputs),
        Toy("mbart", {**SCALED, **TEXT}, translation_inputs),
        Toy("m2m_100", {**SCALED, **TEXT}, translation_inputs),
        Toy("pegasus", {**SCALED, **TEXT}, translation_inputs),
        Toy("marian", {**SCALED, **TEXT}, translation_inputs),
        Toy("whisper", {**BART, **SOUND, "vocab_size": len(WORDS)}, sound_inputs),
        Toy("wav2vec2", {**SIZES, **WAVE}, wave_inputs),
        Toy("hubert", {**SIZES, **WAVE, "do_stable_layer_norm": True}, wave_inputs),
        Toy("wavlm", {**SIZES, **WAVE, "num_buckets": 8, "max_bucket_distance": 16}, wave_inputs, ("eager",)),
        Toy("audio-spectrogram-transformer", {**SIZES, **SPECTROGRAM, "num_labels": 3}, spectrogram_inputs),
        Toy("opt", {**SIZES, **TEXT, "ffn_dim": 96, "word_embed_proj_dim": 36, "pad_token_id": 0}),
        Toy("gpt_neox", {**SIZES, **TEXT, "rotary_pct": 0.5, "pad_token_id": 0}),
        Toy("llama", LLAMA),
        Toy("mistral", {**LLAMA, "sliding_window": 5}),
        Toy("qwen2", {**LLAMA, **MIXED}),
        Toy("qwen3", {**LLAMA, **MIXED, "head_dim": 8}),
        Toy("smollm3", {**LLAMA, **MIXED, "no_rope_layers": [1, 0, 1, 1]}),
        Toy("gemma2", {**LLAMA, **MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}, attentions=("eager",)),
        Toy("gemma3_text", {**LLAMA, **MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}),
        Toy("phi3", LLAMA),
        Toy("starcoder2", {**LLAMA, "sliding_window": 5}),
        Toy("stablelm", {**LLAMA, "rope_parameters": HALF_ROTARY, "qk_layernorm": False}),
        Toy("cohere2", {**LLAMA, **MIXED}),
        Toy("olmo2", LLAMA),
        Toy("mixtral", {**LLAMA, "num_local_experts": 6, "num_experts_per_tok": 2}),
        Toy("qwen2_moe", {**LLAMA, **MOE, "shared_expert_intermediate_size": 20}),
        Toy("qwen3_moe", {**LLAMA, **MOE, "num_experts_per_tok": 3, "norm_topk_prob": True}),
        Toy("olmoe", {**LLAMA, "num_experts": 6, "num_experts_per_tok": 2}),
        Toy("vit", {**SIZES, **IMAGE}, image_inputs),
        Toy("deit", {**SIZES, **IMAGE, "architectures": ["DeiTForImageClassification"]}, image_inputs),
        Toy("beit", {**SIZES, **IMAGE, **RELATIVE}, image_inputs),
        Toy("dinov2", {**SIZES, **IMAGE, "mlp_ratio": 2}, image_inputs),
        Toy("dinov3_vit", {**SIZES, **IMAGE, "num_register_tokens": 2}, image_inputs),
        Toy("swin", {**SWIN, "initializer_range": 0.1}, larger_image_inputs),
        Toy("segformer", {**MIXED_FFN, "initializer_range": 0.1}, larger_image_inputs),
        Toy("clip", TWO_TOWERS, image_inputs),
        Toy("siglip", TWO_TOWERS, image_inputs),
        Toy("siglip2", CUT, patch_inputs),
        Toy("yolos", {**SIZES, **QUERIES, "use_mid_position_embeddings": False}, image_inputs),
        Toy("rt_detr_v2", {**BART, **MAPS}, maps_inputs, ("sdpa",)),
        Toy("rt_detr", {**BART, **MAPS}, maps_inputs, ("sdpa",)),
    )
}
"""Model type -> a tiny random model and inputs for it; one line a family."""

HEADLESS = {name for name, family in FAMILIES.items() if family.tasks[0] == "image-feature-extraction"}
"""Families without a head in transformers: they have outputs, but no loss."""


def feature_loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """A loss of a model without a head: the channels of its pooled output are the classes."""
    return torch.nn.functional.cross_entropy(outputs.pooler_output, labels)


def labelled_outputs(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    """Outputs with a loss."""
    if model.config.model_type not in HEADLESS:
        return model(**batch)
    outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
    outputs.loss, outputs.logits = feature_loss(outputs, batch["labels"]), outputs.pooler_output
    return outputs


WHISPER_ENCODER = replace(
    TOYS["whisper"],
    config={**TOYS["whisper"].config, "classifier_proj_size": 32, "num_labels": 3},
    inputs=lambda: {"input_features": torch.randn(3, 8, 20)},
)
"""A toy of Whisper's encoder with a head for classes of sounds."""

UNLIKE = {"vision_config": {**TWO_TOWERS["vision_config"], "num_attention_heads": 4}, "projection_dim": 20}
UNLIKE |= {"text_config": {**SIZES, **TEXT, "hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64}}
UNLIKE["text_config"] |= {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
TOWERS = Toy("clip", UNLIKE, towers_inputs)
"""A toy with an image tower and a narrower text tower, for zero-shot image classification."""
POOLED = {**UNLIKE, "text_config": {**UNLIKE["text_config"], "projection_size": 48}}
POOLING_TOWERS = Toy("siglip", POOLED, towers_inputs)
"""The same where the vector of an image is pooled by attention and has the hidden size."""
CUT_TOWERS = Toy(
    "siglip2", {**POOLED, "vision_config": {**CUT["vision_config"]}}, lambda: {**patch_inputs(), **text_inputs()}
)
"""The same over patches of images of any shape."""

BIASED = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
OWN_POSITIONS = {"share_att_key": False, "position_buckets": -1, "position_biased_input": True, "type_vocab_size": 2}


def variant(model_type: str, **changes: Any) -> Toy:
    """The toy of a family with another config."""
    return replace(TOYS[model_type], config={**TOYS[model_type].config, **changes})


HEADS = ("num_attention_heads", "num_key_value_heads")


def in_stages(layout: Layout, subnet: SubnetConfig) -> SubnetConfig:
    """A subnetwork of layers with at most 4 heads and 96 neurons, in proportion in each stage."""
    heads, neurons = max(layout.parent.num_attention_heads) // 4, max(layout.parent.intermediate_size) / 96
    values = {name: tuple(heads * n for n in getattr(subnet, name)) for name in HEADS}
    values["intermediate_size"] = tuple(int(neurons * n) for n in subnet.intermediate_size)
    return layout.search_space({}).within_parent(subnet.with_values(**values))


def as_fixed(layout: Layout, subnet: SubnetConfig) -> SubnetConfig:
    """A subnetwork with the parent's heads, ranks and dtypes where its family fixes them, and neurons in proportion.

    Layers with experts have some of them, detectors some of their queries.
    """
    if layout.inputs.stages:
        return in_stages(layout, subnet)
    fixed = {"attention_rank", "mlp_rank", "bits"} & layout.family.fixed_reasons.keys()
    subnet = subnet.with_values(**dict.fromkeys(fixed, ()))
    if "experts" in layout.family.axes:
        experts = [3] * len(subnet.layers) if subnet.is_uniform else [1 + layer for layer in subnet.layers]
        hidden = -(-subnet.hidden_size // MULTIPLE) * MULTIPLE
        subnet = subnet.with_values(num_experts=tuple(experts), hidden_size=hidden)
    if layout.family.has_queries:
        subnet = subnet.with_values(num_queries=4)
    neurons = tuple(layout.parent.intermediate_size[0] * size // 96 for size in subnet.intermediate_size)
    subnet = subnet.with_values(intermediate_size=neurons)
    if "num_attention_heads" not in layout.family.fixed_reasons:
        return subnet
    depth = len(subnet.layers)
    heads = {name: getattr(layout.parent, name)[:1] * depth for name in HEADS}
    return subnet.with_values(**heads, attention_rank=tuple(rank or 100 for rank in subnet.attention_rank))


VARIANTS: dict[str, Toy] = {
    "distilbert-sinusoidal": variant("distilbert", sinusoidal_pos_embds=True),
    "electra-unprojected": variant("electra", embedding_size=48),
    "albert-wide-embeddings": variant("albert", embedding_size=48),
    "modernbert-biased": variant("modernbert", **BIASED, classifier_pooling="mean"),
    "eurobert-biased": variant("eurobert", mlp_bias=True, attention_bias=True, head_dim=12),
    "deberta-own-positions": variant("deberta-v2", **OWN_POSITIONS),
    "deberta-one-sided": variant("deberta-v2", pos_att_type=["p2c"], share_att_key=False, norm_rel_ebd="none"),
    "deberta-absolute": variant("deberta-v2", relative_attention=False, position_biased_input=True, pos_att_type=None),
    "deberta-convolution": variant("deberta-v2", conv_kernel_size=3, conv_act="gelu"),
    "deberta-projected": variant("deberta-v2", embedding_size=24),
    "vit-unbiased": variant("vit", qkv_bias=False, num_labels=1),
    "deit-teacher": variant("deit", architectures=["DeiTForImageClassificationWithTeacher"]),
    "beit-token": variant("beit", use_mean_pooling=False, use_absolute_position_embeddings=True),
    "dinov2-gated": variant("dinov2", use_swiglu_ffn=True, mlp_ratio=3, use_mask_token=False),
    "dinov3-gated": variant("dinov3_vit", use_gated_mlp=True, num_register_tokens=0, key_bias=True),
    "wav2vec2-grouped": variant("wav2vec2", feat_extract_norm="group", conv_bias=True),
    "hubert-post-norm": variant("hubert", feat_proj_layer_norm=False, conv_pos_batch_norm=True),
    "opt-unprojected": variant("opt", word_embed_proj_dim=48),
    "opt-post-norm": variant("opt", do_layer_norm_before=False, enable_bias=False),
    "gpt_neox-serial": variant("gpt_neox", use_parallel_residual=False, tie_word_embeddings=True),
    "llama-biased": variant("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=10),
    "falcon-grouped": variant("falcon", new_decoder_architecture=True, num_kv_heads=2),
    "falcon-alibi": variant("falcon", alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "gemma2-untied": variant("gemma2", tie_word_embeddings=False, attention_bias=True),
    "gemma3-untied": variant("gemma3_text", tie_word_embeddings=False, final_logit_softcapping=5.0),
    "phi3-sliding": variant("phi3", sliding_window=5, partial_rotary_factor=0.67, tie_word_embeddings=True),
    "siglip-headless": variant("siglip", vision_config={**TWO_TOWERS["vision_config"], "vision_use_head": False}),
}
"""Name -> a toy with another config, as real checkpoints of its family have."""


def bert(**changes: Any) -> Any:
    """A tiny BERT, as in `text_folder`."""
    return replace(TOYS["bert"], config={**TOYS["bert"].config, **changes}).model()


def context_of(recipe: Recipe, layout: Layout) -> TaskContext:
    """The context of a recipe, as if its model had this layout."""
    from nas.tasks.context import TaskContext

    context = TaskContext(recipe)
    vars(context)["layout"] = layout
    return context
