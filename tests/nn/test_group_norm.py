"""Group normalization against float64, Flax's, and finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import GroupNorm


def images(shape, offset=3.0):
    return jnp.asarray(np.random.default_rng(0).normal(offset, 2.0, shape), jnp.float32)


def parameters(features):
    random = np.random.default_rng(1)
    return {name: random.normal(size=features).astype(np.float32) for name in ("scale", "bias")}


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 8, 6, 12), 4), ((2, 3, 5, 7, 8), 8), ((2, 64, 64, 6), 1)]
)
def test_groups_have_mean_and_variance(shape, groups):
    """Of each image, or frame, by NumPy in float64; float32 keeps 1e-6 of numbers up to 15."""
    x, params = images(shape), parameters(shape[-1])
    parts = np.asarray(x, np.float64).reshape(*shape[:-1], groups, -1)
    axes = (-4, -3, -1)
    parts = (parts - parts.mean(axes, keepdims=True)) / np.sqrt(
        parts.var(axes, keepdims=True) + 1e-6
    )
    expected = parts.reshape(shape) * params["scale"] + params["bias"]
    found = GroupNorm(groups).apply({"params": params}, x)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_it_is_flaxs_with_its_parameters_and_gradients():
    """Where Flax adds up few numbers."""
    x, params = images((2, 4, 4, 8), 0.5), parameters(8)
    ours, flaxs = GroupNorm(4), nn.GroupNorm(4)
    structure = lambda network: jax.tree.map(jnp.shape, network.init(jax.random.key(0), x))
    assert structure(ours) == structure(flaxs)

    def results(network):
        apply = lambda params, x: network.apply({"params": params}, x)
        output, pull_back = jax.vjp(apply, params, x)
        return output, pull_back(jnp.sin(7 * output))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), results(ours), results(flaxs)
    )


def test_images_of_one_colour_stay_finite():
    """Rounding would make the variance of some of these numbers −0.06."""
    x = jnp.broadcast_to(jnp.linspace(100.0, 1000.0, 64)[:, None, None, None], (64, 3, 5, 6))
    params = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    assert jnp.all(jnp.isfinite(GroupNorm(2).apply({"params": params}, x)))


def test_types():
    x = jnp.asarray(images((1, 4, 4, 8)), jnp.bfloat16)
    variables = GroupNorm(2, param_dtype=jnp.bfloat16).init(jax.random.key(0), x)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    assert GroupNorm(2).apply(variables, x).dtype == jnp.float32
    assert GroupNorm(2, dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16


def test_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="10 features do not divide into 4 groups"):
        GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 10)))
