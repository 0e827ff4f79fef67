"""OpenVINO int8: NNCF stores the weights as 8-bit integers, and OpenVINO quantizes activations at run time."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

from predictors.measurement.openvino_export import openvino_format


def compressed(graph: Any) -> Any:
    """The graph with integer weights: one scale for each output channel of a product, each row of a table.

    It needs no data. On processors with VNNI or AMX, OpenVINO quantizes activations in groups of 32 and multiplies
    integers; on others it dequantizes the weights.
    """
    with mock.patch.dict(os.environ, {"NNCF_CI": "1"}):  # otherwise importing it reports its use over the network
        import nncf
    nncf.set_log_level("ERROR")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bars
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)


INT8 = openvino_format(
    "openvino-int8",
    "openvino/openvino_model_int8.xml",
    dtypes=("int8",),
    change=compressed,
    packages=("nncf",),
    rounds=True,
)
