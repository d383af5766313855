"""Leave out the updates that would break a state."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from genjax.training.log import Metrics

SKIPPED = "skipped"


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether no floating-point number of a tree is NaN or infinite."""
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in floats]))


def keep_finite(old: PyTree, new: PyTree, metrics: Metrics) -> tuple[PyTree, Metrics]:
    """Return a new state if it and its metrics are finite, else the old one with the new `step`.

    The metric `skipped` is added: 1 for a step that is left out, whose other metrics then count as
    nothing. It takes memory for one more state.
    """
    finite = all_finite((new, metrics.table))

    def choose(path: tuple, new: Array, old: Array) -> Array:
        is_step = jax.tree_util.keystr(path, simple=True) == "step"
        return new if is_step else jnp.where(finite, new, old)

    skipped = Metrics.pack({SKIPPED: 1.0 - finite})
    table = jnp.concatenate([jnp.where(finite, metrics.table, 0.0), skipped.table])
    return jax.tree.map_with_path(choose, new, old), Metrics(table, metrics.names + skipped.names)
