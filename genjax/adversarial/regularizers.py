"""Regularizers of discriminator and generator: penalties on derivatives, logits and weights.

A critic is `critic(images) -> logits [batch]`. Its gradient is that of the sum of the logits. If a
critic's logits depend on the whole batch (batch norm, minibatch deviation), the gradient includes
this dependence.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

Critic = Callable[[Float[Array, " batch *shape"]], Float[Array, " batch"]]


def _root(square: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Return the square root, with the derivative 0 at 0, where the root has none."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def gradient_penalty(
    critic: Critic, images: PyTree[Float[Array, "batch ..."]]
) -> Float[Array, " batch"]:
    """Return ‖∇D(x)‖² of each image, to be weighted by γ/2.

    It is R1 at real images and R2 at generated images (Mescheder et al. 2018, equations 9 and 10).
    For a tree, such as a pair (x, z), it is the sum over the arrays.
    """
    gradients = jax.grad(lambda x: critic(x).sum())(images)
    square_norms = lambda a: jnp.sum(jnp.square(a), axis=range(1, a.ndim))
    return sum(map(square_norms, jax.tree.leaves(gradients)))


def interpolated_gradient_penalty(
    key: Key[Array, ""],
    critic: Critic,
    real: Float[Array, " batch *shape"],
    fake: Float[Array, " batch *shape"],
) -> Float[Array, " batch"]:
    """Return (‖∇D(x̂)‖ − 1)², with x̂ uniform on the segment between each pair, `[batch]`.

    Gulrajani et al. 2017, "WGAN-GP", equation 3.
    """
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
    """Return (‖Jᵀy‖ − a)² with y ~ N(0, I)/√pixels and J the Jacobian of the synthesis.

    Karras et al. 2020, "StyleGAN2", equation 4. The squared norm is averaged over styles. The
    target a is the running mean of the lengths, updated with this batch by the weight `decay`.
    Gradients flow through a, as in the authors' program, which takes half of a batch.

    Args:
        mean: the running mean so far.

    Returns:
        The penalty of each example, `[batch]`, and the new running mean.
    """

    def projected(w):
        images = synthesize(w)
        y = jax.random.normal(key, images.shape, images.dtype)
        return jnp.sum(images * y) / jnp.sqrt(images.shape[1] * images.shape[2])

    lengths = _root(jnp.mean(jnp.sum(jnp.square(jax.grad(projected)(w)), axis=2), axis=1))
    mean = mean + decay * (lengths.mean() - mean)
    return jnp.square(lengths - mean), jax.lax.stop_gradient(mean)


def orthogonality(params: PyTree) -> Float[Array, ""]:
    """Return ‖WᵀW ⊙ (1 − I)‖² summed over the kernels W, whose columns are their outputs' weights.

    Brock et al. 2019, "BigGAN", equation 3, to be weighted by β. It is 0 if the columns of each W
    are orthogonal, of whatever length. The authors' PyTorch program has half of this gradient, and
    also leaves out the shared embedding.

    Args:
        params: of a network. Its kernels are the arrays named "kernel". A stack of kernels, as of
            layers in a scan, counts as one kernel.
    """

    def of_array(path, array):
        if path[-1] != jax.tree_util.DictKey("kernel"):
            return jnp.zeros(())
        matrix = array.reshape(-1, array.shape[-1])
        products = jnp.matmul(matrix.T, matrix, precision="highest")
        return jnp.sum(jnp.square(products - jnp.diag(jnp.diag(products))))

    return sum(jax.tree.leaves(jax.tree.map_with_path(of_array, params)), jnp.zeros(()))


class Anchors(NamedTuple):
    """Running means of the logits of real and generated images, for `lecam`."""

    real: Float[Array, ""]
    fake: Float[Array, ""]


def lecam(
    real: Float[Array, " batch"], fake: Float[Array, " batch"], anchors: Anchors
) -> Float[Array, " batch"]:
    """Return (D(x) − α_fake)² + (D(G(z)) − α_real)², with α the running means of logits, `[batch]`.

    Tseng et al. 2021, equation 4. The authors' program leaves out a term whose logit is already
    past the other side's anchor.
    """
    return jnp.square(real - anchors.fake) + jnp.square(fake - anchors.real)


def update_anchors(
    anchors: Anchors,
    real: Float[Array, " batch"],
    fake: Float[Array, " batch"],
    decay: float = 0.99,
) -> Anchors:
    """Return the anchors after a batch, whose means have the weight 1 − decay."""
    move = lambda old, logits: decay * old + (1 - decay) * jax.lax.stop_gradient(logits).mean()
    return Anchors(move(anchors.real, real), move(anchors.fake, fake))


def lazy_penalty(
    step: Int[Array, ""], every: int, penalty: Callable[[], PyTree], otherwise: PyTree
) -> PyTree:
    """Return `penalty()` at every `every`-th step from step 0, otherwise `otherwise`.

    The other steps cost nothing. This is lazy regularization (Karras et al. 2020, "StyleGAN2",
    section 3.1). Weight such a penalty `every` times as much: its mean gradient over steps is then
    that of the penalty at every step. The authors' program makes a step of its own for penalties,
    and lowers Adam's learning rate and β₂ in return. A penalty in the loss needs neither.
    """
    if every == 1:
        return penalty()
    return jax.lax.cond(step % every == 0, penalty, lambda: otherwise)
