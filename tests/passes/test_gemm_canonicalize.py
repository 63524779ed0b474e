"""gemm-canonicalize: text before, text after, and after once more."""

import pytest
from xdsl.dialects.builtin import ModuleOp

from gemmir.dialects.gemm import MatmulOp, the_matmul
from gemmir.ir_text import make_context, parse_module
from gemmir.passes.gemm_canonicalize import GemmCanonicalizePass

TYPES = "(tensor<?x64xbf16>, tensor<64x16xbf16>{})"


def program(clauses: str, result: str = "bf16", more: tuple[tuple[str, str], ...] = ()) -> str:
    arguments = "".join(f", %{name}: {kind}" for name, kind in more)
    types = TYPES.format("".join(f", {kind}" for _, kind in more))
    return f"""func.func @f(%a: tensor<?x64xbf16>, %b: tensor<64x16xbf16>{arguments}) -> tensor<?x16x{result}> {{
  %y = gemm.matmul %a, %b {clauses} : {types} -> tensor<?x16x{result}>
  func.return %y : tensor<?x16x{result}>
}}"""


def canonical(text: str) -> ModuleOp:
    """The module after the pass, which changes nothing when it runs again."""
    module = parse_module(text, "f.mlir")
    GemmCanonicalizePass().apply(make_context(), module)
    module.verify()
    once = str(module)
    GemmCanonicalizePass().apply(make_context(), module)
    assert str(module) == once
    assert str(parse_module(once)) == once
    return module


def clauses(text: str) -> list[str]:
    """The lines of the product after the pass."""
    lines = [line.strip() for line in str(canonical(text)).splitlines()]
    return lines[2 : lines.index("func.return %y : " + lines[1].split(" -> ")[1].removesuffix(" {"))]


UNUSED = (
    "epilogue (%e by column) { ^bb0(%acc: f32, %u: f32): %r = arith.truncf %acc : f32 to bf16 gemm.yield %r : bf16 }"
)
BARE = [
    "%y = gemm.matmul %a, %b",
    "numerics <promote_every = none>",
    ": (tensor<?x64xbf16>, tensor<64x16xbf16>) -> tensor<?x16xbf16>",
]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "numerics <promote_every = none>",
        "layout <a = k, b = k>",
        "layout <>",
        "schedule <>",
        "schedule <block = ?x?x?>",
        "epilogue { ^bb0(%acc: f32): %r = arith.truncf %acc : f32 to bf16 gemm.yield %r : bf16 }",
    ],
)
def test_there_is_one_way_to_write_a_bare_product(text: str):
    assert clauses(program(text)) == BARE


def test_block_wise_products_are_promoted_every_128():
    text = """func.func @f(%a: tensor<?x64xf8E5M2>, %b: tensor<64x16xf8E5M2>, %s: tensor<?x1xf32>, %t: tensor<1x1xf32>)
      -> tensor<?x16xf16> {
  %y = gemm.matmul %a, %b scaled (%s by 1x128, %t by 128x128)
    : (tensor<?x64xf8E5M2>, tensor<64x16xf8E5M2>, tensor<?x1xf32>, tensor<1x1xf32>) -> tensor<?x16xf16>
  func.return %y : tensor<?x16xf16>
}"""
    assert clauses(text)[:2] == [
        "%y = gemm.matmul %a, %b scaled (%s by 1x128, %t by 128x128)",
        "numerics <promote_every = 128>",
    ]


def test_what_means_something_stays():
    text = "layout <a = m, b = k> numerics <promote_every = 32> expect <m = 7> schedule <stages = 4>"
    assert clauses(program(text))[1:-1] == [
        "layout <a = m, b = k>",
        "numerics <promote_every = 32>",
        "expect <m = 7>",
        "schedule <stages = 4>",
    ]


def test_an_f32_result_yields_the_accumulator_itself():
    assert clauses(program("epilogue { ^bb0(%acc: f32): gemm.yield %acc : f32 }", "f32"))[1:-1] == BARE[1:2]


def test_unused_operands_and_dead_operations_go():
    text = program(
        "epilogue (%e by column, %g by row) { ^bb0(%acc: f32, %u: f32, %v: f32): "
        "%dead = arith.mulf %u, %acc : f32 %s = arith.addf %acc, %v : f32 %r = arith.truncf %s : f32 to bf16 "
        "gemm.yield %r : bf16 }",
        more=(("e", "tensor<16xf32>"), ("g", "tensor<?xf32>")),
    )
    assert clauses(text)[2:] == [
        "epilogue (%g by row) {",
        "^bb0(%acc: f32, %v: f32):",
        "%s = arith.addf %acc, %v : f32",
        "%r = arith.truncf %s : f32 to bf16",
        "gemm.yield %r : bf16",
        "}",
        ": (tensor<?x64xbf16>, tensor<64x16xbf16>, tensor<?xf32>) -> tensor<?x16xbf16>",
    ]


def test_an_epilogue_whose_operands_are_all_unused_goes():
    text = program(
        UNUSED,
        more=(("e", "tensor<16xf32>"),),
    )
    assert clauses(text) == BARE


def folded(operations: str) -> list[str]:
    text = f"epilogue {{ ^bb0(%acc: f32): {operations} %r = arith.mulf %acc, %c : f32 gemm.yield %r : f32 }}"
    lines = clauses(program(text, "f32"))
    return lines[lines.index("^bb0(%acc: f32):") + 1 : lines.index("gemm.yield %r : f32")]


def constants(a: str, b: str) -> str:
    return f"%p = arith.constant {a} : f32 %q = arith.constant {b} : f32 "


@pytest.mark.parametrize(
    ("op", "a", "b", "result"),
    [
        ("addf", "0.1", "0.2", "3.000000e-01"),
        ("addf", "16777216.0", "1.0", "0x4B800000"),
        ("subf", "1.0", "0.75", "2.500000e-01"),
        ("mulf", "0.1", "0.1", "0.0100000007"),
        ("divf", "1.0", "3.0", "0.333333343"),
    ],
)
def test_constants_fold_as_float32(op: str, a: str, b: str, result: str):
    assert folded(f"{constants(a, b)} %c = arith.{op} %p, %q : f32") == [
        f"%c = arith.constant {result} : f32",
        "%r = arith.mulf %acc, %c : f32",
    ]


def test_chains_of_constants_fold():
    chain = f"{constants('2.0', '3.0')} %n = arith.negf %p : f32 %c = arith.addf %n, %q : f32"
    assert folded(chain)[0] == "%c = arith.constant 1.000000e+00 : f32"


@pytest.mark.parametrize(
    ("op", "a", "b"),
    [
        ("divf", "1.0", "0.0"),
        ("mulf", "1.0e30", "1.0e30"),
        ("mulf", "1.0e-30", "1.0e-30"),
        ("divf", "1.0e-38", "10.0"),
    ],
)
def test_what_is_not_a_normal_number_is_left_to_the_hardware(op: str, a: str, b: str):
    assert folded(f"{constants(a, b)} %c = arith.{op} %p, %q : f32")[-2] == f"%c = arith.{op} %p, %q : f32"


def test_places_and_names_survive():
    text = program(
        UNUSED,
        more=(("e", "tensor<16xf32>"),),
    )
    op = the_matmul(canonical(text))
    assert str(op.location) == 'loc("f.mlir":2:3)'
    assert op.d.name_hint == "y"


def test_every_product_of_a_module_is_normalised():
    text = program("").replace("@f", "@g") + "\n" + program("layout <>")
    module = canonical(text)
    assert [op.numerics is not None and op.layout is None for op in module.walk() if isinstance(op, MatmulOp)] == [
        True,
        True,
    ]
