"""The simple loss of diffusion and flow matching, and how it depends on time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Target, combine
from genjax.diffusion.times import TimeDistribution, to_domain


def simple_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Float[Array, " batch *shape"],
    *conditioning,
    process: Process,
    target: Target,
    times: TimeDistribution,
    weighting: Callable[[Process, Float[Array, " batch"]], Float[Array, " batch"]] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """w(t)·‖f(x_t, t) − y‖², t ~ p(t), z ~ N(0, I) (Ho et al. 2020, equation 14; Lipman et al. 2023, equation 9).

    Args:
        apply: the network with its parameters bound, `apply(x, t, *conditioning)`.
        weighting: w(process, t); 1 if None.

    Returns:
        The squared error per example, averaged over its dimensions, and the times drawn.
    """
    time_key, noise_key = jax.random.split(key)
    t = to_domain(process, times(time_key, x.shape[:1]))
    z = jax.random.normal(noise_key, x.shape, x.dtype)
    x_t = process.corrupt(x, z, t)
    y = apply(expand(process.input_scale(t), x_t) * x_t, process.network_time(t), *conditioning)
    error = jnp.square(y.astype(jnp.float32) - combine(process, target, x, z, t))
    loss = jnp.mean(error, axis=range(1, x.ndim))
    return (loss if weighting is None else weighting(process, t) * loss), t


def sums_by_time(
    losses: Float[Array, " batch"], t: Float[Array, " batch"], process: Process, num_bins: int
) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """Sums of losses, and how many there are, in equal parts of the process' domain of t."""
    start, end = process.domain
    place = jnp.clip(num_bins * (t - start) / (end - start), 0, num_bins - 1).astype(int)
    in_bin = jax.nn.one_hot(place, num_bins)
    return jnp.sum(losses[:, None] * in_bin, axis=0), jnp.sum(in_bin, axis=0)
