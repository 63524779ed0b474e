"""
The layer of 01_down_proj.mlir, written from Python: build, compile, look at the kernel, run it.

Without a Hopper GPU the kernel is still compiled, and the program runs on the reference backend.
"""

import argparse

import torch

import gemmir
from gemmir.backends.reference import run

N, K = 7168, 2048
FP8_MAX = 448.0


def program() -> gemmir.Program:
    """y = x @ w in FP8: one scale for 1x128 values of x, one for 128x128 values of w, any number of rows."""
    p = gemmir.Program("down_proj")
    x = p.input("x", (None, K), "f8E4M3FN")
    xs = p.input("xs", (None, K // 128), "f32")
    w = p.input("w", (K, N), "f8E4M3FN")
    ws = p.input("ws", (K // 128, N // 128), "f32")
    y = p.matmul(x, w, scale_a=xs, scale_b=ws, recipe=("block_wise_1x128", "block_wise_128x128"))
    p.output(y.cast("bf16"))
    return p


def quantise(values: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values, and the scale that decodes each block of `rows` x 128 of them."""
    outer, k = values.shape
    blocks = values.reshape(outer // rows, rows, k // 128, 128)
    scales = blocks.abs().amax((1, 3), keepdim=True) / FP8_MAX
    return (blocks / scales).reshape(outer, k).to(torch.float8_e4m3fn), scales.reshape(outer // rows, k // 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, default=32, help="rows of x (default: 32)")
    args = parser.parse_args()

    torch.manual_seed(0)
    exact_x, exact_w = torch.randn(args.m, K), torch.randn(N, K) / K**0.5
    x, xs = quantise(exact_x, 1)
    w, ws = quantise(exact_w, 128)  # a torch weight is N x K and enters as w.t()

    kernel = gemmir.compile(program())
    print(kernel.ir("hopper"))
    print(f"{len(kernel.source.splitlines())} lines of CUDA, {len(kernel.cubin)} bytes of machine code")

    if torch.cuda.is_available():
        y = kernel(x.cuda(), gemmir.align_scales(xs.cuda()), w.cuda().t(), ws.t().contiguous().cuda()).cpu()
    else:
        y = run(program().module, [x, xs, w.t(), ws.t()])
    error = (y.float() - exact_x @ exact_w.t()).abs().max().item()
    print(f"y is {tuple(y.shape)}; quantising x and w to FP8 moved it by at most {error:.3f}")


if __name__ == "__main__":
    main()
