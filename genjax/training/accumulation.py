"""Gradients of a large batch in the memory of a small one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from genjax.devices.mesh import BATCH_AXES
from genjax.nn import constrain


def value_and_gradient(loss: Callable, num_microbatches: int = 1) -> Callable:
    """Make `jax.value_and_grad(loss, has_aux=True)` over microbatches, one by one in a scan.

    Value, auxiliary output and gradients are means over microbatches. For a loss that is a mean
    over examples, they are those of the whole batch. Microbatch i takes every
    `num_microbatches`-th example from i on, so that no example leaves its device. It takes the i-th
    of the keys that `key` splits into. A single microbatch takes `key`.

    Args:
        loss: `(params, batch, key) -> (value, auxiliary)`.
        num_microbatches: divides the batch; what remains divides over the devices.

    Returns:
        `(params, batch, key) -> ((value, auxiliary), gradients)`. It raises ValueError for a batch
        that does not divide.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if num_microbatches == 1:
        return gradient

    def accumulated(params: PyTree, batch: dict[str, Array], key: Key[Array, ""]) -> Any:
        def split(a):
            if len(a) % num_microbatches:
                raise ValueError(
                    f"a batch of {len(a)} does not divide into {num_microbatches} microbatches"
                )
            parts = a.reshape(-1, num_microbatches, *a.shape[1:]).swapaxes(0, 1)
            return constrain(parts, None, BATCH_AXES)

        def add(sums, inputs):
            return jax.tree.map(jnp.add, sums, gradient(params, *inputs)), None

        inputs = jax.tree.map(split, batch), jax.random.split(key, num_microbatches)
        first = jax.tree.map(lambda a: a[0], inputs)
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, params, *first)
        )
        sums, _ = jax.lax.scan(add, zeros, inputs)
        return jax.tree.map(lambda a: a / num_microbatches, sums)

    return accumulated
