"""Experiment trackers: logs the losses of a training to TensorBoard and MLflow, in the folder of the run."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations

from nas.recipe.schema import Training
from search_spaces import InputError


def check_trackers(settings: Training) -> None:
    """Checks that the trackers of a training are installed.

    Raises:
        InputError: If one is not; the message has the command that installs it.
    """
    for name in set(settings.report_to) - set(get_available_reporting_integrations()):
        raise InputError(
            f"`report_to: [{name}]` needs the package {name}, which is not installed; run "
            f'`pip install "paretoformer[{name}]"`.'
        )


def set_log_folder(trainer: Trainer, logs: Path) -> None:
    """Sets the folder in which the trackers of a trainer write; MLflow has one database for all trainings of a run.

    Environment variables of the trackers take precedence, for example with the address of a server.
    """
    trainer.args.run_name = logs.name
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(logs)
    if "mlflow" in trainer.args.report_to and "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        logs.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{logs.parent.resolve()}/mlflow.db")
