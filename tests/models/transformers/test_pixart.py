import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.pixart import PixArt
from genjax.nn import Text
from tests.models.block_options import check_block_options

DEPTH = 2


def small(**options):
    return PixArt(
        patch_size=2,
        width=12,
        depth=DEPTH,
        num_heads=3,
        base_size=2,
        size_conditioning=True,
        **options,
    )


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(1), 2)
    text = Text(jax.random.normal(keys[0], (2, 5, 7)), mask=jnp.arange(5) < jnp.array([[5], [2]]))
    size = jnp.array([[64.0, 32.0], [32.0, 64.0]])
    return jax.random.normal(keys[1], (2, 8, 4, 3)), jnp.array([0.2, 0.7]), text, size


@pytest.fixture(scope="module")
def perturbed(inputs):
    """Parameters away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(small().init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(small().apply)


def test_initialisation_is_that_of_the_paper(inputs):
    output, variables = jax.jit(small().init_with_output)(jax.random.key(0), *inputs)
    assert np.all(output == 0)
    params = variables["params"]
    for layer in (params["head"], params["blocks"]["cross_attention"]["projection"]):
        assert all(np.all(a == 0) for a in jax.tree.leaves(layer))
    table = np.asarray(params["blocks"]["modulation"]["table"])
    assert table.shape == (DEPTH, 6, 12) and not np.allclose(table[0], table[1])
    # N(0, 1/width): 144 numbers have that deviation but for 6 %, so four times that.
    np.testing.assert_allclose(table.std() * np.sqrt(12), 1, atol=4 * 0.06)


def with_other_padding(text):
    return text.replace(tokens=jnp.where(text.mask[..., None], text.tokens, 1e3))


def test_padding_changes_nothing_with_a_mask_and_something_without(apply, perturbed, inputs):
    x, t, text, size = inputs
    output = apply(perturbed, *inputs)
    np.testing.assert_array_equal(apply(perturbed, x, t, with_other_padding(text), size), output)
    unmasked = lambda text: apply(perturbed, x, t, text.replace(mask=None), size)
    assert np.abs(unmasked(text)[1] - output[1]).max() > 1e-2  # the second prompt has padding
    assert np.abs(unmasked(with_other_padding(text))[1] - unmasked(text)[1]).max() > 1e-2


def test_time_text_and_size_matter_and_each_to_its_own_example(apply, perturbed, inputs):
    x, t, text, size = inputs
    output = np.asarray(apply(perturbed, *inputs))
    others = dict(
        x=(x.at[0].add(1.0), t, text, size),
        t=(x, t.at[0].add(0.1), text, size),
        text=(x, t, text.replace(tokens=text.tokens.at[0].add(1.0)), size),
        height=(x, t, text, size.at[0, 0].add(32.0)),
        width=(x, t, text, size.at[0, 1].add(32.0)),
    )
    for name, other in others.items():
        change = np.abs(apply(perturbed, *other) - output).max((1, 2, 3))
        assert change[0] > 1e-2 and change[1] == 0, name


def test_a_size_is_given_if_and_only_if_the_network_is_told_it(inputs):
    x, t, text, size = inputs
    init = lambda module, *args: jax.eval_shape(module.init, jax.random.key(0), *args)
    with pytest.raises(ValueError, match="size_conditioning=True"):
        init(small(), x, t, text)
    untold = small().clone(size_conditioning=False)
    with pytest.raises(ValueError, match="size_conditioning=False"):
        init(untold, x, t, text, size)
    assert "size_embedding" not in init(untold, x, t, text)["params"]


def test_positions_span_the_same_range_at_every_size(apply, perturbed):
    """Tokens of a constant image at the same place are the same, whatever the number of others."""
    t, size = jnp.full(2, 0.5), jnp.ones((2, 2))
    text = Text(jnp.ones((2, 5, 7)), mask=jnp.ones((2, 5), bool))
    # Without attention between them: tokens do not know how many there are.
    apart = jax.tree.map(lambda a: a, perturbed)
    blocks = apart["params"]["blocks"]
    blocks["self_attention"] = jax.tree.map(jnp.zeros_like, blocks["self_attention"])
    outputs = [apply(apart, jnp.ones((2, side, 4, 3)), t, text, size) for side in (8, 24)]
    rows = [output.reshape(2, -1, 2, 4, 3)[0] for output in outputs]
    np.testing.assert_allclose(rows[0], rows[1][::3], atol=1e-5 * np.abs(rows[0]).max())
    assert np.abs(rows[1][0] - rows[1][1]).max() > 1e-2


def test_options_reach_the_blocks(perturbed, inputs):
    check_block_options(small(), perturbed, *inputs, products=15)


def test_who_asks_is_told_what_looks_where():
    """By the blocks' own projections, in NumPy."""
    network = PixArt(patch_size=2, width=24, depth=2, num_heads=2, base_size=4)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((1, 8, 4, 3), np.float32))
    text = Text(
        jnp.asarray(random.standard_normal((1, 5, 6), np.float32)), None, jnp.arange(5)[None] < 3
    )
    variables = jax.jit(network.init)(jax.random.key(0), x, jnp.ones(1), text)
    assert variables.keys() == {"params"}

    @jax.jit
    def apply(variables):
        return network.apply(
            variables, x, jnp.ones(1), text, mutable=["intermediates"], capture_intermediates=True
        )

    output, state = apply(variables)
    np.testing.assert_array_equal(output, jax.jit(network.apply)(variables, x, jnp.ones(1), text))
    cross = state["intermediates"]["blocks"]["cross_attention"]
    (weights,) = cross["weights"]
    assert weights.shape == (2, 1, 2, 8, 5)  # blocks, examples, heads, patches, tokens
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert np.all(np.asarray(weights[..., 3:]) == 0)
    query, key = (
        np.asarray(cross[name]["__call__"][0]).reshape(2, -1, 2, 12) for name in ("query", "key")
    )
    logits = np.einsum("lqhf,lkhf->lhqk", query, key)[..., :3] / np.sqrt(12)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights[:, 0, :, :, :3], expected, rtol=1e-5)
