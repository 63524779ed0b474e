"""
The reference backend: runs the gemm dialect with torch and says how far a kernel may be from it.

`run` executes a module. `exact_and_bound_of` (made of `exact_and_bound` and `epilogue_bound`) and `worst_element` judge
a kernel's result element by element. `random_inputs` and `exact_inputs` make data for a module.
"""

from gemmir.backends.reference.bound import exact_and_bound
from gemmir.backends.reference.data import exact_inputs, random_inputs
from gemmir.backends.reference.epilogue_bound import epilogue_bound, exact_and_bound_of
from gemmir.backends.reference.interpreter import run
from gemmir.backends.reference.worst import WorstElement, worst_element

__all__ = [
    "WorstElement",
    "epilogue_bound",
    "exact_and_bound",
    "exact_and_bound_of",
    "exact_inputs",
    "random_inputs",
    "run",
    "worst_element",
]
