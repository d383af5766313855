import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion
from genjax.models.transformers.dit import Block, DiT, DiT_B, DiT_L, DiT_S, DiT_XL
from genjax.nn.embeddings import sincos_positions
from tests.models.block_options import check_block_options

BATCH, SIDE, CHANNELS, CLASSES, DEPTH = 3, 4, 2, 5, 2
small_dit = functools.partial(
    DiT, patch_size=2, width=16, depth=DEPTH, num_heads=2, num_classes=CLASSES
)


@pytest.fixture(scope="module")
def inputs():
    x = jax.random.normal(jax.random.key(1), (BATCH, SIDE, SIDE, CHANNELS))
    return x, jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 3, CLASSES])


@pytest.fixture(scope="module")
def initial(inputs):
    return jax.jit(small_dit().init)(jax.random.key(0), *inputs)


@pytest.fixture(scope="module")
def perturbed(initial):
    """Parameters away from the zero initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), initial)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(small_dit().apply)


@pytest.mark.parametrize(
    "build, expected, with_positions",
    [
        (DiT_S, 32_865_056, 32_963_360),
        (DiT_B, 130_315_808, 130_512_416),
        (DiT_L, 457_840_672, 458_102_816),
        (DiT_XL, 674_834_720, 675_129_632),
    ],
)
def test_parameter_counts(build, expected, with_positions):
    """The authors' code counts its fixed table of 16×16 positions too."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    time, label = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    output, variables = jax.eval_shape(
        build(out_channels=8).init_with_output, jax.random.key(0), image, time, label
    )
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected
    assert expected + sincos_positions(16, 16, build().width).size == with_positions
    assert output.shape == (1, 32, 32, 8)


def test_images_need_not_be_square(initial):
    x, t, labels = jnp.ones((2, 6, 4, CHANNELS)), jnp.ones(2), jnp.zeros(2, int)
    output = jax.eval_shape(small_dit(out_channels=None).apply, initial, x, t, labels)
    assert output.shape == x.shape


def test_initialisation_is_adaln_zero(apply, initial, inputs):
    assert np.all(apply(initial, *inputs) == 0)
    params = initial["params"]
    for modulation in (params["blocks"]["modulation"], params["modulation"], params["head"]):
        assert all(np.all(a == 0) for a in jax.tree.leaves(modulation))
    for name in ("query_key_value", "projection", "mlp_in", "mlp_out"):
        kernel = np.asarray(params["blocks"][name]["kernel"])
        limit = np.sqrt(
            6 / sum(kernel.shape[1:])
        )  # Xavier's bound, of one layer and not of the stack
        assert kernel.shape[0] == DEPTH and 0.95 * limit < np.abs(kernel).max() <= limit
        assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize(
    "target, expected", [(diffusion.noise, 1.0), (diffusion.velocity, 1.0 + 0.25)]
)
def test_expected_loss_at_initialisation(apply, initial, target, expected):
    batch = 2000
    x = jnp.full((batch, SIDE, SIDE, CHANNELS), 0.5)
    losses, _ = diffusion.simple_loss(
        jax.random.key(0),
        lambda *args: apply(initial, *args),
        x,
        jnp.zeros(batch, int),
        process=diffusion.RectifiedFlow(),
        target=target,
        times=diffusion.uniform,
    )
    # z² has variance 2 and (z − x)² 2 + 4x² = 3: of 64,000 values the mean deviates by .0068 at
    # most.
    np.testing.assert_allclose(losses.mean(), expected, atol=4 * 0.0068)


def test_options_reach_the_blocks(perturbed, inputs):
    check_block_options(small_dit(), perturbed, *inputs, products=8)


def test_remat_saves_memory_in_the_compiled_program(initial):
    inputs = jnp.zeros((64, 8, 8, CHANNELS)), jnp.zeros(64), jnp.zeros(64, int)

    def gradient(remat_policy, unroll):
        network = small_dit(remat_policy=remat_policy, unroll=unroll)
        return jax.jit(jax.grad(lambda params: jnp.sum(network.apply(params, *inputs)))).lower(
            initial
        )

    temporaries = lambda remat_policy: (
        gradient(remat_policy, 1).compile().memory_analysis().temp_size_in_bytes
    )
    assert temporaries("nothing_saveable") < 0.8 * temporaries(None)
    # Without a loop a barrier is needed, or the compiler merges both computations. (XLA's CPU back
    # end does so in spite of it, hence nothing of the compiled program is checked here.)
    assert "optimization_barrier" in gradient("nothing_saveable", DEPTH).as_text()


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(apply, perturbed, inputs):
    network = small_dit(dtype=jnp.bfloat16)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output, expected = jax.jit(network.apply)(perturbed, *inputs), apply(perturbed, *inputs)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    # bfloat16 rounds by 2⁻⁹ = .002 relative; a dozen products add up to a few times that.
    assert 1e-4 < error < 0.02


def test_products_are_bfloat16_and_modulation_is_float32(inputs):
    block = Block(num_heads=2, mlp_ratio=4.0, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    tokens, conditioning = jnp.ones((2, 4, 16)), jnp.ones((2, 16))
    _, variables = jax.eval_shape(
        functools.partial(block.init_with_output, capture_intermediates=True),
        jax.random.key(0),
        tokens,
        conditioning,
    )
    outputs = variables["intermediates"]
    for name in ("query_key_value", "projection", "mlp_in", "mlp_out"):
        assert {a.dtype for a in jax.tree.leaves(outputs[name])} == {jnp.dtype("bfloat16")}, name
    assert outputs["modulation"]["__call__"][0][0].dtype == jnp.float32


def test_param_dtype_is_that_of_every_parameter(inputs):
    params = jax.eval_shape(small_dit(param_dtype=jnp.bfloat16).init, jax.random.key(0), *inputs)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_forward_derivative_agrees_with_the_backward_one(perturbed, inputs):
    x, t, labels = inputs
    direction, output_direction = np.random.default_rng(1).standard_normal(
        (2, *x.shape), np.float32
    )

    def forward(x, t, **options):
        function = lambda x, t: small_dit(**options).apply(perturbed, x, t, labels)
        return jax.jvp(function, (x, t), (direction, jnp.ones_like(t)))[1]

    def backward(x, t):
        output, pull = jax.vjp(lambda x, t: small_dit().apply(perturbed, x, t, labels), x, t)
        x_gradient, t_gradient = pull(output_direction)
        return jnp.vdot(x_gradient, direction) + jnp.sum(t_gradient)

    derivative, expected = jax.jit(lambda x, t: (forward(x, t), backward(x, t)))(x, t)
    np.testing.assert_allclose(jnp.vdot(output_direction, derivative), expected, rtol=1e-3)
    jax.eval_shape(functools.partial(forward, remat_policy="nothing_saveable"), x, t)


def test_label_null_label_and_time_matter(apply, perturbed, inputs):
    x, t = jnp.broadcast_to(inputs[0][:1], inputs[0].shape), jnp.full(BATCH, 0.5)
    labels = jnp.array([0, 1, small_dit().null_label])
    outputs = np.asarray(apply(perturbed, x, t, labels))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(outputs[i] - outputs[j]).max() > 0.1
    outputs = np.asarray(apply(perturbed, x, jnp.array([0.5, 0.5, 0.51]), jnp.zeros(BATCH, int)))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    assert np.abs(outputs[0] - outputs[2]).max() > 0.1


def test_outputs_depend_on_all_of_their_own_example_and_nothing_of_others(perturbed, inputs):
    x, t, labels = inputs
    apply = lambda x, t: small_dit().apply(perturbed, x, t, labels)[1, 0, 0, 0]
    x_gradient, t_gradient = jax.jit(jax.grad(apply, argnums=(0, 1)))(x, t)
    assert np.all(x_gradient[1] != 0) and t_gradient[1] != 0
    for other in (0, 2):
        assert np.all(x_gradient[other] == 0) and t_gradient[other] == 0


@pytest.mark.parametrize("axis", [1, 2])
def test_positions_of_patches_matter(apply, perturbed, inputs, axis):
    x, t, labels = inputs
    roll = lambda a: jnp.roll(a, 2, axis)  # by one patch: without positions the output would follow
    difference = apply(perturbed, roll(x), t, labels) - roll(apply(perturbed, x, t, labels))
    assert np.abs(difference).max() > 0.1
