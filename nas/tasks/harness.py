"""Tasks of lm-eval, EleutherAI's harness: read by name or from a file, their questions asked of a model."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nas.recipe.text import HARNESS, split_source
from predictors.measurement.onnx_export import require
from search_spaces import InputError
from search_spaces.errors import did_you_mean, short_error

FEWSHOT_SEED = 1234
"""Of the examples in a prompt: lm-eval's own default."""
Answers = list[dict[str, Any]]
"""For each question, the value of each metric."""


def harness_sources(metrics: dict[str, str]) -> dict[str, dict[str, str]]:
    """Task of lm-eval -> name of a metric of the recipe -> the task's metric, empty for its first one."""
    found: dict[str, dict[str, str]] = {}
    for name, source in metrics.items():
        if source.startswith(HARNESS):
            task, metric = split_source(source.removeprefix(HARNESS))
            found.setdefault(task, {})[name] = metric
    return found


@dataclass(frozen=True)
class HarnessTask:
    """Questions of a task of lm-eval.

    Attributes:
        source: Name of the task, such as ``arc_easy``, or its YAML file.
        limit: How many questions there are at most; None: all.
        seed: Questions for the search are drawn with it; None: the first ones of those that lm-eval scores on.
    """

    source: str
    limit: int | None = None
    seed: int | None = None

    @property
    def task(self) -> Any:
        """The task as lm-eval has it; InputError if there is none that can be read."""
        return _loaded(self.source)

    @cached_property
    def numbers(self) -> list[int]:
        """Which questions of their split are asked, ascending."""
        with self._of_its_split():
            count = len(self.task.eval_docs)
        order = range(count) if self.seed is None else np.random.default_rng(self.seed).permutation(count).tolist()
        return sorted(order[: self.limit])

    @cached_property
    def requests(self) -> list[list[Any]]:
        """What is asked of a model for each question."""
        self.task.set_fewshot_seed(FEWSHOT_SEED)
        if self.task.config.num_fewshot is None:
            self.task.set_config("num_fewshot", 0)
        numbers = self.numbers
        with _quiet(), self._of_its_split():
            self.task.build_all_requests(samples=numbers)
        questions: dict[int, list[Any]] = {}
        for request in self.task.instances:
            questions.setdefault(request.doc_id, []).append(request)
        return list(questions.values())

    @cached_property
    def requests_each(self) -> int:
        """How many requests the first question has; the others are not written for that."""
        return len(HarnessTask(self.source, limit=1).requests[0])

    @contextlib.contextmanager
    def _of_its_split(self) -> Iterator[None]:
        """The ``eval_docs`` of the task are those of the split of these questions meanwhile, which are no shots then.

        lm-eval leaves a question out of its own shots where it knows that both are of one split.
        """
        config, shots = self.task.config, self.task.fewshot_cfg
        before = config.test_split, shots.split
        config.test_split = self._split
        if shots.split is None and shots.samples is None:
            shots.split = config.training_split or config.validation_split
        try:
            yield
        finally:
            config.test_split, shots.split = before

    @property
    def _split(self) -> str:
        """The split that lm-eval scores on; for the search another one, the training questions where there are."""
        config = self.task.config
        held_out = str(config.test_split or config.validation_split)
        if self.seed is None:
            return held_out
        for split in (config.training_split, config.validation_split):
            if split is not None and split != held_out:
                return str(split)
        raise InputError(
            f"`{HARNESS}{self.source}` must have questions to search on beside those of `{held_out}`, but has none; "
            "give its YAML file a `training_split` or a `validation_split`."
        )

    def metric(self, name: str) -> str:
        """A metric of the task by its name, the first one for an empty name; InputError if there is none."""
        names = list(self.task.aggregation())
        if name and name not in names:
            raise InputError(f"`{HARNESS}{self.source}` has no metric `{name}`; {did_you_mean(name, names)}.")
        return name or names[0]

    def answers(self, model: Any, tokenizer: Any, numbers: Sequence[int], batch_size: int) -> Answers:
        """Asks a model some of the questions, as lm-eval does."""
        from lm_eval.models.huggingface import HFLM

        asked = [self.requests[number] for number in numbers]
        requests = [request for of_question in asked for request in of_question for _ in range(request.repeats)]
        for request in requests:
            request.resps, request.filtered_resps = [], {}
        with _quiet():
            options = {"tokenizer": tokenizer, "batch_size": batch_size, "softmax_dtype": "float32"}
            harness = HFLM(pretrained=_Asked(model), backend="causal", **options)
            answers = getattr(harness, requests[0].request_type)(requests, disable_tqdm=True)
        for request, answer in zip(requests, answers, strict=True):
            request.resps.append(answer)
        self.task._instances = requests
        self.task.apply_filters()
        return [self._result(of_question) for of_question in asked]

    def _result(self, requests: Sequence[Any]) -> dict[str, Any]:
        name = next(iter(requests[0].filtered_resps))
        ordered = sorted(requests, key=lambda request: request.idx)
        found: dict[str, Any] = self.task.process_results(
            ordered[0].doc, [request.filtered_resps[name] for request in ordered]
        )
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Only what names the questions: a process that scores reads them again."""
        return {"source": self.source, "limit": self.limit, "seed": self.seed}


class _Asked:
    """A model as lm-eval calls it, which would tie the weights of a module: a supernet's, or a format of an export."""

    def __init__(self, model: Any) -> None:
        self.model, self.config, self.device = model, model.config, model.device

    def __call__(self, ids: Any) -> Any:
        """The outputs for token ids (requests, tokens)."""
        return self.model(input_ids=ids)

    def generate(self, **kwargs: Any) -> Any:
        """What the model writes; InputError for a format that does not."""
        if not hasattr(self.model, "generate"):
            raise InputError("this format of an export writes no texts, which a task of lm-eval asks for.")
        return self.model.generate(**kwargs)


@cache
def _loaded(source: str) -> Any:
    """The task of a name or of a YAML file; paths of its data are relative to that file."""
    require("lm_eval", extra="lm-eval", what=f"`{HARNESS}{source}`")
    from lm_eval.tasks import TaskManager

    file = Path(source)
    is_file = file.suffix in (".yaml", ".yml")
    try:
        with _quiet(), contextlib.chdir(file.parent if is_file else Path()):
            found = TaskManager(include_defaults=not is_file).load(str(file.resolve()) if is_file else source)
    except Exception as error:
        raise InputError(
            f"`{HARNESS}{source}` must be a task of lm-eval or its YAML file, and its data must be readable, but "
            f"({short_error(error)}); `lm-eval ls tasks` lists the names."
        ) from None
    if len(found["tasks"]) != 1:
        raise InputError(
            f"`{HARNESS}{source}` must be one task, but is a group ({', '.join([*found['tasks']][:4])}, ...); name "
            "one of these."
        )
    return next(iter(found["tasks"].values()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices and bars of lm-eval meanwhile."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
