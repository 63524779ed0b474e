"""
Decoding with a mixture of experts: every expert has room for a few tokens, and `counts` says how many it has.

The shapes never change, so the step is captured in a CUDA graph once and replayed with new tokens and counts: no number
goes to the host. On a CPU each step is computed by the reference.
"""

import argparse
from collections.abc import Callable

import torch

import gemmir

EXPERTS, ROOM, HIDDEN, INTERMEDIATE = 8, 16, 256, 128


class Decoder:
    """Up projection, SiLU, down projection for the tokens of each expert, in buffers that stay where they are."""

    def __init__(self, device: torch.device):
        self.tokens = torch.zeros(EXPERTS, ROOM, HIDDEN, dtype=torch.bfloat16, device=device)
        self.counts = torch.zeros(EXPERTS, dtype=torch.int32, device=device)
        self.hidden = torch.zeros(EXPERTS, ROOM, INTERMEDIATE, dtype=torch.bfloat16, device=device)
        self.result = torch.zeros_like(self.tokens)
        self.up = (torch.randn(EXPERTS, INTERMEDIATE, HIDDEN, device=device) / HIDDEN**0.5).bfloat16()
        self.down = (torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, device=device) / INTERMEDIATE**0.5).bfloat16()

    def step(self) -> None:
        """Rows past an expert's count are not written, and keep what they held."""
        options = {"counts": self.counts, "expected_m": ROOM // 2}
        gemmir.grouped_matmul(self.tokens, self.up.mT, out=self.hidden, **options)
        torch.nn.functional.silu(self.hidden, inplace=True)
        gemmir.grouped_matmul(self.hidden, self.down.mT, out=self.result, **options)

    def expected(self) -> torch.Tensor:
        hidden = torch.nn.functional.silu((self.tokens.float() @ self.up.mT.float()).bfloat16())
        return hidden.float() @ self.down.mT.float()


def captured(decoder: Decoder) -> Callable[[], None]:
    """One step as a graph. A first call compiles and loads the kernels: nothing can be loaded during capture."""
    decoder.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder.step()
    return graph.replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="steps of decoding (default: 3)")
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    decoder = Decoder(torch.device("cuda" if on_gpu else "cpu"))
    step = captured(decoder) if on_gpu else decoder.step
    print("each step is a replay of one CUDA graph" if on_gpu else "no GPU: each step is computed by the reference")
    for number in range(args.steps):
        decoder.tokens.normal_()
        decoder.counts.random_(0, ROOM + 1)
        decoder.result.zero_()
        step()
        counted = torch.arange(ROOM, device=decoder.counts.device) < decoder.counts[:, None]
        off = (decoder.result.float() - decoder.expected())[counted].abs()
        worst = off.max().item() if off.numel() else 0.0
        others = "FAILED: other rows were written" if decoder.result[~counted].any() else "other rows are as they were"
        print(f"step {number}: counts {decoder.counts.tolist()}, off by at most {worst:.3f}, {others}")


if __name__ == "__main__":
    main()
