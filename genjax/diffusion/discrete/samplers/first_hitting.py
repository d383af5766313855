"""First hitting: one token at a time, at the time at which the reversed process unmasks it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.diffusion.discrete.processes import Masked, Tokens
from genjax.diffusion.discrete.samplers.steps import Keys, draw, fold
from genjax.diffusion.discrete.targets import Denoiser


def first_hitting(
    denoiser: Denoiser,
    process: Masked,
    noise: Tokens,
    times: Float[Array, " times"] | None = None,
    *,
    keys: Keys,
    trajectory: bool = False,
) -> Int[Array, " ..."]:
    """Unmask each token at a time of its own, in falling order, one evaluation per token.

    Zheng et al. 2025. The sampler has no error of discretization: it follows the distribution
    of infinitely many ancestral steps. The reversed process unmasks a token at a time t for which
    sigma(t) is uniform, whatever the tokens are.

    Args:
        noise: masks. Places that are already data stay as they are.
        times: unused, since the sampler draws its own.
        keys: one per sample.
        trajectory: return the states before and after each unmasking.
    """
    length = math.prod(noise.shape[1:])
    flat = noise.reshape(len(noise), length)
    order_keys, step_keys = fold(keys, 0), fold(keys, 1)
    u = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(order_keys)
    u = jnp.where(flat == process.mask, process.sigma(jnp.asarray(process.domain[1])) * u, -1)
    order = jnp.argsort(-u, axis=1)  # what is given comes last, and stays
    hit = jnp.maximum(jnp.take_along_axis(u, order, 1), 2.0**-24)
    # A schedule that jumps at the clean end may unmask at t = 0, where masks are impossible.
    times = jnp.maximum(process.time_of(1 - hit, hit), 2.0**-24)

    def unmask(x, row):
        number, place, t = row
        log_p = denoiser(x.reshape(noise.shape), t).reshape(*x.shape, -1)
        chosen = jnp.take_along_axis(log_p, place[:, None, None], 1)[:, 0]
        token = draw(fold(step_keys, number), jnp.exp(chosen)).astype(x.dtype)
        here = (jnp.arange(length) == place[:, None]) & (x == process.mask)
        x = jnp.where(here, token[:, None], x)
        return x, x.reshape(noise.shape) if trajectory else None

    last, states = jax.lax.scan(unmask, flat, (jnp.arange(length), order.T, times.T))
    return jnp.concatenate([noise[None], states]) if trajectory else last.reshape(noise.shape)


first_hitting.num_evaluations = lambda length, num_steps: length
