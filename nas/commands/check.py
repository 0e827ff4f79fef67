"""`nas check`: everything that can be known of a recipe before training, on one page; trains and writes nothing."""

from __future__ import annotations

from pathlib import Path

from nas.commands.dry_run import counted_work, estimated_minutes
from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.stages.check import check_recipe, check_stages
from nas.stages.parent_check import check_parent
from nas.stages.resources import check_resources
from nas.supernets.space import search_space
from predictors import device_name


def check(recipe: Recipe, folder: str | Path, cluster: str | None = None) -> list[str]:
    """Checks a recipe as `nas search` does before it trains.

    Args:
        recipe: The recipe.
        folder: The run that a search would make or resume.
        cluster: Address of a Ray cluster that the search would use; None for none.

    Returns:
        The lines of the page.

    Raises:
        InputError: With the first thing that does not fit.
    """
    quiet_libraries()
    check_stages(recipe)
    check_resources(recipe, folder, cluster)
    context = check_recipe(recipe)
    lines = check_parent(context, folder)
    storage = recipe.search.storage
    minutes = estimated_minutes(context)
    stages = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items() if value >= 0.05)
    return [
        *lines,
        f"space      {search_space(context).size:,} subnetworks",
        *(
            f"{f'workload {name}'.strip():<10} {workload} on {device_name(workload)}"
            for name, workload in context.recipe.named_workloads.items()
        ),
        f"storage    {'a file in the run' if storage is None else 'the database answers'}",
        f"cluster    {'none: this machine computes' if cluster is None else f'{cluster} answers'}",
        f"time       about {sum(minutes.values()):.0f} minutes: {stages}",
        *(f"{name:<10} {work}" for name, work in counted_work(context).items()),
    ]
