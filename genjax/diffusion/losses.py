"""The simple loss of diffusion and flow matching, and how it depends on time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Target, combine
from genjax.diffusion.times import Law, independent


def simple_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Float[Array, " batch *shape"],
    *conditioning,
    process: Process,
    target: Target,
    times: Law,
    variates: Callable = independent,
    weighting: Callable[[Process, Target, Float[Array, " batch"]], Float[Array, " batch"]] | None = None,
    importance_corrected: bool = False,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """w(t)·‖f(x_t, t) − y‖², t ~ p(t), z ~ N(0, I) (Ho et al. 2020, equation 14; Lipman et al. 2023, equation 9).

    Args:
        apply: the network with its parameters bound, `apply(x, t, *conditioning)`.
        times: the law of the times (`times.uniform`, …).
        variates: how its uniform variates are drawn (`times.independent` or `times.stratified`).
        weighting: w(process, target, t), of `weightings`; 1 if None.
        importance_corrected: divide by the law's density, so that whatever the law, the expected loss is the integral
            over t, and the law changes its variance alone.

    Returns:
        The squared error per example, averaged over its dimensions, and the times drawn.
    """
    time_key, noise_key = jax.random.split(key)
    u = variates(time_key, x.shape[:1])
    t, inverse_density = jax.jvp(lambda u: times(process, u), (u,), (jnp.ones_like(u),))
    z = jax.random.normal(noise_key, x.shape, x.dtype)
    x_t = process.corrupt(x, z, t)
    y = apply(expand(process.input_scale(t), x_t) * x_t, process.network_time(t), *conditioning)
    error = jnp.square(y.astype(jnp.float32) - combine(process, target, x, z, t))
    loss = jnp.mean(error, axis=range(1, x.ndim))
    if weighting is not None:
        loss = weighting(process, target, t) * loss
    return (inverse_density * loss if importance_corrected else loss), t


def sums_by_time(
    losses: Float[Array, " batch"], t: Float[Array, " batch"], process: Process, num_bins: int
) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """Sums of losses, and how many there are, in equal parts of the process' domain of t."""
    start, end = process.domain
    place = jnp.clip(num_bins * (t - start) / (end - start), 0, num_bins - 1).astype(int)
    in_bin = jax.nn.one_hot(place, num_bins)
    return jnp.sum(losses[:, None] * in_bin, axis=0), jnp.sum(in_bin, axis=0)
