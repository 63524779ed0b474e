"""Products of several groups: text that survives, shapes of every operand, problems, rules."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp
from xdsl.printer import Printer

from gemmir.dialects.gemm import (
    BatchedMatmulOp,
    GroupedMatmulOp,
    MatmulOp,
    ProductOp,
    problem_of,
    schedule_of,
    set_schedule,
    the_matmul,
)
from gemmir.dtypes import BF16, F8E4M3FN, F32
from gemmir.errors import IRError, UnsupportedError
from gemmir.ir_text import make_context, parse_module
from gemmir.passes.gemm_canonicalize import GemmCanonicalizePass
from gemmir.problem import Grouping
from gemmir.schedule import Schedule
from gemmir.testing.gemm_programs import gemm_programs

FULL = """\
builtin.module {
  func.func @up(%x: tensor<?x512xf8E4M3FN>, %xs: tensor<?x4xf32>, %w: tensor<6x512x256xf8E4M3FN>, \
%ws: tensor<6x4x2xf32>, %ends: tensor<6xi32>, %bias: tensor<6x256xbf16>, %c: tensor<?x256xf32>) -> tensor<?x256xbf16> {
    %y = gemm.grouped_matmul %x, %w groups (%ends by offs) scaled (%xs by 1x128, %ws by 128x128)
        accumulate %c
        layout <a = k, b = k>
        numerics <promote_every = 128>
        expect <m = 64>
        schedule <block = 128x?x?>
        epilogue (%bias by column) {
        ^bb0(%acc: f32, %b: bf16):
          %wide = arith.extf %b : bf16 to f32
          %sum = arith.addf %acc, %wide : f32
          %r = arith.truncf %sum : f32 to bf16
          gemm.yield %r : bf16
        }
        : (tensor<?x512xf8E4M3FN>, tensor<6x512x256xf8E4M3FN>, tensor<6xi32>, tensor<?x4xf32>, tensor<6x4x2xf32>, \
tensor<?x256xf32>, tensor<6x256xbf16>) -> tensor<?x256xbf16>
    func.return %y : tensor<?x256xbf16>
  }
}"""


def product(op: str, a: str, b: str, d: str, clauses: str = "", more: tuple[tuple[str, str], ...] = ()) -> str:
    """A function of one product; `more` are further operands (name, type) in the order of the op."""
    operands = (("a", a), ("b", b), *more)
    arguments = ", ".join(f"%{name}: {kind}" for name, kind in operands)
    types = ", ".join(kind for _, kind in operands)
    return f"""func.func @f({arguments}) -> {d} {{
  %d = gemm.{op} %a, %b {clauses} : ({types}) -> {d}
  func.return %d : {d}
}}"""


def grouped(by: str, a: str, b: str, d: str, index: str, clauses: str = "", more: tuple[tuple[str, str], ...] = ()):
    index_type = index if index.startswith("tensor") else f"tensor<{index}xi32>"
    types = [f"tensor<{t}xbf16>" if "<" not in t else t for t in (a, b, d)]
    return product("grouped_matmul", *types, f"groups (%i by {by}) {clauses}", (("i", index_type), *more))


def op_of(text: str) -> ProductOp:
    return the_matmul(parse_module(text))


def refused(text: str) -> str:
    with pytest.raises(IRError) as caught:
        parse_module(text)
    assert caught.value.code == "GMR-R002"
    return str(caught.value)


def generic(text: str) -> str:
    stream = StringIO()
    Printer(stream, print_generic_format=True).print_op(parse_module(text))
    return stream.getvalue()


def canonical(text: str) -> ModuleOp:
    module = parse_module(text)
    GemmCanonicalizePass().apply(make_context(), module)
    module.verify()
    return module


OFFS = grouped("offs", "?x64", "5x64x48", "?x48", "5")
GROUP_IDS = grouped("group_ids", "?x64", "5x64x48", "?x48", "?")
COUNTS = grouped("counts", "5x?x64", "5x64x48", "5x?x48", "5")
K_OFFS = grouped("k_offs", "?x640", "640x48", "5x?x48", "5")
BATCH = product("batched_matmul", "tensor<5x?x64xbf16>", "tensor<5x64x48xbf16>", "tensor<5x?x48xbf16>")


def test_printed_text_is_a_fixpoint():
    assert str(parse_module(FULL)) == FULL


@given(text=st.sampled_from(Grouping).flatmap(lambda g: gemm_programs(most_m=8, grouping=g)))
def test_every_product_survives_as_text(text: str):
    printed = str(parse_module(text))
    assert str(parse_module(printed)) == printed
    assert str(parse_module(generic(text))) == printed


@given(text=st.sampled_from(Grouping).flatmap(lambda g: gemm_programs(most_m=8, grouping=g)))
def test_canonicalization_keeps_the_groups(text: str):
    before, module = op_of(text), canonical(text)
    after = the_matmul(module)
    assert type(after) is type(before)
    assert problem_of(after).grouping is problem_of(before).grouping
    assert (after.index is None) == (before.index is None)
    assert str(canonical(str(module))) == str(module)


@pytest.mark.parametrize(
    ("text", "kind", "grouping"),
    [
        (OFFS, GroupedMatmulOp, Grouping.OFFS),
        (GROUP_IDS, GroupedMatmulOp, Grouping.GROUP_IDS),
        (COUNTS, GroupedMatmulOp, Grouping.COUNTS),
        (K_OFFS, GroupedMatmulOp, Grouping.K_OFFS),
        (BATCH, BatchedMatmulOp, Grouping.BATCH),
    ],
    ids=["offs", "group_ids", "counts", "k_offs", "batch"],
)
def test_problems(text: str, kind: type[ProductOp], grouping: Grouping):
    op = op_of(text)
    problem = problem_of(op)
    assert (type(op), op.grouping) == (kind, grouping)
    assert (op.index is None) == (grouping is Grouping.BATCH)
    assert (problem.grouping, problem.groups, problem.m, problem.n) == (grouping, 5, None, 48)
    assert problem.k == (640 if grouping is Grouping.K_OFFS else 64)


def test_problems_say_their_groups():
    assert str(problem_of(op_of(OFFS))) == "?x48x64 bf16 x bf16 -> bf16, 5 groups by offs"
    assert str(problem_of(op_of(BATCH))) == "?x48x64 bf16 x bf16 -> bf16, a batch of 5"


def test_one_product_is_of_one_group():
    text = product("matmul", "tensor<4x64xbf16>", "tensor<64x48xbf16>", "tensor<4x48xbf16>")
    op = op_of(text)
    assert (type(op), op.grouping, op.index) == (MatmulOp, Grouping.NONE, None)
    assert (problem_of(op).grouping, problem_of(op).groups) == (Grouping.NONE, 1)


def test_accessors():
    op = op_of(FULL)
    values = (op.a, op.b, op.index, op.scale_a, op.scale_b, op.c)
    assert [v.name_hint for v in values if v] == ["x", "w", "ends", "xs", "ws", "c"]
    problem = problem_of(op)
    assert (problem.groups, problem.n, problem.k, problem.expected_m, problem.has_c) == (6, 256, 512, 64, True)
    assert (problem.a, problem.d, problem.group_rows) == (F8E4M3FN, BF16, 11)
    assert schedule_of(op) == Schedule(block_m=128)
    set_schedule(op, Schedule())
    assert op.schedule is None


SCALED = {
    "offs": ("?x300", "2x300x520", "?x520", "2", "?x3", "2x3x5"),
    "group_ids": ("?x300", "2x300x520", "?x520", "?", "?x3", "2x3x5"),
    "counts": ("2x9x300", "2x300x520", "2x9x520", "2", "2x9x3", "2x3x5"),
    "k_offs": ("9x512", "512x520", "2x9x520", "2", "9x4", "4x5"),
    "batch": ("2x9x300", "2x300x520", "2x9x520", "", "2x9x3", "2x3x5"),
}
RECIPES = {"128x128": "1x128", "1x128": "1x128", "row": "row", "tensor": "tensor"}
"""The recipe of A, by that of B."""


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("form", SCALED)
def test_scales_of_every_form(form: str, recipe: str):
    a, b, d, index, scale_a, scale_b = SCALED[form]
    if recipe == "1x128":
        scale_b = scale_b.removesuffix("5") + "520"
    if recipe == "row":
        scale_a, scale_b = scale_a.rpartition("x")[0] + "x1", scale_b.rpartition("x")[0][:-1] + "1x520"
    if recipe == "tensor":
        scale_a = scale_b = ""

    def text(left: str, right: str) -> str:
        types = (f"tensor<{a}xf8E4M3FN>", f"tensor<{b}xf8E4M3FN>", f"tensor<{d}xf32>")
        scales = tuple((n, f"tensor<{s}{'x' if s else ''}f32>") for n, s in (("sa", left), ("sb", right)))
        clause = f"scaled (%sa by {RECIPES[recipe]}, %sb by {recipe})"
        if form == "batch":
            return product("batched_matmul", *types, clause, scales)
        more = (("i", f"tensor<{index}xi32>"), *scales)
        return product("grouped_matmul", *types, f"groups (%i by {form}) {clause}", more)

    assert problem_of(op_of(text(scale_a, scale_b))).d == F32
    assert f"scale of A: 7x7 of f32, expected {scale_a or 'scalar'}" in refused(text("7x7", scale_b))
    assert f"scale of B: 7x7 of f32, expected {scale_b or 'scalar'}" in refused(text(scale_a, "7x7"))


F = ("f", "tensor<5xf32>")
FAULTS = {
    "a of rank 3": (grouped("offs", "5x?x64", "5x64x48", "?x48", "5"), "the operand is a matrix M x K"),
    "b of rank 2": (grouped("offs", "?x64", "64x48", "?x48", "5"), "a matrix for each group, G x K x N"),
    "a of rank 2": (grouped("counts", "?x64", "5x64x48", "5x?x48", "5"), "a matrix for each group, G x M x K"),
    "b of rank 3": (grouped("k_offs", "?x640", "5x640x48", "5x?x48", "5"), "the operand is a matrix K x N"),
    "k": (grouped("offs", "?x64", "5x65x48", "?x48", "5"), "K is 64 in A: ?x64 of bf16 but 65 in B"),
    "groups of a and b": (grouped("counts", "4x?x64", "5x64x48", "5x?x48", "5"), "G is 4 in A"),
    "groups of a batch": (BATCH.replace("5x?x64", "4x?x64"), "G is 4 in A: 4x?x64 of bf16 but 5 in B"),
    "groups of the index": (grouped("offs", "?x64", "5x64x48", "?x48", "6"), "index: 6 of i32, expected 5"),
    "rows of the index": (grouped("group_ids", "7x64", "5x64x48", "7x48", "5"), "index: 5 of i32, expected 7"),
    "rank of the index": (grouped("offs", "?x64", "5x64x48", "?x48", "5x1"), "index: 5x1 of i32"),
    "type of the index": (grouped("offs", "?x64", "5x64x48", "?x48", "tensor<5xf32>"), "is i32"),
    "i64": (grouped("offs", "?x64", "5x64x48", "?x48", "tensor<5xi64>"), "element type i64 is not one of"),
    "no group": (grouped("offs", "?x64", "0x64x48", "?x48", "0"), "0 groups"),
    "no batch": (BATCH.replace("5x", "0x"), "0 groups"),
    "result": (grouped("offs", "?x64", "5x64x48", "5x?x48", "5"), "D: 5x?x48 of bf16, expected ?x48"),
    "result of k_offs": (grouped("k_offs", "?x640", "640x48", "?x48", "5"), "D: ?x48 of bf16, expected 5x?x48"),
    "c": (
        grouped("k_offs", "?x640", "640x48", "5x?x48", "5", "accumulate %c", (("c", "tensor<?x48xf32>"),)),
        "C is G x M x N, like the result",
    ),
    "integers added": (
        grouped("offs", "?x64", "5x64x48", "?x48", "5", "accumulate %c", (("c", "tensor<?x48xi32>"),)),
        "what is computed with is of a float type",
    ),
    "expected rows": (grouped("offs", "9x64", "5x64x48", "9x48", "5", "expect <m = 4>"), "expect m = 4 where M is 9"),
    "integer operands": (
        product("matmul", "tensor<4x4xi32>", "tensor<4x4xi32>", "tensor<4x4xf32>"),
        "A: 4x4 of i32",
    ),
    "no groups clause": (
        product("grouped_matmul", "tensor<4x4xbf16>", "tensor<2x4x4xbf16>", "tensor<4x4xbf16>"),
        "gemm.grouped_matmul without its groups clause",
    ),
    "groups of one product": (
        generic(OFFS).replace("gemm.grouped_matmul", "gemm.matmul"),
        "gemm.matmul with a groups clause",
    ),
    "index of a batch": (
        generic(COUNTS)
        .replace("gemm.grouped_matmul", "gemm.batched_matmul")
        .replace("grouped_by = #gemm.grouping<counts>, ", ""),
        "index: 5 of i32 where nothing is grouped by it",
    ),
    "no index": (
        generic(OFFS)
        .replace("(%a, %b, %i)", "(%a, %b)")
        .replace("1, 1, 1, 0", "1, 1, 0, 0")
        .replace("48xbf16>, tensor<5xi32>) -> tensor<?x48xbf16>\n", "48xbf16>) -> tensor<?x48xbf16>\n"),
        "groups by offs without an index operand",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_verifier_names_operand_value_and_rule(case: str):
    text, message = FAULTS[case]
    assert message in refused(text)


@pytest.mark.parametrize("by", ["rows", "none", "batch"])
def test_groups_are_by_four_words(by: str):
    with pytest.raises(IRError, match="Expected one of 'counts', 'group_ids', 'k_offs', 'offs'"):
        parse_module(OFFS.replace("by offs", f"by {by}"))


def test_only_grouped_products_have_the_clause():
    with pytest.raises(IRError, match="groups") as caught:
        parse_module(OFFS.replace("gemm.grouped_matmul", "gemm.matmul"))
    assert caught.value.code == "GMR-R001"


def test_rows_that_count_are_expected_of_a_known_m():
    text = grouped("counts", "5x512x64", "5x64x48", "5x512x48", "5", "expect <m = 40>")
    assert problem_of(op_of(text)).group_rows == 40


EPILOGUES = {
    ("offs", "column"): "5x48", ("offs", "row"): "?", ("offs", "element"): "?x48",
    ("counts", "column"): "5x48", ("counts", "row"): "5x?", ("counts", "element"): "5x?x48",
    ("k_offs", "column"): "5x48", ("k_offs", "row"): "5x?", ("k_offs", "element"): "5x?x48",
}  # fmt: skip


@pytest.mark.parametrize("case", EPILOGUES, ids="-".join)
def test_epilogue_operands(case: tuple[str, str]):
    form, kind = case
    text = {"offs": OFFS, "counts": COUNTS, "k_offs": K_OFFS}[form]
    result = "?x48" if form == "offs" else "5x?x48"
    body = f"epilogue (%e by {kind}) {{ ^bb0(%acc: f32, %v: f32): gemm.yield %acc : f32 }}"

    def with_operand(shape: str) -> str:
        changed = text.replace(f"{result}xbf16", f"{result}xf32").replace(" : (", f" {body} : (", 1)
        return changed.replace("%i: tensor<5xi32>", f"%i: tensor<5xi32>, %e: tensor<{shape}xf32>").replace(
            "tensor<5xi32>) ->", f"tensor<5xi32>, tensor<{shape}xf32>) ->"
        )

    assert op_of(with_operand(EPILOGUES[case])).epilogue_kinds == (kind,)
    assert f"an epilogue operand by {kind} is" in refused(with_operand("3x3"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (grouped("offs", "?x64", "?x64x48", "?x48", "?"), "N = 48, K = 64, G = \\?"),
        (grouped("k_offs", "?x?", "?x48", "5x?x48", "5"), "N = 48, K = \\?, G = 5"),
    ],
)
def test_a_kernel_knows_its_groups_and_its_k(text: str, what: str):
    with pytest.raises(UnsupportedError, match=what) as caught:
        problem_of(op_of(text))
    assert caught.value.code == "GMR-U001"
