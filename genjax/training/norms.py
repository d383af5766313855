"""Norms of the parts of a tree: what changes, how fast, and what is about to diverge."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def group_norms(name: str, tree: dict[str, PyTree]) -> dict[str, Float[Array, ""]]:
    """Return Euclidean norms of a tree's top-level parts, in float32.

    They are called `<name>/<part>`, and that of the whole tree `<name>/total`.
    """
    square = lambda a: jnp.sum(jnp.square(a.astype(jnp.float32)))
    squares = {part: sum(map(square, jax.tree.leaves(subtree))) for part, subtree in tree.items()}
    squares["total"] = sum(squares.values())
    return {f"{name}/{part}": jnp.sqrt(value) for part, value in squares.items()}
