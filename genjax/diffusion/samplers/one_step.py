"""Samplers of one evaluation a step without memory: Euler's method, in t and in (x/alpha, sigma/alpha)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.tables import Table, sampler


@sampler
def euler(process: Process, times: Float[Array, " times"]) -> Table:
    """Euler's method in t for the probability-flow ODE: x_s = x_t + (s − t)·velocity(x_t, t)."""
    t, s = times[:-1], times[1:]
    return Table(
        t,
        state=jnp.ones_like(t),
        clean=((s - t) * process.alpha_prime(t))[:, None],
        noise=((s - t) * process.sigma_prime(t))[:, None],
    )


@sampler
def ddim(process: Process, times: Float[Array, " times"]) -> Table:
    """x_s = alpha_s·x̂ + sigma_s·ẑ (Song et al. 2021, DDIM, equation 12): Euler in (x/alpha, sigma/alpha).

    The same as `euler` for rectified flow, and exact at both ends of any process.
    """
    t, s = times[:-1], times[1:]
    return Table(t, clean=process.alpha(s)[:, None], noise=process.sigma(s)[:, None])
