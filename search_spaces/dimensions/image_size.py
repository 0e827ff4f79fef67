"""Image size: the side of the images that a model reads; fewer pixels are fewer patches, and so fewer tokens.

Learned positions are interpolated to the smaller grid, as where a model is fine-tuned at another size (Dosovitskiy et
al. 2021, arXiv 2010.11929, section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.dimension import FULL, Facts, Reduced, fractions_of
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.tasks import Task

FRACTIONS = (1 / 2, 3 / 4, 1)
"""Proposed sides, relative to the parent's."""

SMALLEST_GRID = 8
"""Patches a side from which smaller images are proposed."""


class ImageSize(Reduced):
    """Height and width of the images, in pixels: a multiple of the patches'."""

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Makes images of so many pixels a side."""
        if value != FULL:
            draft.set_size(("image",), int(value))

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Half and three quarters of the side, where there are enough patches."""
        grid = layout.inputs.square_grid
        if grid is None:
            return "images or patches are not square"
        side, patch = grid
        if side < SMALLEST_GRID * patch:
            return f"an image has only {side // patch} patches a side"
        found = fractions_of(side, FRACTIONS, multiple=patch)
        return found if isinstance(found, str) else [*(size for size in found if size < side), FULL]

    def varies_in(self, family: Family) -> bool:
        """Whether the family reads images as patches, and can read fewer."""
        return family.reads_images and not self.fixed_reason(family)

    def fixed_in(self, task: Task) -> str:
        """Why it may not vary in a task on texts."""
        return "the model reads no images" if task.reads_text else ""

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError unless the parent can read images of this size: smaller ones, of whole patches."""
        text = self.parse(value)
        if text == FULL:
            return
        if not self.varies_in(layout.family) or (grid := layout.inputs.square_grid) is None:
            raise InputError(
                f"`{self.name}` varies only where images and patches are square, but `{layout.family.model_type}` got "
                f"{text}; leave it out."
            )
        side, patch = grid
        if int(text) >= side or int(text) % patch:
            raise InputError(
                f"`{self.name}` must be a multiple of the patches' {patch} pixels below the parent's {side}, but got "
                f"{text}; write `full` for {side}."
            )
        places, queries = layout.inputs.memory(int(text)), layout.inputs.num_queries
        if layout.family.decodes_queries and places < queries:
            raise InputError(
                f"images must have as many places as a detector has queries, {queries}, but with `{self.name}` {text} "
                f"they have {places}; take a larger size."
            )


IMAGE_SIZE = ImageSize(
    "image_size",
    label="image size",
    meaning="Height and width of the images in pixels, a multiple of the patches': `full` or a number.",
    scope="subnetwork",
    unit="pixels",
)
