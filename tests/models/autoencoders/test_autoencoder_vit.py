import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.autoencoder_vit import AutoencoderViT
from tests.models.block_options import check_block_options

ENCODER_DEPTH, DECODER_DEPTH = 2, 3
small = functools.partial(
    AutoencoderViT,
    latent_channels=3,
    patch_size=2,
    encoder_width=8,
    encoder_depth=ENCODER_DEPTH,
    encoder_heads=2,
    decoder_width=12,
    decoder_depth=DECODER_DEPTH,
    decoder_heads=3,
    image_channels=1,
)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (2, 6, 4, 1), minval=-1)


@pytest.fixture(scope="module")
def variables(images):
    """Make all variables random, including biases and the norms' scales."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(small().init, jax.random.key(0), images)
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def transformer(inputs, width, depth, outputs):
    """A block has 12·width² weights in kernels and 13·width in biases and norms."""
    ends = inputs * width + width + width * outputs + outputs
    return ends + depth * (12 * width**2 + 13 * width) + 2 * width


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({}, (768, 6), (768, 12)),
        (dict(decoder_width=1152, decoder_depth=24, decoder_heads=16), (768, 6), (1152, 24)),
    ],
)
def test_parameter_counts(options, encoder, decoder):
    """Counts of both sides in closed form; the default decoder, ViT-B, has 85.1 M in its blocks."""
    assert transformer(0, 768, 12, 0) - 3 * 768 == 85_054_464
    variables = jax.eval_shape(
        AutoencoderViT(**options).init, jax.random.key(0), jnp.zeros((1, 16, 32, 3))
    )
    count = {
        side: sum(a.size for a in jax.tree.leaves(tree))
        for side, tree in variables["params"].items()
    }
    assert count == {
        "encoder": transformer(768, *encoder, 32),
        "decoder": transformer(16, *decoder, 768),
    }


def test_shapes(variables, images):
    network = small()
    mean, log_variance = jax.eval_shape(
        functools.partial(network.apply, method="encode"), variables, images
    )
    # Not square, so rows and columns cannot be exchanged.
    assert mean.shape == log_variance.shape == (2, 3, 2, 3)
    assert jax.eval_shape(network.apply, variables, images).shape == images.shape
    with pytest.raises(ValueError, match="images of 6×5 do not divide into patches of 2×2"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 6, 5, 1)))


def test_options_reach_the_blocks(variables, images):
    check_block_options(small(), variables, images, products=16, loops=2, kinds=2)


def layer_norm(x, parameters):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * parameters["scale"] + parameters["bias"]


def linear(x, parameters):
    return x @ parameters["kernel"] + parameters["bias"]


def transform(parameters, tokens, positions, num_heads):
    """The network for one example in float64 NumPy, block by block and head by head."""
    x = linear(tokens, parameters["dense_in"]) + positions
    for i in range(len(parameters["blocks"]["query_key_value"]["bias"])):
        block = jax.tree.map(lambda a: a[i], parameters["blocks"])  # noqa: B023
        h = linear(layer_norm(x, block["norm_attention"]), block["query_key_value"])
        heads = []
        for query, key, value in (
            np.split(head, 3, axis=-1) for head in np.split(h, num_heads, axis=-1)
        ):
            weights = np.exp(query @ key.T / np.sqrt(query.shape[-1]))
            heads.append(weights / weights.sum(axis=-1, keepdims=True) @ value)
        x = x + linear(np.concatenate(heads, axis=-1), block["projection"])
        h = linear(layer_norm(x, block["norm_mlp"]), block["mlp_in"])
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, block["mlp_out"])
    return linear(layer_norm(x, parameters["norm_out"]), parameters["conv_out"])


def position_table(height, width, features):
    """Return sines and cosines of column, then row, at frequencies 10000^(−i/(features/4))."""
    frequencies = 1e4 ** (-np.arange(features // 4) / (features // 4))
    wave = lambda place: np.concatenate([np.sin(place * frequencies), np.cos(place * frequencies)])
    return np.array(
        [np.concatenate([wave(j), wave(i)]) for i in range(height) for j in range(width)]
    )


def test_against_numpy(variables, images):
    @jax.jit
    def apply(variables):
        mean, log_variance = small().apply(variables, images, method="encode")
        return mean, log_variance, small().apply(variables, mean, method="decode")

    mean, log_variance, output = apply(variables)
    parameters = jax.tree.map(np.float64, variables["params"])
    for n, image in enumerate(np.float64(images[..., 0])):
        patches = np.array([image[i : i + 2, j : j + 2].ravel() for i in (0, 2, 4) for j in (0, 2)])
        moments = transform(parameters["encoder"], patches, position_table(3, 2, 8), 2)
        # float32: five blocks, each with some products of a few dozen terms
        np.testing.assert_allclose(mean[n].reshape(6, 3), moments[:, :3], atol=1e-5)
        np.testing.assert_allclose(log_variance[n].reshape(6, 3), moments[:, 3:], atol=1e-5)
        pixels = transform(parameters["decoder"], moments[:, :3], position_table(3, 2, 12), 3)
        rows = pixels.reshape(3, 2, 2, 2).transpose(0, 2, 1, 3).reshape(6, 4)
        np.testing.assert_allclose(output[n, ..., 0], rows, atol=1e-4)


def test_log_variance_is_clipped(variables, images):
    bias = np.repeat(np.array([0.0, 50.0], np.float32), 3)
    far = jax.tree.map(lambda a: a, variables)
    far["params"]["encoder"]["conv_out"]["bias"] = bias
    encode = jax.jit(functools.partial(small().apply, method="encode"))
    assert np.all(encode(far, images)[1] == 20)
    far["params"]["encoder"]["conv_out"]["bias"] = -bias
    assert np.all(encode(far, images)[1] == -30)
