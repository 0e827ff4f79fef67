"""The recipe's sampler: ours, one of Optuna's, or one of OptunaHub's by its package."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler

from nas.recipe.checks import OPTUNA_SAMPLERS
from nas.recipe.objectives import is_cost, total_violation
from nas.recipe.schema import Recipe
from nas.samplers.encoding import Encoding
from nas.samplers.problem import Candidates
from nas.samplers.surrogate_sampler import SurrogateSampler
from nas.studies.evaluator import Evaluator
from search_spaces import InputError, SearchSpace
from search_spaces.errors import described, short_error

SamplerFactory = Callable[[int], optuna.samplers.BaseSampler]
"""Number of a trial -> the sampler that proposes it."""

DEFAULTS: dict[str, dict[str, Any]] = {"TPESampler": {"multivariate": True, "n_startup_trials": 0}}
"""Options that replace Optuna's defaults; a search has startup trials of its own."""


def sampler_for(recipe: Recipe, space: SearchSpace, evaluator: Evaluator) -> SamplerFactory:
    """The recipe's sampler for each trial of a search.

    Samplers that keep their state in the study are made anew for each trial, seeded by its number: they lose nothing,
    and a resumed search proposes the same trials. `QMCSampler` continues the sequence of its seed, and a sampler of
    OptunaHub may remember anything: one is made for all trials.
    """
    name, options = recipe.search.sampler, recipe.search.sampler_options
    if name in ("SurrogateSampler", "BlockSearch"):
        problem = SubnetProblem(space, evaluator)
        surrogate_sampler = SurrogateSampler(space.parameters.distributions(), problem, seed=recipe.seed, **options)
        return lambda number: surrogate_sampler
    create = partial(_create, sampler_class(name), name, options)
    if name == "QMCSampler":
        sequence = create(recipe.seed)
        return lambda number: sequence
    seed = recipe.seed * 1_000_003
    if name in OPTUNA_SAMPLERS:
        return lambda number: create(seed + number)
    kept: list[optuna.samplers.BaseSampler] = []

    def only_one(number: int) -> optuna.samplers.BaseSampler:
        if not kept:
            kept.append(create(seed + number))  # so that a resumed search does not repeat its first trials
        return kept[0]

    return only_one


def _create(cls: type, name: str, options: dict[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    seeded = {"seed": seed} if "seed" in inspect.signature(cls).parameters else {}
    sampler: optuna.samplers.BaseSampler = cls(**{**seeded, **DEFAULTS.get(name, {}), **options})
    return sampler


def sampler_class(name: str) -> type:
    """The class of one of Optuna's samplers, or of OptunaHub's ``package:Class``.

    Raises:
        InputError: If there is none.
    """
    if name in OPTUNA_SAMPLERS:
        cls: type = getattr(optuna.samplers, name)
        return cls
    package, _, attribute = name.rpartition(":")
    try:
        import optunahub
    except ImportError:
        raise InputError(f"`search.sampler` is `{name}`, which needs `pip install optunahub`.") from None
    try:
        folder = Path(package)
        if folder.is_dir():
            module = optunahub.load_local_module(folder.name, registry_root=str(folder.parent))
        else:
            module = optunahub.load_module(package)
        loaded: type = getattr(module, attribute)
        return loaded
    except Exception as error:
        raise InputError(
            f"`search.sampler` must be a sampler of OptunaHub or a local folder with one, but `{name}` cannot be "
            f"loaded ({type(error).__name__}: {short_error(error)}); write `package:Class`, for "
            "instance `samplers/moead:MOEADSampler`."
        ) from None


def check_sampler(recipe: Recipe) -> None:
    """Asks the recipe's sampler for two trials of a toy study.

    Raises:
        InputError: If it does not take its options, or does not search several objectives.
    """
    name, options = recipe.search.sampler, recipe.search.sampler_options
    try:
        if name in ("SurrogateSampler", "BlockSearch"):
            sampler: BaseSampler = SurrogateSampler({"x": IntDistribution(0, 3)}, None, seed=recipe.seed, **options)
        else:
            sampler = _create(sampler_class(name), name, options, recipe.seed)
        study = optuna.create_study(directions=list(recipe.objectives.values()), sampler=sampler)
        for _ in range(2):
            trial = study.ask({"x": IntDistribution(0, 3)})
            study.tell(trial, [float(trial.params["x"])] * len(recipe.objectives))
    except InputError:
        raise
    except Exception as error:  # each of Optuna's samplers has its own
        raise InputError(f"`search.sampler_options` must be arguments of {name}: {described(error)}") from None


class SubnetProblem:
    """What the surrogate sampler knows of a search space: costs, and which vectors mean the same subnetwork."""

    def __init__(self, space: SearchSpace, evaluator: Evaluator) -> None:
        self.parameters = space.parameters
        self.evaluator = evaluator
        self.encoding = Encoding(self.parameters.distributions())
        self.known_constraints = frozenset(name for name in evaluator.recipe.constraints if is_cost(name))

    def keys(self, vectors: np.ndarray) -> list[bytes]:
        """A key for each subnetwork (n, D); the parameters of dropped layers do not change it."""
        return self.parameters.to_batch(vectors).row_keys()

    def describe(self, vectors: np.ndarray) -> Candidates:
        """Features of subnetworks (n, D), their costs, and how far they miss the constraints on costs."""
        recipe, subnets = self.evaluator.recipe, self.parameters.to_batch(vectors)
        costs = self.evaluator.known_values(recipe.value_names, subnets)
        unknown = np.full(len(subnets), np.nan)
        values = np.stack([costs.get(name, unknown) for name in recipe.objectives], axis=1)
        bounds = {name: bound for name, bound in recipe.bounds.items() if name in costs}
        violations = np.array([total_violation({n: costs[n][i] for n in bounds}, bounds) for i in range(len(subnets))])
        return Candidates(self.parameters.encode(subnets), values, violations)
