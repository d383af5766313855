import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.r3gan import Discriminator, Generator

LATENT, SIDE, CLASSES = 6, 8, 3
CIFAR = dict(widths=(768,) * 4, cardinalities=(96,) * 4, blocks=(2,) * 4)
FFHQ_256 = dict(
    widths=(768,) * 4 + (384, 192, 96),
    cardinalities=(96,) * 4 + (48, 24, 12),
    blocks=(2,) * 7,
    float32_stages=3,
)
key = jax.random.key(0)
latents = jax.random.normal(jax.random.key(1), (3, LATENT))
images = jax.random.normal(jax.random.key(2), (3, SIDE, SIDE, 3))
labels = jnp.array([0, 1, 2])


def reverse(stages):
    return {
        name: value[::-1] if isinstance(value, tuple) else value for name, value in stages.items()
    }


def small_generator(**options):
    fields = dict(widths=(8, 4), cardinalities=(2, 1), blocks=(1, 2), latent_size=LATENT)
    return Generator(**fields | options)


def small_discriminator(**options):
    fields = dict(widths=(4, 8), cardinalities=(1, 2), blocks=(2, 1), embedding_features=5)
    return Discriminator(**fields | options)


def random_variables(network, *inputs):
    """Replace the initial variables, with which blocks are the identity."""
    random = np.random.default_rng(0)
    variables = jax.eval_shape(network.init, key, *inputs)
    return jax.tree.map(lambda a: 0.5 * random.standard_normal(a.shape, np.float32), variables)


@pytest.mark.parametrize(
    "stages, num_classes, side, generator_size, discriminator_size",
    [
        (FFHQ_256, 0, 256, 23_057_952, 23_009_568),
        (CIFAR, 0, 32, 20_732_160, 20_683_776),
        (CIFAR, 10, 32, 20_781_952, 21_280_512),
    ],
)
def test_parameter_counts(stages, num_classes, side, generator_size, discriminator_size):
    size = lambda variables: sum(a.size for a in jax.tree.leaves(variables))
    generator = Generator(num_classes=num_classes, **stages)
    samples, variables = jax.eval_shape(generator.init_with_output, key, jnp.zeros((3, 64)), labels)
    assert samples.shape == (3, side, side, 3) and size(variables) == generator_size
    discriminator = Discriminator(num_classes=num_classes, **reverse(stages))
    logits, variables = jax.eval_shape(discriminator.init_with_output, key, samples, labels)
    assert logits.shape == (3,) and size(variables) == discriminator_size


def test_initial_weights_are_those_of_the_authors():
    """Deviations of the authors' `MSRInitializer` and `ResidualBlock`, by hand for these sizes."""
    options = dict(
        widths=(32, 32), cardinalities=(4, 4), blocks=(2, 2), num_classes=100, embedding_features=64
    )
    generator = jax.jit(Generator(**options).init)(key, jnp.zeros((1, 64)), jnp.zeros(1, int))[
        "params"
    ]
    discriminator = jax.jit(Discriminator(**options).init)(
        key, jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros(1, int)
    )["params"]
    gain = np.sqrt(2 / 1.04) * 4**-0.25  # the gain of leaky ReLU, and four blocks of three layers
    for block in (generator["block_1_0"], discriminator["block_0_1"]):
        # The deviation of n values is off by a factor of 1 ± 1/√(2n), at most .016 (n = 2048);
        # allow three times that.
        np.testing.assert_allclose(np.std(block["expand"]["kernel"]), gain / np.sqrt(32), rtol=0.05)
        np.testing.assert_allclose(
            np.std(block["grouped"]["kernel"]), gain / np.sqrt(9 * 16), rtol=0.05
        )
        assert np.all(block["contract"]["kernel"] == 0)
    np.testing.assert_allclose(np.std(generator["basis"]), 1, rtol=0.1)
    np.testing.assert_allclose(
        np.std(generator["basis_scale"]["kernel"]), 1 / np.sqrt(128), rtol=0.05
    )
    np.testing.assert_allclose(np.std(generator["label_embedding"]["embedding"]), 0.1, rtol=0.05)
    np.testing.assert_allclose(np.std(discriminator["basis"]), 1 / 4, rtol=0.1)
    np.testing.assert_allclose(np.std(discriminator["head"]["kernel"]), 1 / np.sqrt(32), rtol=0.05)
    np.testing.assert_allclose(
        np.std(discriminator["label_embedding"]["embedding"]), 1 / 80, rtol=0.05
    )


def test_samples_depend_on_their_own_latent_and_class():
    generator = small_generator(num_classes=CLASSES, embedding_features=4)
    variables = random_variables(generator, latents, labels)
    gradient = jax.jit(
        jax.grad(lambda z: generator.apply(variables, z, labels, train=True)[1, 2, 2, 0])
    )(latents)
    assert np.all(gradient[1] != 0) and np.all(gradient[0] == 0) and np.all(gradient[2] == 0)
    samples = jax.jit(generator.apply)(variables, jnp.tile(latents[:1], (3, 1)), labels)
    assert (
        np.abs(samples[0] - samples[1]).max() > 0.1 and np.abs(samples[0] - samples[2]).max() > 0.1
    )


@pytest.mark.parametrize("num_classes", [0, CLASSES])
def test_gradient_penalty_can_be_trained(num_classes):
    discriminator = small_discriminator(num_classes=num_classes)
    params = random_variables(discriminator, images, labels)

    def penalty(params):
        return jnp.sum(
            jax.grad(lambda x: discriminator.apply(params, x, labels).sum())(images) ** 2
        )

    random = np.random.default_rng(1)
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


@pytest.mark.parametrize(
    "network, inputs", [(small_generator, latents), (small_discriminator, images)]
)
def test_coarsest_stages_are_float32(network, inputs):
    """Two float32 stages equal a float32 network, and none equals a bfloat16 network.

    bfloat16 rounds by 2⁻⁹ = .002, in some ten products."""
    params = random_variables(network(), inputs)
    apply = lambda **options: np.asarray(jax.jit(network(**options).apply)(params, inputs))
    expected = apply()
    outputs = [apply(dtype=jnp.bfloat16, float32_stages=stages) for stages in (0, 1, 2)]
    assert all(output.dtype == np.float32 for output in outputs)
    errors = [np.linalg.norm(output - expected) / np.linalg.norm(expected) for output in outputs]
    assert errors[2] == 0 and 1e-4 < errors[1] < 0.03 and 1e-4 < errors[0] < 0.03
    assert np.any(outputs[0] != outputs[1])


def test_images_of_another_side_are_refused():
    with pytest.raises(ValueError, match="2 stages need images of 8×8; these are 16×8"):
        jax.eval_shape(small_discriminator().init, key, jnp.zeros((1, 16, 8, 3)))
