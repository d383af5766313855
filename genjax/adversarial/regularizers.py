"""What is added to the losses of discriminator and generator: penalties of their derivatives and of their logits.

A critic is `critic(images) -> logits [batch]`. Its gradient by the images is taken of the sum of the logits, so for a
critic whose logits depend on their batch (batch norm, minibatch deviation) it counts those paths too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

Critic = Callable[[Float[Array, " batch *shape"]], Float[Array, " batch"]]


def _square_norm(a: Float[Array, " batch *shape"]) -> Float[Array, " batch"]:
    return jnp.sum(jnp.square(a), axis=range(1, a.ndim))


def _root(square: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """The square root, whose derivative at 0, where there is none, is taken to be 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def gradient_penalty(
    critic: Critic, images: Float[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """‖∇D(x)‖² of each image: R1 at real images, R2 at generated ones, to be weighted by γ/2 (Mescheder et al. 2018,
    equations 9 and 10)."""
    return _square_norm(jax.grad(lambda x: critic(x).sum())(images))


def interpolated_gradient_penalty(
    key: Key[Array, ""],
    critic: Critic,
    real: Float[Array, " batch *shape"],
    fake: Float[Array, " batch *shape"],
) -> Float[Array, " batch"]:
    """(‖∇D(x̂)‖ − 1)², x̂ uniform on the segment between each pair (Gulrajani et al. 2017, "WGAN-GP", equation 3)."""
    share = jax.random.uniform(key, (len(real), *[1] * (real.ndim - 1)), real.dtype)
    norm = _root(gradient_penalty(critic, share * real + (1 - share) * fake))
    return jnp.square(norm - 1)


def path_length(
    key: Key[Array, ""],
    synthesize: Callable[
        [Float[Array, "batch styles features"]], Float[Array, "batch height width channels"]
    ],
    w: Float[Array, "batch styles features"],
    mean: Float[Array, ""],
    decay: float = 0.01,
) -> tuple[Float[Array, " batch"], Float[Array, ""]]:
    """(‖Jᵀy‖ − a)², y ~ N(0, I)/√pixels, J the synthesis' Jacobian (Karras et al. 2020, "StyleGAN2", equation 4).

    The square of the norm is averaged over styles. The target a is the running mean of the lengths, which moves by
    `decay` of the way to this batch's; gradients flow through it, as in the authors' program.

    Args:
        mean: the running mean before.

    Returns:
        The penalty per example and the running mean after.
    """

    def projected(w):
        images = synthesize(w)
        y = jax.random.normal(key, images.shape, images.dtype)
        return jnp.sum(images * y) / jnp.sqrt(images.shape[1] * images.shape[2])

    lengths = _root(jnp.mean(jnp.sum(jnp.square(jax.grad(projected)(w)), axis=2), axis=1))
    mean = mean + decay * (lengths.mean() - mean)
    return jnp.square(lengths - mean), jax.lax.stop_gradient(mean)


class Anchors(NamedTuple):
    """Running means of the logits of real and generated images, for `lecam`."""

    real: Float[Array, ""]
    fake: Float[Array, ""]


def lecam(
    real: Float[Array, " batch"], fake: Float[Array, " batch"], anchors: Anchors
) -> Float[Array, " batch"]:
    """(D(x) − α_fake)² + (D(G(z)) − α_real)², α the running means of the other side's logits (Tseng et al. 2021,
    equation 4; the authors' program leaves out a term whose logit is already past the other side's anchor)."""
    return jnp.square(real - anchors.fake) + jnp.square(fake - anchors.real)


def update_anchors(
    anchors: Anchors,
    real: Float[Array, " batch"],
    fake: Float[Array, " batch"],
    decay: float = 0.99,
) -> Anchors:
    """The anchors after a batch, whose means count 1 − decay."""
    move = lambda old, logits: decay * old + (1 - decay) * jax.lax.stop_gradient(logits).mean()
    return Anchors(move(anchors.real, real), move(anchors.fake, fake))


def lazy_penalty(
    step: Int[Array, ""], every: int, penalty: Callable[[], PyTree], otherwise: PyTree
) -> PyTree:
    """`penalty()` at every `every`-th step, from step 0 on, and `otherwise` at the others, where it costs nothing.

    Lazy regularization (Karras et al. 2020, "StyleGAN2", section 3.1): a penalty that is so computed is to be weighted
    `every` times as much, then its mean gradient over the steps is that of the penalty at every step.
    """
    if every == 1:
        return penalty()
    return jax.lax.cond(step % every == 0, penalty, lambda: otherwise)
