"""The simulator backend: executes a hopper kernel on the CPU, byte by byte and bit by bit; a seed draws the order."""

from gemmir.backends.simulator.simulate import simulate, simulate_bits

__all__ = ["simulate", "simulate_bits"]
