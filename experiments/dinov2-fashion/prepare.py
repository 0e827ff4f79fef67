"""Makes the model folder of this recipe: DINOv2-small with its position embeddings resized to images of 56x56.

python experiments/dinov2-fashion/prepare.py facebook/dinov2-small experiments/dinov2-fashion/dinov2-small-56
"""

import sys

import torch
from transformers import AutoModel, BitImageProcessor

SIZE = 56


def main(source: str, target: str) -> None:
    """Resizes bicubically, as the model itself does on images of another size than it was trained on."""
    model = AutoModel.from_pretrained(source)
    embeddings, patches = model.embeddings, (SIZE // model.config.patch_size) ** 2
    dummy = torch.zeros(1, patches + 1, model.config.hidden_size)
    resized = embeddings.interpolate_pos_encoding(dummy, SIZE, SIZE)
    embeddings.position_embeddings = torch.nn.Parameter(resized.detach().clone())
    model.config.image_size = SIZE
    model.save_pretrained(target)
    processor = BitImageProcessor(size={"height": SIZE, "width": SIZE}, do_center_crop=False, do_convert_rgb=True)
    processor.save_pretrained(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
