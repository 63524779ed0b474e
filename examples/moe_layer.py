"""
A mixture-of-experts layer: up projection, SwiGLU in torch, down projection, and the gradients of all weights.

Tokens are sorted by expert, so that the rows of each expert lie together, and FP8 operands have block-wise scales. On a
Hopper GPU gemmir's kernels compute the products, on a CPU the reference does, at small sizes.
"""

import argparse
from dataclasses import dataclass
from itertools import pairwise

import torch

import gemmir

ALIGNMENT = 128
"""Rows of an expert are padded to a multiple of this with zeros: gradients ask for groups that end at whole blocks."""
FP8_MAX = 448.0


@dataclass(frozen=True)
class Sizes:
    tokens: int
    experts: int
    per_token: int
    hidden: int
    intermediate: int


@dataclass(frozen=True)
class Routing:
    """
    Where each (token, choice) went. `ends` (experts): where the rows of each expert end, padding included.

    `row` (tokens x choices): the row of the sorted input; `token` (rows): whose row it is, -1 for padding.
    """

    ends: torch.Tensor
    row: torch.Tensor
    token: torch.Tensor

    def rows(self) -> list[tuple[int, slice]]:
        """Each expert, and its rows."""
        ends = self.ends.tolist()
        return [(number, slice(*pair)) for number, pair in enumerate(pairwise([0, *ends]))]


def route(expert: torch.Tensor, experts: int) -> Routing:
    """Sort by expert; `expert`: (tokens, choices)."""
    flat = expert.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts)
    padded = -(-counts // ALIGNMENT) * ALIGNMENT
    ends = padded.cumsum(0)
    within = torch.arange(flat.numel(), device=flat.device) - (counts.cumsum(0) - counts)[flat[order]]
    rows = (ends - padded)[flat[order]] + within
    token = torch.full((int(ends[-1]),), -1, device=flat.device)
    token[rows] = order // expert.shape[1]
    row = torch.empty_like(order)
    row[order] = rows
    return Routing(ends.int(), row.view(expert.shape), token)


def quantise(values: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values (..., outer, K), and the scale that decodes each block of `rows` x 128 of them."""
    *groups, outer, k = values.shape
    blocks = values.float().reshape(*groups, outer // rows, rows, k // 128, 128)
    scales = blocks.abs().amax((-3, -1), keepdim=True).clamp(min=1e-12) / FP8_MAX
    fp8 = (blocks / scales).reshape(values.shape).to(torch.float8_e4m3fn)
    return fp8, scales.reshape(*groups, outer // rows, k // 128)


def project(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each row of `x` (rows, K) times the weight of its expert, (experts, N, K) as torch stores it; in FP8."""
    x8, xs = quantise(x, 1)
    w8, ws = quantise(weight, 128)
    out = x.new_zeros(x.shape[0], weight.shape[1], dtype=torch.bfloat16)  # rows past the last expert's stay zero
    return gemmir.grouped_matmul(
        x8, w8.mT, offs=ends, scale_a=gemmir.align_scales(xs), scale_b=ws.mT, out=out, expected_m=x.shape[0]
    )


def swiglu(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).bfloat16()


def swiglu_gradient(both: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Of what SwiGLU was given, from that of its result."""
    both = both.detach().requires_grad_()
    return torch.autograd.grad(swiglu(both), both, gradient)[0]


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Of the rows that each expert's weight (N, K) was multiplied with, in BF16: (rows, K)."""
    return gemmir.grouped_matmul(gradient, weight, offs=ends)


def weight_gradient(output_gradient: torch.Tensor, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Of each expert's weight (N, K), in float32: (experts, N, K). Sums over the expert's rows."""
    return gemmir.grouped_matmul(output_gradient.t(), x, offs=ends)


def worst_element(
    found: torch.Tensor, output_gradient: torch.Tensor, x: torch.Tensor, experts: list[tuple[int, slice]]
) -> float:
    """How far any element of a weight gradient is from that in float64."""
    exact = [(number, output_gradient[rows].t().double() @ x[rows].double()) for number, rows in experts]
    return max((found[number] - product).abs().max().item() for number, product in exact)


def expected(
    x: torch.Tensor, expert: torch.Tensor, weights: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """The layer in float32, token by token."""
    result = torch.zeros_like(x, dtype=torch.float32)
    for token in range(x.shape[0]):
        for choice, number in enumerate(expert[token].tolist()):
            gate, value = (up[number].float() @ x[token].float()).chunk(2)
            hidden = torch.nn.functional.silu(gate) * value
            result[token] += weights[token, choice] * (down[number].float() @ hidden)
    return result


def main() -> None:
    on_gpu = torch.cuda.is_available()
    real = Sizes(tokens=4096, experts=64, per_token=4, hidden=2048, intermediate=1024)
    sizes = real if on_gpu else Sizes(tokens=12, experts=4, per_token=2, hidden=256, intermediate=128)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=sizes.tokens, help=f"default: {sizes.tokens}")
    args = parser.parse_args()

    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    x = torch.randn(args.tokens, sizes.hidden, device=device).bfloat16()
    up = (
        torch.randn(sizes.experts, 2 * sizes.intermediate, sizes.hidden, device=device) / sizes.hidden**0.5
    ).bfloat16()
    down = torch.randn(sizes.experts, sizes.hidden, sizes.intermediate, device=device) / sizes.intermediate**0.5
    down = down.bfloat16()
    weights, expert = torch.randn(args.tokens, sizes.experts, device=device).softmax(1).topk(sizes.per_token)

    routing = route(expert, sizes.experts)
    sorted_x = torch.where(routing.token[:, None] >= 0, x[routing.token.clamp(min=0)], 0)
    both = project(sorted_x, up, routing.ends)
    hidden = swiglu(both)
    sorted_y = project(hidden, down, routing.ends)
    y = (sorted_y[routing.row].float() * weights[:, :, None]).sum(1)

    shown = min(args.tokens, 32)
    exact = expected(x[:shown], expert[:shown], weights[:shown], up, down)
    error = ((y[:shown] - exact).norm() / exact.norm()).item()
    print(
        f"y is {tuple(y.shape)} from {sorted_x.shape[0]} rows of {sizes.experts} experts; FP8 moved it by {error:.1%}"
    )

    gradient = torch.where(routing.token[:, None] >= 0, torch.randn_like(sorted_y), 0)
    to_hidden = input_gradient(gradient, down, routing.ends)
    exact = torch.cat([gradient[rows].float() @ down[number].float() for number, rows in routing.rows()])
    error = ((to_hidden - exact).norm() / exact.norm()).item()
    print(f"gradients of the hidden rows are {tuple(to_hidden.shape)}, off by {error:.2%}")

    to_both = swiglu_gradient(both, to_hidden)
    for name, output_gradient, rows in (("down", gradient, hidden), ("up", to_both, sorted_x)):
        found = weight_gradient(output_gradient, rows, routing.ends)
        worst = worst_element(found, output_gradient, rows, routing.rows())
        print(f"gradients of {sizes.experts} {name} projections are {tuple(found.shape)}, off by at most {worst:.2g}")


if __name__ == "__main__":
    main()
