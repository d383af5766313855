import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.unets.adm import (
    ADM,
    ADM_ImageNet64,
    ADM_ImageNet128,
    ADM_ImageNet256,
    ADM_ImageNet512,
)
from genjax.nn import attention_choices

# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
key = jax.random.key(0)


def size(params):
    return sum(a.size for a in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("build", "side", "by_class", "unconditional", "in_millions", "head_features"),
    [
        (ADM_ImageNet64, 64, 295_904_454, 295_136_454, 296, {64}),
        (ADM_ImageNet128, 128, 421_529_606, 420_505_606, 422, {128, 192, 256}),
        (ADM_ImageNet256, 256, 553_838_086, 552_814_086, 554, {64}),
        (ADM_ImageNet512, 512, 558_997_638, 557_973_638, 559, {64}),
    ],
)
def test_published_networks(build, side, by_class, unconditional, in_millions, head_features):
    """Count parameters as the authors' code does with its README's flags, rounded as in the paper.

    Attention is at maps of 32, 16 and 8 pixels. It has heads of 64 features, or four heads for
    images of 128.
    """
    network = build(out_channels=6)
    inputs = jnp.zeros((1, side, side, 3)), jnp.zeros(1), jnp.zeros(1, int)
    with attention_choices() as choices:
        params = jax.eval_shape(network.init, key, *inputs)["params"]
    assert size(params) == by_class and round(by_class / 1e6) == in_millions
    assert by_class - size(params["label_embedding"]) == unconditional
    if build is ADM_ImageNet64:  # as in EDM's code, without learned variance
        assert by_class - size(params["conv_out"]) // 2 == 295_899_267
    _, lengths, num_heads, features = zip(*(choice.query for choice in choices), strict=True)
    assert set(lengths) == {32**2, 16**2, 8**2} and set(features) == head_features
    assert build is not ADM_ImageNet128 or set(num_heads) == {4}


def test_initial_weights_are_those_of_the_authors():
    """PyTorch's U(−1/√fan_in, 1/√fan_in), zeros for last layers, N(0, 1) for classes."""
    network = ADM(32, (1,), 0, num_classes=100)
    inputs = jnp.ones((1, 2, 2, 2)), jnp.ones(1), jnp.zeros(1, int)
    output, variables = quick_jit(network.init_with_output)(key, *inputs)
    params, block = variables["params"], variables["params"]["middle_0"]
    for layer, fan_in in (
        (params["linear_in"], 32),
        (block["conv_in"], 9 * 32),
        (block["attention"]["query_key_value"], 32),
    ):
        # There are 3,072 values or more, so the largest is within a hundredth of the bound.
        assert 0.99 < np.abs(layer["kernel"]).max() * np.sqrt(fan_in) <= 1 + 1e-6
    for layer in (block["conv_out"], block["attention"]["projection"], params["conv_out"]):
        assert np.all(layer["kernel"] == 0)
    assert np.all(output == 0)
    # The deviation of 12,800 values is off by a factor of 1 ± .006; allow three times that.
    np.testing.assert_allclose(np.std(params["label_embedding"]["kernel"]), 1, rtol=0.02)
