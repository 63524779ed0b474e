"""The way in for IR text: places of errors, limits, hostile text, and nothing but typed errors."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmir import ir_gate
from gemmir.errors import GemmirError, IRError, ScheduleError, UnsupportedError
from gemmir.ir_gate import MAX_BYTES, MAX_STRING, MAX_STRINGS, MAX_TOKENS
from gemmir.ir_text import MAX_OPS, MAX_REGIONS, parse_module, verify_module
from tests.fuzz.mutations import EPILOGUE as TEXT
from tests.fuzz.mutations import GROUPED, corpus, generic, mutate
from tests.kernels import FP8_SCHEDULE, lowered
from tests.schedules import fp8_problem


def failure(text: str, kind: type[GemmirError] = IRError) -> GemmirError:
    with pytest.raises(kind) as caught:
        parse_module(text, "up.mlir")
    return caught.value


def place(error: GemmirError) -> tuple[int, int]:
    assert error.location is not None
    assert error.location.file == "up.mlir"
    return error.location.line, error.location.column


def test_every_operation_knows_its_place():
    ops = list(parse_module(TEXT, "up.mlir").walk())
    places = {op.name: str(op.location) for op in ops}
    assert places["gemm.matmul"] == 'loc("up.mlir":3:3)'
    assert places["math.tanh"] == 'loc("up.mlir":14:9)'
    assert places["func.return"] == 'loc("up.mlir":20:3)'


def test_a_syntax_error_points_at_the_word():
    error = failure(TEXT.replace("by column", "by colum"))
    assert error.code == "GMR-R001"
    assert place(error) == (10, 26)
    assert error.location is not None
    assert error.location.length == len("colum")
    assert "Expected one of 'column', 'element', 'row', 'scalar'" in str(error)


def test_an_undefined_value_points_at_its_use():
    error = failure(TEXT.replace("return %y", "return %z"))
    assert (error.code, *place(error)) == ("GMR-R001", 20, 15)
    assert "[%z]" in error.what


def test_a_verification_error_points_at_its_operation():
    error = failure(TEXT.replace("4x2xf32", "4x3xf32"))
    assert (error.code, *place(error)) == ("GMR-R002", 3, 3)
    assert error.what == "scale of B: 4x3 of f32, expected 4x2"
    assert error.fix == "use shape 4x2"


def test_a_fault_inside_the_epilogue_points_inside():
    error = failure(TEXT.replace("arith.extf %b : bf16 to f32", "arith.truncf %b : bf16 to f32"))
    assert (error.code, *place(error)) == ("GMR-R002", 12, 9)


def test_a_schedule_that_does_not_fit_shows_the_arithmetic():
    error = failure(TEXT.replace("stages = 3", "stages = 9"), ScheduleError)
    assert (error.code, *place(error)) == ("GMR-S001", 3, 3)
    assert error.what == "9 stages x 49696 + 32800 (outgoing tile, barriers) = 480064 bytes"
    assert error.fix == "use num_stages = 4"


def test_slices_that_are_fixed_beside_stages_that_do_not_fit_show_the_arithmetic():
    error = failure(TEXT.replace("stages = 3", "slices = 1, stages = 4"), ScheduleError)
    assert (error.code, *place(error)) == ("GMR-S001", 3, 3)
    assert error.what == "4 stages x 49696 + 65568 (outgoing tile, barriers) = 264352 bytes"
    assert error.fix == "use num_stages = 3"


def test_slices_that_a_tile_does_not_have_are_refused():
    error = failure(TEXT.replace("stages = 3", "slices = 4, stages = 3"), ScheduleError)
    assert (error.code, *place(error)) == ("GMR-S003", 3, 3)
    assert error.what == "slices = 4 of 2 waves a warpgroup"
    assert error.fix == "use slices = 1 or 2"


def test_a_use_before_the_definition_is_refused():
    swapped = TEXT.replace("        %wide = arith.extf %b : bf16 to f32\n", "").replace(
        "        %big =", "        %wide = arith.extf %b : bf16 to f32\n        %big ="
    )
    error = failure(swapped)
    assert (error.code, *place(error)) == ("GMR-R002", 12, 9)
    assert error.what == "%wide is used before it is defined"


def test_a_value_of_another_region_is_refused():
    text = "func.func @f(%a: f32) { func.return }\nfunc.func @g() {\n  %b = arith.negf %a : f32\n  func.return\n}"
    assert failure(text).code == "GMR-R001"


def test_a_value_defined_in_a_later_region_is_refused():
    text = "func.func @g() {\n  %b = arith.negf %a : f32\n  func.return\n}\nfunc.func @f(%a: f32) { func.return }"
    error = failure(text)
    assert (error.code, *place(error)) == ("GMR-R002", 2, 3)


def test_several_blocks_are_refused():
    error = failure("func.func @f() {\n  func.return\n^next:\n  func.return\n}")
    assert (error.code, error.what) == ("GMR-R002", "func.func with 2 blocks in a region")


def test_numbered_names_survive_printing():
    text = "func.func @f(%x_1_2: f32, %x: f32, %x_7: f32) {\n  func.return\n}"
    printed = str(parse_module(text))
    assert "@f(%x: f32, %x_1: f32, %x_2: f32)" in printed
    assert str(parse_module(printed)) == printed


def test_a_module_built_by_hand_is_verified_too():
    module = parse_module(TEXT)
    block = next(op for op in module.walk() if op.name == "gemm.matmul").regions[0].block
    list(block.ops)[1].detach()
    with pytest.raises(IRError, match="used before it is defined") as caught:
        verify_module(module)
    assert caught.value.code == "GMR-R002"


HOSTILE = {
    "empty": ("", "GMR-R001"),
    "no first token": (".", "GMR-R001"),
    "truncated": ("func.func @f() {", "GMR-R001"),
    "nul": ("builtin.module {\0}", "GMR-R001"),
    "surrogate": ("builtin.module {\ud800}", "GMR-R001"),
    "integer of 5000 digits": ("builtin.module { %0 = arith.constant " + "9" * 5000 + " : i64 }", "GMR-R003"),
    "hexadecimal of 5000 digits": ("builtin.module { %0 = arith.constant 0x" + "9" * 5000 + " : i64 }", "GMR-R003"),
    "index of 5000 digits": ("builtin.module { %0 = arith.negf %a#" + "9" * 5000 + " : f32 }", "GMR-R003"),
    "superscript digit": ("builtin.module { %0 = arith.constant ² : i64 }", "GMR-R001"),
    "integer over i64": ("builtin.module { %0 = arith.constant 99999999999999999999999 : i64 }", "GMR-R002"),
    "integer over i8": ("builtin.module { %0 = arith.constant 300 : i8 }", "GMR-R002"),
    "huge bit width": ("builtin.module { %0 = arith.constant 1 : i99999999999 }", "GMR-R003"),
    "odd bit width": ("func.func private @f(memref<4xsi7>) -> ()", "GMR-R003"),
    "nested modules": ("builtin.module {" * 5000 + "}" * 5000, "GMR-R003"),
    "nested arrays": ("builtin.module attributes {a=" + "[" * 5000 + "]" * 5000 + "} {}", "GMR-R003"),
    "nested types": ("func.func private @f(" + "tuple<" * 3000 + "i32" + ">" * 3000 + ") -> ()", "GMR-R003"),
    "hidden nesting": ("builtin.module attributes {a=" + "[affine_set<(d):(d >= 0)>," * 200, "GMR-R003"),
    "dense splat": ("builtin.module { %0 = arith.constant dense<1> : tensor<1000000000xi32> }", "GMR-R003"),
    "huge dimension": ("func.func private @f(memref<9223372036854775808xf32>) -> ()", "GMR-R003"),
    "rank 6": ("func.func private @f(tensor<1x1x1x1x1x1xf32>) -> ()", "GMR-R003"),
    "negative dimension": ("func.func private @f(memref<-1x4xf32>) -> ()", "GMR-R001"),
    "unregistered op": ('builtin.module { "evil.op"() : () -> () }', "GMR-R001"),
    "unregistered dialect": ("builtin.module { scf.yield }", "GMR-R001"),
    "bell in the text": ("builtin.module {\x07}", "GMR-R001"),
    "string without an end": ('builtin.module attributes {a = "' + "a" * 500 + "} {}", "GMR-R001"),
    "string with a bad escape": ('builtin.module attributes {a = "' + "a" * 500 + '\\q"} {}', "GMR-R001"),
    "aliases that double": ("\n".join(f"#a{i + 1} = [#a{i}, #a{i}]" for i in range(60)), "GMR-R003"),
    "type alias": ("!t = tensor<4x4xf32>\nbuiltin.module {}", "GMR-R003"),
    "resources": ("{-# dialect_resources: {} #-} builtin.module {}", "GMR-R003"),
    "shape of 100000 dimensions": ("func.func private @f(tensor<" + "1x" * 100_000 + "f32>) -> ()", "GMR-R003"),
    "a product that grows": (
        "builtin.module attributes {a = affine_map<() -> (" + "9 * " * 20_000 + "9)>} {}",
        "GMR-R003",
    ),
    "an affine set": ("builtin.module attributes {a = affine_set<(d0) : (d0 >= 0)>} {}", "GMR-R003"),
    "200000 numbers": ("builtin.module attributes {a = [" + "1, " * 200_000 + "1]} {}", "GMR-R003"),
    "too many bytes": (" " * (MAX_BYTES + 1), "GMR-R003"),
    "a long string": ('builtin.module attributes {a = "' + "a" * MAX_STRING + '"} {}', "GMR-R003"),
    "many strings": (
        "builtin.module attributes {a = [" + ('"' + "a" * 998 + '", ') * (MAX_STRINGS // 1000 + 1) + "]} {}",
        "GMR-R003",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_refused(case: str):
    text, code = HOSTILE[case]
    error = failure(text)
    assert error.code == code
    assert len(str(error)) < 2000
    assert all(c.isprintable() or c == "\n" for c in str(error))


def lines(count: int, line: str) -> str:
    """A module of `count` lines, in each of which `$` is its number."""
    return "builtin.module {\n" + "\n".join(line.replace("$", str(i)) for i in range(count)) + "\n}"


def attribute(*parts: str) -> str:
    return "builtin.module attributes {a = " + "".join(parts) + "} {}"


ESCAPES = '"' + "\\41" * ((MAX_STRING - 2) // 3) + '"'
COSTLY = {
    "13000 constants": lines(13_000, "%$ = arith.constant $ : i32"),
    "20000 strings of escapes": attribute("[", ", ".join(['"' + "\\41" * 40 + '"'] * 20_000), "]"),
    "a string of 4 MB of escapes": attribute('"', "\\41" * (MAX_BYTES * 4 // 3), '"'),
    "a string of 4 MB": attribute('"', "a" * (4 * MAX_BYTES), '"'),
    "as many constants as may be": lines(MAX_TOKENS // 6 - 1, "%$ = arith.constant $ : i32"),
    "as many escapes as may be": attribute("[", ", ".join([ESCAPES] * (MAX_STRINGS // MAX_STRING)), "]"),
    "as many lines of comments as may be": "//\n" * (MAX_BYTES // 3 - 10) + "builtin.module {}",
    "names of many numbers": lines(MAX_TOKENS // 6 - 1, "%a$" + "_1" * 120 + " = arith.constant $ : i32"),
    "deep arrays": attribute("[" * 60, ", ".join(["1"] * (MAX_TOKENS // 2 - 100)), "]" * 60),
    "types of many dimensions": f"func.func private @f({', '.join(['tensor<' + '1x' * 120 + 'f32>'] * 2000)}) -> ()",
    "values and regions": lines(1400, "%$ = arith.constant $ : i32") + "builtin.module {}\n" * 1900,
}
READER = """
import json, sys, time
from gemmir.errors import IRError
from gemmir.ir_text import parse_module
from tests.fuzz.read_many import most_bytes
text, start = sys.stdin.read(), time.process_time()
try:
    parse_module(text)
    outcome = "right"
except IRError as error:
    outcome = error.code
print(json.dumps([outcome, time.process_time() - start, most_bytes()]))
"""


@pytest.mark.parametrize("case", COSTLY)
def test_costly_text_is_read_or_refused_in_two_seconds_and_512_mib(case: str):
    command = [sys.executable, "-c", READER]
    done = subprocess.run(command, input=COSTLY[case], capture_output=True, text=True, check=True)
    outcome, seconds, most = json.loads(done.stdout)
    assert outcome in ("right", "GMR-R003")
    assert seconds < 2, f"{seconds:.2f} s"
    assert most < 512 << 20, f"{most >> 20} MiB"


def test_programs_and_kernels_pass_half_of_the_limits(monkeypatch: pytest.MonkeyPatch):
    """In the generic form, too. The longest is a kernel with narrower tiles at the end."""
    tailed = replace(FP8_SCHEDULE, cluster_m=1, tail_n=64, tail_after=16)
    sources = [generic(text) for text in (*corpus(), str(lowered(fp8_problem(None, 4352, 8192), tailed).module))]
    for limit in ("MAX_BYTES", "MAX_TOKENS", "MAX_STRING", "MAX_STRINGS"):
        monkeypatch.setattr(ir_gate, limit, getattr(ir_gate, limit) // 2)
    for source in sources:
        ir_gate.check_text(source, "up.mlir")


def test_duplicate_symbols_and_hostile_names_are_only_names():
    """Names are data: they are kept in the IR, and nothing takes them for code."""
    module = parse_module('func.func private @"x(){} __global__ void evil("() -> ()')
    assert '@"x(){} __global__ void evil("' in str(module)


def test_64_brackets_pass_and_65_do_not():
    def text(depth: int) -> str:
        return "builtin.module attributes {a = " + "[" * (depth - 1) + "]" * (depth - 1) + "} {}"

    parse_module(text(64))
    assert failure(text(65)).what == "brackets 65 deep"


def test_too_many_operations_are_refused_while_parsing(monkeypatch: pytest.MonkeyPatch):
    assert MAX_OPS == 50_000
    monkeypatch.setattr("gemmir.ir_text.MAX_OPS", 100)
    text = "\n".join(f"%{i} = arith.constant {i} : i32" for i in range(100))
    error = failure(text)  # the module itself is one more
    assert (error.code, error.what) == ("GMR-R003", "more than 100 operations")
    error = failure(text + "\n%x = arith.constant 1 : i32")
    assert (error.code, *place(error)) == ("GMR-R003", 101, 1)


def test_too_many_regions_are_refused():
    error = failure("builtin.module { builtin.module {} }\n" * (MAX_REGIONS // 2 + 1))
    assert (error.code, error.what) == ("GMR-R003", f"more than {MAX_REGIONS} regions")


def test_strings_and_comments_are_not_counted():
    parse_module('builtin.module attributes {a = "' + "[" * 500 + '"} { // i99999 dense ' + "(" * 500 + "\n}")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(0, 2**32), st.sampled_from([TEXT, generic(TEXT), GROUPED, generic(GROUPED)]))
def test_mutated_text_raises_typed_errors_only(seed: int, source: str):
    text = mutate(source, random.Random(seed))
    try:
        printed = str(parse_module(text))
    except (IRError, ScheduleError, UnsupportedError):
        return
    assert str(parse_module(printed)) == printed


def test_a_deep_caller_gets_an_error_and_no_crash():
    def deep(left: int) -> GemmirError:
        return failure("builtin.module {" * 60 + "}" * 60) if left == 0 else deep(left - 1)

    depth = 0
    frame = sys._getframe()
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    assert deep(sys.getrecursionlimit() - depth - 120).code == "GMR-R003"
