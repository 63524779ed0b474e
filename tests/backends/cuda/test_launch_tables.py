"""What launching remembers: calls, plans, outputs and streams, each up to a limit."""

import itertools
from typing import Any

import pytest
import torch

from gemmir import calls
from gemmir.backends.cuda import from_torch, launch, plan
from gemmir.backends.cuda.launch import Launcher
from tests.backends.cuda.cuda_doubles import MANIFEST, MIB, DeviceTensor, RecordingDriver, tensors

BF16 = torch.bfloat16


def launcher() -> Any:
    return Launcher(MANIFEST, b"cubin")


def test_more_calls_than_are_remembered(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calls, "MAX_CALLS", 20)
    call, arguments = launcher(), tensors(8)
    outs = [DeviceTensor((8, 7168), BF16, (1 << 46) + i * MIB) for i in range(50)]
    for out in outs * 2:
        call(arguments, out=out)
    assert [int(address) for address in gpu.moved[3::4]] == [out.data_ptr() for out in (outs * 2)[1:]]
    assert (len(gpu.launches), len(call._calls), len(call._plans)) == (100, 20, 1)


def test_more_new_outputs_than_are_remembered(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    addresses = itertools.count(1 << 46, MIB)
    monkeypatch.setattr(
        torch, "empty_strided", lambda shape, strides, **_: DeviceTensor(shape, BF16, next(addresses), strides)
    )
    call, arguments = launcher(), tensors(8)
    for _ in range(3 * plan.MAX_OUTPUTS):
        call(arguments)
    (ready,) = call._calls.ready.values()
    assert len(ready.runs) == plan.MAX_OUTPUTS
    assert len(gpu.launches) == 3 * plan.MAX_OUTPUTS


def test_more_kinds_of_calls_than_are_remembered(gpu: RecordingDriver):
    call = launcher()
    for m in range(1, launch.MAX_PLANS + 50):
        call(tensors(m))
    assert len(call._plans) == launch.MAX_PLANS


def test_streams_are_remembered_up_to_a_limit(gpu: RecordingDriver, monkeypatch: pytest.MonkeyPatch):
    streams, current = [*range(1, 2 * plan.MAX_STREAMS)], [0]
    monkeypatch.setattr(from_torch, "raw_stream", lambda: lambda device: current[0])
    call, arguments = launcher(), tensors(8)
    for current[0] in streams:
        call(arguments)
    (made,) = call._plans.values()
    assert [run.stream for run in gpu.launches] == streams
    assert [*made.configs] == streams[-plan.MAX_STREAMS :]
