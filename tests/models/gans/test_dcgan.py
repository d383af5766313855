import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.dcgan import Discriminator, Generator

LATENT, SIDE, CLASSES = 6, 8, 3
key = jax.random.key(0)
latents = jax.random.normal(jax.random.key(1), (4, LATENT))
images = jax.random.normal(jax.random.key(2), (4, SIDE, SIDE, 3))
labels = jnp.array([0, 1, 2, 0])


def small_generator(**options):
    return Generator(width=4, doublings=1, latent_size=LATENT, **options)


def small_discriminator(**options):
    return Discriminator(width=4, doublings=2, **options)


def random_variables(network, *inputs):
    """Replace initial weights of .02, which make outputs almost constant; statistics are 1."""
    random = np.random.default_rng(0)
    variables = jax.eval_shape(network.init, key, *inputs)
    params = jax.tree.map(
        lambda a: 0.3 * random.standard_normal(a.shape, np.float32), variables["params"]
    )
    return {"params": params} | {
        name: jax.tree.map(lambda a: np.ones(a.shape, np.float32), value)
        for name, value in variables.items()
        if name != "params"
    }


def size(variables):
    return sum(a.size for a in jax.tree.leaves(variables["params"]))


def test_parameter_counts_at_64_pixels():
    samples, variables = jax.eval_shape(Generator().init_with_output, key, jnp.zeros((2, 100)))
    assert samples.shape == (2, 64, 64, 3) and size(variables) == 3_576_704
    logits, variables = jax.eval_shape(Discriminator().init_with_output, key, samples)
    assert logits.shape == (2,) and size(variables) == 2_765_568


@pytest.mark.parametrize("start, doublings, side", [(4, 1, 8), (7, 2, 28), (4, 3, 32)])
def test_other_sides(start, doublings, side):
    generator = Generator(start=start, doublings=doublings, image_channels=1)
    samples, variables = jax.eval_shape(generator.init_with_output, key, jnp.zeros((2, 100)))
    assert samples.shape == (2, side, side, 1)
    assert variables["params"][f"norm_{doublings - 1}"]["scale"].shape == (64,)
    _, variables = jax.eval_shape(Discriminator(doublings=doublings).init_with_output, key, samples)
    assert variables["params"]["head"]["kernel"].shape == (start**2 * 64 * 2 ** (doublings - 1), 1)


def test_initialisation():
    params = jax.jit(Generator(width=32, doublings=2).init)(key, jnp.zeros((1, 100)))["params"]
    # The deviation of 100,000 and 32,768 values is off by a factor of 1 ± .004, of 96 values by 1 ±
    # .07.
    for layer, tolerance in (("project", 0.02), ("conv_0", 0.02)):
        np.testing.assert_allclose(np.std(params[layer]["kernel"]), 0.02, rtol=tolerance)
    scales = np.concatenate([params[f"norm_{i}"]["scale"] for i in range(2)])
    assert abs(scales.mean() - 1) < 0.01 and 0.015 < scales.std() < 0.025


@pytest.mark.parametrize("num_classes", [0, CLASSES])
def test_samples_depend_on_their_own_latent_alone_unless_training(num_classes):
    generator = small_generator(num_classes=num_classes)
    variables = random_variables(generator, latents, labels)

    def gradient(train):
        apply = lambda z: generator.apply(
            variables, z, labels, train=train, mutable=["batch_stats"]
        )[0]
        return np.asarray(jax.jit(jax.grad(lambda z: apply(z)[1, 2, 2, 0]))(latents))

    alone = gradient(train=False)
    assert np.all(alone[1] != 0) and np.all(alone[[0, 2, 3]] == 0)
    assert np.all(gradient(train=True) != 0)  # batch norm mixes the batch


def test_statistics_change_in_training_alone():
    generator = small_generator()
    variables = random_variables(generator, latents)
    apply = lambda train: generator.apply(variables, latents, train=train, mutable=["batch_stats"])[
        1
    ]
    states = jax.jit(lambda: (apply(False), apply(True)))()
    old, kept, new = (state["batch_stats"] for state in (variables, *states))
    np.testing.assert_array_equal(kept["norm_0"]["mean"], old["norm_0"]["mean"])
    assert np.all(new["norm_0"]["mean"] != old["norm_0"]["mean"])


def test_classes_are_vectors_concatenated_to_the_latent():
    generator = small_generator(num_classes=CLASSES)
    variables = random_variables(generator, latents, labels)
    embedding = variables["params"]["label_embedding"]["embedding"]
    joined = jnp.concatenate([latents, embedding[labels]], axis=1)
    params = {
        name: value for name, value in variables["params"].items() if name != "label_embedding"
    }
    unconditional = jax.jit(small_generator().apply)(variables | {"params": params}, joined)
    apply = jax.jit(generator.apply)
    samples = apply(variables, latents, labels)
    np.testing.assert_array_equal(samples, unconditional)
    assert np.abs(samples - apply(variables, latents, (labels + 1) % CLASSES)).max() > 0.01


def test_classes_add_a_projection_to_the_logit():
    discriminator = small_discriminator(num_classes=CLASSES)
    variables = random_variables(discriminator, images, labels)
    params = variables["params"]

    def total(params):
        logits = discriminator.apply(variables | {"params": params}, images, labels)
        return logits.sum(), logits

    gradient, logits = jax.jit(jax.grad(total, has_aux=True))(params)
    # Unconditional logits are linear in the map, so the head's gradient is the map, here of 4
    # pixels.
    pixels = gradient["head"]["kernel"].reshape(4, -1)
    features = gradient["label_embedding"]["embedding"]
    np.testing.assert_allclose(pixels.sum(axis=0), features.sum(axis=0), rtol=1e-4, atol=1e-5)
    plain, embedding = params.copy(), params["label_embedding"]["embedding"]
    del plain["label_embedding"]
    plain = jax.jit(small_discriminator().apply)(variables | {"params": plain}, images)
    for label in (1, 2):  # one image has each label
        np.testing.assert_allclose(
            logits[label] - plain[label], embedding[label] @ features[label], rtol=1e-4, atol=1e-5
        )


@pytest.fixture(scope="module")
def normalized():
    """A discriminator with spectral norm after 100 steps of power iteration at fixed weights."""
    discriminator = small_discriminator(num_classes=CLASSES, spectral_norm=True)
    variables = random_variables(discriminator, images, labels)

    @jax.jit
    def iterate(variables):
        def step(_, state):
            return discriminator.apply(
                {"params": variables["params"]} | state,
                images,
                labels,
                train=True,
                mutable=["batch_stats"],
            )[1]

        return jax.lax.fori_loop(0, 100, step, {"batch_stats": variables["batch_stats"]})

    return discriminator, variables | iterate(variables)


def test_spectral_norm_is_the_largest_singular_value(normalized):
    _, variables = normalized
    for layer, name in (
        ("conv_0", "kernel"),
        ("conv_1", "kernel"),
        ("head", "kernel"),
        ("label_embedding", "embedding"),
    ):
        weight = np.asarray(variables["params"][layer][name], np.float64)
        expected = np.linalg.svd(weight.reshape(-1, weight.shape[-1]), compute_uv=False)[0]
        sigma = variables["batch_stats"][f"{layer}_norm"][f"{layer}/{name}/sigma"]
        # The iteration's error falls with (second/first)^200; float32 has errors of 1e-6.
        np.testing.assert_allclose(sigma, expected, rtol=1e-5)


def test_logits_of_spectral_norm_do_not_depend_on_the_weights_scale(normalized):
    discriminator, variables = normalized
    params = variables["params"]
    scaled = jax.tree.map(lambda a: a if a.ndim == 1 else 3 * a, params)
    doubled = jax.tree.map(lambda a: 2 * a if a.ndim == 1 else a, params)
    apply = jax.jit(
        lambda params: discriminator.apply(variables | {"params": params}, images, labels)
    )
    np.testing.assert_allclose(apply(scaled), apply(params), rtol=1e-5)
    assert np.abs(apply(doubled) - apply(params)).max() > 0.01  # biases are not normalized


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_gradient_penalty_can_be_trained(spectral_norm):
    discriminator = small_discriminator(num_classes=CLASSES, spectral_norm=spectral_norm)
    variables = random_variables(discriminator, images, labels)

    def penalty(params):
        logit = lambda x: jnp.sum(
            discriminator.apply(
                variables | {"params": params}, x, labels, train=True, mutable=["batch_stats"]
            )[0]
        )
        return jnp.sum(jax.grad(logit)(images) ** 2)

    random = np.random.default_rng(1)
    params = variables["params"]
    direction = jax.tree.map(
        lambda a: jnp.asarray(random.standard_normal(a.shape), jnp.float32), params
    )
    gradient, (_, slope) = jax.jit(
        lambda p: (jax.grad(penalty)(p), jax.jvp(penalty, (p,), (direction,)))
    )(params)
    # Reverse-over-reverse and forward-over-reverse: float32 sums of a few thousand terms.
    products = jax.tree.map(jnp.vdot, gradient, direction)
    assert np.isfinite(slope) and abs(slope) > 1e-3
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-3)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_bfloat16_keeps_parameters_and_outputs_float32(spectral_norm):
    samples, variables = jax.eval_shape(
        small_generator(dtype=jnp.bfloat16).init_with_output, key, latents
    )
    logits, others = jax.eval_shape(
        small_discriminator(dtype=jnp.bfloat16, spectral_norm=spectral_norm).init_with_output,
        key,
        images,
    )
    assert {a.dtype for a in jax.tree.leaves((samples, variables, logits, others))} == {
        jnp.dtype("float32")
    }
