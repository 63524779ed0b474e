"""
Kernels for few rows on a Hopper GPU: the model's bits whatever the schedule, the parts of K and the delays; rows that
do not depend on the batch; layers that overlap.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.bench.cases import program_text
from gemmir.decode import decode_split_k
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import ScheduleError
from gemmir.ir_text import parse_module
from gemmir.testing.torch_model import gemm_model
from tests.gpu.problems import Case

pytestmark = pytest.mark.gpu

SEED = 20261126
DRAWN = 300
SLACK = 16
HELD = -77.0
"""What stands in memory around a result, and in it, before a kernel runs."""

LAYERS = (
    Case("f8E4M3FN", 128, 4096, 7168),
    Case("f8E4M3FN", 128, 2112, 7168),
    Case("f8E4M3FN", 128, 512, 4096),
    Case("bf16", 128, 4096, 7168),
    Case("bf16", 128, 2112, 7168),
    Case("bf16", 128, 512, 4096),
)
"""One, two and three parts of K by default."""


def drawn(count: int = DRAWN) -> list[tuple[Case, str]]:
    """Products of 1 to 300 rows with schedules of the stream family; the same every time."""
    source = random.Random(SEED)
    found: list[tuple[Case, str]] = []
    while len(found) < count:
        dtype = source.choice(["f8E4M3FN", "f8E4M3FN", "bf16", "bf16", "f8E5M2", "f16"])
        fp8, parts = dtype.startswith("f8"), source.choice([1, 1, 2, 3])
        step = 16 if fp8 else 8
        k = step * source.randint(1, 2400 // step)
        case = Case(dtype, source.choice([1, 2, 7, 8, 9, 63, 64, 65, 128, source.randint(1, 300)]),
                    8 * source.randint(1, 300), k, parts)  # fmt: skip
        blocks = -(-k // (128 if fp8 else 64))
        if (parts - 1) * -(-blocks // parts) >= blocks:
            continue
        groups = source.choice([1, 2])
        waves = 1 if fp8 or parts > 1 else source.choice([1, 2])
        block = f"block = {8 * source.randint(1, 16)}x{64 * groups * waves}x{128 if fp8 else 64}"
        chunk = source.choice([1, 2, 4]) if fp8 else 1
        stages = source.choice(["", "", f", stages = {source.randint(2, 9)}"])
        found.append((case, f"family = stream, {block}, warpgroups = {groups} along n, chunk = {chunk}{stages}"))
    return found


def expected_of(case: Case, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    operands = (inputs.get(name) for name in ("x", "w", "xs", "ws"))
    return gemm_model(problem_of(the_matmul(parse_module(case.text))), *operands)  # type: ignore[arg-type]


def compiled(case: Case, schedule: str = "", chaos: bool = False) -> gemmir.CompiledKernel:
    text = program_text(case.n, case.k, case.dtype, schedule, case.split_k)
    return gemmir.compile(text, m=case.m, cache=chaos is False, chaos=chaos)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))


def test_drawn_products_have_the_bits_of_the_model_and_nothing_else_is_written() -> None:
    ran, wrong = 0, []
    for case, schedule in drawn():
        try:
            kernel = compiled(case, schedule)
        except ScheduleError:  # too much shared memory, or too many registers
            continue
        inputs = random_inputs(parse_module(case.text), case.m, ran, "cuda")
        dtype = torch.float16 if case.dtype == "f16" else torch.bfloat16
        held = torch.full((case.m + SLACK, case.n), HELD, dtype=dtype, device="cuda")
        out = held[SLACK // 2 : SLACK // 2 + case.m]
        kernel(*inputs.values(), out=out)
        around = bool((held[: SLACK // 2] == HELD).all() & (held[SLACK // 2 + case.m :] == HELD).all())
        if not around or not same(out, expected_of(case, inputs)):
            wrong.append((case, schedule, around))
        ran += 1
    assert wrong == []
    assert ran > DRAWN * 2 // 3


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(case: Case) -> None:
    """M from 1 to 128, each with the kernel that `gemmir.matmul` takes for it."""
    x, w, *_ = (inputs := random_inputs(parse_module(case.text), case.m, 5, "cuda")).values()
    x, w, xs, ws = inputs["x"], inputs["w"], inputs.get("xs"), inputs.get("ws")

    def product(m: int) -> torch.Tensor:
        scale_a = None if xs is None else gemmir.align_scales(xs[:m])
        return gemmir.matmul(x[:m], w, scale_a=scale_a, scale_b=ws)

    whole = product(case.m)
    split = Case(case.dtype, case.m, case.n, case.k, decode_split_k(case.n, case.k, case.dtype))
    assert same(whole, expected_of(split, inputs))
    different = [m for m in range(1, case.m + 1) if not same(product(m), whole[:m])]
    assert different == []


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
def test_the_parts_of_k_may_follow_m(fp8: bool) -> None:
    """Which is within rounding of the default, and has the bits of the model for some number of parts."""
    case = Case("f8E4M3FN" if fp8 else "bf16", 16, 512, 4096)
    inputs = random_inputs(parse_module(case.text), case.m, 6, "cuda")
    scales = {"scale_a": inputs.get("xs"), "scale_b": inputs.get("ws")}
    result = gemmir.matmul(inputs["x"], inputs["w"], **scales, batch_invariant=False)
    parts = [Case(case.dtype, case.m, case.n, case.k, p) for p in (1, 2, 3)]
    assert any(same(result, expected_of(split, inputs)) for split in parts)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8E4M3FN", "bf16"])
def test_delays_change_no_bit(dtype: str, parts: int) -> None:
    """Two tiles of rows and, for most CTAs, several tiles: slots of scales and sums are used again."""
    fp8 = dtype == "f8E4M3FN"
    case = Case(dtype, 77, 40 * 512, 1536, parts)
    schedule = f"family = stream, block = 40x64x{128 if fp8 else 64}, warpgroups = 1 along n"
    inputs = random_inputs(parse_module(case.text), case.m, 8, "cuda")
    expected = expected_of(case, inputs)
    kernel, out = compiled(case, schedule, chaos=True), torch.empty_like(expected)
    for seed in range(100):
        kernel.reseed(seed)
        kernel(*inputs.values(), out=out.fill_(float("nan")))
        assert same(out, expected), seed


@pytest.mark.parametrize("parts", [1, 2])
def test_layers_that_overlap_see_what_the_ones_before_wrote(parts: int) -> None:
    """Thirty products, each of the result before, in one captured graph: with overlap as without."""
    case = Case("bf16", 24, 2048, 2048, parts)
    kernel = compiled(case, "family = stream")
    assert kernel.manifest.waits
    x, w = random_inputs(parse_module(case.text), case.m, 9, "cuda").values()
    w = (w.float() / w.float().norm() * 40).to(torch.bfloat16).t().contiguous().t()
    check_chain(lambda held, out, overlap: kernel(held, w, out=out, overlap=overlap), x)


def test_groups_that_overlap_see_what_the_ones_before_wrote() -> None:
    """The same with groups, of which some rows count."""
    groups, rows, size = 8, 24, 1024
    generator = torch.Generator("cuda").manual_seed(9)
    x = torch.randn(groups, rows, size, generator=generator, device="cuda").bfloat16()
    w = (torch.randn(groups, size, size, generator=generator, device="cuda") / size**0.5).bfloat16()
    counts = torch.tensor([rows, 1, 0, 7, 8, 9, 23, rows], dtype=torch.int32, device="cuda")
    grouped = partial(gemmir.grouped_matmul, counts=counts, expected_m=rows)
    check_chain(lambda held, out, overlap: grouped(held, w.mT, out=out, overlap=overlap), x)


def check_chain(step: Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor], x: torch.Tensor) -> None:
    """Thirty steps, each of the result before, have the same bits with overlap as without, captured and not."""
    results = [torch.full_like(x, HELD) for _ in range(30)]

    def chain(overlap: bool) -> None:
        held = x
        for result in results:
            held = step(held, result, overlap)

    chain(False)
    expected = [result.clone() for result in results]
    assert len({tuple(result.flatten()[:8].tolist()) for result in expected}) > 10
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain(True)
    for _ in range(50):
        for result in results:
            result.fill_(HELD)
        graph.replay()
        assert all(same(*pair) for pair in zip(results, expected, strict=True))
    for result in results:
        result.fill_(HELD)
    chain(True)
    assert all(same(*pair) for pair in zip(results, expected, strict=True))


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "bf16"])
def test_rows_of_groups_that_do_not_count_are_not_written(dtype: str) -> None:
    from gemmir.bench.grouped import GroupedCase
    from gemmir.bench.inputs import inputs_of
    from gemmir.schedule import Family, Schedule

    case = GroupedCase(dtype, "counts", 32, 20, 1024, 768)
    inputs = inputs_of(case, 3, "cuda")
    counts = [(7 * g) % 21 for g in range(32)]
    inputs["index"].copy_(torch.tensor(counts, dtype=torch.int32))
    streamed, tiled = (torch.full(case.result_shape, HELD, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for family, out in ((Family.STREAM, streamed), (Family.TILES, tiled)):
        kernel = gemmir.compile(case.program(Schedule(family=family)), cache=False)
        kernel(*inputs.values(), out=out)
    assert same(streamed, tiled)
    for group, count in enumerate(counts):
        assert bool((streamed[group, count:] == HELD).all())
        assert count == 0 or bool((streamed[group, :count] != HELD).any())
