"""The device on which models are trained and scored."""

from __future__ import annotations


def training_device() -> str:
    """Where models are trained and the supernet is scored; latency is measured on the workload's own device."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
