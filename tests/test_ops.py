"""Products in one call: on the CPU the meaning of the program that they build, on a GPU its kernel."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gemmir
from gemmir import ops
from gemmir.backends.reference import random_inputs
from gemmir.backends.reference import run as run_reference
from gemmir.bench.cases import Case
from gemmir.compiler import fastest_split_k, lower
from gemmir.decode import decode_split_k
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import InputError, UnsupportedError
from gemmir.guards import Facts
from gemmir.ir_text import parse_module
from gemmir.problem import Grouping, Recipe
from gemmir.product_calls import Asked, Call, program_of
from gemmir.reference_calls import Reference
from gemmir.testing.groups import extent_of, grouped_problems, indices
from gemmir.testing.oracles import simulated
from gemmir.testing.strategies import fp8_problem, half_problem, program_text
from gemmir.testing.torch_model import gemm_model
from tests.backends.cuda.cuda_doubles import DeviceTensor

BF16, F32 = torch.bfloat16, torch.float32


def i32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=2**-8, atol=2**-16)


def test_one_product():
    a, b, c = bf16(5, 64), bf16(64, 16), bf16(5, 16)
    close(gemmir.matmul(a, b), a.double() @ b.double())
    close(gemmir.matmul(a, b, c=c, out_dtype=F32), a.double() @ b.double() + c.double())
    out = torch.empty(5, 16, dtype=torch.float16)
    assert gemmir.matmul(a, b, out=out) is out
    close(out, a.double() @ b.double())


def test_rows_in_groups():
    a, b = bf16(9, 64), bf16(3, 64, 16)
    out = torch.full((9, 16), 7.0).bfloat16()
    assert gemmir.grouped_matmul(a, b, offs=i32(2, 2, 8), out=out, validate=True) is out
    close(out[:2], a[:2].double() @ b[0].double())
    close(out[2:8], a[2:8].double() @ b[2].double())
    assert bool((out[8] == 7).all())
    ids = i32(*[2] * 5, *[-1] * 4)
    close(gemmir.grouped_matmul(a, b, group_ids=ids)[:5], a[:5].double() @ b[2].double())


def test_rows_that_count():
    a, b = bf16(3, 4, 64), bf16(3, 64, 16)
    result = gemmir.grouped_matmul(a, b, counts=i32(4, 0, 1))
    assert result.shape == (3, 4, 16)
    close(result[0], a[0].double() @ b[0].double())
    close(result[2, :1], a[2, :1].double() @ b[2].double())
    close(gemmir.batched_matmul(a, b), a.double() @ b.double())


def test_k_in_groups():
    """The gradient of each group's weights: a k-major operand is not asked of 16-bit ones."""
    x, dy = bf16(192, 16), bf16(192, 32)
    result = gemmir.grouped_matmul(dy.t(), x, offs=i32(64, 64, 192))
    assert (result.shape, result.dtype) == ((3, 32, 16), F32)
    close(result[0], dy[:64].t().double() @ x[:64].double())
    assert not result[1].any()
    close(result[2], dy[64:].t().double() @ x[64:].double())


@given(data=st.data(), grouping=st.sampled_from(Grouping), seed=st.integers(0, 99))
def test_a_call_is_its_program(data: st.DataObject, grouping: Grouping, seed: int):
    """Recipes are read off the shapes of the scales, and the result is that of the program."""
    problem = data.draw(grouped_problems(grouping, most_m=140, most_groups=3))
    if grouping is Grouping.NONE:
        problem = replace(problem, groups=1)
    module = parse_module(program_text(problem))
    inputs = random_inputs(module, None, seed)
    index = {}
    if "index" in inputs:
        drawn = data.draw(indices(grouping, extent_of(problem)))
        inputs["index"] = torch.tensor(drawn, dtype=torch.int32)
        index = {"offs" if grouping is Grouping.K_OFFS else grouping.value: inputs["index"]}
    call = {Grouping.NONE: gemmir.matmul, Grouping.BATCH: gemmir.batched_matmul}.get(grouping, gemmir.grouped_matmul)
    scales = {"scale_a": inputs.get("xs"), "scale_b": inputs.get("ws")}
    dtype = getattr(torch, problem.d.torch_name)
    got = call(inputs["x"], inputs["w"], **index, **scales, out_dtype=dtype)  # type: ignore[arg-type]
    expected = run_reference(module, list(inputs.values()))
    assert isinstance(expected, torch.Tensor)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("scale_a", "scale_b", "recipes"),
    [
        ((9, 2), (2, 2), (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)),
        ((9, 2), (2, 144), (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_1X128)),
        ((9, 1), (1, 144), (Recipe.ROW_WISE, Recipe.ROW_WISE)),
        ((), (), (Recipe.TENSOR_WISE, Recipe.TENSOR_WISE)),
    ],
)
def test_recipes_of_scales(scale_a: tuple[int, ...], scale_b: tuple[int, ...], recipes: tuple[Recipe, Recipe]):
    a, b = torch.ones(9, 256).to(torch.float8_e4m3fn), torch.ones(144, 256).to(torch.float8_e4m3fn).t()
    calls = recorded(lambda: ops.matmul(a, b, scale_a=torch.full(scale_a, 2.0), scale_b=torch.full(scale_b, 0.5)))
    problem = problem_of(the_matmul(program_of(calls[0]).module))
    assert (problem.scale_a, problem.scale_b) == recipes
    assert bool((ops.matmul(a, b, scale_a=torch.full(scale_a, 2.0), scale_b=torch.full(scale_b, 0.5)) == 256).all())


def recorded(call: Callable[[], object]) -> list[Call]:
    """What `call` asks for."""
    found: list[Call] = []
    right = ops._reference

    def note(asked: Call) -> Any:
        found.append(asked)
        return right(asked)

    ops.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_reference", note)
        call()
    return found


def test_one_program_serves_every_m():
    b = bf16(3, 64, 16)
    asked = recorded(
        lambda: [
            ops.grouped_matmul(bf16(m, 64), b, group_ids=torch.full((m,), -1, dtype=torch.int32)) for m in (0, 1, 7)
        ]
    )
    asked += recorded(lambda: [ops.grouped_matmul(bf16(m, 64), b, offs=i32(0, 0, 0)) for m in (1, 7)])
    assert len(set(asked)) == 2
    assert ops._reference(asked[0]) is ops._reference(asked[2])


def test_shapes_that_were_seen_are_found_at_once():
    b = bf16(64, 16)
    assert len(recorded(lambda: [ops.matmul(bf16(m, 64), b) for m in (3, 3, 5, 3)])) == 2
    known = len(ops._known)
    assert known == 2, "one each for M = 3 and 5"
    c = bf16(3, 16)
    out = torch.empty(3, 16)
    for options in ({"c": c}, {"out": out}, {"out_dtype": F32}, {"expected_m": 9}, {"c": c, "out_dtype": F32}):
        ops.matmul(bf16(3, 64), b, **options)
        known += 1
        assert len(ops._known) == known


def test_shapes_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "MAX_SHAPES", 3)
    for m in range(9):
        close(ops.matmul(bf16(m, 64), B[0]), bf16(m, 64).double() @ B[0].double())
        assert len(ops._known) <= 3


def test_expected_rows_are_part_of_the_program():
    a, b = bf16(3, 4, 64), bf16(3, 64, 16)
    (call,) = recorded(lambda: ops.grouped_matmul(a, b, counts=i32(1, 2, 3), expected_m=2))
    assert problem_of(the_matmul(program_of(call).module)).group_rows == 2


A, B = bf16(9, 64), bf16(3, 64, 16)
CALLS: dict[str, tuple[str, str, Callable[[], object]]] = {
    "no index": ("GMR-I005", "grouped_matmul with no index", lambda: ops.grouped_matmul(A, B)),
    "two": ("GMR-I005", "with offs and counts", lambda: ops.grouped_matmul(A, B, offs=i32(1), counts=i32(1))),
    "no tensor": ("GMR-I005", "a: list", lambda: ops.matmul([1], B[0])),  # type: ignore[arg-type]
    "no index tensor": ("GMR-I005", "offs: list", lambda: ops.grouped_matmul(A, B, offs=[1, 2, 3])),  # type: ignore[arg-type]
    "no output tensor": ("GMR-I005", "out: int", lambda: ops.matmul(A, B[0], out=3)),  # type: ignore[arg-type]
    "rank": ("GMR-I002", "a: 64 of bf16: rank 1", lambda: ops.matmul(A[0], B[0])),
    "k": ("GMR-I002", "K is 64 in a: ?x64 of bf16 but 9 in b: 9x64", lambda: ops.matmul(A, A)),
    "groups": ("GMR-I002", "offs: 2 of i32, expected 3", lambda: ops.grouped_matmul(A, B, offs=i32(1, 2))),
    "ids": ("GMR-I002", "M is", lambda: ops.grouped_matmul(A, B, group_ids=i32(1, 2))),
    "ids that are validated": (
        "GMR-I002",
        "M is",
        lambda: ops.grouped_matmul(A, B, group_ids=i32(1, 2), validate=True),
    ),
    "index type": ("GMR-I001", "dtype 'int64'", lambda: ops.grouped_matmul(A, B, offs=i32(1, 2, 3).long())),
    "float index": ("GMR-I001", "offs: 3 of f32", lambda: ops.grouped_matmul(A, B, offs=torch.ones(3))),
    "result type": ("GMR-I001", "cast", lambda: ops.matmul(A, B[0], out_dtype=torch.int32)),
    "scales": ("GMR-I001", "only FP8 operands are scaled", lambda: ops.matmul(A, B[0], scale_a=A, scale_b=A)),
    "out": ("GMR-I002", "out: shape is (9, 8)", lambda: ops.matmul(A, B[0], out=torch.empty(9, 8))),
    "out of another type": (
        "GMR-I001",
        "out: dtype is torch.float32",
        lambda: ops.matmul(A, B[0], out=torch.empty(9, 16), out_dtype=BF16),
    ),
    "gradient": ("GMR-I005", "b: requires a gradient", lambda: ops.matmul(A, B[0].clone().requires_grad_())),
    "device": ("GMR-I004", "a: is on meta", lambda: ops.matmul(A.to("meta"), B[0].to("meta"))),
    "devices": ("GMR-I004", "b is on meta", lambda: ops.matmul(A, B[0].to("meta"))),
    "validation": (
        "GMR-I009",
        "offs[1] = 1: group 1 begins at 2",
        lambda: ops.grouped_matmul(A, B, offs=i32(2, 1, 9), validate=True),
    ),
    "expected": ("GMR-I009", "expect m = 0", lambda: ops.matmul(A, B[0], expected_m=0)),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_call_that_is_wrong_raises(case: str):
    code, what, call = CALLS[case]
    with pytest.raises((InputError, UnsupportedError)) as caught:
        call()
    assert caught.value.code == code
    assert what in str(caught.value)


def test_an_invalid_group_is_not_written_and_no_error():
    out = torch.full((9, 16), 7.0).bfloat16()
    ops.grouped_matmul(A, B, offs=i32(2, 1, 9), out=out)
    close(out[:2], A[:2].double() @ B[0].double())
    close(out[2:], A[2:].double() @ B[2].double())


# ------------------------------------------------------------ on a GPU


class CudaTensor(DeviceTensor):
    def dim(self) -> int:
        return len(self.shape)

    def stride(self, axis: int | None = None) -> Any:
        return self._strides if axis is None else self._strides[axis]

    def tolist(self) -> list[int]:
        return [2, 1, 9]


class CudaIndex(CudaTensor):
    def tolist(self) -> list[int]:
        return [2, 5, 9]


class Kernel:
    """What `compile` returns here: notes what it is called with."""

    def __init__(self, program: gemmir.Program):
        self.program = program
        self.calls: list[tuple[object, ...]] = []

    def ready(self, tensors: Sequence[Any], given: bool, overlap: bool, facts: Facts) -> Any:
        self.overlap, self.given = overlap, given
        return self

    def accepts(self, *tensors: Any) -> bool:
        return False

    def run(self, tensors: Sequence[Any]) -> Any:
        self.calls.append((*tensors[:-1], tensors[-1]) if self.given else (*tensors, None))
        return "result"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kernel]]:
    found: list[Kernel] = []

    def compile_call(call: Call, program: Callable[[], gemmir.Program]) -> Kernel:
        found.append(Kernel(program()))
        return found[-1]

    monkeypatch.setattr("gemmir.compiler.compile_call", compile_call)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    ops.forget()
    ops.kernel_of.cache_clear()
    yield found
    ops.forget()
    ops.kernel_of.cache_clear()


def on_gpu(*shape: int, dtype: torch.dtype = BF16, strides: tuple[int, ...] | None = None) -> Any:
    return CudaTensor(shape, dtype, 1 << 40, strides)


def test_a_kernel_is_compiled_once_and_called(compiled: list[Kernel]):
    b, offs, out = on_gpu(3, 64, 16, strides=(1024, 1, 64)), on_gpu(3, dtype=torch.int32), on_gpu(7, 16)
    first, second = on_gpu(9, 64), on_gpu(7, 64)
    assert ops.grouped_matmul(first, b, offs=offs) == "result"
    assert ops.grouped_matmul(second, b, offs=offs, out=out) == "result"
    (kernel,) = compiled
    assert kernel.calls == [(first, b, offs, None), (second, b, offs, out)]
    assert "gemm.grouped_matmul %a, %b groups (%offs by offs)" in kernel.program.text
    assert "tensor<?x64xbf16>" in kernel.program.text
    assert "layout" not in kernel.program.text


@pytest.mark.parametrize("m", [0, 3, 300])
def test_a_product_without_columns_needs_no_kernel(m: int, compiled: list[Kernel]):
    assert gemmir.matmul(bf16(m, 64), torch.zeros(0, 64).bfloat16().t()).shape == (m, 0)
    grouped = gemmir.grouped_matmul(bf16(m, 64), torch.zeros(3, 0, 64).bfloat16().mT, offs=i32(0, 0, m))
    assert grouped.shape == (m, 0)
    assert isinstance(ops._resolve(Grouping.NONE, {"a": on_gpu(m, 64), "b": on_gpu(64, 0)}, PLAIN), Reference)
    assert compiled == []


PLAIN = Asked(True, True, True, True, False, None, None)


def test_memory_order_of_16_bit_operands_is_part_of_the_program(compiled: list[Kernel]):
    ops.matmul(on_gpu(9, 64, strides=(1, 9)), on_gpu(64, 16))
    assert "layout <a = m, b = n>" in compiled[0].program.text


def test_validation_comes_before_the_launch(compiled: list[Kernel]):
    a, b, offs = on_gpu(9, 64), on_gpu(3, 64, 16), on_gpu(3, dtype=torch.int32)
    with pytest.raises(InputError, match=r"offs\[1\] = 1"):
        ops.grouped_matmul(a, b, offs=offs, validate=True)
    assert len(compiled) == 1, "the kernel was there"
    assert compiled[0].calls == []


# ------------------------------------------------------------ few rows


def parts_of(compiled: list[Kernel], m: int, n: int, k: int, **options: Any) -> int:
    """In how many parts the product that is asked for sums K."""
    ops.matmul(on_gpu(m, k), on_gpu(k, n, strides=(1, k)), **options)
    return problem_of(the_matmul(compiled[-1].program.module)).numerics.split_k


@pytest.mark.parametrize(("n", "k"), [(1024, 4096), (4096, 7168), (8192, 1024)])
def test_by_default_the_parts_of_k_follow_n_and_k_only(n: int, k: int, compiled: list[Kernel]):
    found = {parts_of(compiled, m, n, k) for m in range(1, 129)}
    assert found == {decode_split_k(n, k, "bf16")}
    assert len(compiled) == 4, "kernels for up to 16, 32, 64 and 128 rows"
    assert parts_of(compiled, 129, n, k) == 1
    assert parts_of(compiled, 8, n, k, expected_m=4096) == decode_split_k(n, k, "bf16")


def test_parts_that_are_asked_for_are_taken(compiled: list[Kernel]):
    for m in (1, 64, 128, 129):
        assert [parts_of(compiled, m, 2112, 7168, split_k=parts) for parts in (1, 2, 3)] == [1, 2, 3], m
    with pytest.raises(InputError, match="GMR-I009: split_k = 0"):
        ops.matmul(on_gpu(8, 128), on_gpu(128, 64, strides=(1, 128)), split_k=0)


@pytest.mark.parametrize(("n", "k"), [(2048, 4096), (4096, 7168)])
def test_parts_that_may_follow_m_are_the_fastest(n: int, k: int, compiled: list[Kernel]):
    found = {m: parts_of(compiled, m, n, k, batch_invariant=False) for m in (1, 16, 64, 128)}
    for m, parts in found.items():
        assert parts == fastest_split_k(Case("bf16", m, n, k).text, m), m
    assert len(set(found.values())) > 1


def test_what_no_kernel_splits_is_summed_whole(compiled: list[Kernel]):
    assert parts_of(compiled, 8, 1024, 4096, out_dtype=F32) == 1
    assert parts_of(compiled, 8, 1024, 4096, c=on_gpu(8, 1024)) == 1
    ops.matmul(on_gpu(8, 4096), on_gpu(4096, 1024))
    ops.batched_matmul(on_gpu(2, 8, 4096), on_gpu(2, 4096, 1024, strides=(1 << 22, 1, 4096)))
    assert ["split_k" in kernel.program.text for kernel in compiled] == [False] * 4


@pytest.mark.parametrize("form", ["matmul", "offs", "validated offs", "batch"])
def test_overlap_reaches_the_kernel_and_asks_for_no_other(form: str, compiled: list[Kernel]):
    rows, weights = on_gpu(9, 64), on_gpu(3, 64, 16, strides=(1024, 1, 64))
    ends = CudaIndex((3,), torch.int32, 1 << 41, None)
    call = {
        "matmul": partial(ops.matmul, rows, on_gpu(64, 16, strides=(1, 64))),
        "offs": partial(ops.grouped_matmul, rows, weights, offs=ends),
        "validated offs": partial(ops.grouped_matmul, rows, weights, offs=ends, validate=True),
        "batch": partial(ops.batched_matmul, on_gpu(3, 9, 64), weights),
    }[form]
    for options, expected in (({}, False), ({"overlap": True}, True), ({"overlap": False}, False)):
        call(**options)
        assert [kernel.overlap for kernel in compiled] == [expected]


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", [Grouping.OFFS, Grouping.COUNTS, Grouping.BATCH])
def test_kernels_for_few_rows_of_groups_wait_by_themselves(grouping: Grouping, fp8: bool):
    """So that `overlap` does something; those for many rows are launched as usual, whatever is asked for."""
    problem = replace((fp8_problem if fp8 else half_problem)(None, 512, 1024), grouping=grouping, groups=8)
    found = [lower(program_text(problem), m=rows).manifest for rows in (8, 4096)]
    assert [manifest.waits for manifest in found if manifest is not None] == [True, False]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8E4M3FN", "bf16"])
def test_a_row_has_the_same_bits_in_every_batch_of_few_rows(dtype: str, parts: int):
    """The kernels that `gemmir.matmul` asks for, simulated, against the bit model of all rows."""
    case = Case(dtype, 128, 64, parts * (1024 if dtype == "f8E4M3FN" else 512))
    inputs = random_inputs(parse_module(case.text), case.m, 3)
    x, w, xs, ws = inputs["x"], inputs["w"], inputs.get("xs"), inputs.get("ws")

    def product(m: int) -> torch.Tensor:
        scales = {} if xs is None else {"scale_a": gemmir.align_scales(xs[:m]), "scale_b": ws}
        (call,) = recorded(lambda: ops.matmul(x[:m], w, **scales))
        program = program_of(call)
        assert problem_of(the_matmul(program.module)).numerics.split_k == parts
        order = ("a", "b", "scale_a", "scale_b")
        given = {"a": x[:m], "b": w, **scales}
        assert [name for name, *_ in call.tensors] == [name for name in order if name in given]
        return simulated(program)(*(given[name] for name, *_ in call.tensors))

    def model(split_k: int) -> torch.Tensor:
        split = replace(case, split_k=split_k)
        return gemm_model(problem_of(the_matmul(parse_module(split.text))), x, w, xs, ws)

    whole = model(parts)
    assert parts == 1 or not torch.equal(whole, model(1)), "the data tell the orders apart"
    for m in (1, 8, 16, 17, 33, 65, 128) if parts == 3 else (1, 17, 128):
        assert torch.equal(product(m).view(torch.int16), whole[:m].view(torch.int16)), m
