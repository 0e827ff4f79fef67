"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): Wav2Vec2's modules."""

from dataclasses import replace

from search_spaces.families.wav2vec2 import WAV2VEC2

HUBERT = replace(WAV2VEC2, model_type="hubert")
