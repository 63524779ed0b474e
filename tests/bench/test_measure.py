"""What goes before the clock, on the CPU: the check of a result, peers that refuse, who is timed when."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from gemmir.backends.reference import random_inputs, run
from gemmir.bench import measure, peers
from gemmir.bench.cases import Case
from gemmir.bench.check import fault_of, sample
from gemmir.bench.measure import Options, in_turn
from gemmir.bench.peers import PEERS, Refusal, block_wise_scales, deep_gemm_fp8, prepared, reason
from gemmir.bench.report import PeerResult
from gemmir.bench.timing import Timing
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem
from gemmir.scales import align_scales

CASES = (Case("f8E4M3FN", 150, 712, 384), Case("bf16", 70, 136, 200), Case("f8E5M2", 1, 8, 16))


def problem_and_result(case: Case) -> tuple[GemmProblem, dict[str, torch.Tensor], torch.Tensor]:
    module = parse_module(case.text)
    inputs = random_inputs(module, case.m, 1)
    result = run(module, list(inputs.values()))
    assert isinstance(result, torch.Tensor)
    return problem_of(the_matmul(module)), inputs, result


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_right_result_has_no_fault(case: Case):
    assert fault_of(*problem_and_result(case)) is None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_element_that_nobody_wrote_is_found_wherever_it_is(case: Case):
    problem, inputs, result = problem_and_result(case)
    result[case.m // 2, case.n // 3] = torch.nan
    found = fault_of(problem, inputs, result)
    assert found == f"1 of {case.m * case.n} elements are not finite, or were never written"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_last_element_is_found(case: Case):
    problem, inputs, result = problem_and_result(case)
    result[-1, -1] += 0.1 * result.abs().max()
    found = fault_of(problem, inputs, result)
    assert found is not None
    assert found.startswith("out of its bound in a sample: element [")


def test_a_scale_of_the_wrong_block_is_found():
    case = CASES[0]
    problem, inputs, _ = problem_and_result(case)
    module = parse_module(case.text)
    wrong = run(module, [inputs["x"], inputs["xs"], inputs["w"], inputs["ws"].roll(1, 0)])
    assert isinstance(wrong, torch.Tensor)
    assert fault_of(problem, inputs, wrong) is not None


def test_a_sample_has_the_last_and_is_the_same_every_time():
    assert sample(3, 64) == [0, 1, 2]
    found = sample(4096, 64)
    assert found == sorted(set(found)) == sample(4096, 64)
    assert (len(found), found[-1]) == (64, 4095)


@pytest.mark.parametrize(("blocks_k", "padded"), [(56, 56), (5, 8), (1, 4)])
def test_scales_for_cublas_have_the_strides_that_it_asks_for(blocks_k: int, padded: int):
    xs, ws = align_scales(torch.rand(70, blocks_k)), torch.rand(blocks_k, 17)
    a, b = block_wise_scales(xs, ws)
    assert (a.shape, a.stride()) == ((70, blocks_k), (1, 70))
    assert (b.shape, b.stride()) == ((padded, 17), (1, padded))
    assert torch.equal(a, xs)
    assert torch.equal(b[:blocks_k], ws)
    assert not b[blocks_k:].any()


def test_a_library_that_is_not_installed_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    with pytest.raises(Refusal, match="deep_gemm cannot be imported"):
        prepared(deep_gemm_fp8, {})


@pytest.mark.parametrize("when", ["when made", "when launched"])
def test_whatever_a_peer_raises_is_a_refusal_of_one_line(when: str):
    def fail() -> object:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED when calling\n  cublasLtMatmul(...)")

    def make(_: dict[str, torch.Tensor]) -> Callable[[], object]:
        if when == "when made":
            fail()
        return fail

    with pytest.raises(Refusal, match=r"^CUBLAS_STATUS_NOT_SUPPORTED when calling$"):
        prepared(make, {})


def test_a_reason_is_short_and_never_empty():
    assert reason(AssertionError()) == "AssertionError"
    assert len(reason(ValueError("x" * 5000))) == 200


def test_peers_are_asked_for_the_types_that_they_know():
    known = {name: [dtype for dtype in ("f8E4M3FN", "bf16") if peer.maker(dtype)] for name, peer in PEERS.items()}
    assert known == {
        "cublas": ["f8E4M3FN", "bf16"],
        "cublas-block": ["f8E4M3FN"],
        "deep_gemm": ["f8E4M3FN", "bf16"],
        "torch": [],
    }


def test_the_peer_of_bf16_multiplies():
    problem, inputs, _ = problem_and_result(CASES[1])
    got = PEERS["cublas"].make_plain(inputs)()  # type: ignore[misc]
    assert fault_of(problem, inputs, got) is None


def test_the_peer_of_one_scale_a_tensor_multiplies_what_is_stored():
    problem, inputs, _ = problem_and_result(Case("f8E4M3FN", 16, 128, 128))
    got = PEERS["cublas"].make_fp8(inputs)()  # type: ignore[misc]
    unscaled = inputs | {name: torch.ones_like(inputs[name]) for name in ("xs", "ws")}
    assert fault_of(problem, unscaled, got) is None


def dequantised(values: torch.Tensor, scales: torch.Tensor, rows: int) -> torch.Tensor:
    """outer x K values times the scales of `rows` x 128 blocks, which may be more than there are."""
    spread = scales.double().repeat_interleave(rows, 0).repeat_interleave(128, 1)
    return values.double() * spread[: values.shape[0], : values.shape[1]]


def test_deep_gemm_gets_a_and_b_outer_by_k_with_their_scales(monkeypatch: pytest.MonkeyPatch):
    def fp8_gemm_nt(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...], d: torch.Tensor) -> None:
        assert a[0].is_contiguous()
        assert b[0].is_contiguous()
        assert a[1].stride(0) == 1
        d.copy_(dequantised(*a, 1) @ dequantised(*b, 128).t())

    def bf16_gemm_nt(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor) -> None:
        d.copy_(a.double() @ b.double().t())

    fake = SimpleNamespace(fp8_gemm_nt=fp8_gemm_nt, bf16_gemm_nt=bf16_gemm_nt)
    monkeypatch.setitem(sys.modules, "deep_gemm", fake)
    for case in CASES[:2]:
        problem, inputs, result = problem_and_result(case)
        out = torch.full_like(result, torch.nan)
        monkeypatch.setattr(peers, "_result", lambda _, out=out: out)
        make = PEERS["deep_gemm"].maker(case.dtype)
        assert make is not None
        make(inputs)()
        assert fault_of(problem, inputs, out) is None


def test_cublas_gets_block_wise_scales_that_mean_the_same(monkeypatch: pytest.MonkeyPatch):
    def scaled_mm(
        a: torch.Tensor,
        b: torch.Tensor,
        sa: torch.Tensor,
        ra: object,
        sb: torch.Tensor,
        rb: object,
        output_dtype: torch.dtype,
    ) -> torch.Tensor:
        kind = torch.nn.functional.ScalingType
        assert (ra, rb) == (kind.BlockWise1x128, kind.BlockWise128x128)
        return (dequantised(a, sa, 1) @ dequantised(b.t(), sb.t(), 128).t()).to(output_dtype)

    monkeypatch.setattr(torch.nn.functional, "scaled_mm", scaled_mm)
    problem, inputs, _ = problem_and_result(CASES[0])
    got = PEERS["cublas-block"].make_fp8(inputs)()  # type: ignore[misc]
    assert fault_of(problem, inputs, got) is None


def test_a_torch_without_scaled_mm_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.nn.functional, "scaled_mm")
    with pytest.raises(Refusal, match=r"has no torch\.nn\.functional\.scaled_mm"):
        PEERS["cublas-block"].make_fp8({})  # type: ignore[misc]


def test_series_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, int, float, str]] = []

    def clock(launch: Callable[[], object], launches: int, rest: float, flush: str) -> list[float]:
        asked.append((str(launch()), launches, rest, flush))
        return [float(len(asked))] * launches

    monkeypatch.setattr(measure, "kernel_us", clock)
    monkeypatch.setattr(measure, "hot_us", lambda launch: 7.0)
    found = in_turn({"": lambda: "ours", "peer": lambda: "theirs"}, Options(2, 2, True, 0.5, "read"))
    assert [name for name, *_ in asked] == ["ours", "theirs", "ours", "theirs"]
    assert {tuple(how) for _, *how in asked} == {(2, 0.5, "read")}
    assert found[""].series == ((1.0, 1.0), (3.0, 3.0))
    assert (found["peer"].series, found["peer"].hot_us) == (((2.0, 2.0), (4.0, 4.0)), 7.0)


def test_the_calibration_is_one_scale_per_tensor_at_one_shape(monkeypatch: pytest.MonkeyPatch):
    small = Case("f8E4M3FN", 16, 128, 128)
    asked: list[tuple[Case, str]] = []

    def inputs_of(case: Case, seed: int, device: str) -> dict[str, torch.Tensor]:
        asked.append((case, device))
        return random_inputs(parse_module(small.text), small.m, seed)

    def clock(launch: Callable[[], object], launches: int, rest: float, flush: str) -> list[float]:
        result = launch()
        assert isinstance(result, torch.Tensor)
        return [float(result.shape[0])] * launches

    monkeypatch.setattr("gemmir.bench.inputs.inputs_of", inputs_of)
    monkeypatch.setattr(measure, "kernel_us", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = measure.calibrate(Options(launches=2, rest=0.0))
    assert asked == [(Case("f8E4M3FN", 4096, 7168, 2048), "cuda")]
    assert (found.case, found.peer, found.result.timing) == (asked[0][0], "cublas", Timing(((16.0, 16.0),)))

    def fail(_: object) -> Callable[[], object]:
        raise RuntimeError("no FP8 here")

    monkeypatch.setattr(measure, "cublas_per_tensor", fail)
    assert measure.calibrate(Options()).result == PeerResult(None, "no FP8 here")
