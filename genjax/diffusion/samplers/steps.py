"""What one row of a sampler's table (`tables.Table`) does to one array of the data."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import across_batch, expand

Data = Float[Array, " batch *shape"]


class State(NamedTuple):
    """The state x, the point y of the next evaluation, and the predictions so far, newest first."""

    x: Data
    y: Data
    cleans: tuple[Data, ...]
    noises: tuple[Data, ...]

    @classmethod
    def start(cls, noise: Data, table) -> "State":
        """Return the state at `noise`, with room for as many predictions as the table looks back."""

        def length(*columns):
            return max((column.shape[1] for column in columns if column is not None), default=0)

        zeros = jnp.zeros_like(noise)
        cleans = (zeros,) * length(table.clean, table.stage_clean)
        return cls(noise, noise, cleans, (zeros,) * length(table.noise, table.stage_noise))

    def churned(self, row, keys: Key[Array, " batch"] | None, index: Array) -> "State":
        """Return the state with the noise that the row adds before its evaluation."""
        if row.churn is None:
            return self
        change = across_batch(row.churn, self.x) * _normal(keys, 2 * index, self.x)
        scale = across_batch(row.churn_state, self.x)
        return self._unless_waiting(row, self._replace(x=scale * self.x + change, y=scale * self.y + change))

    def moved(
        self,
        row,
        keys: Key[Array, " batch"] | None,
        index: Array,
        clean: Data,
        noise: Data,
        variance: Data | None,
    ) -> "State":
        """Return the state after the row's evaluation, which answered with these halves."""
        cleans = (clean, *self.cleans)[: len(self.cleans)]
        noises = (noise, *self.noises)[: len(self.noises)]
        kept = [] if row.state is None else [across_batch(row.state, self.x) * self.x]
        x = _sum(kept + _products(row.clean, cleans) + _products(row.noise, noises), self.x)
        if row.fresh is not None:
            x = _with_noise(row, keys, index, x, noise, variance)
        y = x
        if row.stage_state is not None:
            y = across_batch(row.stage_state, x) * x
            y = _sum([y] + _products(row.stage_clean, cleans) + _products(row.stage_noise, noises), x)
        return self._unless_waiting(row, State(x, y, cleans, noises))

    def _unless_waiting(self, row, changed: "State") -> "State":
        """Return `changed`, but this state in frames that wait: whatever they were answered, even NaN."""
        if row.waits is None:
            return changed
        return jax.tree.map(lambda a, b: jnp.where(across_batch(row.waits, a), a, b), self, changed)


def _normal(keys, number, like):
    one = lambda key: jax.random.normal(jax.random.fold_in(key, number), like.shape[1:], like.dtype)
    return jax.vmap(one)(keys)


def _sum(terms, like):
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(like)


def _products(coefficients, history):
    if coefficients is None:
        return []
    return [across_batch(coefficients[j], history[j]) * history[j] for j in range(coefficients.shape[0])]


def _with_noise(row, keys, index, x, noise, variance):
    """Return x with the row's fresh noise and, after that, Langevin's step if the row has one."""
    deviation = across_batch(row.fresh, x)
    if variance is not None and row.largest is not None:
        deviation = deviation ** (1 - variance) * across_batch(row.largest, x) ** variance
    xi = _normal(keys, 2 * index + 1, x)
    x = x + deviation * xi
    if row.langevin is None:
        return x
    norm = lambda a: jnp.sqrt(jnp.sum(jnp.square(a), axis=range(1 + row.langevin.ndim, a.ndim)))
    q = expand(row.langevin * _quotient(norm(xi), norm(noise)), x)
    return x + 2 * across_batch(row.langevin_sigma, x) * q * (xi - q * noise)


def _quotient(a, b):
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)  # without a score there is no step
