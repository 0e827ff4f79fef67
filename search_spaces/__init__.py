"""What may vary: choices, subnetworks, and one file per transformer family. No training, no torch."""

from search_spaces.errors import InputError
from search_spaces.families import FAMILIES, family_of
from search_spaces.family import Family
from search_spaces.space import Scope, SearchSpace
from search_spaces.subnet import SubnetConfig

__all__ = ["FAMILIES", "Family", "InputError", "Scope", "SearchSpace", "SubnetConfig", "family_of"]
