"""What one would do by hand: the parent without some of its layers, as fast as a model of the front."""

from __future__ import annotations

from nas.recipe.objectives import RATES, is_cost
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.supernets.counted_costs import count_costs
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts
from search_spaces import SubnetConfig
from search_spaces.layer_drop import evenly_spaced


def cost_objectives(recipe: Recipe) -> list[str]:
    """The costs among the objectives, in order; a throughput is the latency that it comes from."""
    names = [name for name in recipe.objectives if is_cost(name)]
    for rate in RATES:
        names = [name.replace(rate, "latency_ms") for name in names]
    return list(dict.fromkeys(names))


def predicted_cost(run: Run, context: TaskContext, supernet: Supernet, cost: str, subnet: SubnetConfig) -> float:
    """A cost of a subnetwork; a latency is predicted, as those of the front are."""
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, context.recipe.task.type, supernet.dtype)
    predictors = {name: each for target in run.targets for name, each in target.load_predictors(counts).items()}
    if cost in predictors:
        return float(predictors[cost].predict([subnet])[0])
    return float(count_costs(counts, context.recipe, [subnet], [cost])[cost][0])


def layer_drop(run: Run, context: TaskContext, supernet: Supernet, model: SubnetConfig) -> SubnetConfig | None:
    """The parent with as many evenly spaced layers as cost at most what a model costs; else the one with the fewest.

    Args:
        run: The run, with its latency predictors.
        context: The context of its recipe.
        supernet: Its supernet.
        model: What it is compared with, along the first cost among the objectives.

    Returns:
        None if the parent has one layer.
    """
    cost = cost_objectives(context.recipe)[0]
    limit = predicted_cost(run, context, supernet, cost, model)
    drops = evenly_spaced(search_space(context))
    affordable = (drop for drop in drops if predicted_cost(run, context, supernet, cost, drop) <= limit)
    return next(affordable, drops[-1] if drops else None)
