"""The studies of a run in optuna-dashboard: violations in its attribute, notes and pictures on the front."""

from __future__ import annotations

import io
import json
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_listing import OBJECTIVES, point, run_of

from nas.commands.dashboard import copy_for_dashboard
from nas.fronts.front import ParetoFront
from search_spaces import InputError, SubnetConfig
from search_spaces.svg import svg

dashboard = pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")


def test_the_copy_marks_infeasible_trials(text_recipe: Path, tmp_path: Path) -> None:
    result = [point(0.7, 1.0, 1), point(0.88, 2.0, 2), point(0.9, 5.0, 4)]
    run = run_of(tmp_path / "run", text_recipe, ParetoFront.of(result, OBJECTIVES))
    artifacts = FileSystemArtifactStore(str(tmp_path))
    with pytest.raises(InputError, match="no study yet"):
        copy_for_dashboard(run, artifacts)
    storage = JournalStorage(JournalFileBackend(str(run.study)))
    study = optuna.create_study(storage=storage, study_name="search", directions=["maximize", "minimize"])
    for each, size in zip(result, (1.0, -1.0, -2.0), strict=True):
        trial = study.ask()
        trial.set_user_attr("point", {**each.to_dict(), "feasible": size <= 0})
        trial.set_constraint("size_mb", size)
        study.tell(trial, [each.values[name] for name in OBJECTIVES])
    copied = copy_for_dashboard(run, artifacts)
    studies = {
        s.study_name: optuna.load_study(study_name=s.study_name, storage=copied) for s in copied.get_all_studies()
    }
    assert [t.system_attrs["constraints"] for t in studies["search"].trials] == [[1.0], [-1.0], [-2.0]]
    assert len(studies["search, feasible only"].trials) == 2
    pictures = [get_all_artifact_meta(t, storage=copied) for t in studies["search"].trials]
    assert [len(result) for result in pictures] == [0, 1, 1] and pictures[1][0].mimetype == "image/svg+xml"
    app = dashboard.wsgi(copied)
    answer: list[str] = []
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "wsgi.input": io.BytesIO()}
    body = b"".join(app(request, lambda status, headers, *_: answer.append(status)))
    assert answer[0].startswith("200") and len(json.loads(body)["study_summaries"]) == 2


def test_a_subnetwork_is_drawn() -> None:
    subnet = SubnetConfig((0, 3), (4, 0), (64, 32), 48)
    picture = svg(subnet)
    assert picture.count("skipped") >= 1 and "layer 3" in picture and "num_attention_heads" in picture
    assert 'width="120.0"' in picture and 'width="60.0"' in picture
    assert "embedding" not in picture and "rank 25 %" in svg(subnet.with_values(embedding_rank=25))
    assert subnet.key in subnet._repr_html_() and "<svg" in subnet._repr_html_()
