"""What is measured: a product with its sizes and element type, and the named sets of such products."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from gemmir.errors import InputError

DTYPES = ("f8E4M3FN", "f8E5M2", "bf16", "f16")
"""Of A. FP8 comes with scales 1x128 and 128x128, the others without; B is f8E4M3FN or what A is, D BF16 or A's type."""


def is_fp8(dtype: str) -> bool:
    return dtype.startswith("f8")


Shape = tuple[int, int, int]
"""M, N, K."""

GroupedShape = tuple[int, int, int, int]
"""Groups, rows of each, N, K."""

LAYERS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
"""(N, K) of the dense layers of DeepSeek-V3."""

DENSE: tuple[Shape, ...] = (
    (4096, 2112, 7168),
    (4096, 24576, 1536),
    (4096, 32768, 512),
    (4096, 7168, 16384),
    (4096, 4096, 7168),
    (4096, 7168, 2048),
    (2048, 2112, 7168),
    (1024, 7168, 16384),
    (512, 4096, 7168),
    (256, 7168, 2048),
    (8192, 8192, 8192),
)

DECODE: tuple[Shape, ...] = (
    (1, 7168, 2048),
    (1, 4096, 7168),
    (8, 4096, 7168),
    (16, 7168, 16384),
    (32, 2112, 7168),
    *((m, n, k) for m in (64, 128) for n, k in LAYERS),
)

BETWEEN_ROWS = (33, 40, 48, 56, 63, 64, 65, 80, 96, 112, 127, 128)
"""Rows between those of `DECODE`, and those above them (see `gemmir.bench.between`)."""

DRAWN = 30
SEED = 20261125
LARGEST_SIZE = 2**31 - 1
"""Sizes are int32 in the kernels."""


@dataclass(frozen=True, slots=True)
class Case:
    """D[m, n] = A[m, k] @ B[k, n] for A of `dtype`, one of `DTYPES`, with K in `split_k` parts."""

    dtype: str
    m: int
    n: int
    k: int
    split_k: int = 1

    def __str__(self) -> str:
        split = f"-split{self.split_k}" if self.split_k > 1 else ""
        return f"{self.dtype}-{self.m}x{self.n}x{self.k}{split}"

    @property
    def shape(self) -> Shape:
        return (self.m, self.n, self.k)

    @property
    def label(self) -> str:
        """Its sizes, as they are written."""
        return "{}x{}x{}".format(*self.shape)

    @property
    def kind(self) -> str:
        """What one table of a report holds."""
        return self.dtype

    @property
    def dimensions(self) -> str:
        return "M x N x K"

    @property
    def all_rows(self) -> int:
        """Rows of A that are multiplied."""
        return self.m

    @property
    def weights(self) -> int:
        """Matrices B."""
        return 1

    @property
    def result_dtype(self) -> str:
        return "bf16" if is_fp8(self.dtype) else self.dtype

    @property
    def result_shape(self) -> tuple[int, ...]:
        return (self.m, self.n)

    @property
    def text(self) -> str:
        """The product as IR, for any M."""
        return program_text(self.n, self.k, self.dtype, split_k=self.split_k)


def program_text(n: int, k: int, dtype: str, schedule: str = "", split_k: int = 1) -> str:
    """
    The product as IR, for any M, with K in `split_k` parts.

    `schedule` is what stands between the brackets of its `schedule <...>`.
    """
    fixed = f" numerics <split_k = {split_k}>" if split_k > 1 else ""
    fixed += f" schedule <{schedule}>" if schedule else ""
    if not dtype.startswith("f8"):
        x, w, d = f"tensor<?x{k}x{dtype}>", f"tensor<{k}x{n}x{dtype}>", f"tensor<?x{n}x{dtype}>"
        return f"""
func.func @layer(%x: {x}, %w: {w}) -> {d} {{
  %y = gemm.matmul %x, %w{fixed} : ({x}, {w}) -> {d}
  func.return %y : {d}
}}"""
    blocks_k, blocks_n = -(-k // 128), -(-n // 128)
    x, w, d = f"tensor<?x{k}x{dtype}>", f"tensor<{k}x{n}xf8E4M3FN>", f"tensor<?x{n}xbf16>"
    xs, ws = f"tensor<?x{blocks_k}xf32>", f"tensor<{blocks_k}x{blocks_n}xf32>"
    return f"""
func.func @layer(%x: {x}, %xs: {xs}, %w: {w}, %ws: {ws}) -> {d} {{
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128){fixed} : ({x}, {w}, {xs}, {ws}) -> {d}
  func.return %y : {d}
}}"""


def layers(*rows: int) -> tuple[Shape, ...]:
    return tuple((m, n, k) for m in rows for n, k in LAYERS)


def between() -> tuple[Shape, ...]:
    """Every layer with `BETWEEN_ROWS` rows, one layer after another: what is compared is timed close to each other."""
    return tuple((m, n, k) for n, k in LAYERS for m in BETWEEN_ROWS)


def drawn() -> tuple[Shape, ...]:
    """The same shapes every time: M from 129 to 8192, N and K multiples of 128 from 512 to 16384."""
    source = random.Random(SEED)
    return tuple(
        (source.randint(129, 8192), 128 * source.randint(4, 128), 128 * source.randint(4, 128)) for _ in range(DRAWN)
    )


SETS: dict[str, tuple[Shape, ...]] = {
    "dense": DENSE,
    "decode": DECODE,
    "between": between(),
    "small": layers(1, 64, 128),
    "layers": layers(1, 64, 128, 512, 4096),
    "random": drawn(),
}


def parse_shape(text: str) -> Shape | GroupedShape:
    """
    The sizes in `4096x7168x2048` (or `4096 7168 2048`), or those of groups, `8x256x7168x2048`.

    `InputError` (GMR-I009) if it is nothing of the kind.
    """
    found = re.fullmatch(r"[1-9]\d{0,9}([x ][1-9]\d{0,9}){2,3}", re.sub(r"\s+", " ", text.strip()))
    shape = tuple(map(int, re.findall(r"\d+", found.group()))) if found is not None else ()
    if len(shape) == 3 and max(shape) <= LARGEST_SIZE:
        return shape
    if len(shape) == 4 and max(shape[0] * shape[1], *shape[2:]) <= LARGEST_SIZE:
        return shape
    raise InputError(
        "GMR-I009",
        f"shape {text.strip()[:40]!r}",
        rule=f"a shape is M, N and K, or groups, rows of each, N and K; sizes and rows are from 1 to {LARGEST_SIZE}",
        fix="write 4096x7168x2048, or 8x256x7168x2048 for groups",
    )


def parse_shapes(text: str) -> tuple[Shape | GroupedShape, ...]:
    """One shape a line; `#` starts a comment. Raises as `parse_shape`."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(parse_shape(line) for line in lines if line)
