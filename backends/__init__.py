"""
What runs a module of gemmir's IR.

`reference` gives the gemm dialect its meaning, on the CPU. `cuda` prints, compiles and launches the hopper dialect.
No backend knows another. The package is imported as `gemmir.backends`.
"""

if __name__ != "gemmir.backends":
    raise ImportError("import gemmir.backends")
