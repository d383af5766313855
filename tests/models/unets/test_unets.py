"""Common properties of DDPM++, NCSN++ and ADM."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.unets.adm import ADM
from genjax.models.unets.song_unet import SongUNet
from genjax.nn.fir import BINOMIAL

BATCH, HEIGHT, WIDTH, CHANNELS, CLASSES, FEATURES = 3, 4, 6, 2, 3, 5
# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
key = jax.random.key(0)
sizes = dict(width=8, multipliers=(1, 2), blocks=1, attention_levels=(1,), num_classes=CLASSES)
BUILDS = {
    "DDPM++": functools.partial(SongUNet, **sizes, augmentation_features=FEATURES),
    "NCSN++": functools.partial(
        SongUNet,
        **sizes,
        augmentation_features=FEATURES,
        fourier_scale=1.0,
        taps=BINOMIAL,
        residual_input=True,
    ),
    "ADM": functools.partial(ADM, **sizes, num_heads=2, time_scale=1.0),
}
INPUTS = (
    jax.random.normal(jax.random.key(1), (BATCH, HEIGHT, WIDTH, CHANNELS)),
    jnp.array([0.1, 0.5, 0.9]),
    jnp.array([0, 1, CLASSES]),
)


@functools.cache
def variables(name):
    """Draw parameters, because the initial last layers are zero or nearly zero."""
    random = np.random.default_rng(0)
    scale = lambda a: 0.5 if a.ndim == 1 else np.prod(a.shape[:-1]) ** -0.5
    draw = lambda a: np.float32(scale(a)) * random.standard_normal(a.shape, np.float32)
    return jax.tree.map(draw, jax.eval_shape(BUILDS[name]().init, key, *INPUTS))


@functools.cache
def apply(name):
    return quick_jit(BUILDS[name]().apply)


every = pytest.mark.parametrize("name", BUILDS)
# Except for its frequencies, every part of DDPM++ is in one of these networks.
of_each_class = pytest.mark.parametrize("name", ["NCSN++", "ADM"])


@of_each_class
def test_sides_are_multiples_of_the_divisor(name):
    x, t, labels = INPUTS
    network = BUILDS[name](multipliers=(1, 1, 1), out_channels=5)
    assert network.divisor == 4

    def shape(height, width):
        images = jnp.zeros((BATCH, height, width, CHANNELS))
        return jax.eval_shape(network.init_with_output, key, images, t, labels)[0].shape

    assert shape(4, 12) == (BATCH, 4, 12, 5)
    for height, width in ((6, 8), (8, 6)):
        message = f"images of {height}×{width} cannot be halved .* have to be multiples of 4"
        with pytest.raises(ValueError, match=message):
            shape(height, width)


@of_each_class
def test_transposed_kernels_make_of_transposed_images_transposed_images(name):
    """Neither the filters nor attention tell height from width."""
    x, t, labels = INPUTS
    transposed = jax.tree.map(lambda a: a.swapaxes(0, 1) if a.ndim == 4 else a, variables(name))
    output = apply(name)(variables(name), x, t, labels)
    other = apply(name)(transposed, x.swapaxes(1, 2), t, labels)
    assert np.std(output) > 0.1
    # float32 sums in another order, over some forty layers.
    np.testing.assert_allclose(other.swapaxes(1, 2), output, atol=2e-5)


@of_each_class
def test_classes_and_times_matter(name):
    x, t = jnp.broadcast_to(INPUTS[0][:1], INPUTS[0].shape), jnp.full(BATCH, 0.5)
    outputs = np.asarray(apply(name)(variables(name), x, t, jnp.array([0, 1, CLASSES])))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(outputs[i] - outputs[j]).max() > 0.005
    t, labels = jnp.array([0.5, 0.5, 0.7]), jnp.zeros(BATCH, int)
    outputs = np.asarray(apply(name)(variables(name), x, t, labels))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    assert np.abs(outputs[0] - outputs[2]).max() > 0.005


@of_each_class
def test_the_null_class_is_that_of_no_class(name):
    """The null label uses none of the classes' weights."""
    x, t, labels = INPUTS
    network, params = BUILDS[name](), variables(name)["params"]
    kernel = jnp.zeros_like(params["label_embedding"]["kernel"])
    without = params | {"label_embedding": params["label_embedding"] | {"kernel": kernel}}
    nulls = jnp.full_like(labels, network.null_label)
    expected = apply(name)({"params": without}, x, t, labels)
    np.testing.assert_array_equal(apply(name)({"params": params}, x, t, nulls), expected)
    assert np.any(apply(name)({"params": params}, x, t, labels) != expected)


@of_each_class
def test_without_classes_labels_are_ignored(name):
    x, t, labels = INPUTS
    network = BUILDS[name](num_classes=0)
    params = jax.eval_shape(network.init, key, x, t)
    assert "label_embedding" not in params["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(network.init, key, *INPUTS)
    )


def test_augmentation_matters_and_is_none_by_default():
    name = "NCSN++"
    random = np.random.default_rng(0)
    some = random.standard_normal((BATCH, FEATURES), np.float32)
    output = apply(name)(variables(name), *INPUTS)
    zeros = apply(name)(variables(name), *INPUTS, np.zeros_like(some))
    np.testing.assert_array_equal(output, zeros)
    assert np.abs(apply(name)(variables(name), *INPUTS, some) - output).max() > 0.02


@functools.cache
def gradients(name):
    """Differentiate one value of the second example's output by parameters, images and times."""
    pixel = lambda variables, x, t: BUILDS[name]().apply(variables, x, t, INPUTS[2])[1, 0, 0, 0]
    return quick_jit(jax.grad(pixel, argnums=(0, 1, 2)))(variables(name), *INPUTS[:2])


@of_each_class
def test_outputs_depend_on_all_of_their_own_example_and_nothing_of_others(name):
    _, of_x, of_t = gradients(name)
    assert np.all(of_x[1] != 0) and of_t[1] != 0
    for other in (0, 2):
        assert np.all(of_x[other] == 0) and of_t[other] == 0


@of_each_class
def test_every_parameter_matters(name):
    """Biases of keys have no effect: softmax cancels what they add to all logits of a query."""
    for path, leaf in jax.tree.leaves_with_path(gradients(name)[0]):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if where.endswith("query_key_value/bias"):
            num_heads = 2 if name == "ADM" else 1
            query, key, value = jnp.moveaxis(leaf.reshape(num_heads, 3, -1), 1, 0)
            assert np.abs(key).max() < 1e-6 < min(np.abs(query).max(), np.abs(value).max()), where
        elif "augmentation" not in where:
            assert np.abs(leaf).max() > 1e-5, where


def test_bfloat16_computes_near_float32():
    name = "NCSN++"
    output = quick_jit(BUILDS[name](dtype=jnp.bfloat16).apply)(variables(name), *INPUTS)
    expected = apply(name)(variables(name), *INPUTS)
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    # bfloat16 rounds by 2⁻⁹ = .002 relative; some forty layers sum to a few times that.
    assert 1e-4 < error < 0.03


@every
def test_products_are_bfloat16_and_all_else_is_float32(name):
    network = BUILDS[name](dtype=jnp.bfloat16)
    apply = functools.partial(network.init_with_output, capture_intermediates=True)
    output, variables = jax.eval_shape(apply, key, *INPUTS)
    assert output.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    seen = set()
    for path, leaf in jax.tree.leaves_with_path(variables["intermediates"]):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        layer = where.removesuffix("/__call__/0").split("/")[-1]
        product = layer in ("query_key_value", "projection", "shortcut")
        product |= layer.startswith(("conv", "image")) and not where.startswith("conv_out")
        if product or layer.startswith(("norm", "linear", "modulation", "label")):
            assert leaf.dtype == (jnp.bfloat16 if product else jnp.float32), where
            seen.add(layer)
    assert seen >= {"query_key_value", "projection", "shortcut", "conv_in", "conv_out", "norm_in"}


@of_each_class
def test_param_dtype_is_that_of_every_parameter(name):
    params = jax.eval_shape(BUILDS[name](param_dtype=jnp.bfloat16).init, key, *INPUTS)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


@of_each_class
def test_every_block_drops_features_where_a_key_is_given(name):
    network = BUILDS[name](dropout_rate=0.2, remat_policy="nothing_saveable")
    params, calls = variables(name), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            calls.append((context.module.rate, context.module.deterministic))
        return call(*args, **kwargs)

    for rngs in ({}, {"dropout": key}):
        with nn.intercept_methods(record):
            jax.eval_shape(functools.partial(network.apply, rngs=rngs), params, *INPUTS)
    # Once each: two encoder blocks, the halving, two middle blocks, four decoder blocks, the
    # doubling.
    assert calls == 10 * [(0.2, True)] + 10 * [(0.2, False)]
