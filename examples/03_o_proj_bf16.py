"""
The layer of 03_o_proj_bf16.mlir, written from Python: BF16 operands, no scales, K = 16384.

Compiles without a GPU; runs on a Hopper GPU if there is one, else on the reference backend.
"""

import argparse

import torch

import gemmir
from gemmir.backends.reference import run

N, K = 7168, 16384


def program() -> gemmir.Program:
    """y = x @ w for any number of rows."""
    p = gemmir.Program("o_proj")
    x = p.input("x", (None, K), "bf16")
    w = p.input("w", (K, N), "bf16")
    p.output(p.matmul(x, w).cast("bf16"))
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, default=8, help="rows of x (default: 8)")
    args = parser.parse_args()

    kernel = gemmir.compile(program())
    for decision in kernel.decisions:
        print(decision)

    torch.manual_seed(0)
    x = torch.randn(args.m, K, dtype=torch.bfloat16)
    w = torch.randn(N, K, dtype=torch.bfloat16) / K**0.5
    y = kernel(x.cuda(), w.cuda().t()).cpu() if torch.cuda.is_available() else run(program().module, [x, w.t()])
    print(f"y is {tuple(y.shape)} {y.dtype}, standard deviation {y.float().std().item():.3f}")


if __name__ == "__main__":
    main()
