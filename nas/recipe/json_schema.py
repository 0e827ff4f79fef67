"""The JSON schema of a recipe, with the description of every key, for editors."""

from __future__ import annotations

import inspect
import re
from typing import Any

from nas.recipe.schema import Recipe
from predictors import Workload

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_json_schema() -> dict[str, Any]:
    """The schema that a recipe is validated with, as JSON schema; editors complete and check keys with it."""
    schema = Recipe.model_json_schema()
    for name, text in _attribute_docs(Workload).items():
        schema["$defs"]["Workload"]["properties"][name]["description"] = text
    for section in (schema, *schema["$defs"].values()):
        section["description"] = re.split(r"\n\n(?:Examples|Attributes|Raises):\n", section["description"])[0]
    return {"$schema": DIALECT, **schema}


def _attribute_docs(of: type) -> dict[str, str]:
    """The ``Attributes:`` of a Google docstring: name -> text on one line."""
    section = (inspect.getdoc(of) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    attributes = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in attributes}
