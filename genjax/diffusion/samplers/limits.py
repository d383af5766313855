"""Functions with finite derivatives where the log-SNR is infinite or no noise is drawn.

Time grids can be learned, so every coefficient is differentiated by the times. `jnp.where(known, a
/ b, 0)` is not enough: its derivative in the branch that is not taken is 0·∞ = NaN. The values here
are those of the plain formula, and only the derivatives are guarded. An end of infinite log-SNR
counts as fixed, so what is infinite there has the derivative 0. This is exact for all other times
of the grid.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process

Values = Float[Array, " *shape"]


def finite(a: Values) -> Values:
    """Return `a`, with zero where it is infinite or undefined."""
    return jnp.where(jnp.isfinite(a), a, 0)


@jax.custom_jvp
def quotient(a: Float[Array, " *#shape"], b: Float[Array, " *#shape"]) -> Float[Array, " ..."]:
    """Return a/b, and 0 with derivatives 0 where a/b is infinite or undefined."""
    return finite(a / b)


@quotient.defjvp
def _quotient_jvp(values, changes):
    (a, b), (da, db) = values, changes
    value, known = quotient(a, b), jnp.isfinite(a / b)
    return value, jnp.where(known, da - value * db, 0) / jnp.where(known, b, 1)


@jax.custom_jvp
def root(a: Values) -> Values:
    """Return √a, with the derivative 0 where a = 0 or √a is undefined."""
    return jnp.sqrt(a)


@root.defjvp
def _root_jvp(values, changes):
    value = root(*values)
    known = value > 0  # False for NaN too, which fills times before a frame's grid
    return value, jnp.where(known, changes[0], 0) / jnp.where(known, 2 * value, 1)


def fixed_where_infinite(
    function: Callable[[Process, Values], Values],
) -> Callable[[Process, Values], Values]:
    """Give `function(process, times)` the derivative 0 where its value is infinite."""

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def guarded(process, times):
        return function(process, times)

    @guarded.defjvp
    def jvp(process, times, changes):
        value = function(process, *times)
        known = jnp.isfinite(value)
        inside = jnp.where(known, *times, sum(process.domain) / 2)  # any time of finite value
        slope = jax.jvp(functools.partial(function, process), (inside,), changes)[1]
        return value, jnp.where(known, slope, 0)

    return functools.wraps(function)(guarded)


@fixed_where_infinite
def half_log_snr(process: Process, times: Values) -> Values:
    """Return lambda = log(alpha/sigma)."""
    return process.log_snr(times) / 2


@fixed_where_infinite
def noise_ratio(process: Process, times: Values) -> Values:
    """Return rho = sigma/alpha."""
    return process.sigma(times) / process.alpha(times)


def clip(times: Values, first: float, last: float) -> Values:
    """Return the times clipped to [first, last], with the derivative 1 at both ends.

    The derivative of jnp.clip is 1/2 there.
    """
    return jnp.where(times < first, first, jnp.where(times > last, last, times))
