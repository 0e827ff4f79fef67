"""Law 2: an export trains like any model; one with other outputs than the supernet is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import TOYS, logits

from nas.exports.export import enable_remote_code
from nas.supernets.supernet import Supernet
from search_spaces import SubnetConfig

UNEVEN = SubnetConfig((0, 2, 3), (4, 0, 2), (96, 16, 40), 36)


def test_an_export_trains_and_reloads_as_any_model(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    exported = Supernet(TOYS["bert"].model()).extract(UNEVEN)
    enable_remote_code(exported, "AutoModelForSequenceClassification")
    exported.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    batch = TOYS["bert"].labelled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "trained")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained", trust_remote_code=True)
    with torch.inference_mode():
        assert torch.equal(model.eval()(**batch).logits, reloaded.eval()(**batch).logits)


def test_the_trainer_of_the_deploying_page_runs(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there, with a local dataset in place of the hub's."""
    import datasets
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    files = {"train": str(text_folder / "train.parquet"), "validation": str(text_folder / "train.parquet")}
    local = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", {"stanfordnlp/sst2": local}.__getitem__)
    monkeypatch.chdir(tmp_path)
    exported = Supernet(TOYS["bert"].model()).extract(UNEVEN)
    enable_remote_code(exported, "AutoModelForSequenceClassification")
    exported.save_pretrained("small")
    AutoTokenizer.from_pretrained(text_folder / "model").save_pretrained("small")
    page = (Path(__file__).parent.parent / "docs" / "guides" / "deploying.md").read_text()
    code = next(block for block in page.split("```python\n") if "Trainer(" in block).split("```")[0]
    scope: dict[str, Any] = {}
    exec(compile(code, "deploying.md", "exec"), scope)
    trained = scope["trainer"].model.eval().cpu()
    reloaded = AutoModelForSequenceClassification.from_pretrained("tuned", trust_remote_code=True).eval()
    batch = TOYS["bert"].inputs()
    assert torch.equal(logits(trained, batch), logits(reloaded, batch))
    assert not torch.equal(logits(exported, batch), logits(reloaded, batch))
    assert list(Path("tuned").rglob("events.out.tfevents*")) and Path("tuned", "tokenizer.json").exists()


@pytest.mark.slow
def test_an_export_with_other_outputs_is_refused(text_recipe: Path, tmp_path: Path) -> None:
    """A modelling file that computes something else must not get out."""
    from nas.exports import export
    from nas.modeling import modeling_nas
    from nas.recipe.schema import Recipe
    from nas.tasks.context import TaskContext
    from search_spaces import InputError

    context = TaskContext(Recipe.load(text_recipe))
    supernet = Supernet(context.load_model())
    export.save_subnet(supernet, UNEVEN, context, tmp_path / "good")
    export.check_reload(tmp_path / "good", *export.supernet_outputs(supernet, UNEVEN, context), UNEVEN, context)
    with torch.no_grad():
        supernet.model.classifier.bias.add_(0.01)
    with pytest.raises(InputError, match=r"differ by 0\.01"):
        export.check_reload(tmp_path / "good", *export.supernet_outputs(supernet, UNEVEN, context), UNEVEN, context)
    (tmp_path / "good" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="does not load"):
        export.check_reload(tmp_path / "good", *export.supernet_outputs(supernet, UNEVEN, context), UNEVEN, context)
    assert modeling_nas.PREFIX == "Nas"
