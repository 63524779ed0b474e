"""IR texts of every level, and small changes to them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from io import StringIO

from xdsl.printer import Printer

from gemmir.bench.cases import Case
from gemmir.compiler import lower
from gemmir.ir_text import parse_module

EPILOGUE = """\
func.func @up(%x: tensor<?x512xf8E4M3FN>, %xs: tensor<?x4xf32>, %w: tensor<512x256xf8E4M3FN>, %ws: tensor<4x2xf32>,
              %bias: tensor<256xbf16>, %c: tensor<?x256xf32>) -> tensor<?x256xbf16> {
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
      accumulate %c
      layout <a = k, b = k>
      numerics <promote_every = 128>
      expect <m = 4096>
      schedule <family = tiles, block = 128x256x128, warpgroups = 2 along n, turns = false, cluster = 2x1,
                raster = along_m, group = 8, stages = 3>
      epilogue (%bias by column) {
      ^bb0(%acc: f32, %b: bf16):
        %wide = arith.extf %b : bf16 to f32
        %sum = arith.addf %acc, %wide : f32
        %big = math.tanh %sum : f32
        %r = arith.truncf %big : f32 to bf16
        gemm.yield %r : bf16
      }
      : (tensor<?x512xf8E4M3FN>, tensor<512x256xf8E4M3FN>, tensor<?x4xf32>, tensor<4x2xf32>, tensor<?x256xf32>,
         tensor<256xbf16>) -> tensor<?x256xbf16>
  func.return %y : tensor<?x256xbf16>
}
"""
"""All that a `gemm.matmul` may have."""

GROUPED = """\
func.func @down(%x: tensor<?x512xf8E4M3FN>, %xs: tensor<?x4xf32>, %w: tensor<6x512x256xf8E4M3FN>,
                %ws: tensor<6x4x2xf32>, %ends: tensor<6xi32>, %bias: tensor<6x256xf32>) -> tensor<?x256xf32> {
  %y = gemm.grouped_matmul %x, %w groups (%ends by offs) scaled (%xs by 1x128, %ws by 128x128)
      epilogue (%bias by column) {
      ^bb0(%acc: f32, %b: f32):
        %sum = arith.addf %acc, %b : f32
        gemm.yield %sum : f32
      }
      : (tensor<?x512xf8E4M3FN>, tensor<6x512x256xf8E4M3FN>, tensor<6xi32>, tensor<?x4xf32>, tensor<6x4x2xf32>,
         tensor<6x256xf32>) -> tensor<?x256xf32>
  func.return %y : tensor<?x256xf32>
}"""

PLAIN = (Case("f8E4M3FN", 64, 256, 512), Case("bf16", 500, 256, 128), Case("bf16", 16, 512, 512))
"""Products that kernels compute."""

WORDS = (
    '-1 ? 99999999999 i7 f64 %x %acc <> ( } 128x none \x00 \u00e9 # . @f @"a b" ^bb0 -> : = loc( !t #a {-# dense<0> '
    'unit true false affine_map<(d0)->(d0)> array<i32: 1> "x" "\\00" // 0x7F 1e400 -0.0 nan \u202e \u2028 \r \t'
).split(" ")
NUMBERS = "0 1 2 3 7 64 128 129 4096 2147483647 2147483648 18446744073709551616 ? -1 1e9".split()
_TOKEN = re.compile(r"[A-Za-z_0-9.$]+|\s+|[^\sA-Za-z_0-9]")


def generic(text: str) -> str:
    """The same IR in xDSL's generic form."""
    stream = StringIO()
    Printer(stream, print_generic_format=True).print_op(parse_module(text))
    return stream.getvalue()


@cache
def corpus() -> tuple[str, ...]:
    """Texts at the levels gemm, schedule and hopper, in gemmir's form and in the generic one."""
    texts = [EPILOGUE, GROUPED, generic(EPILOGUE), generic(GROUPED)]
    for case in PLAIN:
        lowered = lower(case.text, m=case.m)
        texts += [lowered.ir["gemm"], lowered.ir["schedule"], generic(lowered.ir["schedule"])]
    return (*texts, lowered.ir["hopper"])


def _number(text: str, choose: random.Random) -> str:
    """Change a number, or blow it up."""
    number = choose.choice(list(re.finditer("[0-9]+", text)) or [re.match("", text)])
    assert number is not None
    new = choose.choice((*NUMBERS, number[0] * 3, "9" * choose.randint(1, 60)))
    return text[: number.start()] + new + text[number.end() :]


def _piece(text: str, choose: random.Random) -> str:
    """Delete, repeat, reverse or overwrite a piece."""
    start = choose.randrange(len(text) + 1)
    end = min(len(text), start + choose.choice((1, 1, 2, 5, 20, 80)))
    piece = choose.choice(("", text[start:end] * 2, choose.choice(WORDS), text[start:end][::-1]))
    return text[:start] + piece + text[end:]


def _bits(text: str, choose: random.Random) -> str:
    """Flip a bit of a character."""
    at = choose.randrange(len(text) or 1)
    return text[:at] + chr(ord(text[at : at + 1] or "a") ^ 1 << choose.randrange(7)) + text[at + 1 :]


def _tokens(text: str, choose: random.Random) -> str:
    """Exchange two tokens, or put one in another place."""
    tokens = _TOKEN.findall(text) or [""]
    one, other = choose.randrange(len(tokens)), choose.randrange(len(tokens))
    if choose.random() < 0.5:
        tokens[one], tokens[other] = tokens[other], tokens[one]
    else:
        tokens.insert(other, tokens[one])
    return "".join(tokens)


def _nested(text: str, choose: random.Random) -> str:
    """Put brackets around a place, many times."""
    left, right = choose.choice(("()", "[]", "{}", "<>", ("tuple<", ">"), ("builtin.module {", "}"), ("[[", "]]")))
    at, depth = choose.randrange(len(text) + 1), choose.choice((1, 3, 40, 70, 400))
    return text[:at] + left * depth + text[at : at + 9] + right * depth + text[at + 9 :]


def _splice(text: str, choose: random.Random) -> str:
    """The beginning of this text, and the end of another."""
    other = choose.choice(corpus())
    return text[: choose.randrange(len(text) + 1)] + other[choose.randrange(len(other) + 1) :]


def _lines(text: str, choose: random.Random) -> str:
    """Exchange two lines, or repeat some."""
    lines = text.split("\n")
    one, other = sorted((choose.randrange(len(lines)), choose.randrange(len(lines))))
    if choose.random() < 0.5:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines[one:other] *= 2
    return "\n".join(lines)


MUTATORS: tuple[Callable[[str, random.Random], str], ...] = (
    _number,
    _number,
    _piece,
    _piece,
    _bits,
    _tokens,
    _nested,
    _splice,
    _lines,
)


def mutate(text: str, choose: random.Random) -> str:
    """One to four small changes."""
    for _ in range(choose.randint(1, 4)):
        text = choose.choice(MUTATORS)(text, choose)
    return text


def mutated(number: int) -> str:
    """Text number `number`: always the same one. Most are short, since long ones take long to parse."""
    choose = random.Random(number)
    texts = corpus()
    weights = [1 / len(text) for text in texts]
    return mutate(choose.choices(texts, weights)[0], choose)
