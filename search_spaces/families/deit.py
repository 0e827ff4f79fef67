"""DeiT (Touvron et al. 2021, arXiv 2012.12877): ViT with a distillation token next to the class token."""

from dataclasses import replace

from search_spaces.families.vit import VIT

DEIT = replace(
    VIT,
    model_type="deit",
    outside_layers={
        **VIT.outside_layers,
        "cls_classifier": (None, "hidden"),
        "distillation_classifier": (None, "hidden"),
    },
    runs_on={**VIT.runs_on, "cls_classifier": "once", "distillation_classifier": "once"},
    special_tokens=2,
)
