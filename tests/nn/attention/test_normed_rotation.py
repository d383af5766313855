import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from genjax.nn.attention.normed_rotation import normed_rotation, takes_kernel
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


@pytest.mark.parametrize(
    ("length", "context", "taken"),
    [(512, 1, True), (512, 2, True), (513, 1, False), (513, 2, False), (384, 2, False)],
)
def test_the_kernel_is_for_whole_blocks_of_tokens_on_each_device(
    monkeypatch, length, context, taken
):
    """Two devices cannot share 513 tokens equally."""
    module = importlib.import_module("genjax.nn.attention.normed_rotation")
    monkeypatch.setattr(module, "current_platform", lambda: "tpu")
    x = jnp.zeros((1, length, 1, FEATURES), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(AbstractMesh((context,), ("context",))):
        assert takes_kernel(x) == taken
