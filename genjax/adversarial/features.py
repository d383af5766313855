"""Feature matching: a generator's loss from the discriminator's inner features."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def feature_matching(
    real: PyTree[Float[Array, "batch ..."]], fake: PyTree[Float[Array, "batch ..."]]
) -> Float[Array, ""]:
    """Return the sum over layers of the mean |real − fake| (Kong et al. 2020, "HiFi-GAN", eq. 4).

    Larsen et al. 2016 proposed it. No gradient flows into the features of real examples.

    Args:
        real, fake: the discriminator's features of real and of generated examples, layer by layer.
    """
    # Sums of layers in bfloat16 would have two digits.
    distance = lambda r, f: jnp.mean(jnp.abs(jax.lax.stop_gradient(r) - f), dtype=jnp.float32)
    return sum(jax.tree.leaves(jax.tree.map(distance, real, fake)))
