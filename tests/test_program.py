"""The builder: what it writes, what its key says, and what it refuses where."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from enum import Enum

import pytest
import torch

from gemmir.dialects.gemm import schedule_of, the_matmul
from gemmir.errors import GemmirError, InputError, ScheduleError, UnsupportedError
from gemmir.expression import MAX_STEPS, Expression, Input, flatten
from gemmir.ir_text import parse_module
from gemmir.problem import Recipe
from gemmir.program import Program
from gemmir.schedule import SCALES_OF_TILE, Evict, RasterAxis, Schedule, Split
from tests.kernels import BF16_SCHEDULE

DOWN_PROJ = """\
builtin.module {
  func.func @down_proj(%x: tensor<?x2048xf8E4M3FN>, %xs: tensor<?x16xf32>, %w: tensor<2048x7168xf8E4M3FN>, \
%ws: tensor<16x56xf32>) -> tensor<?x7168xbf16> {
    %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
        : (tensor<?x2048xf8E4M3FN>, tensor<2048x7168xf8E4M3FN>, tensor<?x16xf32>, tensor<16x56xf32>) \
-> tensor<?x7168xbf16>
    func.return %y : tensor<?x7168xbf16>
  }
}
"""


class ScalingType(Enum):
    """As in torch.nn.functional, which not every torch has."""

    TensorWise = 0
    BlockWise1x128 = 4
    BlockWise128x128 = 5


def down_proj(dtype: object = "f8E4M3FN", recipe: object = ("block_wise_1x128", "block_wise_128x128")) -> Program:
    p = Program("down_proj")
    x, xs = p.input("x", (None, 2048), dtype), p.input("xs", (None, 16), "f32")
    w, ws = p.input("w", (2048, 7168), dtype), p.input("ws", (16, 56), "f32")
    p.output(p.matmul(x, w, scale_a=xs, scale_b=ws, recipe=recipe).cast("bf16"))
    return p


def bf16(name: str = "f") -> tuple[Program, Input, Input]:
    p = Program(name)
    return p, p.input("a", (64, 32), "bf16"), p.input("b", (32, 16), "bf16")


def with_epilogue(change: Callable[[Expression, Input], Expression], shape: tuple[int, ...] = (16,)) -> Program:
    p, a, b = bf16()
    operand = p.input("e", shape, "f16")
    p.output(change(p.matmul(a, b), operand).cast("bf16"))
    return p


def body(p: Program) -> list[str]:
    """The lines of the epilogue."""
    lines = [line.strip() for line in p.text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("^bb0"))
    return lines[start : lines.index("}", start)]


def test_a_program_is_the_text_that_one_expects():
    assert down_proj().text == DOWN_PROJ
    assert str(parse_module(DOWN_PROJ)) + "\n" == DOWN_PROJ


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "float8_e4m3fn", "torch.float8_e4m3fn", torch.float8_e4m3fn])
def test_types_have_many_names(dtype: object):
    assert down_proj(dtype).text == DOWN_PROJ


@pytest.mark.parametrize(
    "recipe",
    [
        ["block_wise_1x128", "block_wise_128x128"],
        (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128),
        ("BlockWise1x128", Recipe.BLOCK_WISE_128X128),
    ],
)
def test_recipes_have_torch_names(recipe: object):
    assert down_proj(recipe=recipe).text == DOWN_PROJ


def test_torch_scaling_types_are_known():
    kinds = getattr(torch.nn.functional, "ScalingType", ScalingType)
    assert down_proj(recipe=(kinds.BlockWise1x128, kinds.BlockWise128x128)).text == DOWN_PROJ


def test_every_keyword_becomes_a_clause():
    p = Program("f")
    a, b = p.input("a", (None, 64), "f16"), p.input("b", (64, 128), "f16")
    c = p.input("c", (None, 128), torch.float32)
    schedule = {"block_m": 128, "split": "n", "raster_axis": RasterAxis.ALONG_N, "turns": False, "promote_chunk": 1}
    y = p.matmul(a, b, c=c, promote_every=48, expected_m=96, schedule=schedule, a_major="m", b_major="n")
    p.output(y)
    assert p.text.splitlines()[2:9] == [
        "    %y = gemm.matmul %a, %b",
        "        accumulate %c",
        "        layout <a = m, b = n>",
        "        numerics <promote_every = 48>",
        "        expect <m = 96>",
        "        schedule <block = 128x?x?, warpgroups = ? along n, turns = false, chunk = 1, raster = along_n>",
        "        : (tensor<?x64xf16>, tensor<64x128xf16>, tensor<?x128xf32>) -> tensor<?x128xf32>",
    ]


def test_a_schedule_may_be_a_schedule():
    p, a, b = bf16()
    p.output(p.matmul(a, b, schedule=Schedule(num_stages=4, split=Split.ALONG_M)))
    assert "schedule <warpgroups = ? along m, stages = 4>" in p.text


def test_an_epilogue_is_an_expression():
    p = with_epilogue(lambda y, e: (y + e.by("column")).silu())
    assert body(p) == [
        "^bb0(%acc: f32, %e_1: f16):",
        "%0 = arith.extf %e_1 : f16 to f32",
        "%1 = arith.addf %acc, %0 : f32",
        "%2 = arith.negf %1 : f32",
        "%3 = math.exp %2 : f32",
        "%4 = arith.constant 1.000000e+00 : f32",
        "%5 = arith.addf %3, %4 : f32",
        "%6 = arith.divf %1, %5 : f32",
        "%7 = arith.truncf %6 : f32 to bf16",
        "gemm.yield %7 : bf16",
    ]
    assert str(parse_module(p.text)) + "\n" == p.text


@pytest.mark.parametrize(
    ("change", "ops"),
    [
        (lambda y: 2 - y * 3, "mulf subf"),
        (lambda y: 1.5 / (y - 1), "subf divf"),
        (lambda y: 1 + y, "addf"),
        (lambda y: 2.0 * -y, "negf mulf"),
        (lambda y: y.relu(), "maximumf"),
        (lambda y: y.minimum(6), "minimumf"),
        (lambda y: y.sigmoid(), "negf exp addf divf"),
        (lambda y: y.tanh(), "tanh"),
        (lambda y: y.gelu_tanh(), "mulf mulf mulf mulf addf mulf tanh addf mulf"),
    ],
)
def test_functions_of_an_expression(change: Callable[[Expression], Expression], ops: str):
    lines = body(with_epilogue(lambda y, e: change(y)))
    found = [line.split(" = ")[1].split()[0].split(".")[1] for line in lines if " = " in line]
    assert sorted(op for op in found if op not in ("constant", "extf", "truncf")) == sorted(ops.split())


@pytest.mark.parametrize(("kind", "shape"), [("column", (16,)), ("row", (64,)), ("element", (64, 16)), ("scalar", ())])
def test_each_kind_of_operand(kind: str, shape: tuple[int, ...]):
    assert f"epilogue (%e by {kind}) {{" in with_epilogue(lambda y, e: y * e.by(kind), shape).text


def test_an_operand_used_twice_is_passed_once():
    text = with_epilogue(lambda y, e: (y + e.by("column")) * e.by("column")).text
    assert "epilogue (%e by column) {" in text


def test_a_shared_expression_is_computed_once():
    y = Expression("accumulator")
    for _ in range(100):
        y = y + y
    assert len(flatten(y)) == 101


def test_f32_needs_no_cast():
    p, a, b = bf16()
    p.output(p.matmul(a, b) * 0.5)
    assert body(p)[-1] == "gemm.yield %1 : f32"


def test_every_module_is_new():
    p = down_proj()
    assert p.module is not p.module
    assert str(p.module) == str(p.module)


def test_the_key_is_stable_and_tells_programs_apart():
    keys = {
        down_proj().key(),
        with_epilogue(lambda y, e: y + e.by("column")).key(),
        with_epilogue(lambda y, e: y - e.by("column")).key(),
        with_epilogue(lambda y, e: y + 1).key(),
        with_epilogue(lambda y, e: y + 2).key(),
        with_epilogue(lambda y, e: y + e.by("row"), (64,)).key(),
    }
    assert len(keys) == 6
    assert down_proj().key() == down_proj(torch.float8_e4m3fn).key()
    key = json.loads(down_proj().key())
    assert key["inputs"][0] == ["x", "f8E4M3FN", [None, 2048]]
    assert (key["product"]["recipe"], key["product"]["promote_every"]) == (["1x128", "128x128"], 128)
    assert (key["name"], key["result"], len(key["steps"])) == ("down_proj", "bf16", 1)


def test_the_key_needs_neither_xdsl_nor_torch():
    code = """
import sys, gemmir.program
p = gemmir.program.Program("f")
p.output(p.matmul(p.input("a", (None, 32), "bf16"), p.input("b", (32, 16), "bf16")).relu().cast("bf16"))
print(p.key())
assert not {"xdsl", "torch", "numpy", "cuda"} & sys.modules.keys()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    p = Program("f")
    p.output(p.matmul(p.input("a", (None, 32), "bf16"), p.input("b", (32, 16), "bf16")).relu().cast("bf16"))
    assert out == p.key() + "\n"


def refused(call: Callable[[Program, Input, Input], object], kind: type[GemmirError] = InputError) -> GemmirError:
    p, a, b = bf16()
    with pytest.raises(kind) as caught:
        call(p, a, b)
    assert caught.value.fix
    return caught.value


OTHER = Input("x", (64, 32), bf16()[1].dtype)
CALLS: dict[str, tuple[str, str, Callable[[Program, Input, Input], object]]] = {
    "input name": ("GMR-I009", "an input's name: 'x y'", lambda p, a, b: p.input("x y", (4, 4), "f32")),
    "keyword-like name": ("GMR-I009", '"x\'; //"', lambda p, a, b: p.input("x'; //", (4, 4), "f32")),
    "numbered name": ("GMR-I009", "input 'x_1'", lambda p, a, b: p.input("x_1", (4, 4), "f32")),
    "name twice": ("GMR-I009", "input 'a' twice", lambda p, a, b: p.input("a", (4, 4), "f32")),
    "program name": ("GMR-I009", "the program's name: '1st'", lambda p, a, b: Program("1st")),
    "name not a string": ("GMR-I009", "the program's name: 7", lambda p, a, b: Program(7)),  # type: ignore[arg-type]
    "dtype": ("GMR-I001", "x: dtype 'int8'", lambda p, a, b: p.input("x", (4, 4), torch.int8)),
    "fnuz dtype": ("GMR-I001", "float8_e4m3fnuz", lambda p, a, b: p.input("x", (4, 4), torch.float8_e4m3fnuz)),
    "negative dimension": ("GMR-I007", "x: dimension -4", lambda p, a, b: p.input("x", (-4, 4), "f32")),
    "float dimension": ("GMR-I007", "x: dimension 4.0", lambda p, a, b: p.input("x", (4.0, 4), "f32")),  # type: ignore[arg-type]
    "bool dimension": ("GMR-I007", "x: dimension True", lambda p, a, b: p.input("x", (True, 4), "f32")),
    "huge dimension": ("GMR-I007", "2147483648", lambda p, a, b: p.input("x", (2**31, 4), "f32")),
    "shape": ("GMR-I005", "x: shape 4", lambda p, a, b: p.input("x", 4, "f32")),  # type: ignore[arg-type]
    "not an input": ("GMR-I005", "a: ndarray", lambda p, a, b: p.matmul(torch.ones(1).numpy(), b)),  # type: ignore[arg-type]
    "foreign input": ("GMR-I005", "a: input 'x' of another program", lambda p, a, b: p.matmul(OTHER, b)),
    "k": ("GMR-I002", "K is 32 in a: 64x32 of bf16 but 64 in a: 64x32", lambda p, a, b: p.matmul(a, a)),
    "rank": ("GMR-I002", "v: 32 of bf16: rank 1", lambda p, a, b: p.matmul(a, p.input("v", (32,), "bf16"))),
    "types": ("GMR-I001", "w: 32x4 of f16", lambda p, a, b: p.matmul(a, p.input("w", (32, 4), "f16"))),
    "f32": ("GMR-I001", "w: 32x4 of f32", lambda p, a, b: p.matmul(a, p.input("w", (32, 4), "f32"))),
    "c": ("GMR-I002", "a: 64x32 of bf16, expected 64x16", lambda p, a, b: p.matmul(a, b, c=a)),
    "major": ("GMR-I006", "b is m-major", lambda p, a, b: p.matmul(a, b, b_major="m")),
    "scale without recipe": ("GMR-I009", "without a recipe", lambda p, a, b: p.matmul(a, b, scale_a=a)),
    "recipe of 16 bits": (
        "GMR-I001",
        "only FP8 operands are scaled",
        lambda p, a, b: p.matmul(a, b, recipe="row_wise"),
    ),
    "recipe name": ("GMR-I009", "recipe 'BlockWise1x16'", lambda p, a, b: p.matmul(a, b, recipe="BlockWise1x16")),
    "recipe triple": ("GMR-I009", "recipe of 3 entries", lambda p, a, b: p.matmul(a, b, recipe=(1, 2, 3))),
    "promote": ("GMR-I009", "promote_every = 24", lambda p, a, b: p.matmul(a, b, promote_every=24)),
    "promote type": ("GMR-I009", "promote_every = 0.5", lambda p, a, b: p.matmul(a, b, promote_every=0.5)),  # type: ignore[arg-type]
    "expected m": ("GMR-I009", "expect m = 4 where M is 64", lambda p, a, b: p.matmul(a, b, expected_m=4)),
    "schedule name": ("GMR-I009", "schedule: 'blocks'", lambda p, a, b: p.matmul(a, b, schedule={"blocks": 1})),
    "schedule value": ("GMR-I009", "block_m = '128'", lambda p, a, b: p.matmul(a, b, schedule={"block_m": "128"})),
    "schedule zero": ("GMR-I009", "cluster_m = 0", lambda p, a, b: p.matmul(a, b, schedule=Schedule(cluster_m=0))),
    "schedule word": ("GMR-I009", "split = 'k'", lambda p, a, b: p.matmul(a, b, schedule={"split": "k"})),
    "scale slots": ("GMR-I009", "scale_slots = -2", lambda p, a, b: p.matmul(a, b, schedule={"scale_slots": -2})),
    "scale slots word": ("GMR-I009", "= 'tiles'", lambda p, a, b: p.matmul(a, b, schedule={"scale_slots": "tiles"})),
    "scale slots float": ("GMR-I009", "= 1.0", lambda p, a, b: p.matmul(a, b, schedule={"scale_slots": 1.0})),
    "tile of others": ("GMR-I009", "tail_n = 'tile'", lambda p, a, b: p.matmul(a, b, schedule={"tail_n": "tile"})),
    "schedule kind": ("GMR-I005", "schedule: str", lambda p, a, b: p.matmul(a, b, schedule="fast")),  # type: ignore[arg-type]
    "cast": ("GMR-I001", "cast to f8E4M3FN", lambda p, a, b: p.matmul(a, b).cast("f8E4M3FN")),
    "constant": ("GMR-I009", "not a finite f32", lambda p, a, b: p.matmul(a, b) * 1e39),
    "huge constant": ("GMR-I009", "not a finite f32", lambda p, a, b: p.matmul(a, b) * 10**400),
    "nan": ("GMR-I009", "not a finite f32", lambda p, a, b: p.matmul(a, b) + float("nan")),
    "tensor in an epilogue": ("GMR-I005", "Input in an epilogue", lambda p, a, b: p.matmul(a, b) + a),  # type: ignore[operator]
    "kind": ("GMR-I009", "a.by('col')", lambda p, a, b: a.by("col")),
    "operand shape": (
        "GMR-I002",
        "a: 64x32 of bf16, expected 16",
        lambda p, a, b: p.output(p.matmul(a, b) + a.by("column")),
    ),
    "output kind": ("GMR-I005", "output: NoneType", lambda p, a, b: p.output(None)),  # type: ignore[arg-type]
    "output of nothing": ("GMR-I005", "without this program's product", lambda p, a, b: p.output(a.by("element"))),
    "output of another": (
        "GMR-I005",
        "without this program's product",
        lambda p, a, b: (p.matmul(a, b), p.output(with_product())),
    ),
    "input after the output": (
        "GMR-I005",
        "an input after the output",
        lambda p, a, b: (p.output(p.matmul(a, b)), p.input("z", (4,), "f32")),
    ),
    "output twice": (
        "GMR-I005",
        "an output after the output",
        lambda p, a, b: (p.output(y := p.matmul(a, b)), p.output(y)),
    ),
    "no output": ("GMR-I005", "program f without an output", lambda p, a, b: p.key()),
    "endless epilogue": (
        "GMR-I009",
        f"more than {MAX_STEPS} operations",
        lambda p, a, b: p.output(many(p.matmul(a, b))),
    ),
}


def with_product() -> Expression:
    p, a, b = bf16()
    return p.matmul(a, b)


def many(y: Expression) -> Expression:
    for _ in range(100_000):
        y = -y
    return y


@pytest.mark.parametrize("case", CALLS)
def test_the_call_that_is_wrong_raises(case: str):
    code, what, call = CALLS[case]
    error = refused(call)
    assert error.code == code
    assert what in str(error)


def test_fp8_operands_are_k_major():
    p = Program("f")
    a, b = p.input("a", (64, 32), "f8E5M2"), p.input("b", (32, 16), "f8E4M3FN")
    with pytest.raises(InputError, match="WGMMA reads FP8 operands k-major only"):
        p.matmul(a, b, a_major="m")


def test_a_missing_scale_is_named():
    p = Program("f")
    a, b, s = p.input("a", (64, 256), "f8E5M2"), p.input("b", (256, 16), "f8E4M3FN"), p.input("s", (64, 2), "f32")
    with pytest.raises(InputError, match="recipe 128x128 for b without scale_b"):
        p.matmul(a, b, scale_a=s, recipe=("block_wise_1x128", "block_wise_128x128"))


def test_a_second_product_is_unsupported():
    def twice(p: Program, a: Input, b: Input) -> None:
        p.matmul(a, b)
        p.matmul(a, b)

    assert refused(twice, UnsupportedError).code == "GMR-U001"


def test_an_illegal_schedule_is_refused_at_once():
    def fixed(p: Program, a: Input, b: Input) -> None:
        p.matmul(a, b, schedule={"block_k": 128})

    error = refused(fixed, ScheduleError)
    assert (error.code, error.fix) == ("GMR-S003", "use block_k = 64")


def test_every_choice_can_be_fixed():
    """By the words of the IR, or by what `Schedule` holds."""
    chosen = replace(BF16_SCHEDULE, cluster_m=1, evict=Evict.BOTH, balanced=True, scale_batch=1)
    chosen = replace(chosen, scale_slots=0, store_slices=1)
    assert chosen.complete
    words = {f.name: getattr(value := getattr(chosen, f.name), "value", value) for f in fields(chosen)}
    for schedule in (words, {f.name: getattr(chosen, f.name) for f in fields(chosen)}):
        p = Program("f")
        a, b = p.input("a", (None, 512), "bf16"), p.input("b", (512, 256), "bf16")
        p.output(p.matmul(a, b, schedule=schedule).cast("bf16"))
        assert schedule_of(the_matmul(p.module)) == chosen


@pytest.mark.parametrize(
    ("given", "slots"), [(0, 0), (1, 1), (2, 2), (4, 4), ("tile", SCALES_OF_TILE), (SCALES_OF_TILE, SCALES_OF_TILE)]
)
def test_who_loads_scales_is_a_number_or_a_word(given: int | str, slots: int):
    """Scales of a whole tile go by the word of the IR; the key is that of the number."""
    p = Program("f")
    x, xs = p.input("x", (None, 2048), "f8E4M3FN"), p.input("xs", (None, 16), "f32")
    w, ws = p.input("w", (2048, 7168), "f8E4M3FN"), p.input("ws", (16, 56), "f32")
    recipe = ("block_wise_1x128", "block_wise_128x128")
    p.output(p.matmul(x, w, scale_a=xs, scale_b=ws, recipe=recipe, schedule={"scale_slots": given}).cast("bf16"))
    assert schedule_of(the_matmul(p.module)) == Schedule(scale_slots=slots)
    assert f"schedule <scale_slots = {'tile' if slots < 0 else slots}>" in p.text
    assert str(parse_module(p.text)) == str(p.module)


def test_the_staging_of_an_f32_result_counts():
    """Legal for a bf16 result, over the shared memory of a block for an f32 one: known when the output is."""
    schedule = {"block_m": 128, "block_n": 256, "math_warpgroups": 2, "split": "n", "store_slices": 1, "num_stages": 3}

    def program(dtype: str) -> None:
        p = Program("f")
        a, b = p.input("a", (None, 512), "bf16"), p.input("b", (512, 256), "bf16")
        p.output(p.matmul(a, b, schedule=schedule).cast(dtype))

    program("bf16")
    with pytest.raises(ScheduleError, match="131104 \\(outgoing tile, barriers\\) = 278608 bytes") as caught:
        program("f32")
    assert caught.value.code == "GMR-S001"
