"""Reporting: a training's losses in TensorBoard and MLflow, by the Trainer's own integrations, kept in the run."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations

from nas.recipe.schema import Training
from search_spaces import InputError


def check_trackers(settings: Training) -> None:
    """Makes sure that what a training reports to is installed.

    Raises:
        InputError: With the command that installs it.
    """
    for name in set(settings.report_to) - set(get_available_reporting_integrations()):
        raise InputError(
            f"`report_to: [{name}]` needs {name}, which this Python does not have; "
            f'`pip install "paretoformer[{name}]"` brings it.'
        )


def set_log_folder(trainer: Trainer, logs: Path) -> None:
    """Has the integrations of a trainer write to a folder, all runs of MLflow to one database beside it.

    Where the environment variables of the integrations name another place, such as a server, they write there.
    """
    trainer.args.run_name = logs.name
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(logs)
    if "mlflow" in trainer.args.report_to and "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        logs.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{logs.parent.resolve()}/mlflow.db")
