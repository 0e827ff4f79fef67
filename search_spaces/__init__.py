"""Search spaces: what may vary in a transformer, its subnetworks, and one file per model family. Imports no torch."""

from search_spaces.errors import InputError
from search_spaces.families import ADOPTED, FAMILIES, family_of
from search_spaces.family import Family
from search_spaces.layout import Layout
from search_spaces.space import Scope, SearchSpace
from search_spaces.subnet import SubnetConfig
from search_spaces.subnet_batch import SubnetBatch
from search_spaces.tasks import TASKS

__all__ = [
    "ADOPTED",
    "FAMILIES",
    "TASKS",
    "Family",
    "InputError",
    "Layout",
    "Scope",
    "SearchSpace",
    "SubnetBatch",
    "SubnetConfig",
    "family_of",
]
