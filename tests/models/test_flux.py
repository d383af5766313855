import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.flux import Flux, flux_dev, flux_schnell
from genjax.nn import Text
from genjax.training.cost import multiply_adds

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
    """x, t, tokens, pooled and guidance."""
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], SHAPE)
    tokens, pooled = (
        jax.random.normal(keys[1], (BATCH, LENGTH, FEATURES)),
        jax.random.normal(keys[2], (BATCH, POOLED)),
    )
    return x, jnp.array([0.2, 0.7]), tokens, pooled, jnp.array([1.5, 4.0])


def call(network):
    """The network as a function of variables and arrays."""
    return lambda variables, x, t, tokens, pooled, guidance, mask=None: network.apply(
        variables, x, t, Text(tokens, pooled, mask), guidance
    )


def init(network, x, t, tokens, pooled, guidance):
    return network.init(jax.random.key(0), x, t, Text(tokens, pooled), guidance)


def perturb(variables):
    """Parameters away from the zero initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), variables)


@pytest.fixture(scope="module")
def initial(inputs):
    return jax.jit(functools.partial(init, small_flux()))(*inputs)


@pytest.fixture(scope="module")
def perturbed(initial):
    return perturb(initial)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(call(small_flux()))


@pytest.mark.parametrize("build, expected", [(flux_dev, 11_901_408_320), (flux_schnell, 11_891_178_560)])
def test_published_networks_at_1024_pixels(build, expected):
    network = build(dtype=jnp.bfloat16)
    example = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    start = time.monotonic()
    arguments = (
        example(128, 128, 16),
        example(),
        example(512, 4096),
        example(768),
        example() if network.takes_guidance else None,
    )
    variables = jax.eval_shape(functools.partial(init, network), *arguments)
    output = jax.eval_shape(call(network), variables, *arguments)
    assert time.monotonic() - start < 5  # blocks are traced once and not 57 times
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected
    assert output.shape == (1, 128, 128, 16)


def test_initialisation_is_adaln_zero(apply, initial, inputs):
    assert np.all(apply(initial, *inputs) == 0)
    params = initial["params"]
    double, single = params["double_blocks"], params["single_blocks"]
    modulations = double["text_modulation"], double["image_modulation"], single["modulation"]
    for part in (*modulations, params["modulation"], params["head"]):
        assert all(np.all(a == 0) for a in jax.tree.leaves(part))
    for part in (double["text_heads"]["query"], double["image_mlp_in"], single["projection"]):
        kernel = np.asarray(part["kernel"])
        limit = np.sqrt(6 / sum(kernel.shape[1:]))  # Xavier's bound, of one layer and not of the stack
        assert kernel.shape[0] == 2 and 0.95 * limit < np.abs(kernel).max() <= limit
        assert not np.allclose(kernel[0], kernel[1])


def test_padding_is_invisible_with_a_mask_and_read_without(apply, perturbed, inputs):
    x, t, tokens, pooled, guidance = inputs
    other = tokens.at[0, 3].set(100.0).at[1, 1:].set(-7.0)
    mask = jnp.array([[True, True, True, False], [True, False, False, False]])
    outputs = [apply(perturbed, x, t, a, pooled, guidance, mask) for a in (tokens, other)]
    np.testing.assert_array_equal(*outputs)
    differences = apply(perturbed, x, t, other, pooled, guidance) - apply(perturbed, *inputs)
    assert np.abs(differences).max(axis=(1, 2, 3)).min() > 0.1
    # and what the mask shows is read
    changed = apply(perturbed, x, t, tokens.at[:, 0].add(1.0), pooled, guidance, mask) - outputs[0]
    assert np.abs(changed).max(axis=(1, 2, 3)).min() > 0.1


def test_order_of_tokens_is_unknown_and_of_patches_known(apply, perturbed, inputs):
    x, t, tokens, pooled, guidance = inputs
    expected = apply(perturbed, *inputs)
    reversed_text = apply(perturbed, x, t, tokens[:, ::-1], pooled, guidance)
    np.testing.assert_allclose(reversed_text, expected, atol=1e-5 * np.abs(expected).max())
    for axis in (1, 2):
        roll = lambda a, axis=axis: jnp.roll(a, 2, axis)  # by one patch
        difference = apply(perturbed, roll(x), t, tokens, pooled, guidance) - roll(expected)
        assert np.abs(difference).max() > 0.1


def test_output_depends_on_all_of_its_own_example_and_nothing_of_others(perturbed, inputs):
    value = lambda *inputs: call(small_flux())(perturbed, *inputs)[1, 0, 0, 0]
    for gradient in jax.jit(jax.grad(value, argnums=tuple(range(5))))(*inputs):
        assert np.all(gradient[1] != 0) and np.all(gradient[0] == 0)


@pytest.mark.parametrize("pooled", [True, False])
def test_text_in_context(inputs, pooled):
    """No blocks of two streams, and possibly no pooled text."""
    x, t, tokens, vector, _ = inputs
    inputs = x, t, tokens, vector if pooled else None, None
    network = in_context(patch_size=1, out_channels=5)
    variables = perturb(jax.jit(functools.partial(init, network))(*inputs))
    assert "double_blocks" not in variables["params"]
    assert ("pooled_embedding" in variables["params"]) == pooled
    mask = jnp.array([[True, True, False, False]] * BATCH)

    @jax.jit
    def output_and_gradients(variables, tokens):
        loss = lambda variables: jnp.sum(call(network)(variables, x, t, tokens, *inputs[3:], mask) ** 2)
        return jax.value_and_grad(loss)(variables)

    loss, gradients = output_and_gradients(variables, tokens)
    again, _ = output_and_gradients(variables, tokens.at[:, 2:].set(9.0))
    assert loss == again
    assert jax.tree.all(jax.tree.map(lambda a: np.any(a != 0), gradients))
    shape = jax.eval_shape(call(network), variables, *inputs).shape
    assert shape == (*SHAPE[:3], 5)


def output_and_gradients(network, variables, inputs):
    def loss(variables):
        output = call(network)(variables, *inputs)
        return jnp.sum(output**2), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(variables)
    return output, gradients


def test_unroll_and_remat_change_nothing_but_speed(initial, perturbed, inputs):
    network = small_flux(unroll=2, remat_policy="nothing_saveable")
    variables = jax.eval_shape(functools.partial(init, network), *inputs)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, initial)
    # The same sums of float32 in another order: a hundred times the rounding of one, 1e-7.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        output_and_gradients(network, perturbed, inputs),
        output_and_gradients(small_flux(), perturbed, inputs),
    )


def test_remat_policy_decides_what_is_computed_again(initial, inputs):
    def cost(remat_policy):
        loss = lambda variables: jnp.sum(call(small_flux(remat_policy=remat_policy))(variables, *inputs))
        return multiply_adds(jax.grad(loss), initial)

    assert cost("nothing_saveable") > 1.1 * cost(None)
    assert cost("dots_saveable") == cost(None)


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(apply, perturbed, inputs):
    network = small_flux(dtype=jnp.bfloat16)
    variables = jax.eval_shape(functools.partial(init, network), *inputs)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    output, expected = jax.jit(call(network))(perturbed, *inputs), apply(perturbed, *inputs)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    # bfloat16 rounds by 2⁻⁹ = .002 relative; some twenty products add up to a few times that.
    assert 1e-4 < error < 0.03


def test_param_dtype_is_that_of_every_parameter(inputs):
    variables = jax.eval_shape(functools.partial(init, small_flux(param_dtype=jnp.bfloat16)), *inputs)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("takes_guidance, given", [(True, "None"), (False, "not None")])
def test_guidance_is_given_where_it_is_taken(inputs, takes_guidance, given):
    *others, guidance = inputs
    network = small_flux(takes_guidance=takes_guidance)
    with pytest.raises(ValueError, match=f"takes_guidance={takes_guidance}, and guidance is {given}"):
        init(network, *others, None if takes_guidance else guidance)
