"""
A product with an epilogue: y = silu(x @ w + bias), on the reference backend.

The epilogue is a Python expression of the accumulator, in float32. In the IR it is a region of scalar operations.
"""

import argparse

import torch

import gemmir
from gemmir.backends.reference import run

N, K = 512, 1024


def program() -> gemmir.Program:
    p = gemmir.Program("gate_proj")
    x = p.input("x", (None, K), "bf16")
    w = p.input("w", (K, N), "bf16")
    bias = p.input("bias", (N,), "f32")
    y = (p.matmul(x, w) + bias.by("column")).silu()
    p.output(y.cast("bf16"))
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, default=64, help="rows of x (default: 64)")
    args = parser.parse_args()

    print(program().module)
    torch.manual_seed(0)
    x = torch.randn(args.m, K, dtype=torch.bfloat16)
    w = torch.randn(N, K, dtype=torch.bfloat16) / K**0.5
    bias = torch.randn(N)
    y = run(program().module, [x, w.t(), bias])
    expected = torch.nn.functional.silu(x.double() @ w.double().t() + bias)
    error = ((y.double() - expected).abs() / expected.abs().clamp(min=1e-3)).max().item()
    print(f"largest difference to torch's silu in float64: {error:.2%} (half a unit of bf16 is 0.39%)")


if __name__ == "__main__":
    main()
