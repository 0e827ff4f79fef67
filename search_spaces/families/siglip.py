"""SigLIP's vision tower (Zhai et al. 2023, arXiv 2303.15343): CLIP's layers over patches only.

Its attention-pooling head is left out: an image classifier averages the patches instead.
"""

from dataclasses import replace

from search_spaces.families.clip import IMAGE_TOWER

SIGLIP = replace(
    IMAGE_TOWER,
    model_type="siglip",
    unused_modules={"vision_model.head": ("use_head", "vision_use_head")},
    special_tokens=0,
)
