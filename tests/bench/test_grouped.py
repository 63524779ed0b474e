"""Products of several groups: cases and sets, their tensors, the check of a result, peers. On the CPU."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gemmir.backends.cuda.arguments import check_arguments, describe
from gemmir.backends.cuda.driver import DeviceInfo
from gemmir.backends.reference import run
from gemmir.bench import inputs as inputs_module
from gemmir.bench import measure
from gemmir.bench.cases import Case
from gemmir.bench.check import fault_of, sample
from gemmir.bench.floor import floor_us, flops, unique_bytes
from gemmir.bench.grouped import (
    GROUPED_SETS,
    GROUPINGS,
    GroupedCase,
    case_from,
    grouped_sets,
    schedule_from,
)
from gemmir.bench.grouped_peers import ids_of_ends, maker_for, with_whole_tiles
from gemmir.bench.inputs import Inputs, inputs_of
from gemmir.bench.peers import PEERS, Refusal
from gemmir.bench.report import PeerResult
from gemmir.bench.timing import Timing
from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import InputError, IRError
from gemmir.ir_text import parse_module
from gemmir.problem import GemmProblem

TYPES = ("f8E4M3FN", "bf16")
CASES = [
    GroupedCase(dtype, grouping, 3, 100, 264, 256 if grouping == "k_offs" else 272)
    for dtype in TYPES
    for grouping in GROUPINGS
]


def problem_of_case(case: GroupedCase) -> GemmProblem:
    return problem_of(the_matmul(parse_module(case.text)))


def right_result(case: GroupedCase, inputs: Inputs) -> torch.Tensor:
    """What a kernel leaves in a result that was NaN."""
    dtype = torch.float32 if case.along_k else torch.bfloat16
    result = torch.empty(case.result_shape, dtype=dtype).fill_(torch.nan)
    run(parse_module(case.text), list(inputs.values()), out=result)
    return result


def last_rows(case: GroupedCase, result: torch.Tensor) -> torch.Tensor:
    """Those of the last group."""
    first = (case.groups - 1) * case.pitch
    return result[first : first + case.rows] if result.dim() == 2 else result[-1]


def test_the_sets_hold_the_agreed_shapes():
    big, small = (4096, 7168), (7168, 2048)
    contiguous = [(g, m, *nk) for g, m in ((4, 8192), (8, 4096)) for nk in (big, small)]
    assert GROUPED_SETS["contiguous"].shapes == (*contiguous, (8, 256, *big), (32, 128, *small))
    masked = [(g, m, *nk) for g, m in ((1, 1024), (2, 512), (4, 256)) for nk in (big, small)]
    assert GROUPED_SETS["masked"].shapes == (*masked, (32, 20, *big), (32, 192, *small))
    assert [found.grouping.value for found in grouped_sets("grouped")] == ["offs", "counts", "k_offs"]
    assert [found.dtypes for found in grouped_sets("grouped")] == [TYPES, TYPES[:1], TYPES]
    assert GROUPED_SETS["k-grouped"].shapes == ((4, 4096, 7168, 8192), (8, 7168, 2048, 4096))
    assert grouped_sets("dense") == ()


@pytest.mark.parametrize(
    ("grouping", "m", "result", "index"),
    [
        ("offs", 300, (300, 264), (100, 200, 300)),
        ("group_ids", 384, (384, 264), ((0,) * 100 + (-1,) * 28 + (1,) * 100 + (-1,) * 28 + (2,) * 100 + (-1,) * 28)),
        ("counts", 100, (3, 100, 264), (100, 100, 100)),
        ("batch", 100, (3, 100, 264), ()),
        ("k_offs", 100, (3, 100, 264), (272, 544, 816)),
    ],
)
def test_every_group_has_the_stated_rows(grouping: str, m: int, result: tuple[int, ...], index: tuple[int, ...]):
    case = GroupedCase("bf16", grouping, 3, 100, 264, 272)
    assert (case.m, case.result_shape, case.index) == (m, result, index)
    assert GroupedCase("bf16", "group_ids", 3, 256, 264, 272).m == 768


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_program_leaves_m_open_and_says_what_to_expect(case: GroupedCase):
    problem = problem_of_case(case)
    assert (problem.m, problem.n, problem.k, problem.groups) == (None, 264, 768 if case.along_k else 272, 3)
    assert (problem.grouping, problem.expected_m, problem.a.name) == (case.form, case.m, case.dtype)
    fp8 = case.dtype.startswith("f8")
    weights = "1x128" if case.along_k else "128x128"
    assert (problem.scale_a.value, problem.scale_b.value) == (("1x128", weights) if fp8 else ("none", "none"))
    assert problem.d.name == ("f32" if case.along_k else "bf16")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_takes_the_tensors_as_they_lie(case: GroupedCase):
    manifest = lower(case.program()).manifest
    assert manifest is not None
    inputs = inputs_of(case, 1, "cpu")
    assert [spec.name for spec in manifest.inputs] == list(inputs)
    infos = [replace(describe(tensor, name), device_type="cuda") for name, tensor in inputs.items()]
    assert check_arguments(manifest, infos) == case.m


def test_dense_cases_have_the_tensors_that_they_had():
    inputs = inputs_of(Case("f8E4M3FN", 5, 136, 272), 1, "cpu")
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "x": (5, 272),
        "xs": (5, 3),
        "w": (272, 136),
        "ws": (3, 2),
    }


def test_flops_and_bytes_are_of_the_rows_that_count_and_of_every_b():
    case = GroupedCase("f8E4M3FN", "group_ids", 3, 100, 264, 272)
    assert flops(case) == 2 * 300 * 264 * 272
    assert unique_bytes(case) == (300 + 3 * 264) * 272 + 300 * 264 * 2 + 4 * 3 * (300 + 3 * 3)
    assert unique_bytes(replace(case, dtype="bf16")) == 2 * ((300 + 3 * 264) * 272 + 300 * 264)
    assert flops(replace(case, groups=1, grouping="offs")) == flops(Case("f8E4M3FN", 100, 264, 272))
    assert unique_bytes(replace(case, groups=1)) == unique_bytes(Case("f8E4M3FN", 100, 264, 272))


def test_the_floor_of_a_few_rows_of_many_groups_is_reading_b():
    found = floor_us(GroupedCase("f8E4M3FN", "counts", 32, 20, 4096, 7168), "NVIDIA H200")
    moved = 640 * 7168 + 32 * 4096 * 7168 + 2 * 640 * 4096 + 4 * 56 * (640 + 32 * 32)
    assert found == pytest.approx(moved / 4.8e12 * 1e6)
    assert found is not None
    assert round(found, 1) == 197.9


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_right_result_has_no_fault(case: GroupedCase):
    inputs = inputs_of(case, 1, "cpu")
    assert fault_of(problem_of_case(case), inputs, right_result(case, inputs)) is None


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_what_is_wrong_is_found(case: GroupedCase):
    inputs, problem = inputs_of(case, 1, "cpu"), problem_of_case(case)
    right = right_result(case, inputs)

    first = 2 * case.pitch if case.form.contiguous else 0
    hole = right.clone()
    last_rows(case, hole)[40, 50] = torch.nan
    assert fault_of(problem, inputs, hole) == "1 of 79200 elements are not finite, or were never written"

    off = right.clone()
    last_rows(case, off)[-1, -1] += 0.1 * last_rows(case, off).abs().max()
    found = fault_of(problem, inputs, off)
    assert found is not None
    assert found.startswith(f"out of its bound in a sample of group 2 from row {first}: element [63, ")

    wrong_b = inputs | {"w": inputs["w"].roll(1, 0)}
    assert "out of its bound" in str(fault_of(problem, wrong_b, right))
    wrong_scales = inputs | {"ws": inputs["ws"].roll(1, 0)}
    assert "out of its bound" in str(fault_of(problem, wrong_scales, right))


def test_rows_that_belong_to_no_group_must_not_be_written():
    case = GroupedCase("bf16", "group_ids", 3, 100, 264, 272)
    inputs = inputs_of(case, 1, "cpu")
    result = right_result(case, inputs)
    assert int(result.isnan().all(1).sum()) == 84
    result[228, 3:5] = 0.0
    assert fault_of(problem_of_case(case), inputs, result) == "2 elements of rows that belong to no group were written"


def test_the_last_group_is_in_the_sample_of_many():
    case = GroupedCase("bf16", "offs", 9, 3, 16, 64)
    inputs = inputs_of(case, 1, "cpu")
    result = right_result(case, inputs)
    assert len(sample(9, 4)) == 4
    result[-1] = result[-1].roll(1)
    assert "of group 8 from row 24" in str(fault_of(problem_of_case(case), inputs, result))


@pytest.mark.parametrize("fault", [False, True])
def test_a_case_is_checked_and_then_timed_with_its_peers(fault: bool, monkeypatch: pytest.MonkeyPatch):
    """All of it on the CPU: a kernel of the reference, and a clock that tells who was timed."""
    case = GroupedCase("bf16", "offs", 3, 100, 264, 272)
    full, timed = torch.full, list[object]()

    def kernel(*tensors: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(right_result(case, dict(zip(("x", "w", "index"), tensors, strict=True))))
        out[-1, -1] += 100.0 if fault else 0.0

    def clock(launch: Callable[[], object], launches: int, rest: float, flush: str) -> list[float]:
        timed.append(launch())
        return [5.0] * launches

    manifest = lower(case.program()).manifest
    monkeypatch.setattr(inputs_module, "inputs_of", lambda case, seed, _: inputs_of(case, seed, "cpu"))
    monkeypatch.setattr(torch, "full", lambda shape, value, dtype, device: full(shape, value, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(measure, "kernel_us", clock)
    monkeypatch.setattr(kernel, "manifest", manifest, raising=False)
    info, options = DeviceInfo("NVIDIA H200", 132, (9, 0), 232448), measure.Options(launches=2)
    row = measure.measure(case, kernel, [PEERS["cublas"], PEERS["torch"]], options, info)  # type: ignore[arg-type]
    assert (row.case, row.floor_us) == (case, floor_us(case, "NVIDIA H200"))
    if fault:
        assert (row.timing, timed) == (None, [])
        assert "of group 2 from row 200" in row.fault
        return
    assert row.timing == Timing(((5.0, 5.0),))
    assert row.peers == {"torch": PeerResult(Timing(((5.0, 5.0),)))}
    assert len(timed) == 2


def test_a_part_of_the_schedule_can_be_fixed():
    case = GroupedCase("f8E4M3FN", "counts", 2, 20, 256, 256)
    assert schedule_from("", case) is None
    schedule = lower(case.program(schedule_from("stages = 2", case)), until="schedule").schedule
    assert "stages = 2" in schedule
    assert "block = " in schedule
    with pytest.raises(IRError):
        schedule_from("speed = 9", case)
    with pytest.raises(InputError, match="split_k = 2 with counts"):
        case.program(split_k=2)


def test_a_case_survives_as_its_fields():
    case = GroupedCase("bf16", "batch", 3, 100, 264, 272)
    fields = {"dtype": "bf16", "grouping": "batch", "groups": 3, "rows": 100, "n": 264, "k": 272}
    assert case_from(fields) == case
    assert case_from({"dtype": "bf16", "m": 1, "n": 2, "k": 3}) == Case("bf16", 1, 2, 3)
    assert (str(case), case.kind) == ("bf16-batch-3x100x264x272", "bf16, groups by batch")


def test_peers_are_asked_for_what_they_know():
    def known_by(case: GroupedCase) -> list[str]:
        return [name for name, peer in PEERS.items() if maker_for(peer, case)]

    known = {(form, dtype): known_by(GroupedCase(dtype, form, 1, 1, 8, 8)) for form in GROUPINGS for dtype in TYPES}
    assert known == {
        ("offs", "f8E4M3FN"): ["deep_gemm"],
        ("offs", "bf16"): ["deep_gemm", "torch"],
        ("group_ids", "f8E4M3FN"): ["deep_gemm"],
        ("group_ids", "bf16"): ["deep_gemm"],
        ("counts", "f8E4M3FN"): ["deep_gemm"],
        ("counts", "bf16"): ["deep_gemm"],
        ("batch", "f8E4M3FN"): [],
        ("batch", "bf16"): ["cublas"],
        ("k_offs", "f8E4M3FN"): [],
        ("k_offs", "bf16"): [],
    }
    assert maker_for(PEERS["cublas"], Case("bf16", 1, 8, 8)) is PEERS["cublas"].make_plain


@pytest.mark.parametrize(("peer", "grouping"), [("torch", "offs"), ("cublas", "batch")])
def test_a_peer_of_torch_multiplies_the_same(peer: str, grouping: str):
    case = GroupedCase("bf16", grouping, 3, 100, 264, 272)
    inputs = inputs_of(case, 1, "cpu")
    make = maker_for(PEERS[peer], case)
    assert make is not None
    got = make(inputs)()
    assert isinstance(got, torch.Tensor)
    assert fault_of(problem_of_case(case), inputs, got) is None


def test_a_torch_without_groups_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch, "_grouped_mm")
    make = maker_for(PEERS["torch"], GroupedCase("bf16", "offs", 1, 1, 8, 8))
    assert make is not None
    with pytest.raises(Refusal, match=r"has no torch\._grouped_mm"):
        make({})


def dequantised(values: object, rows: int) -> torch.Tensor:
    """(.., outer, K) values times the scales of `rows` x 128 blocks, if they come with any."""
    if isinstance(values, torch.Tensor):
        return values.double()
    assert isinstance(values, tuple)
    numbers, scales = values
    spread = scales.double().repeat_interleave(rows, -2).repeat_interleave(128, -1)
    return numbers.double() * spread[..., : numbers.shape[-2], : numbers.shape[-1]]


def fake_deep_gemm(calls: list[torch.Tensor]) -> SimpleNamespace:
    """DeepGEMM's functions by what they mean; the results that they wrote are added to `calls`."""

    def contiguous(a: object, b: object, d: torch.Tensor, ids: torch.Tensor) -> None:
        left, right = dequantised(a, 1), dequantised(b, 128)
        assert (ids.dtype, ids.shape) == (torch.int32, d.shape[:1])
        for row, group in enumerate(ids.tolist()):
            d[row] = torch.nan if group < 0 else left[row] @ right[group].t()
        calls.append(d)

    def masked(a: object, b: object, d: torch.Tensor, counts: torch.Tensor, expected_m: int) -> None:
        assert (d.shape[1] % 128, counts.tolist(), expected_m) == (0, [100, 100, 100], 100)
        d.copy_(dequantised(a, 1) @ dequantised(b, 128).mT)
        calls.append(d)

    return SimpleNamespace(
        m_grouped_fp8_gemm_nt_contiguous=contiguous,
        m_grouped_bf16_gemm_nt_contiguous=contiguous,
        m_grouped_fp8_gemm_nt_masked=masked,
        m_grouped_bf16_gemm_nt_masked=masked,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("grouping", "rows"), [("offs", 128), ("group_ids", 100), ("counts", 100)])
def test_deep_gemm_gets_the_same_operands(dtype: str, grouping: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    calls: list[torch.Tensor] = []
    monkeypatch.setitem(sys.modules, "deep_gemm", fake_deep_gemm(calls))
    case = GroupedCase(dtype, grouping, 3, rows, 264, 272)
    inputs = inputs_of(case, 1, "cpu")
    make = maker_for(PEERS["deep_gemm"], case)
    assert make is not None
    make(inputs)()
    got = calls[0][:, : case.m] if grouping == "counts" else calls[0]
    assert fault_of(problem_of_case(case), inputs, got) is None


def test_groups_that_deep_gemm_cannot_start_are_refused():
    inputs = inputs_of(GroupedCase("bf16", "offs", 3, 100, 8, 8), 1, "cpu")
    with pytest.raises(Refusal, match="a group starts at row 100"):
        ids_of_ends(inputs)
    alone = inputs_of(GroupedCase("bf16", "offs", 1, 100, 8, 8), 1, "cpu")
    assert ids_of_ends(alone).tolist() == [0] * 100


def test_rows_are_added_for_whole_tiles_only_where_they_are_missing():
    whole = inputs_of(GroupedCase("f8E4M3FN", "counts", 2, 128, 136, 272), 1, "cpu")
    assert with_whole_tiles(whole) is whole
    given = inputs_of(GroupedCase("f8E4M3FN", "counts", 2, 20, 136, 272), 1, "cpu")
    found = with_whole_tiles(given)
    assert (found["x"].shape, found["xs"].shape, found["xs"].stride()) == ((2, 128, 272), (2, 128, 3), (384, 1, 128))
    assert torch.equal(found["x"][:, :20].float(), given["x"].float())
    assert torch.equal(found["xs"][:, :20], given["xs"])
    assert not found["x"][:, 20:].float().any()
