"""Held-out scores: subnetworks are exported, reloaded and scored on the held-out split, and kept in the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.exports.export import reload_in_process, save_subnet, weights_of
from nas.modeling.cast import cast_weights
from nas.recipe.objectives import INHERITED_SUFFIX
from nas.runs.finished import read_finished
from nas.runs.run import Run
from nas.supernets.counted_costs import count_costs
from nas.supernets.device import moved
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import Score, score
from predictors import AnalyticCosts
from predictors.measurement.budget import Budget
from predictors.measurement.json_lines import JsonLines
from search_spaces import SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARENT = "parent"
LEAST = 2
"""Models that each call verifies whatever the time: at first the parent and one subnetwork."""


def score_held_out(
    run: Run,
    context: TaskContext,
    supernet: Supernet,
    subnets: Mapping[str, SubnetConfig],
    budget: Budget,
    report: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Scores models on the held-out split, in their order, until the time is over; stored ones take none.

    A model that was chosen from the search and finished also has the metrics of the weights that it inherited.

    Args:
        run: The run; each result is a line of its verified.jsonl.
        context: The context of its recipe.
        supernet: What is extracted from.
        subnets: Key -> subnetwork; `PARENT` -> the parent, with its own weights.
        budget: Time limit; `LEAST` are scored whatever it says.
        report: Told how many are done.

    Returns:
        Key -> metrics on the held-out split and exact costs, of those that time sufficed for.
    """
    file, names = verified_file(run), set(run.recipe.metric_names)
    done, scored, new = dict(file.read()), dict[str, dict[str, Any]](), 0
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, run.recipe.task.type, supernet.dtype)
    for key, subnet in subnets.items():
        is_finished = (run.finished / key).exists()
        is_current = key in done and done[key].get("finished", False) == is_finished  # else with other weights
        if not is_current or not done[key]["values"].keys() >= names:
            if budget.is_over and new >= LEAST:
                continue
            new += 1
            values = {name: float(value[0]) for name, value in count_costs(counts, run.recipe, [subnet]).items()}
            line = {"key": key, "subnet": subnet.to_dict(), **_scored(run, context, supernet, key, subnet, values)}
            done[key] = {**line, "finished": is_finished}
            file.append([done[key]])
        scored[key] = done[key]
        report(len(scored))
    return scored


def _scored(
    run: Run, context: TaskContext, supernet: Supernet, key: str, subnet: SubnetConfig, costs: Mapping[str, float]
) -> dict[str, Any]:
    """Values, errors and resampled values of one model, in the form of a line of verified.jsonl."""
    test, names = context.of(subnet).splits.test, run.recipe.metric_names
    model = _parent(run, supernet, context) if key == PARENT else export_and_reload(run, context, supernet, subnet)
    scores = score(model, test, names)
    named: dict[str, Score] = dict(scores)
    if key in {model.subnet.key for model in read_finished(run) if model.source == "search"}:
        inherited = score(supernet.extract(subnet), test, names)
        named |= {name + INHERITED_SUFFIX: metric for name, metric in inherited.items()}
    return {
        "values": {**costs, **{name: metric.value for name, metric in named.items()}},
        "errors": {name: metric.standard_error for name, metric in named.items()},
        "resampled": {name: [float(f"{v:.6g}") for v in metric.resampled] for name, metric in scores.items()},
    }


def export_and_reload(run: Run, context: TaskContext, supernet: Supernet, subnet: SubnetConfig) -> PreTrainedModel:
    """Exports a subnetwork, reloads it and checks that its outputs equal the supernet's or the finished model's."""
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".verify-") as folder:
        weights = weights_of(run, supernet, subnet, context)
        save_subnet(weights, subnet, context, Path(folder))
        return reload_in_process(Path(folder), weights, subnet, context)


def _parent(run: Run, supernet: Supernet, context: TaskContext) -> PreTrainedModel:
    """The parent with its own weights, in their original order."""
    model = cast_weights(context.load_model(run.parent), context.dtype)
    return moved(model, supernet.model.device).eval()


def verified_file(run: Run) -> JsonLines[tuple[str, dict[str, Any]]]:
    """The verified subnetworks of a run, one JSON line each, as pairs of key and line."""
    fix = "delete that line and type the same command again"
    return JsonLines(run.verified, lambda line: (line["key"], line), row="a verified subnetwork", fix=fix)
