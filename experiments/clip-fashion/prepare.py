"""Trains a small CLIP on images of Fashion-MNIST and captions of them, and writes its model folder.

    python experiments/clip-fashion/prepare.py FOLDER

The loss is CLIP's, over the images of a batch and one caption of each class in it; an image may have several captions.
The text with which the recipe asks, "This is a photo of", is none of them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from fashion import NAMES, read
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

CAPTIONS = ("a photo of a {}.", "a small {}.", "this {} is on sale.", "a picture of the {}.", "we sell the {} here.")
CAPTIONS += ("a grey photo of one {}.", "look at this {}.", "{}.")
IMAGES, EPOCHS, BATCH, RATE = 20_000, 4, 100, 1e-3
SIZES = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 384}
TEXT_SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, between a start and an end."""
    texts = [*CAPTIONS, "This is a photo of {}."]
    words = sorted({word for text in texts for word in text.replace("{}", "").replace(".", "").lower().split()})
    names = ["[PAD]", "[UNK]", "[START]", "[END]", ".", *dict.fromkeys([*words, *NAMES])]
    fast = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"\.|[^ .]+"), "removed", invert=True)
    fast.post_processor = processors.TemplateProcessing(
        "[START] $A [END]", special_tokens=[("[START]", 2), ("[END]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[START]", "eos_token": "[END]"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=16, **special)


def processor() -> CLIPProcessor:
    """Reads images of 28 x 28 pixels as they are."""
    own = {
        "size": {"height": 28, "width": 28},
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return CLIPProcessor(CLIPImageProcessor(**own), tokenizer())


def main(folder: Path) -> None:
    """Trains and saves the model."""
    torch.manual_seed(0)
    both, rng = processor(), np.random.default_rng(0)
    text = {"vocab_size": len(both.tokenizer), "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**SIZES, "image_size": 28, "patch_size": 4}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config={**TEXT_SIZES, **text}, projection_dim=64))
    images, labels = read("train", 0, IMAGES)
    pixels = torch.from_numpy(images / 127.5 - 1).float()[:, None].expand(-1, 3, -1, -1)
    steps = EPOCHS * (IMAGES // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        rows = rng.choice(IMAGES, BATCH, replace=False)
        classes = np.unique(labels[rows])
        captions = [str(rng.choice(CAPTIONS)).format(NAMES[k]) for k in classes]
        tokens = both.tokenizer(captions, padding=True, return_tensors="pt")
        outputs = model(pixel_values=pixels[rows], input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        own = torch.from_numpy(labels[rows, None] == classes[None]).float()
        of_images = -(own * outputs.logits_per_image.log_softmax(1)).sum(1).mean()
        of_texts = -(own.T / own.sum(0)[:, None] * outputs.logits_per_text.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        ((of_images + of_texts) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: loss {float(of_images):.3f}", flush=True)
    model.save_pretrained(folder)
    both.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
