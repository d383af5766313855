"""Distances of a reconstruction from its original, and the weight of an added discriminator.

Distances are means over all values of an example, so that weights do not depend on image size.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

Images = Float[Array, " batch *shape"]


def _mean(a: Images) -> Float[Array, " batch"]:
    """Return the mean over all axes except the batch."""
    return jnp.mean(a, axis=range(1, a.ndim))


def _difference(x: Images, y: Images) -> Images:
    """Return x − y; raise ValueError unless both are floats of one shape."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    floats = all(jnp.issubdtype(each.dtype, jnp.floating) for each in (x, y))
    if x.shape != y.shape or not floats:
        raise ValueError(
            "a reconstruction and its original are floats of one shape; got "
            f"{x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}"
        )
    return x - y


def l1(x: Images, y: Images) -> Float[Array, " batch"]:
    """Return the mean of |x − y|, `[batch]`. The best single guess is the median."""
    return _mean(jnp.abs(_difference(x, y)))


def l2(x: Images, y: Images) -> Float[Array, " batch"]:
    """Return the mean of (x − y)², `[batch]`. The best single guess is the mean."""
    return _mean(jnp.square(_difference(x, y)))


def charbonnier(x: Images, y: Images, epsilon: float = 1e-3) -> Float[Array, " batch"]:
    """Return √((x − y)² + ε²), `[batch]` (Charbonnier et al. 1994).

    It is |x − y| with a smooth slope at 0.
    """
    return _mean(jnp.sqrt(jnp.square(_difference(x, y)) + epsilon**2))


def adaptive_weight(
    reconstruction: PyTree[Float[Array, "..."]], adversarial: PyTree[Float[Array, "..."]]
) -> Float[Array, ""]:
    """Return ‖∇L_reconstruction‖ / ‖∇L_adversarial‖, at most 10⁴.

    With this weight both losses pull equally at the decoder's last layer (Esser et al. 2021,
    "VQGAN", equation 7). No gradient flows through it. Latent diffusion's program (`AutoencoderKL`)
    sums L_reconstruction over pixel values, so its weight reaches the bound at far smaller ratios.

    The weight grows as the discriminator's gradient vanishes, so a blind discriminator still pulls.
    `adversarial.alarms` names such a weight.

    Args:
        reconstruction, adversarial: the gradients of the two losses by the parameters of the
            decoder's last layer.
    """
    ratio = optax.tree.norm(reconstruction) / (optax.tree.norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.minimum(ratio, 1e4))
