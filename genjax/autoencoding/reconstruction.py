"""How far a reconstruction is from its original, and what a discriminator's opinion of it shall weigh.

Distances are means over all values of an example, so that their weights do not depend on the size of images.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

Images = Float[Array, " batch *shape"]


def _mean(a: Images) -> Float[Array, " batch"]:
    return jnp.mean(a, axis=range(1, a.ndim))


def l1(x: Images, y: Images) -> Float[Array, " batch"]:
    """|x − y|: each value's best guess is its median."""
    return _mean(jnp.abs(x - y))


def l2(x: Images, y: Images) -> Float[Array, " batch"]:
    """(x − y)²: each value's best guess is its mean."""
    return _mean(jnp.square(x - y))


def charbonnier(x: Images, y: Images, epsilon: float = 1e-3) -> Float[Array, " batch"]:
    """√((x − y)² + ε²): |x − y| with a slope that is smooth at 0 (Charbonnier et al. 1994)."""
    return _mean(jnp.sqrt(jnp.square(x - y) + epsilon**2))


def adaptive_weight(
    reconstruction: PyTree[Float[Array, "..."]],
    adversarial: PyTree[Float[Array, "..."]],
    maximum: float = 1e4,
) -> Float[Array, ""]:
    """‖∇L_reconstruction‖ / ‖∇L_adversarial‖, what makes both pull equally at the decoder's last layer (Esser et al. 2021,
    "VQGAN", equation 7), at most `maximum`.

    Args:
        reconstruction, adversarial: gradients of either loss by the parameters of the decoder's last layer.
    """
    ratio = optax.tree.norm(reconstruction) / (optax.tree.norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.minimum(ratio, maximum))
