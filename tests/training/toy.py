"""The smallest task: a line fitted to numbers, with everything that the loop needs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class State(NamedTuple):
    step: jax.Array
    slope: jax.Array


class Line:
    """Descend (slope·x − 3x)² by noisy gradients.

    The loss is NaN at `nan_at`, and the slope is NaN after `break_at`.
    """

    def __init__(self, nan_at: int = -1, break_at: int = -1):
        self.nan_at, self.break_at = nan_at, break_at

    def init(self, key):
        return State(jnp.int32(0), jax.random.normal(key, (4,)))

    def update(self, state, batch, key):
        step = state.step + 1
        error = (state.slope - 3) * batch["x"]
        slope = state.slope - 0.1 * error.mean(0) + 0.01 * jax.random.normal(key, (4,))
        slope = jnp.where(step == self.break_at, jnp.nan, slope)
        return State(step, slope), {
            "loss": jnp.where(step == self.nan_at, jnp.nan, jnp.mean(error**2))
        }

    def generate(self, state, key):
        return state.slope


def batches(start: int):
    """Batch i depends on i alone."""
    step = start
    while True:
        yield {"x": np.random.default_rng(step).uniform(0.5, 1.5, (8, 4)).astype(np.float32)}
        step += 1
