"""The gemm dialect: text that survives, every clause, every rule that the verifier holds."""

import re
from dataclasses import fields
from io import StringIO
from types import NoneType
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.func import FuncOp
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from gemmir.dialects.gemm import (
    MatmulOp,
    argument_names,
    problem_of,
    schedule_of,
    set_schedule,
    the_function,
    the_matmul,
)
from gemmir.dialects.gemm_attributes import ScheduleAttr, schedule_text
from gemmir.dtypes import BF16, F8E4M3FN, F8E5M2
from gemmir.errors import IRError, ScheduleError, UnsupportedError
from gemmir.ir_text import parse_module
from gemmir.numerics import NumericsSpec
from gemmir.problem import Recipe
from gemmir.schedule import SCALES_OF_TILE, Schedule, Split
from tests.schedules import completed, fp8_problem

FULL = """\
builtin.module {
  func.func @up(%x: tensor<?x512xf8E4M3FN>, %xs: tensor<?x4xf32>, %w: tensor<512x256xf8E4M3FN>, %ws: tensor<4x2xf32>, \
%bias: tensor<256xbf16>, %c: tensor<?x256xf32>) -> tensor<?x256xbf16> {
    %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
        accumulate %c
        layout <a = k, b = k>
        numerics <promote_every = 128>
        expect <m = 64>
        schedule <family = tiles, block = 128x256x128, warpgroups = 2 along n, turns = false, cluster = 2x1, \
raster = along_m, group = 8, slices = 2, stages = 3>
        epilogue (%bias by column) {
        ^bb0(%acc: f32, %b: bf16):
          %wide = arith.extf %b : bf16 to f32
          %sum = arith.addf %acc, %wide : f32
          %r = arith.truncf %sum : f32 to bf16
          gemm.yield %r : bf16
        }
        : (tensor<?x512xf8E4M3FN>, tensor<512x256xf8E4M3FN>, tensor<?x4xf32>, tensor<4x2xf32>, tensor<?x256xf32>, \
tensor<256xbf16>) -> tensor<?x256xbf16>
    func.return %y : tensor<?x256xbf16>
  }
}"""

PLAIN = """\
builtin.module {
  func.func @plain(%a: tensor<64x32xbf16>, %b: tensor<32x16xbf16>) -> tensor<64x16xf32> {
    %d = gemm.matmul %a, %b : (tensor<64x32xbf16>, tensor<32x16xbf16>) -> tensor<64x16xf32>
    func.return %d : tensor<64x16xf32>
  }
}"""


def matmul(text: str) -> MatmulOp:
    return the_matmul(parse_module(text))


def generic(text: str) -> str:
    stream = StringIO()
    Printer(stream, print_generic_format=True).print_op(parse_module(text))
    return stream.getvalue()


def refused(text: str) -> str:
    with pytest.raises(IRError) as caught:
        parse_module(text)
    assert caught.value.code == "GMR-R002"
    return str(caught.value)


def product(a: str, b: str, d: str, clauses: str = "", more: tuple[tuple[str, str], ...] = ()) -> str:
    """A function of one product; `more` are further operands (name, type) in the order of the op."""
    operands = (("a", a), ("b", b), *more)
    arguments = ", ".join(f"%{name}: {kind}" for name, kind in operands)
    types = ", ".join(kind for _, kind in operands)
    return f"""func.func @f({arguments}) -> {d} {{
  %d = gemm.matmul %a, %b {clauses} : ({types}) -> {d}
  func.return %d : {d}
}}"""


def fp8(clauses: str, scale_a: str, scale_b: str, m: str = "256", k: str = "300") -> str:
    return product(
        f"tensor<{m}x{k}xf8E4M3FN>",
        f"tensor<{k}x520xf8E5M2>",
        f"tensor<{m}x520xbf16>",
        clauses,
        (("sa", scale_a), ("sb", scale_b)),
    )


@pytest.mark.parametrize("text", [FULL, PLAIN], ids=["full", "plain"])
def test_printed_text_is_a_fixpoint(text: str):
    assert str(parse_module(text)) == text


@pytest.mark.parametrize("text", [FULL, PLAIN], ids=["full", "plain"])
def test_the_generic_form_says_the_same(text: str):
    assert '"gemm.matmul"(' in generic(text)
    assert str(parse_module(generic(text))) == text


def test_clauses_come_in_any_order():
    numerics, expect = "        numerics <promote_every = 128>\n", "        expect <m = 64>\n"
    shuffled = FULL.replace(numerics, "").replace(" scaled (%xs by 1x128, %ws by 128x128)\n", "\n" + numerics)
    shuffled = shuffled.replace(expect, "").replace(
        "        }\n        :", "        }\n" + expect + " scaled (%xs by 1x128, %ws by 128x128)\n :"
    )
    assert shuffled.index("numerics") < shuffled.index("accumulate") < shuffled.index("scaled")
    assert str(parse_module(shuffled)) == FULL


def test_discardable_attributes_and_places_survive():
    text = PLAIN.replace(" : (tensor<64x32", ' attributes {"why" = "a test"} : (tensor<64x32')
    printed = str(parse_module(text))
    assert 'attributes {why = "a test"}' in printed
    assert str(parse_module(printed)) == printed


def test_a_clause_given_twice_is_refused():
    with pytest.raises(IRError, match="clause 'expect' is given twice"):
        parse_module(FULL.replace("expect <m = 64>", "expect <m = 64> expect <m = 64>"))


def test_accessors():
    op = matmul(FULL)
    assert [v.name_hint for v in (op.a, op.b, op.scale_a, op.scale_b, op.c) if v] == ["x", "w", "xs", "ws", "c"]
    assert [v.name_hint for v in op.epilogue_operands] == ["bias"]
    assert op.epilogue_kinds == ("column",)
    assert (op.scale_a_recipe, op.scale_b_recipe) == (Recipe.BLOCK_WISE_1X128, Recipe.BLOCK_WISE_128X128)
    assert (op.a_major, op.b_major, op.expected_m) == ("k", "k", 64)
    bare = matmul(PLAIN)
    assert (bare.scale_a, bare.c, bare.epilogue, bare.epilogue_kinds) == (None, None, None, ())
    assert (bare.scale_a_recipe, bare.a_major, bare.b_major) == (Recipe.NONE, "k", "k")


def test_the_problem():
    problem = problem_of(matmul(FULL))
    assert (problem.m, problem.n, problem.k, problem.expected_m) == (None, 256, 512, 64)
    assert (problem.a, problem.b, problem.d) == (F8E4M3FN, F8E4M3FN, BF16)
    assert problem.numerics == NumericsSpec(instruction_k=32, promote_every=128)
    assert (problem.has_c, problem.has_epilogue) == (True, True)
    bare = problem_of(matmul(PLAIN))
    assert (bare.m, bare.numerics, bare.has_c) == (64, NumericsSpec(16, None), False)


def test_a_product_of_unknown_n_verifies_but_is_no_problem_to_compile():
    text = product("tensor<64x?xbf16>", "tensor<?x16xbf16>", "tensor<64x16xbf16>")
    with pytest.raises(UnsupportedError, match="K = \\?") as caught:
        problem_of(matmul(text))
    assert caught.value.code == "GMR-U001"


@pytest.mark.parametrize(
    ("recipe", "scale_a", "scale_b"),
    [
        ("tensor/tensor", "tensor<f32>", "tensor<f32>"),
        ("row/row", "tensor<256x1xf32>", "tensor<1x520xf32>"),
        ("1x128/128x128", "tensor<256x3xf32>", "tensor<3x5xf32>"),
        ("1x128/1x128", "tensor<256x3xf32>", "tensor<3x520xf32>"),
    ],
)
def test_every_recipe_has_one_shape_of_scales(recipe: str, scale_a: str, scale_b: str):
    a, b = recipe.split("/")
    clause = f"scaled (%sa by {a}, %sb by {b})"
    op = matmul(fp8(clause, scale_a, scale_b))
    assert (op.scale_a_recipe.value, op.scale_b_recipe.value) == (a, b)
    assert problem_of(op).numerics.promote_every == (128 if a == "1x128" else None)
    assert problem_of(op).b == F8E5M2
    for wrong in ("tensor<7xf32>", "tensor<520x3xf32>"):
        assert re.search(r"scale of B: .*expected (scalar|1x520|3x5|3x520)\n", refused(fp8(clause, scale_a, wrong)))
        assert re.search(r"scale of A: .*expected (scalar|256x1|256x3)\n", refused(fp8(clause, wrong, scale_b)))


def test_scales_of_an_unknown_m_are_unknown_there():
    clause = "scaled (%sa by 1x128, %sb by 128x128)"
    parse_module(fp8(clause, "tensor<?x3xf32>", "tensor<3x5xf32>", m="?"))
    assert "expected ?x3" in refused(fp8(clause, "tensor<256x3xf32>", "tensor<3x5xf32>", m="?"))


BAD_RECIPES = {
    "scaled (%sa by 128x128, %sb by 128x128)": "scales 128x128 x 128x128",
    "scaled (%sa by row, %sb by tensor)": "scales row x tensor",
    "scaled (%sa by 128x128, %sb by 1x128)": "scales 128x128 x 1x128",
}


@pytest.mark.parametrize("clause", BAD_RECIPES)
def test_other_pairs_of_recipes_are_refused(clause: str):
    message = refused(fp8(clause, "tensor<3x3xf32>", "tensor<3x5xf32>"))
    assert BAD_RECIPES[clause] in message
    assert "1x128 x 128x128" in message


def test_scales_are_f32_and_only_for_fp8():
    clause = "scaled (%sa by tensor, %sb by tensor)"
    assert "scale of A: scalar of bf16" in refused(fp8(clause, "tensor<bf16>", "tensor<f32>"))
    text = product(
        "tensor<4x32xbf16>",
        "tensor<32x16xbf16>",
        "tensor<4x16xbf16>",
        clause,
        (("sa", "tensor<f32>"), ("sb", "tensor<f32>")),
    )
    assert "only FP8 operands are scaled" in refused(text)


A, B, D = "tensor<64x32xbf16>", "tensor<32x16xbf16>", "tensor<64x16xbf16>"
FAULTS = {
    "k disagrees": (product(A, "tensor<31x16xbf16>", D), "K is 32 in A: 64x32 of bf16 but 31 in B: 31x16 of bf16"),
    "k unknown in one": (product(A, "tensor<?x16xbf16>", D), "K is 32 in A: 64x32 of bf16 but ? in B"),
    "types disagree": (product(A, "tensor<32x16xf16>", D), "both operands have one type, or both are FP8"),
    "f32 operands": (product("tensor<4x4xf32>", "tensor<4x4xf32>", "tensor<4x4xf32>"), "A: 4x4 of f32"),
    "f64": (product("tensor<4x4xf64>", "tensor<4x4xf64>", "tensor<4x4xf32>"), "element type f64"),
    "rank": (product("tensor<2x64x32xbf16>", B, D), "A: 2x64x32 of bf16: rank 3"),
    "result shape": (product(A, B, "tensor<64x17xbf16>"), "D: 64x17 of bf16, expected 64x16"),
    "result type": (product(A, B, "tensor<64x16xf8E4M3FN>"), "the result is one of bf16, f16, f32"),
    "unranked": (product("tensor<*xbf16>", B, D), "operand 'a' at position 0 does not verify"),
    "encoding": (product('tensor<64x32xbf16, "x">', B, D), "A: tensor encodings have no meaning here"),
    "c shape": (product(A, B, D, "accumulate %c", (("c", "tensor<16xf32>"),)), "C: 16 of f32, expected 64x16"),
    "promote": (product(A, B, D, "numerics <promote_every = 24>"), "a positive multiple of 16"),
    "promote 0": (product(A, B, D, "numerics <promote_every = 0>"), "promote_every = 0"),
    "expect of a known m": (product(A, B, D, "expect <m = 64>"), "expect m = 64 where M is 64"),
    "major": (
        product("tensor<64x32xf8E5M2>", "tensor<32x16xf8E5M2>", D, "layout <b = n>"),
        "B: 32x16 of f8E5M2 is n-major",
    ),
    "generic epilogue operands": (
        generic(PLAIN).replace('"gemm.matmul"(%a, %b) <{', '"gemm.matmul"(%a, %b) <{by = #gemm.by<row>, '),
        "0 epilogue operands but 1 kinds",
    ),
    "generic major": (
        generic(PLAIN).replace("(%a, %b) <{", "(%a, %b) <{recipe = #gemm.recipe<row, row>, "),
        "only FP8 operands are scaled",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_verifier_names_operand_value_and_rule(case: str):
    text, message = FAULTS[case]
    assert message in refused(text)


def test_block_wise_scales_are_promoted_every_128():
    for every in ("64", "256", "none"):
        text = FULL.replace("promote_every = 128", f"promote_every = {every}")
        assert f"promote_every = {every}\n" in refused(text)
        assert "fix: use 128" in refused(text)
    assert problem_of(matmul(product(A, B, D, "numerics <promote_every = 48>"))).numerics.promote_every == 48


def test_16_bit_operands_may_have_any_major():
    op = matmul(product(A, B, D, "layout <b = n, a = m>"))
    assert (op.a_major, op.b_major) == ("m", "n")
    assert "layout <a = m, b = n>" in str(op)
    assert matmul(product(A, B, D, "layout <b = n>")).a_major == "k"


def test_c_may_be_of_any_float():
    for dtype in ("f8E4M3FN", "f16", "f32"):
        parse_module(product(A, B, D, "accumulate %c", (("c", f"tensor<64x16x{dtype}>"),)))


@pytest.mark.parametrize(("kind", "shape"), [("column", "16x"), ("row", "64x"), ("element", "64x16x"), ("scalar", "")])
def test_each_kind_of_epilogue_operand(kind: str, shape: str):
    body = "{ ^bb0(%acc: f32, %v: f16): gemm.yield %acc : f32 }"

    def text(operand: str) -> str:
        return product(A, B, "tensor<64x16xf32>", f"epilogue (%e by {kind}) {body}", (("e", operand),))

    assert matmul(text(f"tensor<{shape}f16>")).epilogue_kinds == (kind,)
    assert f"an epilogue operand by {kind} is" in refused(text("tensor<3x3xf16>"))


EPILOGUES = {
    "no terminator": ("{ ^bb0(%acc: f32): %n = arith.negf %acc : f32 }", "not a terminator"),
    "no block": ("{ }", "epilogue"),
    "wrong yield": ("{ ^bb0(%acc: f32): gemm.yield %acc : f32 }", "yields f32, but the result holds bf16"),
    "wrong argument": ("{ ^bb0(%acc: bf16): gemm.yield %acc : bf16 }", "takes (bf16), expected (f32)"),
    "too many arguments": (
        "{ ^bb0(%acc: f32, %v: f32): gemm.yield %acc : f32 }",
        "takes (f32, f32), expected (f32)",
    ),
    "f64": (
        "{ ^bb0(%acc: f32): %v = arith.extf %acc : f32 to f64 %r = arith.truncf %acc : f32 to bf16 "
        "gemm.yield %r : bf16 }",
        "arith.extf in an epilogue has f64: only scalars",
    ),
    "a call": (
        "{ ^bb0(%acc: f32): func.call @g() : () -> () %r = arith.truncf %acc : f32 to bf16 gemm.yield %r : bf16 }",
        "func.call in an epilogue is neither arith nor math",
    ),
    "truncf that widens": (
        "{ ^bb0(%acc: f32): %r = arith.truncf %acc : f32 to bf16 %w = arith.truncf %r : bf16 to f32 "
        "gemm.yield %r : bf16 }",
        "goes from bf16 to f32: extf widens, truncf narrows",
    ),
    "captures": ("{ ^bb0(%acc: f32): gemm.yield %a : tensor<64x32xbf16> }", "IsolatedFromAbove"),
}


@pytest.mark.parametrize("case", EPILOGUES)
def test_what_an_epilogue_may_not_hold(case: str):
    body, message = EPILOGUES[case]
    assert message in refused(product(A, B, D, f"epilogue {body}") + "func.func private @g()")


CHOICES = {int: st.integers(1, 512), bool: st.booleans()}
"""What a field of a type may hold, for the text; enums hold any of their members."""


def choices(hint: object) -> st.SearchStrategy[object]:
    """Values for a field of type `hint`, `None` among them."""
    (kind,) = set(get_args(hint)) - {NoneType}
    return st.none() | (CHOICES[kind] if kind in CHOICES else st.sampled_from(kind))


SCHEDULES = st.builds(Schedule, **{name: choices(hint) for name, hint in get_type_hints(Schedule).items()})
"""Any values in any of the fields, those that are to come included."""


@given(SCHEDULES)
def test_every_subset_of_a_schedule_survives_as_text(schedule: Schedule):
    text = f"builtin.module attributes {{s = {ScheduleAttr(schedule)}}} {{\n}}"
    module = parse_module(text)
    assert module.attributes["s"] == ScheduleAttr(schedule)
    assert str(module) == text


@pytest.mark.parametrize("field", [f.name for f in fields(Schedule)])
def test_every_field_of_a_schedule_has_text(field: str):
    complete = completed(fp8_problem(None, 7168, 2048), Schedule())
    alone = Schedule(**{field: getattr(complete, field)})
    module = parse_module(f"builtin.module attributes {{s = {ScheduleAttr(alone)}}} {{\n}}")
    assert schedule_text(alone) != ""
    assert module.attributes["s"] == ScheduleAttr(alone)


def test_slices_as_text():
    assert schedule_text(Schedule(store_slices=2, num_stages=4)) == "slices = 2, stages = 4"
    op = matmul(product(A, B, D, "schedule <stages = 2, slices = 1>"))
    assert schedule_of(op) == Schedule(store_slices=1, num_stages=2)
    assert "schedule <slices = 1, stages = 2>" in str(op)


def test_scales_of_a_whole_tile_as_text():
    """By a word, not by its number, which no other choice has."""
    assert schedule_text(Schedule(scale_slots=SCALES_OF_TILE)) == "scale_slots = tile"
    text = f"builtin.module attributes {{s = {ScheduleAttr(Schedule(scale_slots=SCALES_OF_TILE))}}} {{\n}}"
    module = parse_module(text)
    assert module.attributes["s"] == ScheduleAttr(Schedule(scale_slots=SCALES_OF_TILE))
    assert str(module) == text
    with pytest.raises(VerifyException, match="scale_slots = -2; sizes and counts are at least -1"):
        ScheduleAttr(Schedule(scale_slots=-2))
    with pytest.raises(VerifyException, match="tail_n = -1; sizes and counts are at least 0"):
        ScheduleAttr(Schedule(tail_n=SCALES_OF_TILE))


def test_open_choices_are_question_marks():
    assert schedule_text(Schedule(block_n=192, split=Split.ALONG_N, cluster_m=2)) == (
        "block = ?x192x?, warpgroups = ? along n, cluster = 2x?"
    )
    assert schedule_text(Schedule()) == ""


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ("schedule <blocks = 1x1x1>", "Expected one of 'balanced', 'block', 'chunk'"),
        ("schedule <stages = 3, stages = 3>", "'stages' is given twice"),
        ("schedule <block = 128x128>", "expected 3 sizes joined by 'x', got 2"),
        ("schedule <cluster = 0x1>", "cluster_m = 0; sizes and counts are at least 1"),
        ("schedule <stages = -3>", "Expected integer literal"),
        ("schedule <slices = 0>", "store_slices = 0; sizes and counts are at least 1"),
        ("schedule <slices = two>", "Expected integer literal"),
        ("schedule <scale_slots = tiles>", "Expected integer literal"),
        ("schedule <scale_slots = -1>", "Expected integer literal"),
        ("schedule <scale_batch = tile>", "Expected integer literal"),
        ("schedule <slices = 2, slices = 2>", "'slices' is given twice"),
        ("schedule <warpgroups = 2 along k>", "Expected one of 'm', 'n'"),
    ],
)
def test_malformed_schedules(clause: str, message: str):
    with pytest.raises(IRError, match=re.escape(message)):
        parse_module(product(A, B, D, clause))


def test_an_illegal_schedule_is_refused_with_the_arithmetic():
    with pytest.raises(ScheduleError, match="block_k = 32 elements of bf16 is 64 bytes") as caught:
        parse_module(product(A, B, D, "schedule <block = ?x?x32>"))
    assert (caught.value.code, caught.value.fix) == ("GMR-S003", "use block_k = 64")


def test_setting_a_schedule():
    op = matmul(PLAIN)
    assert schedule_of(op) == Schedule()
    set_schedule(op, Schedule(block_m=128))
    assert "schedule <block = 128x?x?>" in str(op)
    assert schedule_of(op) == Schedule(block_m=128)
    set_schedule(op, Schedule())
    assert op.schedule is None


OTHERS = {
    "no function": ("builtin.module {}", "a module with 0 functions"),
    "two functions": (PLAIN.replace("@plain", "@one")[:-2] + PLAIN[17:], "a module with 2 functions"),
    "declaration": ("func.func private @f(tensor<4x4xf32>) -> ()", "a function of 0 blocks"),
    "nothing": ("func.func @f() { func.return }", "a function of func.return"),
    "more ops": (
        "func.func @f(%a: f32) -> f32 { %b = arith.negf %a : f32 func.return %b : f32 }",
        "a function of arith.negf, func.return",
    ),
    "other result": (
        PLAIN.replace("%b: tensor<32x16xbf16>)", "%b: tensor<32x16xbf16>, %e: tensor<64x16xf32>)").replace(
            "return %d", "return %e"
        ),
        "a function that returns something else than its product",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_modules_are_unsupported(case: str):
    text, what = OTHERS[case]
    with pytest.raises(UnsupportedError) as caught:
        the_matmul(parse_module(text))
    assert (caught.value.code, caught.value.what) == ("GMR-U001", what)


def function(arguments: str) -> FuncOp:
    return the_function(parse_module(f"func.func @f({arguments}) {{ func.return }}"))


def test_argument_names():
    assert argument_names(the_function(parse_module(FULL))) == ("x", "xs", "w", "ws", "bias", "c")
    assert argument_names(function("%0: f32, %y: f32, %y_7: f32")) == ("arg0", "y", "y_1")
    assert argument_names(function("%a.b: f32, %$: f32, %arg0: f32")) == ("arg0", "arg1", "arg0_1")
    assert argument_names(function("%" + "a" * 65 + ": f32")) == ("arg0",)
