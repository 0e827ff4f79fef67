"""`nas families`: the supported model types, or what is known of one model's type."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from nas.modeling.known_layouts import adopt, is_model_type, nearest_layout, small_model
from nas.stages.layout_proof import alike_text, prove_what_holds
from nas.tasks.loading import load_parent_config
from search_spaces import FAMILIES, Family, InputError, family_of
from search_spaces.families import REFUSED
from search_spaces.families.checked import checked_types


def families_table() -> Table:
    """The types with a table of their own, their tasks and what may vary in them."""
    table = Table("model type", "tasks", "dimensions", "may skip", box=None, padding=(0, 2, 0, 0))
    for family in sorted(FAMILIES.values(), key=lambda family: family.model_type):
        table.add_row(family.model_type, *("\n".join(cell) for cell in _cells(family)))
    return table


def checked_table() -> Table:
    """The types that were proved with the table of another: whose, their tasks, and what may vary in them."""
    table = Table("model type", "laid out as", "tasks", "dimensions", box=None, padding=(0, 2, 0, 0))
    for name, one in checked_types().passed.items():
        table.add_row(name, one.alike, "\n".join(one.tasks), "\n".join(one.dimensions))
    return table


def other_types() -> Iterator[str]:
    """Lines on the types that are not supported."""
    found = checked_types()
    yield f"laid out alike, but not supported ({len(found.failed)}): {', '.join(found.failed)}"
    yield f"laid out as none of these ({len(found.unknown)}): {', '.join(found.unknown)}"


def describe_type(model: str, trust: bool = False) -> Iterator[str]:
    """Lines on the type of one model; a type without a table is proved on a tiny random model of it.

    Args:
        model: Hub id, folder, or a model type.
        trust: Whether code that comes with the model may run.

    Raises:
        InputError: If the type is not laid out as any that is known, or fails the proof.
    """
    is_type = is_model_type(model) or model in REFUSED
    model_type = model if is_type else load_parent_config(model, trust).model_type
    family = adopt(model_type)
    if family is None and is_model_type(model_type) and model_type not in REFUSED:
        raise InputError(
            f"model type `{model_type}` is not supported: {nearest_layout(model_type)}. CONTRIBUTING.md shows how to "
            "add one."
        )
    family = family or family_of(model_type)
    if family.alike:
        yield alike_text(family)
        proof, broken = prove_what_holds(small_model(family, family.tasks[0]), family.tasks[0])
        yield str(proof)
        yield from map(str, broken.values())
    for name, cell in zip(("tasks", "dimensions", "may skip"), _cells(family), strict=True):
        yield f"{name}: {', '.join(cell)}"
    yield from (f"{name} is fixed: {why}" for name, why in family.fixed_reasons.items())


def _cells(family: Family) -> tuple[tuple[str, ...], list[str], list[str]]:
    return family.all_tasks, family.all_dimensions, family.skippable
