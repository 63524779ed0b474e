"""The builder of products of several groups: what it writes, what its key says, what it refuses."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import InputError, UnsupportedError
from gemmir.expression import Input
from gemmir.ir_text import parse_module
from gemmir.matmul_rules import DIMS, epilogue_dims, operand_scale_shape
from gemmir.problem import RECIPES, Grouping
from gemmir.program import Program

MOE = """\
builtin.module {
  func.func @moe_up(%x: tensor<?x2048xf8E4M3FN>, %xs: tensor<?x16xf32>, %w: tensor<64x2048x1536xf8E4M3FN>, \
%ws: tensor<64x16x12xf32>, %ends: tensor<64xi32>) -> tensor<?x1536xbf16> {
    %y = gemm.grouped_matmul %x, %w groups (%ends by offs) scaled (%xs by 1x128, %ws by 128x128)
        expect <m = 8192>
        : (tensor<?x2048xf8E4M3FN>, tensor<64x2048x1536xf8E4M3FN>, tensor<64xi32>, tensor<?x16xf32>, \
tensor<64x16x12xf32>) -> tensor<?x1536xbf16>
    func.return %y : tensor<?x1536xbf16>
  }
}
"""
BLOCK_WISE = ("block_wise_1x128", "block_wise_128x128")


def moe(index: str = "offs", size: int | None = 64) -> Program:
    p = Program("moe_up")
    x, xs = p.input("x", (None, 2048), "f8E4M3FN"), p.input("xs", (None, 16), "f32")
    w, ws = p.input("w", (64, 2048, 1536), "f8E4M3FN"), p.input("ws", (64, 16, 12), "f32")
    ends = p.input("ends", (size,), "int32")
    options = {"scale_a": xs, "scale_b": ws, "recipe": BLOCK_WISE, "expected_m": 8192}
    p.output(p.grouped_matmul(x, w, **{index: ends}, **options).cast("bf16"))  # type: ignore[arg-type]
    return p


def test_a_program_is_the_text_that_one_expects():
    assert moe().text == MOE
    assert str(parse_module(MOE)) + "\n" == MOE
    assert "groups (%ends by group_ids)" in moe("group_ids", None).text


def test_ranks_say_what_offs_belong_to():
    p = Program("dw")
    a, b, ends = p.input("a", (512, 768), "bf16"), p.input("b", (768, 256), "bf16"), p.input("ends", (8,), "i32")
    p.output(p.grouped_matmul(a, b, offs=ends, a_major="m", b_major="n"))
    assert "gemm.grouped_matmul %a, %b groups (%ends by k_offs)" in p.text
    assert "-> tensor<8x512x256xf32>" in p.text


def test_a_batch():
    p = Program("heads")
    a, b, c = p.input("a", (4, None, 64), "f16"), p.input("b", (4, 64, 32), "f16"), p.input("c", (4, None, 32), "f32")
    p.output(p.batched_matmul(a, b, c=c).cast("f16"))
    assert "gemm.batched_matmul %a, %b\n        accumulate %c" in p.text
    assert "-> tensor<4x?x32xf16>" in p.text


def test_the_key_tells_forms_apart():
    ids, ends = moe("group_ids", None), moe()
    keys = {ids.key(), ends.key(), moe().key()}
    assert len(keys) == 2
    assert '"grouping":"group_ids","index":"ends"' in ids.key()


@st.composite
def grouped_programs(draw: st.DrawFn) -> Program:
    """Programs of every form, with any of the clauses."""
    grouping = draw(st.sampled_from([g for g in Grouping if g is not Grouping.NONE]))
    dims = DIMS[grouping]
    m = draw(st.none() | st.integers(0, 300))
    sizes = {"G": draw(st.integers(1, 300)), "M": m, "N": draw(st.integers(0, 300)), "K": draw(st.integers(0, 300))}

    def shape(text: str) -> tuple[int | None, ...]:
        return tuple(sizes[dim] for dim in text.split(" x ")) if text else ()

    fp8 = draw(st.booleans())
    p, dtype = Program("f"), "f8E5M2" if fp8 else "f16"
    a, b = p.input("a", shape(dims.a), dtype), p.input("b", shape(dims.b), dtype)
    options: dict[str, object] = {}
    if fp8:
        recipe = draw(st.sampled_from((BLOCK_WISE, ("row_wise",) * 2, ("tensor_wise",) * 2, ("block_wise_1x128",) * 2)))
        left = operand_scale_shape(RECIPES[recipe[0]], shape(dims.a), k_axis=1)
        right = operand_scale_shape(RECIPES[recipe[1]], shape(dims.b), k_axis=0)
        options |= {"recipe": recipe, "scale_a": p.input("sa", left, "f32"), "scale_b": p.input("sb", right, "f32")}
    if draw(st.booleans()):
        options["c"] = p.input("c", shape(dims.d), "bf16")
    if m is None and draw(st.booleans()):
        options["expected_m"] = draw(st.integers(1, 500))
    word = "offs" if grouping is Grouping.K_OFFS else grouping.value
    index = {} if grouping is Grouping.BATCH else {word: p.input("index", shape(dims.index), "i32")}
    y = (p.grouped_matmul if index else p.batched_matmul)(a, b, **index, **options)  # type: ignore[arg-type]
    kind, spread = draw(st.sampled_from(sorted(epilogue_dims(grouping).items())))
    if draw(st.booleans()):
        y = y * p.input("e", shape(spread), "f32").by(kind)
    p.output(y.cast("bf16"))
    return p


@given(program=grouped_programs())
def test_programs_survive_as_text(program: Program):
    assert str(parse_module(program.text)) + "\n" == program.text
    product = program.description.product
    problem = problem_of(the_matmul(program.module))
    assert (problem.grouping, problem.m) == (product.grouping, product.a.shape[-2])
    assert problem.groups == (product.b if len(product.b.shape) == 3 else product.index or product.b).shape[0]


def inputs() -> tuple[Program, Input, Input, Input]:
    p = Program("f")
    return p, p.input("a", (64, 32), "bf16"), p.input("b", (5, 32, 16), "bf16"), p.input("i", (5,), "i32")


def matrix(p: Program) -> Input:
    return p.input("w", (32, 16), "bf16")


CALLS: dict[str, tuple[str, str, Callable[[Program, Input, Input, Input], object]]] = {
    "no index": ("GMR-I005", "grouped_matmul with no index operand", lambda p, a, b, i: p.grouped_matmul(a, b)),
    "two": (
        "GMR-I005",
        "grouped_matmul with offs and counts",
        lambda p, a, b, i: p.grouped_matmul(a, b, offs=i, counts=i),
    ),
    "foreign": (
        "GMR-I005",
        "offs: input 'i' of another program",
        lambda p, a, b, i: p.grouped_matmul(a, b, offs=inputs()[3]),
    ),
    "not an input": ("GMR-I005", "b: list", lambda p, a, b, i: p.grouped_matmul(a, [b], offs=i)),  # type: ignore[arg-type]
    "dtype": ("GMR-I001", "a: 64x32 of bf16", lambda p, a, b, i: p.grouped_matmul(a, b, offs=a)),
    "size": ("GMR-I002", "i: 5 of i32, expected 64", lambda p, a, b, i: p.grouped_matmul(a, b, group_ids=i)),
    "rank": ("GMR-I002", "a: 64x32 of bf16: rank 2", lambda p, a, b, i: p.grouped_matmul(a, b, counts=i)),
    "k": ("GMR-I002", "w.transpose(1, 2)", lambda p, a, b, i: p.grouped_matmul(matrix(p), b, offs=i)),
    "batch": ("GMR-I002", "a: 64x32 of bf16: rank 2", lambda p, a, b, i: p.batched_matmul(a, b)),
    "one product": ("GMR-I002", "b: 5x32x16 of bf16: rank 3", lambda p, a, b, i: p.matmul(a, b)),
    "c": ("GMR-I002", "expected 5x64x16", lambda p, a, b, i: p.grouped_matmul(a, matrix(p), offs=i, c=a)),
    "bias": (
        "GMR-I002",
        "an epilogue operand by column is G x N",
        lambda p, a, b, i: p.output(p.grouped_matmul(a, b, offs=i) + p.input("e", (16,), "f32").by("column")),
    ),
    "integer scale": ("GMR-I009", "without a recipe", lambda p, a, b, i: p.grouped_matmul(a, b, offs=i, scale_a=i)),
    "integers multiplied": ("GMR-I001", "operands are one of", lambda p, a, b, i: p.matmul(i, i)),
    "second": (
        "GMR-U001",
        "a second matmul",
        lambda p, a, b, i: [p.grouped_matmul(a, b, offs=i) for _ in range(2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_the_call_that_is_wrong_raises(case: str):
    code, what, call = CALLS[case]
    with pytest.raises((InputError, UnsupportedError)) as caught:
        call(*inputs())
    assert (caught.value.code, bool(caught.value.fix)) == (code, True)
    assert what in str(caught.value)


def test_an_option_that_there_is_not_is_an_error():
    p, a, b, i = inputs()
    with pytest.raises(TypeError, match="scale"):
        p.grouped_matmul(a, b, offs=i, scale=a)  # type: ignore[call-arg]


def test_rows_that_count_may_be_expected_of_a_compilation():
    p = Program("f")
    a, b, n = p.input("a", (5, 512, 64), "bf16"), p.input("b", (5, 64, 16), "bf16"), p.input("n", (5,), "i32")
    p.output(p.grouped_matmul(a, b, counts=n))
    assert problem_of(the_matmul(lower(p, m=40, until="gemm").module)).group_rows == 40
