"""The state of a sampler, and what one row of its table (`tables.Table`) does to it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import across_batch

Data = Float[Array, " batch *shape"]


class State(NamedTuple):
    """The state x, the point y of the next evaluation, and the predictions so far, newest first.

    All have the type of the noise from which sampling starts. Rows and the arithmetic within a step
    are at least float32: a bfloat16 state is rounded once per step.
    """

    x: Data
    y: Data
    cleans: tuple[Data, ...]
    noises: tuple[Data, ...]

    @classmethod
    def start(cls, noise: Data, table) -> "State":
        """Return the state at `noise`, with room for all predictions that the table uses."""
        length = lambda *columns: max((a.shape[1] for a in columns if a is not None), default=0)
        zeros = jnp.zeros_like(noise)
        cleans = (zeros,) * length(table.clean, table.stage_clean)
        return cls(noise, noise, cleans, (zeros,) * length(table.noise, table.stage_noise))

    def add_churn(self, row, keys: Key[Array, " batch"] | None, number: Array) -> "State":
        """Return the state with the noise that the row adds before its evaluation."""
        if row.churn is None:
            return self
        change = across_batch(row.churn, self.x) * _normal(keys, 2 * number, self.x, row)
        scale = across_batch(row.churn_state, self.x)
        x, y = (a.astype(self.x.dtype) for a in (scale * self.x + change, scale * self.y + change))
        return self._keep_waiting(row, self._replace(x=x, y=y))

    def advance(
        self,
        row,
        keys: Key[Array, " batch"] | None,
        number: Array,
        clean: Data,
        noise: Data,
        variance: Data | None,
    ) -> "State":
        """Return the state after the row's evaluation, whose answer was these halves."""
        dtype = self.x.dtype
        cleans = (clean.astype(dtype), *self.cleans)[: len(self.cleans)]
        noises = (noise.astype(dtype), *self.noises)[: len(self.noises)]
        kept = [] if row.state is None else [across_batch(row.state, self.x) * self.x]
        x = _sum(kept + _products(row.clean, cleans) + _products(row.noise, noises), self.x)
        if row.fresh is not None:
            draw = _normal if row.path is None else _path_increment
            x = x + _deviation(row, x, variance) * draw(keys, 2 * number + 1, x, row)
        y = x
        if row.stage_state is not None:
            y = across_batch(row.stage_state, x) * x
            y = _sum(
                [y] + _products(row.stage_clean, cleans) + _products(row.stage_noise, noises), x
            )
        return self._keep_waiting(row, State(x.astype(dtype), y.astype(dtype), cleans, noises))

    def _keep_waiting(self, row, changed: "State") -> "State":
        """Return `changed`, but this state for frames that wait, even if their answer is NaN."""
        if row.waits is None:
            return changed
        return jax.tree.map(lambda a, b: jnp.where(across_batch(row.waits, a), a, b), self, changed)


def _normal(keys, number, like, row):
    """Return N(0, I), drawn in the row's type: bfloat16 states see float32's noise, rounded."""
    draw_one = lambda key: jax.random.normal(
        jax.random.fold_in(key, number), like.shape[1:], row.times.dtype
    )
    return jax.vmap(draw_one)(keys)


def _path_increment(keys, _, like, row):
    """Return N(0, I): the increment of each sample's path in the row's interval, over √length.

    The path is resolved to a millionth of the whole. Its key is none of the keys that rows fold.
    """
    import diffrax  # slow to import

    shape, (start, end) = jax.ShapeDtypeStruct(like.shape[1:], row.times.dtype), row.path
    length = jnp.where(start == end, 1, jnp.abs(end - start))

    def draw_one(key):
        key = jax.random.fold_in(key, np.uint32(2**32 - 1))
        path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-6, shape, key)
        return path.evaluate(end, start) / jnp.sqrt(length)

    return jax.vmap(draw_one)(keys)


def _sum(terms, like):
    """Return the sum of the terms, or zeros if there are none."""
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(like)


def _products(coefficients, history):
    """Return the products of the row's coefficients with the predictions, newest first."""
    if coefficients is None:
        return []
    return [
        across_batch(coefficients[j], history[j]) * history[j] for j in range(coefficients.shape[0])
    ]


def _deviation(row, x, variance):
    """Return the deviation of the row's fresh noise, with a learned variance if there is one."""
    fresh = across_batch(row.fresh, x)
    if variance is None or row.largest is None:
        return fresh
    # A step to sigma = 0 draws nothing, however large the largest deviation is. The derivative of
    # 0^(1 − v) is infinite.
    quiet = fresh == 0
    return jnp.where(
        quiet,
        0,
        jnp.where(quiet, 1, fresh) ** (1 - variance) * across_batch(row.largest, x) ** variance,
    )
