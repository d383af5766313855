"""Classifier-free guidance (Ho & Salimans 2022): its two halves, for training and for sampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from genjax.diffusion.processes import expand
from genjax.diffusion.targets import Prediction


def drop_conditioning(key: Key[Array, ""], conditioning: PyTree, null: PyTree, rate: float = 0.5) -> PyTree:
    """Replaces whole examples of `conditioning` by `null`, each with probability `rate`.

    Every leaf of `conditioning` is `[batch …]`; the leaves of `null` broadcast against them.
    """
    batch = jax.tree.leaves(conditioning)[0].shape[0]
    drop = jax.random.bernoulli(key, rate, (batch,))
    return jax.tree.map(lambda c, n: jnp.where(expand(drop, c), n, c), conditioning, null)


def guide(
    denoiser: Callable[..., Prediction],
    conditioning: PyTree,
    null: PyTree,
    guidance_scale: float | Float[Array, ""],
) -> Callable[..., Prediction]:
    """The denoiser û + s·(ĉ − û) of a conditional one, in one network call on twice the batch.

    `guidance_scale` s is 1 for plain conditional sampling and 0 for unconditional; where a paper writes
    (1 + w)·ĉ − w·û, s = 1 + w.

    Args:
        denoiser: `(x_t, t, conditioning) -> Prediction`.
        conditioning: leaves `[batch …]`.
        null: what stood in for dropped conditioning in training; leaves broadcast against conditioning's.
    """

    def twice(a, b):  # interleaved, so that a batch sharded over devices stays where it is
        return jnp.stack([a, jnp.broadcast_to(b, a.shape).astype(a.dtype)], axis=1).reshape(-1, *a.shape[1:])

    def guided(x_t: Float[Array, " batch *shape"], t: Float[Array, " batch"]) -> Prediction:
        both = denoiser(twice(x_t, x_t), twice(t, t), jax.tree.map(twice, conditioning, null))

        def extrapolate(a):
            conditional, unconditional = jnp.moveaxis(a.reshape(-1, 2, *a.shape[1:]), 1, 0)
            return unconditional + guidance_scale * (conditional - unconditional)

        return Prediction(extrapolate(both.clean), extrapolate(both.noise))

    return guided
