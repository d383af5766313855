"""Networks are traced on shapes before anything is computed, equal ones once."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.tasks.shapes import first_output, traced_shape


def test_equal_networks_are_traced_once():
    traced = []

    class Network(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            traced.append(self.width)
            return nn.Dense(self.width)(x)

    def shape(width):
        network, x = Network(width), jax.ShapeDtypeStruct((1, 3), jnp.float32)
        inputs = first_output(network), jax.random.key(0), x
        return traced_shape(network, "model", "x", *inputs)

    assert [shape(4), shape(5), shape(4)] == [(1, 4), (1, 5), (1, 4)]
    assert traced == [4, 5]
