"""How many subnetworks a search evaluates."""

from __future__ import annotations

import math

from nas.recipe.checks import BLOCK_SEARCH
from nas.recipe.schema import Recipe
from nas.studies.block_search import replacements
from search_spaces import SearchSpace

EVALUATIONS = 200
BLOCKS_SHARE = 0.75
"""Most of the evaluations and of the time for replacements of single blocks; the rest is for what combines them."""


def evaluation_budget(recipe: Recipe, space: SearchSpace) -> int:
    """`search.evaluations`, at most the size of the space; by default 200, or more if block search needs more.

    Block search scores each replacement of one block, in `BLOCKS_SHARE` of the evaluations.

    Raises:
        InputError: If block search is asked for and the layers of the space cannot be chosen one by one.
    """
    budget = recipe.search.evaluations
    if budget is None and recipe.search.sampler == BLOCK_SEARCH:
        budget = max(EVALUATIONS, math.ceil(len(replacements(space)) / BLOCKS_SHARE))
    return min(budget or EVALUATIONS, space.size)
