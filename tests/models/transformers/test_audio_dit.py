"""The transformer of sound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.audio_dit import AudioDiT
from genjax.nn import Text

NETWORK = AudioDiT(patch_size=4, width=16, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def parameters():
    """Return random parameters; those that are made start at zero, and hide what they do."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs())
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * random.standard_normal(a.shape)), shapes)


def inputs(length=32):
    random = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    text = Text(draw(2, 5, 8), None, jnp.arange(5)[None] < jnp.array([[5], [3]]))
    return draw(2, length, 2), jnp.array([0.3, 0.9]), text


def test_patches_are_successive_samples(parameters):
    """The first layer's patch embedding sees samples in the order of time, channels last."""
    x, t, text = inputs()
    apply = jax.jit(NETWORK.apply)
    out = apply(parameters, x, t, text)
    assert out.shape == x.shape
    features = parameters["params"]["patch_embedding"]["kernel"].shape[0]
    assert features == 4 * 2
    # Two samples swap within every patch, and so do the weights that read and write them.
    order = jnp.arange(8).reshape(4, 2)[jnp.array([1, 0, 2, 3])].ravel()
    swapped = jax.tree.map(lambda a: a, parameters)
    swapped["params"]["patch_embedding"]["kernel"] = parameters["params"]["patch_embedding"][
        "kernel"
    ][order]
    for name in ("kernel", "bias"):
        swapped["params"]["head"][name] = parameters["params"]["head"][name][..., order]
    moved = x.reshape(2, 8, 4, 2)[:, :, jnp.array([1, 0, 2, 3])].reshape(x.shape)
    expected = out.reshape(2, 8, 4, 2)[:, :, jnp.array([1, 0, 2, 3])].reshape(x.shape)
    np.testing.assert_allclose(apply(swapped, moved, t, text), expected, atol=1e-4)


def test_absolute_positions_tell_the_patches_of_an_even_input_apart(parameters):
    x, t, text = inputs()
    for known in (False, True):
        network = NETWORK.clone(absolute_positions=known)
        out = jax.jit(network.apply)(parameters, jnp.ones_like(x), t, text)
        patches = out.reshape(2, -1, 4 * 2)
        assert (np.ptp(np.asarray(patches), axis=1).max() > 1e-2) == known


def test_the_order_of_patches_and_the_text_matter_and_masked_words_do_not(parameters):
    x, t, text = inputs()
    apply = jax.jit(NETWORK.apply)
    out = apply(parameters, x, t, text)
    turned = apply(parameters, jnp.roll(x, 4, axis=1), t, text)
    assert not np.allclose(jnp.roll(turned, -4, axis=1), out, atol=1e-3)
    other = dataclasses.replace(
        text, tokens=text.tokens.at[:, 4].add(1.0)
    )  # masked in the second example
    changed = apply(parameters, x, t, other)
    assert not np.allclose(changed[0], out[0], atol=1e-3)
    np.testing.assert_allclose(changed[1], out[1], atol=1e-5)
