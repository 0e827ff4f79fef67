"""SentenceModules: how a SentenceTransformer folder makes one vector of a text's hidden states; read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import InputError

if TYPE_CHECKING:
    import torch

MODULES = "modules.json"
TRANSFORMER = "sentence_bert_config.json"
SETTINGS = "config_sentence_transformers.json"
SUPPORTED = ("Transformer", "Pooling", "Normalize")
WIDTHS = {"word_embedding_dimension", "embedding_dimension"}
"""Names of the width of hidden states in the file of the pooling, of older and newer versions."""
IDENTITY = "torch.nn.modules.linear.Identity"
"""The activation of a Dense module that has none."""
LEGACY_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class SentenceModules:
    """What follows the transformer in a SentenceTransformer.

    Attributes:
        pooling: How hidden states become one vector, a key of `POOLINGS`.
        normalize: Whether vectors have length 1.
        max_length: Tokens at which texts are truncated; None for no limit.
        prompt: What is put before every text.
        prompts: What is put before texts of a kind, such as queries: name -> prompt.
        lower_case: Whether texts are put in lower case before they are tokenized.
        files: Path in the folder -> content of the JSON files that say so; none for a bare encoder.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    lower_case: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, model: str) -> SentenceModules:
        """Reads those of a hub id or folder; a bare encoder has the mean over tokens.

        Raises:
            InputError: If there are other modules, another pooling than those in `POOLINGS`, or vectors whose length
                matters.
        """
        modules = _read_json(model, MODULES)
        if modules is None:
            return cls()
        kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        unknown = [kind for kind in kinds if kind not in SUPPORTED]
        if unknown:
            raise InputError(
                f"a SentenceTransformer must consist of {', '.join(SUPPORTED)}, but `{model}` has {unknown[0]}; "
                "choose another model."
            )
        pooling_file = f"{kinds['Pooling']}/config.json" if "Pooling" in kinds else ""
        names = (MODULES, TRANSFORMER, SETTINGS, *([pooling_file] if pooling_file else []))
        files = {name: content for name in names if (content := _read_json(model, name)) is not None}
        settings = files.get(SETTINGS, {})
        prompts = {name: text for name, text in settings.get("prompts", {}).items() if text}
        pooling = _pooling_mode(files.get(pooling_file, {}), model)
        if "Normalize" not in kinds and settings.get("similarity_fn_name") not in (None, "cosine"):
            raise InputError(
                f"a SentenceTransformer must normalize its vectors or compare them by `cosine`, but `{model}` uses "
                f"`{settings['similarity_fn_name']}`; choose another model."
            )
        transformer = files.get(TRANSFORMER, {})
        return cls(
            pooling,
            "Normalize" in kinds,
            transformer.get("max_seq_length"),
            prompts.get(settings.get("default_prompt_name"), ""),
            prompts,
            bool(transformer.get("do_lower_case")),
            files,
        )

    def prompt_of(self, *names: str) -> str:
        """Returns the first prompt of these names, else the default one, as ``encode_query`` chooses it."""
        return next((self.prompts[name] for name in names if name in self.prompts), self.prompt)

    def prepared(self, texts: Sequence[str], prompt: str | None = None) -> list[str]:
        """Returns texts as the tokenizer gets them; the prompt is by default the default one."""
        prompted = [(self.prompt if prompt is None else prompt) + text for text in texts]
        return [text.lower() for text in prompted] if self.lower_case else prompted

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns one vector for each text (texts, channels), not yet normalized.

        Args:
            hidden: Hidden states (texts, tokens, channels).
            mask: 1 for tokens, 0 for padding (texts, tokens).
        """
        return POOLINGS[self.pooling](hidden, mask[..., None].to(hidden.dtype))

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns vectors with length 1, if the model normalizes them."""
        import torch.nn.functional as F

        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def write(self, folder: Path, width: int, max_length: int | None) -> None:
        """Makes a model folder a SentenceTransformer: as it was read, or around a bare encoder.

        Args:
            folder: The model folder.
            width: Channels of the hidden states that the model returns.
            max_length: Tokens at which texts are truncated, for a bare encoder; None for no limit.
        """
        for name, content in (self.files or _new_files(width, max_length)).items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(_with_width(content, width), indent=2))


def add_dense(folder: Path, inputs: int, outputs: int) -> Path:
    """Puts a linear module after the pooling of a SentenceTransformer; returns the folder that takes its weights."""
    modules = json.loads((folder / MODULES).read_text())
    place = 1 + next(i for i, module in enumerate(modules) if module["type"].endswith(".Pooling"))
    modules.insert(place, {"path": f"{place}_Dense", "type": "sentence_transformers.models.Dense"})
    numbered = [{**module, "idx": index, "name": str(index)} for index, module in enumerate(modules)]
    config = {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": IDENTITY}
    (folder / f"{place}_Dense").mkdir()
    (folder / f"{place}_Dense" / "config.json").write_text(json.dumps(config, indent=2))
    (folder / MODULES).write_text(json.dumps(numbered, indent=2))
    return folder / f"{place}_Dense"


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask == 0, float("-inf")).max(1).values


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": _max,
}
"""Mode of sentence-transformers -> hidden states (texts, tokens, channels) and mask (texts, tokens, 1) to vectors."""


def _pooling_mode(config: Mapping[str, Any], model: str) -> str:
    legacy = [mode for key, mode in LEGACY_MODES.items() if config.get(key)]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode", legacy[0] if len(others) == len(legacy) == 1 else others or "mean")
    if mode not in POOLINGS or config.get("include_prompt") is False:
        wrong = "one without the prompt" if mode in POOLINGS else f"`{mode}`"
        raise InputError(
            f"the pooling of a SentenceTransformer must be {', '.join(POOLINGS)}, but `{model}` has {wrong}; choose "
            "another model."
        )
    return str(mode)


def _new_files(hidden_size: int, max_length: int | None) -> dict[str, Any]:
    """The files of a SentenceTransformer with the mean over tokens; every version of the library reads them."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    transformer = {"max_seq_length": max_length, "do_lower_case": False}
    return {MODULES: modules, "1_Pooling/config.json": pooling, TRANSFORMER: transformer}


def _with_width(content: Any, width: int) -> Any:
    """The content of a file, with the width of the vectors where it names one."""
    return {**content, **dict.fromkeys(WIDTHS & content.keys(), width)} if isinstance(content, dict) else content


def _read_json(model: str, name: str) -> Any:
    """The content of a file of a hub id or folder; None if it has none."""
    from transformers.utils import cached_file

    if Path(model).is_dir():
        file = Path(model, name)
        return json.loads(file.read_text()) if file.is_file() else None
    path = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if path is None else json.loads(Path(path).read_text())
