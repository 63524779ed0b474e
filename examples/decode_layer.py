"""
A step of decoding: a few FP8 layers, each on the result of the one before, with kernels that overlap.

With few tokens a layer takes as long as its weights take to come from DRAM, and every kernel begins with a wait for the
first of them. `overlap=True` starts a kernel while the one before it on the stream ends: it asks L2 for its first
weights, and only then waits for the one before. Weights may be asked for so early because no kernel of a step writes
them. Activations may not, since the kernel before may still be writing them: they are read after the wait.

On a GPU the step is captured in a CUDA graph once and replayed with new tokens. On a CPU the reference computes it.
"""

import argparse
from collections.abc import Callable

import torch

import gemmir

FP8_MAX = 448.0


def quantise(values: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values (outer, K), and the scale that decodes each block of `rows` x 128 of them."""
    outer, k = values.shape
    blocks = values.float().reshape(outer // rows, rows, k // 128, 128)
    scales = blocks.abs().amax((1, 3), keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (blocks / scales).reshape(outer, k).to(torch.float8_e4m3fn), scales.reshape(outer // rows, k // 128)


class Decoder:
    """Layers h + h @ W, in buffers that stay where they are. `weights`: float32, N x K as torch stores them."""

    def __init__(self, layers: int, tokens: int, hidden: int, device: torch.device):
        self.tokens = torch.zeros(tokens, hidden, dtype=torch.bfloat16, device=device)
        self.product, self.result = torch.zeros_like(self.tokens), torch.zeros_like(self.tokens)
        self.weights = [torch.randn(hidden, hidden, device=device) / hidden**0.5 for _ in range(layers)]
        self.quantised = [quantise(weight, 128) for weight in self.weights]

    def step(self, overlap: bool = True) -> None:
        self.result.copy_(self.tokens)
        for w, ws in self.quantised:
            x, xs = quantise(self.result, 1)
            scales = {"scale_a": gemmir.align_scales(xs), "scale_b": ws.t()}
            gemmir.matmul(x, w.t(), **scales, out=self.product, overlap=overlap)
            self.result += self.product

    def expected(self) -> torch.Tensor:
        """The step in float32."""
        held = self.tokens.float()
        for weight in self.weights:
            held = held + held @ weight.t()
        return held


def captured(decoder: Decoder) -> Callable[[], None]:
    """One step as a graph. A first call compiles and loads the kernels: nothing can be loaded during capture."""
    decoder.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder.step()
    return graph.replay


def main() -> None:
    on_gpu = torch.cuda.is_available()
    hidden = 4096 if on_gpu else 256
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="steps of decoding (default: 3)")
    parser.add_argument("--layers", type=int, default=4, help="layers of a step (default: 4)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a step (default: 8)")
    args = parser.parse_args()

    torch.manual_seed(0)
    decoder = Decoder(args.layers, args.tokens, hidden, torch.device("cuda" if on_gpu else "cpu"))
    step = captured(decoder) if on_gpu else decoder.step
    print("each step is a replay of one CUDA graph" if on_gpu else "no GPU: each step is computed by the reference")
    for number in range(args.steps):
        decoder.tokens.normal_()
        step()
        found, exact = decoder.result.clone(), decoder.expected()
        decoder.step(overlap=False)
        moved = ((found - exact).norm() / exact.norm()).item()
        bits = "no bit" if torch.equal(found, decoder.result) else "FAILED: some bits"
        print(f"step {number}: FP8 moved the result by {moved:.1%}, overlap changed {bits}")


if __name__ == "__main__":
    main()
