"""A machine without a GPU that says it has two."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.backends.cuda.cuda_doubles import RESULT, STREAM, DeviceTensor, RecordingDriver, recorded


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    """A machine of two GPUs on which `torch.empty_strided` hands out the same addresses again and again."""

    def empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: Any) -> DeviceTensor:
        return DeviceTensor(shape, dtype, RESULT, strides, str(device))

    monkeypatch.setattr(torch, "empty_strided", empty)
    with recorded(monkeypatch, STREAM) as recording:
        yield recording
