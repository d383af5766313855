import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.nn.attention.normed_rotation import normed_rotation
from genjax.nn.rotary import rotary_positions, rotate

BATCH, LENGTH, HEADS, FEATURES = 2, 12, 6, 128


def test_values_and_gradients_of_a_norm_and_a_rotation():
    """Gradients by the scale sum over three blocks of four tokens, two examples, and six heads.

    A kernel takes two heads at once.
    """
    random = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    x, gradient = array(BATCH, LENGTH, HEADS, FEATURES), array(BATCH, LENGTH, HEADS, FEATURES)
    scale = 1 + 0.1 * array(FEATURES)
    positions = random.uniform(0, 50, (LENGTH, 1))
    rotations = jnp.asarray(rotary_positions(positions, (FEATURES,)))
    norm = nn.RMSNorm(epsilon=1e-6)

    def expected(x, scale):
        return rotate(norm.apply({"params": {"scale": scale}}, x), rotations)

    def actual(x, scale):
        return normed_rotation(x, scale, rotations, 1e-6, interpret=True)

    def both(function):
        output, pullback = jax.vjp(function, x, scale)
        return output, *pullback(gradient)

    for a, b in zip(jax.jit(lambda: both(actual))(), both(expected), strict=True):
        # Sums of up to 128 products in float32, in another order.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
