"""The precision of the products of matrices in a function.

CPUs compute all of them in float32. TPUs round the factors of a product of default precision to
bfloat16, which keeps three digits, and GPUs may keep four.
"""

import re

import jax


def precisions(function, *args) -> list[str]:
    """Return the precision of each product of matrices, such as "HIGHEST"."""
    program = jax.jit(function).lower(*args).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    return [re.search(r"precision = \[(\w+), \1\]", line)[1] for line in products]
