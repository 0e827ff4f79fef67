"""Samplers by name: ours, Optuna's, and OptunaHub's through its package."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution

from nas.recipe.objectives import COSTS, total_violation
from nas.recipe.schema import OPTUNA_SAMPLERS, Recipe
from nas.samplers.encoding import Encoding
from nas.samplers.problem import Candidates
from nas.samplers.surrogate_sampler import SurrogateSampler
from nas.studies.evaluator import Evaluator
from search_spaces import InputError, SearchSpace

MakeSampler = Callable[[int], optuna.samplers.BaseSampler]
"""Number of a trial -> the sampler that proposes it."""

DEFAULTS: dict[str, dict[str, Any]] = {"TPESampler": {"multivariate": True, "n_startup_trials": 0}}
"""What differs from Optuna's own defaults: a search has startup trials of its own."""


def sampler_for(recipe: Recipe, space: SearchSpace, evaluator: Evaluator) -> MakeSampler:
    """The recipe's sampler for each trial of a search.

    Optuna's samplers keep their state in the study, so a new one for each trial, seeded by its number, loses nothing,
    and a resumed search goes on as it would have.
    """
    name, options = recipe.search.sampler, recipe.search.sampler_options
    if name in ("SurrogateSampler", "BlockSearch"):
        problem = SpaceProblem(space, evaluator)
        ours = SurrogateSampler(space.parameters.distributions(), problem, seed=recipe.seed, **options)
        return lambda number: ours
    kind = sampler_class(name)
    return lambda number: _made(kind, name, options, recipe.seed * 1_000_003 + number)


def _made(kind: type, name: str, options: dict[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    takes = inspect.signature(kind).parameters
    seeded = {"seed": seed} if "seed" in takes else {}
    made: optuna.samplers.BaseSampler = kind(**{**seeded, **DEFAULTS.get(name, {}), **options})
    return made


def sampler_class(name: str) -> type:
    """The class of one of Optuna's samplers, or of OptunaHub's ``package:Class``.

    Raises:
        InputError: If there is none.
    """
    if name in OPTUNA_SAMPLERS:
        kind: type = getattr(optuna.samplers, name)
        return kind
    package, _, attribute = name.rpartition(":")
    try:
        import optunahub
    except ImportError:
        raise InputError(f"`search.sampler` is `{name}`, which needs `pip install optunahub`.") from None
    try:
        local = Path(package)
        if local.is_dir():
            module = optunahub.load_local_module(local.name, registry_root=str(local.parent))
        else:
            module = optunahub.load_module(package)
        found: type = getattr(module, attribute)
        return found
    except Exception as error:
        raise InputError(
            f"`search.sampler` must be a sampler of OptunaHub or a local folder with one, but `{name}` cannot be "
            f"loaded ({type(error).__name__}: {' '.join(str(error).split())[:160]}); write `package:Class`, for "
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
            SurrogateSampler({}, **options)
            return
        sampler = _made(sampler_class(name), name, options, recipe.seed)
        study = optuna.create_study(directions=list(recipe.objectives.values()), sampler=sampler)
        for _ in range(2):
            trial = study.ask({"x": IntDistribution(0, 3)})
            study.tell(trial, [float(trial.params["x"])] * len(recipe.objectives))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"`search.sampler_options` must be arguments of {name}: {error}") from None


class SpaceProblem:
    """What the surrogate sampler may know of a search space: its costs, and which parameters mean the same."""

    def __init__(self, space: SearchSpace, evaluator: Evaluator) -> None:
        self.parameters = space.parameters
        self.evaluator = evaluator
        self.encoding = Encoding(self.parameters.distributions())
        self.known_constraints = frozenset(evaluator.recipe.constraints) & frozenset(COSTS)

    def keys(self, genomes: np.ndarray) -> list[bytes]:
        """One for each subnetwork: widths of dropped layers do not count."""
        return self.parameters.to_batch(genomes).row_keys()

    def describe(self, genomes: np.ndarray) -> Candidates:
        """The space's encodings, the costs among the objectives, and how far constraints on costs are missed."""
        recipe, subnets = self.evaluator.recipe, self.parameters.to_batch(genomes)
        columns = self.evaluator.known(recipe.value_names, subnets)
        unknown = np.full(len(subnets), np.nan)
        values = np.stack([columns.get(name, unknown) for name in recipe.objectives], axis=1)
        bounds = {name: bound for name, bound in recipe.bounds.items() if name in columns}
        violations = np.array(
            [total_violation({n: columns[n][i] for n in bounds}, bounds) for i in range(len(subnets))]
        )
        return Candidates(self.parameters.encode(subnets), values, violations)
