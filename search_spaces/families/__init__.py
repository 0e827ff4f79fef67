"""The registry of model families: one file and one line here per supported model type."""

from __future__ import annotations

from search_spaces.errors import InputError, did_you_mean
from search_spaces.families.albert import ALBERT
from search_spaces.families.ast import AST
from search_spaces.families.bart import BART
from search_spaces.families.beit import BEIT
from search_spaces.families.bert import BERT
from search_spaces.families.bloom import BLOOM
from search_spaces.families.clip import CLIP
from search_spaces.families.cohere2 import COHERE2
from search_spaces.families.deberta_v2 import DEBERTA_V2
from search_spaces.families.deit import DEIT
from search_spaces.families.dinov2 import DINOV2
from search_spaces.families.dinov3 import DINOV3
from search_spaces.families.distilbert import DISTILBERT
from search_spaces.families.electra import ELECTRA
from search_spaces.families.eurobert import EUROBERT
from search_spaces.families.falcon import FALCON
from search_spaces.families.gemma2 import GEMMA2
from search_spaces.families.gemma3 import GEMMA3
from search_spaces.families.gpt2 import GPT2
from search_spaces.families.gpt_neox import GPT_NEOX
from search_spaces.families.gptj import GPTJ
from search_spaces.families.hubert import HUBERT
from search_spaces.families.llama import LLAMA
from search_spaces.families.m2m_100 import M2M_100
from search_spaces.families.marian import MARIAN
from search_spaces.families.mbart import MBART
from search_spaces.families.mistral import MISTRAL
from search_spaces.families.mixtral import MIXTRAL
from search_spaces.families.modernbert import MODERNBERT
from search_spaces.families.mpnet import MPNET
from search_spaces.families.mt5 import MT5
from search_spaces.families.olmo2 import OLMO2
from search_spaces.families.olmoe import OLMOE
from search_spaces.families.opt import OPT
from search_spaces.families.pegasus import PEGASUS
from search_spaces.families.phi3 import PHI3
from search_spaces.families.qwen2 import QWEN2
from search_spaces.families.qwen2_moe import QWEN2_MOE
from search_spaces.families.qwen3 import QWEN3
from search_spaces.families.qwen3_moe import QWEN3_MOE
from search_spaces.families.rembert import REMBERT
from search_spaces.families.roberta import ROBERTA
from search_spaces.families.rt_detr import RT_DETR, RT_DETR_V2
from search_spaces.families.segformer import SEGFORMER
from search_spaces.families.siglip import SIGLIP
from search_spaces.families.siglip2 import SIGLIP2
from search_spaces.families.smollm3 import SMOLLM3
from search_spaces.families.stablelm import STABLELM
from search_spaces.families.starcoder2 import STARCODER2
from search_spaces.families.swin import SWIN
from search_spaces.families.t5 import T5
from search_spaces.families.umt5 import UMT5
from search_spaces.families.vit import VIT
from search_spaces.families.wav2vec2 import WAV2VEC2
from search_spaces.families.wavlm import WAVLM
from search_spaces.families.whisper import WHISPER
from search_spaces.families.xlm_roberta import XLM_ROBERTA
from search_spaces.families.yolos import YOLOS
from search_spaces.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        DISTILBERT,
        ELECTRA,
        ALBERT,
        MPNET,
        MODERNBERT,
        DEBERTA_V2,
        REMBERT,
        GPT2,
        OPT,
        GPT_NEOX,
        GPTJ,
        BLOOM,
        FALCON,
        LLAMA,
        EUROBERT,
        MISTRAL,
        QWEN2,
        QWEN3,
        SMOLLM3,
        GEMMA2,
        GEMMA3,
        PHI3,
        STARCODER2,
        STABLELM,
        COHERE2,
        OLMO2,
        MIXTRAL,
        QWEN2_MOE,
        QWEN3_MOE,
        OLMOE,
        T5,
        MT5,
        UMT5,
        BART,
        MBART,
        M2M_100,
        PEGASUS,
        MARIAN,
        WHISPER,
        WAV2VEC2,
        HUBERT,
        WAVLM,
        VIT,
        AST,
        DEIT,
        BEIT,
        DINOV2,
        DINOV3,
        SWIN,
        SEGFORMER,
        CLIP,
        SIGLIP,
        SIGLIP2,
        YOLOS,
        RT_DETR_V2,
        RT_DETR,
    )
}


ADOPTED: dict[str, Family] = {}
"""Families of model types without a table of their own, whose modules are laid out as those of one in `FAMILIES`."""


_PART = "it is the image tower of a `siglip2`, which has a table as a whole and with a head for classes"
_BACKBONE = "no table describes its decoder; `rt_detr`, `rt_detr_v2` and `yolos` are detectors that have one"
REFUSED: dict[str, str] = {
    "siglip2_vision_model": _PART,
    "d_fine": f"its decoder reads the maps without a projection and joins them by a gate; {_BACKBONE}",
    **dict.fromkeys(("detr", "conditional_detr", "deformable_detr"), _BACKBONE),
}
"""Types that are often asked for, and why they have no table."""


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face model type.

    Raises:
        InputError: If the type is not supported; the message names similar ones.
    """
    family = FAMILIES.get(model_type) or ADOPTED.get(model_type)
    if family is None and model_type in REFUSED:
        raise InputError(f"model type `{model_type}` is not supported: {REFUSED[model_type]}.")
    if family is None:
        raise InputError(
            f"model type `{model_type}` is not supported, and its modules are laid out as those of no supported type; "
            f"{_hint(model_type)}. CONTRIBUTING.md shows how to add one."
        )
    return family


def _hint(model_type: str) -> str:
    """What helps with a type that is not supported: one of transformers is rarely a slip of the pen."""
    from search_spaces.families.checked import checked_types

    is_real = model_type in checked_types().unknown
    return f"`nas families {model_type}` names the nearest" if is_real else did_you_mean(model_type, FAMILIES)
