"""Samplers: from noise to samples along a grid of times, by one `lax.scan` over its steps.

Each takes a denoiser `(x_t, t) -> Prediction`, the process, noise from `process.prior` and the times, noise
end first (`times.uniform_grid`). The network appears once in the compiled program, and a grid of equal
length never compiles anew if the times are an argument of what is jitted.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Prediction

Denoiser = Callable[[Float[Array, " batch *shape"], Float[Array, " batch"]], Prediction]


def sample_keys(key: Key[Array, ""], indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key per sample, by its index among all samples: so a sample does not depend on its batch."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def _integrate(step: Callable, x: Array, times: Array, trajectory: bool) -> Array:
    """Folds `x ← step(x, t, s)` over consecutive pairs of times."""

    def body(x, pair):
        x = step(x, *pair)
        return x, x if trajectory else None

    last, states = jax.lax.scan(body, x, jnp.stack([times[:-1], times[1:]], axis=1))
    return jnp.concatenate([x[None], states]) if trajectory else last


def euler(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Array, " batch *shape"],
    times: Float[Array, " times"],
    *,
    trajectory: bool = False,
) -> Float[Array, " batch *shape"] | Float[Array, " times batch *shape"]:
    """Euler's method in t for the probability-flow ODE: x_s = x_t + (s − t)·velocity(x_t, t).

    Returns:
        The samples, or with `trajectory` the states at all times, the noise first.
    """

    def step(x, t, s):
        t_batch = jnp.full(x.shape[:1], t)
        return x + (s - t) * denoiser(x, t_batch).velocity(process, t_batch)

    return _integrate(step, noise, times, trajectory)


def ddim(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Array, " batch *shape"],
    times: Float[Array, " times"],
    *,
    trajectory: bool = False,
) -> Float[Array, " batch *shape"] | Float[Array, " times batch *shape"]:
    """x_s = alpha_s·x̂ + sigma_s·ẑ (Song et al. 2021, DDIM, equation 12): Euler in (x/alpha, sigma/alpha).

    The same as `euler` for rectified flow, and exact at both ends of any process. Returns as `euler` does.
    """

    def step(x, t, s):
        prediction = denoiser(x, jnp.full(x.shape[:1], t))
        return process.alpha(s) * prediction.clean + process.sigma(s) * prediction.noise

    return _integrate(step, noise, times, trajectory)
