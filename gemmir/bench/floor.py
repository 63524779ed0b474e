"""The time below which the data sheet's rates let no kernel go: multiplying, or moving each byte once."""

from __future__ import annotations

from gemmir.bench.grouped import AnyCase, GroupedCase
from gemmir.dtypes import DTYPES, F32
from gemmir.problem import SCALE_BLOCK
from gemmir.target import DATASHEET_CLOCK_HZ, PEAK_DRAM_BYTES_PER_SECOND, SM_90A


def floor_us(case: AnyCase, device: str, sms: int = SM_90A.sms) -> float | None:
    """
    Microseconds on a GPU called `device` with `sms` SMs: max(FLOP / tensor rate, unique bytes / DRAM rate).

    None for a device whose DRAM rate is not in `gemmir.target`.

    Tensor rate: SMs x FLOP per clock (8192 for FP8, 4096 for 16 bits) x the clock of the data sheet, 1979 TFLOP/s for
    FP8 on 132 SMs. A GPU that is not held back by power clocks higher, up to 1.98 GHz, so a short kernel could in
    principle go up to 8% below this.
    FLOP: 2 M N K. Unique bytes: A, B and their scales read once, D written once. Of groups only the rows that count,
    and B of every group.
    """
    if (dram := PEAK_DRAM_BYTES_PER_SECOND.get(device)) is None:
        return None
    per_clock = SM_90A.tensor_flops_per_clock(DTYPES[case.dtype].bytes)
    tensor_seconds = flops(case) / (sms * per_clock * DATASHEET_CLOCK_HZ)
    return max(tensor_seconds, unique_bytes(case) / dram) * 1e6


def flops(case: AnyCase) -> int:
    """Multiplications and additions."""
    return 2 * case.all_rows * case.n * case.k


def unique_bytes(case: AnyCase) -> int:
    """Bytes of A, B, their scales and D."""
    a = DTYPES[case.dtype]
    d = DTYPES[case.result_dtype]
    operands = (case.all_rows + case.weights * case.n) * case.k * a.bytes
    return operands + case.all_rows * case.n * d.bytes + (scale_bytes(case) if a.is_fp8 else 0)


def scale_bytes(case: AnyCase) -> int:
    """Bytes of the 1x128 scales of A and the 128x128 scales of B, or 1x128 ones where K is divided."""
    blocks_k = -(-case.k // SCALE_BLOCK)
    columns = case.n if isinstance(case, GroupedCase) and case.along_k else -(-case.n // SCALE_BLOCK)
    return blocks_k * (case.all_rows + case.weights * columns) * F32.bytes
