"""Inputs: the tokens, patches or frames that one parent reads, and how often its modules run on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from search_spaces.family import Family, RunsOn, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


DEFAULT_IMAGE_SIZE = 640
"""Pixels a side of the images of a detector with a convolutional backbone, where nothing says how large they are."""
STRIDES = (2, 4, 8, 16, 32)
"""Pixels along a side for each output of a convolution, in backbones of images."""


@dataclass(frozen=True)
class Inputs:
    """The input of one parent, and of its subnetworks.

    Attributes:
        family: The table of its type.
        sizes: The part of its config that holds the sizes.
    """

    family: Family
    sizes: PreTrainedConfig

    def runs_per_sample(
        self, sequence_length: int | None, *, label_tokens: bool = False, image: int = 0, queries: int | None = None
    ) -> dict[RunsOn, int]:
        """How often a module runs in one pass over one sample, by what it runs on.

        Text has ``sequence_length`` tokens; an image has its patches, special tokens and queries. The source of an
        encoder-decoder is as long as its target, or as the encoded sound. Texts beside an image are read beforehand.

        Args:
            sequence_length: Tokens of one sample, None for images.
            label_tokens: Whether every token gets a label, not the sample.
            image: Side of an image in pixels; 0: the parent's.
            queries: Of a detector; None: the parent's.
        """
        queries = self.num_queries if queries is None else queries
        patches = self.patches(image)
        special = self.family.special_tokens + getattr(self.sizes, "num_register_tokens", 0)
        token = patches + special + queries if patches else self.encoded_frames or sequence_length or 0
        source = getattr(self.sizes, "max_source_positions", token)
        if self.family.decodes_queries:
            token, source = queries, patches
        label = token if label_tokens else 1
        return {
            "once": 1,
            "label": label,
            "token": token,
            "source": source,
            "patch": patches,
            "query": queries,
            "frame": 2 * source,
            "text": 0,
            "never": 0,
            "memory": self.memory(image),
            **{f"stride {stride}": self.outputs_at(stride, image) for stride in STRIDES if patches},
            **{f"convolution {k}": count for k, count in enumerate(convolved(self.sizes, token)[1:])},
            **{name: count for k, stage in enumerate(self.stages) for name, count in _runs_of(k, stage).items()},
        }

    def longest_sequence(self, sequence_length: int | None) -> int:
        """Tokens of one sample, in the stack with the longest sequence."""
        runs = self.runs_per_sample(sequence_length)
        return max(runs[self.family.stack_runs_on(stack)] for stack in range(len(self.family.stacks)))

    @property
    def max_sequence_length(self) -> int | None:
        """Most tokens that the position embeddings allow, None if they set no limit."""
        if self.encoded_frames:
            return None
        written = getattr(self.sizes, "max_target_positions", None)
        positions = getattr(self.sizes, "max_position_embeddings", written)
        return None if positions is None or self.num_patches else positions - self.family.position_offset

    @property
    def encoded_frames(self) -> int:
        """Frames that an encoder of sounds of one length gives, without a decoder; 0 for any other model."""
        return 0 if len(self.family.stacks) > 1 else getattr(self.sizes, "max_source_positions", 0)

    @property
    def num_queries(self) -> int:
        """Queries of a detector, 0 in any other model."""
        name = self.family.names_in_config("num_queries")[0]
        return int(getattr(self.sizes, name)) if self.family.has_queries else 0

    @property
    def own_image_size(self) -> Any:
        """What the config calls the parent's images; the size at which detectors are trained where it says nothing."""
        return getattr(self.sizes, "image_size", DEFAULT_IMAGE_SIZE)

    def memory(self, image: int) -> int:
        """Tokens that the decoder of a detector reads: what its maps of an image hold together."""
        strides = () if self.family.map_strides is None else self.family.map_strides(self.sizes)
        return sum(self.outputs_at(stride, image) for stride in strides)

    def outputs_at(self, stride: int, image: int) -> int:
        """Outputs of a convolution with one for every so many pixels along a side, for images as in `patches`."""
        sides = (image, image) if image else _pair(self.own_image_size)
        return math.prod(side // stride for side in sides)

    def image_size(self, side: int) -> Any:
        """What the config calls images with a side of so many pixels: a number, or height and width."""
        return side if isinstance(self.own_image_size, int) else [side, side]

    @property
    def patch_size(self) -> Any:
        """Pixels a side of a patch, or of its sides; 0 if the model reads none."""
        return self.family.patch_size or getattr(self.sizes, "patch_size", 0)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a hierarchical model of images."""
        return () if self.family.stages is None else self.family.stages(self.sizes)

    @cached_property
    def num_patches(self) -> int:
        """Patches of one image or spectrogram, 0 if the model reads none; of several stages, those of the first."""
        if self.stages:
            return self.stages[0].tokens
        if self.family.cuts_patches:
            return int(self.sizes.num_patches)
        if not self.patch_size:
            return 0
        if hasattr(self.sizes, "frequency_stride"):
            lengths = (
                (self.sizes.num_mel_bins, self.sizes.frequency_stride),
                (self.sizes.max_length, self.sizes.time_stride),
            )
            return math.prod((length - self.sizes.patch_size) // stride + 1 for length, stride in lengths)
        pairs = zip(_pair(self.own_image_size), _pair(self.patch_size), strict=True)
        return math.prod(image // patch for image, patch in pairs)

    def patches(self, image: int) -> int:
        """Patches of an image with a side of so many pixels; 0: of the parent's images."""
        return (image // _pair(self.patch_size)[0]) ** 2 if image else self.num_patches

    @property
    def square_grid(self) -> tuple[int, int] | None:
        """Side of the images and of their patches, in pixels; None if one of them is not square, or not known."""
        image, patch = _pair(self.own_image_size), _pair(self.patch_size)
        return (image[0], patch[0]) if len({*image}) == len({*patch}) == 1 and patch[0] else None


def _runs_of(number: int, stage: Stage) -> dict[RunsOn, int]:
    """How often modules of a stage run, by what they run on."""
    names = ("stage", "queries", "keys")
    return {f"{name} {number}": n for name, n in zip(names, (stage.tokens, stage.queries, stage.keys), strict=True)}


def convolved(sizes: Any, frames: int) -> list[int]:
    """Fewest samples of a wave that give so many frames, then the outputs of each convolution; empty without any."""
    if not hasattr(sizes, "conv_stride"):
        return []
    counts = [frames]
    for kernel, stride in reversed(list(zip(sizes.conv_kernel, sizes.conv_stride, strict=True))):
        counts.insert(0, (counts[0] - 1) * stride + kernel)
    return counts


def frames_of(sizes: Any, samples: Any) -> Any:
    """Frames that the convolutions make of a wave, or of waves, of so many samples."""
    for kernel, stride in zip(sizes.conv_kernel, sizes.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def _pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
