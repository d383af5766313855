import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.mmdit import (
    MMDiT,
    axis_embedding,
    joint_attention,
    sd3_medium,
    sd35_large,
    sd35_medium,
)
from genjax.nn import Text
from tests.models.block_options import check_block_options

BATCH, CHANNELS, LENGTH = 2, 3, 4
small = functools.partial(
    MMDiT,
    patch_size=2,
    width=16,
    depth=3,
    num_heads=2,
    dual_layers=(0, 1),
    qk_norm=True,
    max_size=5,
    position_step=0.5,
)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (BATCH, 4, 6, CHANNELS))
    tokens = jax.random.normal(keys[1], (BATCH, LENGTH, 7))
    mask = jnp.arange(LENGTH) < jnp.array([[4], [2]])
    return x, jnp.array([0.1, 0.7]), Text(tokens, jax.random.normal(keys[2], (BATCH, 5)), mask)


@pytest.fixture(scope="module")
def perturbed(inputs):
    """Parameters away from the zero initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(small().init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), shapes)


def pull_back(network):
    """The output, and its product with `weights` differentiated by everything."""

    def product(variables, x, t, tokens, pooled, mask, weights):
        output = network.apply(variables, x, t, Text(tokens, pooled, mask))
        return jnp.sum(output * weights), output

    gradients = jax.jit(jax.grad(product, argnums=(0, 1, 2, 3, 4), has_aux=True))
    return lambda variables, x, t, text, weights: jax.device_get(
        gradients(variables, x, t, text.tokens, text.pooled, text.mask, weights)
    )


@pytest.fixture(scope="module")
def differentiate():
    return pull_back(small())


@pytest.fixture(scope="module")
def apply(differentiate):
    return lambda variables, x, *args: differentiate(variables, x, *args, jnp.ones_like(x))[1]


@pytest.mark.parametrize(
    "build, expected",
    [(sd3_medium, 2_028_328_000), (sd35_medium, 2_243_171_520), (sd35_large, 8_056_627_520)],
)
def test_parameter_counts(build, expected):
    """At 1024 pixels, 128 latents each way, and with Stable Diffusion 3's 77 + 256 text tokens."""
    example = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    init = lambda key, x, t, tokens, pooled: build().init_with_output(
        key, x, t, Text(tokens, pooled)
    )
    output, variables = jax.eval_shape(
        init, jax.random.key(0), example(128, 128, 16), example(), example(333, 4096), example(2048)
    )
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected
    assert output.shape == (1, 128, 128, 16)


@pytest.mark.parametrize("build", [sd3_medium, sd35_medium])
def test_positions_at_1024_pixels_are_those_at_256_with_points_between(build):
    """Section 5.3.2: 16 patches a side become 64 in the same range, 0 to 15.75."""
    positions = build()._positions(64, 64).reshape(64, 64, 2, -1)
    expected = axis_embedding(np.arange(64) / 4, positions.shape[-1])
    np.testing.assert_allclose(positions[5, :, 0], expected, atol=1e-6)
    np.testing.assert_allclose(positions[:, 5, 1], expected, atol=1e-6)


def test_images_take_the_centre_of_the_positions():
    whole = small(max_size=7)._positions(7, 7).reshape(7, 7, -1)
    part = small(max_size=7)._positions(3, 4).reshape(3, 4, -1)
    np.testing.assert_array_equal(part, whole[2:5, 1:5])


def test_images_larger_than_the_positions_are_refused(perturbed, inputs):
    with pytest.raises(ValueError, match="6×2 patches; positions of at most max_size = 5"):
        jax.eval_shape(small().apply, perturbed, jnp.zeros((BATCH, 12, 4, CHANNELS)), *inputs[1:])


def test_joint_attention_is_softmax_of_each_stream_over_both(inputs):
    random = np.random.default_rng(0)
    image, text = (
        random.standard_normal((3, 1, 6, 2, 8)),
        random.standard_normal((3, 1, LENGTH, 2, 8)),
    )
    mask = inputs[-1].mask[1:]
    outputs = jax.jit(joint_attention)(
        *(tuple(jnp.asarray(a, jnp.float32) for a in stream) for stream in (image, text)), mask
    )
    key, value = np.concatenate([image, text[:, :, :2]], axis=2)[
        1:, 0
    ]  # two tokens, two of padding
    for (query, _, _), output in zip((image, text), outputs, strict=True):
        weights = np.exp(np.einsum("qhf,khf->hqk", query[0], key) / np.sqrt(8))
        weights /= weights.sum(axis=-1, keepdims=True)
        expected = np.einsum("hqk,khf->qhf", weights, value).reshape(-1, 16)
        # Sums of some ten numbers of size 1 in float32.
        np.testing.assert_allclose(output[0], expected, atol=2e-6)


def test_initialisation_is_zero(inputs):
    """The head is, and every gate."""

    @jax.jit
    def zeros(*inputs):  # the program draws nothing else
        params = small().init(jax.random.key(0), *inputs)["params"]
        blocks = params["dual_blocks"], params["last_block"]
        parts = [(block["image_modulation"], block["text_modulation"]) for block in blocks]
        return parts, params["modulation"], params["head"]

    leaves = jax.tree.leaves(jax.device_get(zeros(*inputs)))
    assert len(leaves) == 12 and all(np.all(a == 0) for a in leaves)


def test_padding_changes_nothing_and_text_does(apply, perturbed, inputs):
    x, t, text = inputs
    padding = text.replace(tokens=jnp.where(text.mask[..., None], text.tokens, 100.0))
    output = apply(perturbed, x, t, text)
    np.testing.assert_array_equal(apply(perturbed, x, t, padding), output)
    other = text.replace(tokens=text.tokens.at[1, 1].add(1))
    difference = np.abs(apply(perturbed, x, t, other) - output)
    assert difference[1].max() > 0.1


def test_outputs_depend_on_all_of_their_own_example_and_nothing_of_others(
    differentiate, perturbed, inputs
):
    x, t, text = inputs
    weights = jnp.zeros_like(x).at[1, 0, 0, 0].set(1)
    (_, *gradients, tokens, pooled), _ = differentiate(perturbed, x, t, text, weights)
    for gradient in (*gradients, tokens[:, :2], pooled):
        assert np.all(gradient[1] != 0) and np.all(gradient[0] == 0)
    assert np.all(tokens[1, 2:] == 0)  # padding


def test_options_reach_the_blocks(perturbed, inputs):
    """Both blocks of the loop have two attentions; the last block is on its own."""
    check_block_options(small(), perturbed, *inputs, products=30, kinds=2)


def test_every_parameter_matters_but_what_the_last_block_makes_of_text_queries(
    differentiate, perturbed, inputs
):
    """The published weights have these, and nobody reads what they give."""
    (gradients, *_), _ = differentiate(perturbed, *inputs, jnp.ones_like(inputs[0]))
    unused = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, gradient in jax.tree.leaves_with_path(gradients["params"])
        if not np.any(gradient)
    }
    assert unused == {
        f"last_block/text_heads/{name}"
        for name in ("query/kernel", "query/bias", "query_norm/scale")
    }


def test_networks_without_pooled_text_and_with_other_output_channels(inputs):
    x, t, text = inputs
    network = small(depth=1, dual_layers=(), out_channels=8)
    output, variables = jax.eval_shape(
        network.init_with_output, jax.random.key(0), x, t, text.replace(pooled=None)
    )
    assert output.shape == (BATCH, 4, 6, 8)
    assert not {"pooled_embedding", "blocks", "dual_blocks"} & variables["params"].keys()
