import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.flux import DoubleBlock, Flux, SingleBlock, flux_dev, flux_schnell
from genjax.nn import Text
from tests.models.block_options import check_block_options

BATCH, HEIGHT, WIDTH, CHANNELS, LENGTH, FEATURES, POOLED = 2, 4, 6, 3, 4, 5, 7
SHAPE = (BATCH, HEIGHT, WIDTH, CHANNELS)
small_flux = functools.partial(
    Flux,
    num_double_blocks=2,
    num_single_blocks=2,
    num_heads=2,
    rotary_features=(2, 2, 4),
    takes_guidance=True,
)
in_context = functools.partial(small_flux, num_double_blocks=0, takes_guidance=False)


@pytest.fixture(scope="module")
def inputs():
    """x, t, tokens, pooled, guidance and a mask that hides nothing."""
    random = np.random.default_rng(1)
    x, tokens, pooled = (
        jnp.asarray(random.standard_normal(shape, np.float32))
        for shape in (SHAPE, (BATCH, LENGTH, FEATURES), (BATCH, POOLED))
    )
    return (
        x,
        jnp.array([0.2, 0.7]),
        tokens,
        pooled,
        jnp.array([1.5, 4.0]),
        jnp.ones((BATCH, LENGTH), bool),
    )


def call(network):
    """The network as a function of variables and arrays."""
    return lambda variables, x, t, tokens, pooled=None, guidance=None, mask=None: network.apply(
        variables, x, t, Text(tokens, pooled, mask), guidance
    )


def init(network, x, t, tokens, pooled=None, guidance=None, mask=None):
    key = jax.random.key(0, impl="rbg")  # compiles faster
    return network.init(key, x, t, Text(tokens, pooled, mask), guidance)


def randomized(network, inputs):
    """Parameters away from the zero initialisation, where every part of the network matters."""
    variables = jax.eval_shape(functools.partial(init, network), *inputs)
    random = np.random.default_rng(0)

    def randomize(path, a):
        values = random.standard_normal(a.shape, np.float32)
        name = path[-1].key
        return values / a.shape[-2] ** 0.5 if name == "kernel" else (name == "scale") + 0.3 * values

    return jax.tree.map_with_path(randomize, variables)


@pytest.fixture(scope="module")
def variables(inputs):
    return randomized(small_flux(), inputs)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(call(small_flux()))


@pytest.mark.parametrize(
    "build, expected", [(flux_dev, 11_901_408_320), (flux_schnell, 11_891_178_560)]
)
def test_published_networks_at_1024_pixels(build, expected):
    network = build(dtype=jnp.bfloat16)
    example = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    start = time.process_time()
    arguments = (
        example(128, 128, 16),
        example(),
        example(512, 4096),
        example(768),
        example() if network.takes_guidance else None,
    )
    variables = jax.eval_shape(functools.partial(init, network), *arguments)
    output = jax.eval_shape(call(network), variables, *arguments)
    assert time.process_time() - start < 5  # seconds: blocks are traced once and not 57 times
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected
    assert output.shape == (1, 128, 128, 16)


def test_initialisation_is_adaln_zero(apply, inputs):
    initial = jax.jit(functools.partial(init, small_flux()))(*inputs)
    assert np.all(apply(initial, *inputs) == 0)
    params = initial["params"]
    double, single = params["double_blocks"], params["single_blocks"]
    modulations = double["text_modulation"], double["image_modulation"], single["modulation"]
    for part in (*modulations, params["modulation"], params["head"]):
        assert all(np.all(a == 0) for a in jax.tree.leaves(part))
    for part in (double["text_heads"]["query"], double["image_mlp_in"], single["projection"]):
        kernel = np.asarray(part["kernel"])
        limit = np.sqrt(
            6 / sum(kernel.shape[1:])
        )  # Xavier's bound, of one layer and not of the stack
        assert kernel.shape[0] == 2 and 0.95 * limit < np.abs(kernel).max() <= limit
        assert not np.allclose(kernel[0], kernel[1])


def test_padding_is_invisible_with_a_mask_and_read_without(apply, variables, inputs):
    x, t, tokens, *others, everything = inputs
    output = lambda tokens, mask: np.asarray(apply(variables, x, t, tokens, *others, mask))
    changed = tokens.at[0, 3].set(100.0).at[1, 1:].set(-7.0)
    mask = jnp.array([[True, True, True, False], [True, False, False, False]])
    hidden = output(tokens, mask)
    np.testing.assert_array_equal(output(changed, mask), hidden)
    change = lambda a, b: np.abs(a - b).max(axis=(1, 2, 3)).min()
    assert change(output(changed, everything), output(tokens, everything)) > 0.1
    assert (
        change(output(tokens.at[:, 0].add(1.0), mask), hidden) > 0.1
    )  # what the mask shows is read


def test_order_of_tokens_is_unknown_and_of_patches_known(apply, variables, inputs):
    x, t, tokens, *others = inputs
    expected = np.asarray(apply(variables, *inputs))
    # the same sums of float32 in another order
    reversed_text = apply(variables, x, t, tokens[:, ::-1], *others)
    np.testing.assert_allclose(reversed_text, expected, atol=1e-5 * np.abs(expected).max())
    for axis in (1, 2):
        roll = lambda a, axis=axis: jnp.roll(a, 2, axis)  # by one patch
        assert np.abs(apply(variables, roll(x), t, tokens, *others) - roll(expected)).max() > 0.1


@pytest.mark.parametrize("argument", range(5))
def test_output_depends_on_all_of_its_own_example_and_nothing_of_others(
    apply, variables, inputs, argument
):
    expected = np.asarray(apply(variables, *inputs))
    index = (1, *(-1,) * (inputs[argument].ndim - 1))  # the last number of the last example
    changed = inputs[argument].at[index].add(0.5)
    output = np.asarray(apply(variables, *inputs[:argument], changed, *inputs[argument + 1 :]))
    np.testing.assert_array_equal(output[0], expected[0])
    assert np.abs(output[1] - expected[1]).min() > 1e-6  # everywhere


def test_text_in_context(inputs):
    """No blocks of two streams, no pooled text, and one latent a patch."""
    x, t, tokens, *_ = inputs
    mask = jnp.array([[True, True, False, False]] * BATCH)
    arguments = lambda tokens: (x, t, tokens, None, None, mask)
    network = in_context(patch_size=1, out_channels=5)
    variables = randomized(network, arguments(tokens))
    assert (
        not {"double_blocks", "pooled_embedding", "guidance_embedding"} & variables["params"].keys()
    )
    apply = jax.jit(call(network))
    output = np.asarray(apply(variables, *arguments(tokens)))
    assert output.shape == (*SHAPE[:3], 5) and output.std() > 0.1
    np.testing.assert_array_equal(apply(variables, *arguments(tokens.at[:, 2:].set(9.0))), output)
    change = np.abs(apply(variables, *arguments(tokens.at[:, 1].add(1.0))) - output)
    assert change.max(axis=(1, 2, 3)).min() > 0.01


def test_options_reach_the_blocks(variables, inputs):
    x, t, tokens, pooled, guidance, mask = inputs
    arguments = x, t, Text(tokens, pooled, mask), guidance
    check_block_options(small_flux(), variables, *arguments, products=22, loops=2, kinds=2)


@pytest.mark.parametrize(
    "build, streams, num_products", [(SingleBlock, 1, 6), (DoubleBlock, 2, 12)]
)
def test_products_are_bfloat16_and_modulation_is_float32(build, streams, num_products):
    block = build(num_heads=2, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    tokens = jnp.ones((2, 3, 16))
    inputs = (
        tokens if streams == 1 else (tokens, tokens),
        jnp.ones((2, 16)),
        jnp.ones((3 * streams, 4, 2)),
    )
    _, variables = jax.eval_shape(
        lambda *inputs: block.init_with_output(*inputs, None, capture_intermediates=True),
        jax.random.key(0),
        *inputs,
    )
    outputs = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/__call__")[0]: output.dtype
        for path, output in jax.tree.leaves_with_path(variables["intermediates"])
    }
    of_type = lambda dtype, *ends: [
        name for name in outputs if name.endswith(ends) and outputs[name] == dtype
    ]
    products = "query", "key", "value", "projection", "mlp_in", "mlp_out"
    assert len(of_type(jnp.bfloat16, *products)) == num_products
    assert len(of_type(jnp.float32, "modulation", "query_norm", "key_norm")) == 3 * streams


def test_param_dtype_is_that_of_every_parameter(inputs):
    variables = jax.eval_shape(
        functools.partial(init, small_flux(param_dtype=jnp.bfloat16)), *inputs
    )
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("takes_guidance, given", [(True, "None"), (False, "given")])
def test_guidance_is_given_where_it_is_taken(inputs, takes_guidance, given):
    network = small_flux(takes_guidance=takes_guidance)
    guidance = None if takes_guidance else inputs[4]
    with pytest.raises(
        ValueError, match=f"takes_guidance={takes_guidance}, and guidance is {given}"
    ):
        init(network, *inputs[:4], guidance)
