"""Whisper (Radford et al. 2022, arXiv 2212.04356): pre-norm encoder-decoder over the frames of a sound, two
convolutions before the encoder. A classifier has the encoder only."""

from dataclasses import replace

from search_spaces.families.bart import BART

SPEECH_RECOGNIZER = replace(
    BART,
    model_type="whisper",
    learned_positions="",
    tasks=("automatic-speech-recognition",),
    outside_layers={
        "conv1": ("hidden",),
        "conv2": ("hidden", "hidden"),
        "embed_tokens": (None, "hidden"),
        "embed_positions": (None, "hidden"),
        "encoder.layer_norm": ("hidden",),
        "decoder.layer_norm": ("hidden",),
        "proj_out": (None, "hidden"),
    },
    runs_on={"conv1": "frame", "conv2": "source", "proj_out": "token"},
    has_stock_config=None,
)

CLASSIFIER = replace(
    SPEECH_RECOGNIZER,
    tasks=("audio-classification",),
    stacks=BART.stacks[:1],
    outside_layers={
        "conv1": ("hidden",),
        "conv2": ("hidden", "hidden"),
        "embed_positions": (None, "hidden"),
        "encoder.layer_norm": ("hidden",),
        "projector": (None, "hidden"),
    },
    runs_on={"conv1": "frame", "conv2": "token", "projector": "token", "classifier": "once"},
    config_names={name: names[:1] for name, names in BART.config_names.items()},
    required_values={"use_weighted_layer_sum": False},
)

WHISPER = replace(SPEECH_RECOGNIZER, of_task={"audio-classification": CLASSIFIER})
