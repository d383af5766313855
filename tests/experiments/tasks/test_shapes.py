"""Networks are traced on shapes before anything is computed, equal ones once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from experiments.configuration import base
from experiments.configuration.runs import build
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


@pytest.mark.parametrize("task", ["TokenAutoregression", "MaskedAutoregression"])
def test_images_of_several_shapes_are_no_tokens_of_one_grid(task):
    """4×16 codes of a portrait are as many as 8×8, and would be read as those in silence."""
    data = dict(name="digits", image_shape=(8, 8, 1))
    if task == "MaskedAutoregression":
        config = base.masked_autoregression("shapes", **data)
    else:
        config = base.tokens("shapes", task, **data)
    config.data.buckets = dict(multiple=2, max_ratio=4.0)
    with pytest.raises(ValueError, match=f"buckets .* several shapes, and a {task} takes tokens"):
        build(config)
