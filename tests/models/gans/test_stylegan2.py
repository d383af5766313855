"""StyleGAN2's parts in closed form; tests/pretrained compares its outputs with the authors'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.stylegan2 import (
    Discriminator,
    Generator,
    minibatch_deviation,
    modulated_convolve,
)
from genjax.nn.fir import convolve, upsample_convolve

BATCH, LATENT, CLASSES = 3, 6, 4
SIZES = dict(resolution=8, mapping_layers=2, channel_base=32, channel_max=6)
small_generator = functools.partial(Generator, latent_size=LATENT, w_size=8, **SIZES)
small_discriminator = functools.partial(Discriminator, **SIZES)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def random_variables(module, *arguments):
    """Make variables in which every part matters: no bias, noise strength or average is zero."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        names = {entry.key for entry in path}
        scale = 1.0 if names & {"kernel", "constant", "noise"} else 0.3
        # Weights are stored divided by the learning-rate multiplier.
        scale *= 100 if "mapping" in names and "embedding" not in names else 1
        return scale * jnp.asarray(random.standard_normal(leaf.shape, np.float32))

    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), *arguments))


@pytest.fixture(scope="module")
def generator():
    module = small_generator()
    return module, random_variables(module, normal(0, 1, LATENT))


@pytest.fixture(scope="module")
def discriminator():
    module = small_discriminator(num_classes=CLASSES)
    return module, random_variables(module, normal(0, 1, 8, 8, 3), jnp.zeros(1, int))


def count(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "resolution, channel_base, generator, discriminator, styles",
    [
        (1024, 32768, 30_370_060, 29_012_513, 18),
        (256, 32768, 30_034_338, 28_864_129, 14),
        (256, 16384, 24_767_458, 24_001_089, 14),
    ],
)
def test_parameter_counts(resolution, channel_base, generator, discriminator, styles):
    network = Generator(resolution, channel_base=channel_base)
    z = jax.ShapeDtypeStruct((1, 512), jnp.float32)
    images, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), z)
    assert images.shape == (1, resolution, resolution, 3)
    assert count(variables["params"]) == generator
    assert count(variables["params"]["mapping"]) == 2_101_248
    w = jax.eval_shape(functools.partial(network.apply, method="map"), variables, z)
    assert w.shape == (1, styles, 512)
    network = Discriminator(resolution, channel_base=channel_base)
    logits, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (1,)
    assert count(variables) == discriminator


@pytest.mark.parametrize("resample", [convolve, upsample_convolve])
@pytest.mark.parametrize("demodulate", [True, False])
def test_scaling_inputs_and_outputs_is_a_kernel_per_image(resample, demodulate):
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        x, kernel = random.standard_normal((BATCH, 4, 4, 5)), random.standard_normal((3, 3, 5, 2))
        style = random.standard_normal((BATCH, 5))
        kernels = style[:, None, None, :, None] * kernel
        if demodulate:
            kernels = kernels / np.sqrt(np.sum(kernels**2, axis=(1, 2, 3), keepdims=True) + 1e-8)
        alone = jax.jit(resample)
        expected = [
            alone(jnp.asarray(x[i : i + 1]), jnp.asarray(kernels[i]))[0] for i in range(BATCH)
        ]
        modulated = jax.jit(
            functools.partial(modulated_convolve, convolve=resample, demodulate=demodulate)
        )
        output = modulated(*map(jnp.asarray, (x, kernel, style)))
        # The demodulation is float32: 1e-7 of sums of 45 terms.
        np.testing.assert_allclose(output, np.stack(expected), rtol=1e-5, atol=1e-5)


def test_demodulation_is_float32_whatever_the_type_of_weights():
    x, kernel, style = normal(0, 2, 4, 4, 5), normal(1, 3, 3, 5, 2), normal(2, 2, 5)
    kernel, style = kernel.astype(jnp.bfloat16), style.astype(jnp.bfloat16)
    expected = modulated_convolve(x, kernel.astype(jnp.float32), style.astype(jnp.float32))
    np.testing.assert_array_equal(modulated_convolve(x, kernel, style), expected)


@pytest.mark.parametrize("batch, group_size", [(8, 4), (6, 3), (3, 4), (8, 8)])
def test_minibatch_deviation(batch, group_size):
    x = normal(0, batch, 4, 4, 5) * jnp.arange(1, batch + 1)[:, None, None, None]
    output = minibatch_deviation(x, group_size)
    np.testing.assert_array_equal(output[..., :-1], x)
    groups = max(batch // group_size, 1)
    for i in range(batch):
        expected = np.std(np.float64(x)[i % groups :: groups], axis=0).mean()
        np.testing.assert_allclose(output[i, ..., -1], expected, rtol=1e-5)


def test_truncation(generator):
    module, variables = generator
    z, average = normal(1, BATCH, LATENT), variables["moving_average"]["w_average"]
    map = jax.jit(functools.partial(module.apply, method="map"))
    w = map(variables, z)
    w, average = np.asarray(w), np.asarray(average)
    assert w.shape == (BATCH, module.num_styles, module.w_size)
    np.testing.assert_array_equal(w, np.broadcast_to(w[:, :1], w.shape))
    np.testing.assert_array_equal(map(variables, z, truncation=1.0), w)
    np.testing.assert_allclose(
        map(variables, z, truncation=0.0), np.broadcast_to(average, w.shape), rtol=1e-6
    )
    cut = map(variables, z, truncation=0.25, truncation_cutoff=2)
    # float32: numbers of size 1, one product and one sum
    np.testing.assert_allclose(cut[:, :2], average + 0.25 * (w[:, :2] - average), atol=1e-6)
    np.testing.assert_array_equal(cut[:, 2:], w[:, 2:])
    assert map._cache_size() == 3  # other values compile nothing


def test_average_of_w_moves_in_training_alone(generator):
    module, variables = generator
    z = normal(2, BATCH, LATENT)
    rngs = {"noise": jax.random.key(0)}
    before = variables["moving_average"]["w_average"]

    @jax.jit
    def run(variables, z):
        apply = functools.partial(module.apply, variables, z, method="map")
        states = [
            apply(rngs=rngs, train=train, mutable=["moving_average"])[1] for train in (True, False)
        ]
        fresh = module.init({"params": jax.random.key(0), **rngs}, z, train=True, method="map")
        return *states, fresh, apply()[:, 0]

    state, evaluated, fresh, w = run(variables, z)
    np.testing.assert_allclose(
        state["moving_average"]["w_average"],
        0.998 * before + 0.002 * w.mean(0),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(evaluated["moving_average"]["w_average"], before)
    np.testing.assert_array_equal(fresh["moving_average"]["w_average"], 0)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_style_mixing(generator, probability):
    variables = generator[1]
    module, batch = small_generator(style_mixing=probability), 400
    z = normal(3, batch, LATENT)
    map = functools.partial(module.apply, method="map")
    own = np.asarray(jax.jit(map)(variables, z))[:, 0]
    mixing = jax.jit(functools.partial(map, train=True, rngs={"noise": jax.random.key(0)}))
    w = np.asarray(mixing(variables, z))
    is_own = np.all(np.isclose(w, own[:, None], atol=1e-5), axis=-1)
    assert np.all(is_own[:, 0])  # the coarsest style is always the first latent's
    # After the first mixed style all finer styles are mixed.
    assert np.all(is_own[:, :-1] >= is_own[:, 1:])
    # Three standard deviations for 400 coins: .075
    mixed = ~is_own[:, -1]
    assert abs(mixed.mean() - probability) <= (0.075 if 0 < probability < 1 else 0)
    firsts = set(is_own[mixed].sum(axis=1))
    assert firsts == (set(range(1, module.num_styles)) if probability else set())
    if probability == 1:
        # Each example has its own second latent.
        assert len(np.unique(np.asarray(w[:, -1]), axis=0)) == batch


def test_images_depend_on_their_own_latent_alone(generator):
    module, variables = generator
    z = normal(4, BATCH, LATENT)
    apply = jax.jit(lambda z: module.apply(variables, z))
    images, others = apply(z), apply(z.at[1].set(normal(5, LATENT)))
    assert images.shape == (BATCH, 8, 8, 3) and images.dtype == jnp.float32
    np.testing.assert_array_equal(images[::2], others[::2])
    assert np.abs(images[1] - others[1]).max() > 0.1
    # float32 sums in another order for another batch size
    np.testing.assert_allclose(apply(z[1:2])[0], images[1], atol=1e-5 * np.abs(images).max())


def test_noise(generator):
    module, variables = small_generator(style_mixing=0.0), generator[1]
    z = jnp.broadcast_to(normal(6, 1, LATENT), (2, LATENT))
    train = jax.jit(
        lambda variables, key: module.apply(variables, z, train=True, rngs={"noise": key})
    )
    first = train(variables, jax.random.key(0))
    assert np.abs(first[0] - first[1]).max() > 0.1  # every image has its own noise
    np.testing.assert_array_equal(first, train(variables, jax.random.key(0)))
    assert np.abs(first - train(variables, jax.random.key(1))).max() > 0.1
    constant = jax.jit(module.apply)(variables, z)
    np.testing.assert_array_equal(constant[0], constant[1])

    silent = lambda path, a: jnp.zeros_like(a) if path[-1].key == "noise_strength" else a
    silenced = jax.tree.map_with_path(silent, variables)
    np.testing.assert_array_equal(
        train(silenced, jax.random.key(0)), train(silenced, jax.random.key(1))
    )
    without = variables | {"noise": jax.tree.map(jnp.zeros_like, variables["noise"])}
    expected = jax.jit(module.apply)(without, z)
    np.testing.assert_allclose(
        train(silenced, jax.random.key(0)), expected, atol=1e-5 * np.abs(expected).max()
    )
    assert np.abs(constant - expected).max() > 0.1


def test_call_is_map_then_synthesize(generator):
    module, variables = generator
    z = normal(7, BATCH, LATENT)
    w = jax.jit(functools.partial(module.apply, method="map"))(variables, z)
    expected = jax.jit(functools.partial(module.apply, method="synthesize"))(variables, w)
    np.testing.assert_allclose(
        jax.jit(module.apply)(variables, z), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_second_derivatives_are_finite_and_reach_every_weight():
    """Penalties: R1 differentiates the discriminator twice, path lengths the synthesis."""
    module = small_discriminator()
    # Equal images have deviation 0, where a square root has an infinite derivative.
    images = jnp.broadcast_to(normal(8, 1, 8, 8, 3), (4, 8, 8, 3))
    variables = random_variables(module, images)

    def r1(params):
        logits = lambda images: jnp.sum(module.apply(params, images))
        return jnp.sum(jax.grad(logits)(images) ** 2)

    gradients = jax.jit(jax.grad(r1))(variables)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(gradients))
    kernels = [a for path, a in jax.tree.leaves_with_path(gradients) if path[-1].key == "kernel"]
    assert all(np.any(a != 0) for a in kernels)

    module = small_generator()
    z = normal(9, 2, LATENT)
    variables = random_variables(module, z)
    directions = normal(10, 2, 8, 8, 3)

    def path_length(params):
        state = variables | {"params": params}
        w = module.apply(state, z, method="map")
        projected = lambda w: jnp.sum(directions * module.apply(state, w, method="synthesize"))
        return jnp.sum(jnp.mean(jnp.sum(jax.grad(projected)(w) ** 2, axis=-1), axis=-1) ** 0.5)

    gradients = jax.jit(jax.grad(path_length))(variables["params"])
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(gradients))
    kernels = [a for path, a in jax.tree.leaves_with_path(gradients) if path[-1].key == "kernel"]
    assert all(np.any(a != 0) for a in kernels)


def test_classes_matter_where_there_are_any(generator, discriminator):
    module, variables = discriminator
    images = jnp.broadcast_to(normal(11, 1, 8, 8, 3), (2, 8, 8, 3))
    logits = jax.jit(module.apply)(variables, images, jnp.array([0, 1]))
    assert logits.shape == (2,) and abs(logits[0] - logits[1]) > 0.01

    module, z = (
        small_generator(num_classes=CLASSES),
        jnp.broadcast_to(normal(12, 1, LATENT), (2, LATENT)),
    )
    variables = random_variables(module, z, jnp.array([0, 1]))
    output = jax.jit(module.apply)(variables, z, jnp.array([0, 1]))
    assert np.abs(output[0] - output[1]).max() > 0.1
    module, variables = generator
    # The generator ignores the labels.
    map = jax.jit(functools.partial(module.apply, method="map"))
    np.testing.assert_array_equal(map(variables, z, jnp.array([0, 1])), map(variables, z))


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(generator, discriminator):
    z, images, labels = normal(13, BATCH, LATENT), normal(14, BATCH, 8, 8, 3), jnp.arange(BATCH)
    for (module, variables), build, arguments in (
        (generator, small_generator, (z,)),
        (
            discriminator,
            functools.partial(small_discriminator, num_classes=CLASSES),
            (images, labels),
        ),
    ):
        network = build(dtype=jnp.bfloat16)
        output, shapes = jax.eval_shape(network.init_with_output, jax.random.key(0), *arguments)
        assert output.dtype == jnp.float32
        assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        expected = jax.jit(module.apply)(variables, *arguments)
        error = np.linalg.norm(
            jax.jit(network.apply)(variables, *arguments) - expected
        ) / np.linalg.norm(expected)
        # bfloat16 rounds by 2⁻⁹ = .002 relative; a dozen layers sum to a few times that.
        assert 1e-4 < error < 0.02


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (small_generator(num_classes=4), (jnp.ones((1, LATENT)),), "4 classes needs labels"),
        (
            small_generator(architecture="resnext"),
            (jnp.ones((1, LATENT)),),
            "skip, resnet, original",
        ),
        (Generator(48), (jnp.ones((1, 512)),), "power of two"),
        (small_discriminator(), (jnp.ones((1, 16, 16, 3)),), "8 px"),
        (small_discriminator(), (jnp.ones((6, 8, 8, 3)),), "batch of 6"),
    ],
)
def test_errors(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), *arguments)


def test_error_of_the_wrong_number_of_styles(generator):
    module, variables = generator
    with pytest.raises(ValueError, match="4 styles; got 6"):
        module.apply(variables, jnp.ones((1, 6, 8)), method="synthesize")
