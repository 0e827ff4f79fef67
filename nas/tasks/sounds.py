"""Recordings of a data set: lists of samples, WAV files, and what `datasets.Audio` decodes."""

from __future__ import annotations

import io
import math
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.tasks.data import require_column
from nas.tasks.labels import is_list
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset

PCM: dict[int, tuple[type, int, int]] = {1: (np.uint8, 128, 128), 2: (np.int16, 0, 2**15), 4: (np.int32, 0, 2**31)}
"""Bytes of a sample in a WAV file -> its type, the value of silence, and the largest amplitude."""


def require_recordings(examples: Dataset, column: str, source: str) -> None:
    """Raises InputError if a column does not exist or holds no recordings."""
    require_column(examples, column, source, "task.audio")
    feature = examples.features[column]
    if not is_list(feature) and not is_audio(feature):
        raise InputError(f"`task.audio` must name an audio column, but `{column}` of `{source}` is {feature}.")


def is_audio(feature: Any) -> bool:
    """Whether a column is one of `datasets.Audio`."""
    from datasets import Audio

    return isinstance(feature, Audio)


def undecoded(examples: Dataset, column: str) -> Dataset:
    """The examples with recordings as stored, if they are not lists of samples."""
    from datasets import Audio

    return examples.cast_column(column, Audio(decode=False)) if is_audio(examples.features[column]) else examples


def samples_of(recording: Any, rate: int, source: str) -> Any:
    """The samples of a recording, given as such or as stored.

    WAV files of whole numbers are read by the standard library; all others need torchcodec.

    Args:
        recording: A list of samples at the wanted rate, or a mapping with ``bytes`` or ``path``.
        rate: Samples a second.
        source: Name of the data in errors.

    Raises:
        InputError: If it cannot be decoded.
    """
    from datasets import Audio

    if isinstance(recording, list):
        return recording
    try:
        decoded = _wave_samples(recording, rate)
        return Audio(sampling_rate=rate).decode_example(recording)["array"] if decoded is None else decoded
    except ImportError as error:
        raise InputError(
            f"recordings of `{source}` cannot be decoded: {short_error(error)}; pip install torchcodec."
        ) from None
    except Exception as error:
        name = (recording or {}).get("path") or "without a file"
        raise InputError(
            f"the recording `{name}` of `{source}` cannot be decoded ({short_error(error)}); replace or remove it."
        ) from None


def _wave_samples(recording: Mapping[str, Any], rate: int) -> np.ndarray | None:
    """Samples (time,) from -1 to 1 of a WAV file, the mean of its channels at this rate; None if it is none."""
    from scipy.signal import resample_poly

    stored = recording.get("bytes")
    try:
        with wave.open(io.BytesIO(stored) if stored else str(recording["path"])) as file:
            dtype, silence, largest = PCM[file.getsampwidth()]
            values: np.ndarray = np.frombuffer(file.readframes(file.getnframes()), dtype).reshape(
                -1, file.getnchannels()
            )
            own_rate = file.getframerate()
    except (wave.Error, EOFError, KeyError):
        return None
    samples = ((values.astype(np.float32) - silence) / largest).mean(axis=1)
    common = math.gcd(rate, own_rate)
    resampled = samples if rate == own_rate else resample_poly(samples, rate // common, own_rate // common)
    return np.asarray(resampled, dtype=np.float32)
