import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.vit_gan import Discriminator, Generator

LATENT, SIDE, CLASSES, DEPTH = 6, 8, 3, 2
key = jax.random.key(0)
latents = jax.random.normal(jax.random.key(1), (3, LATENT))
images = jax.random.normal(jax.random.key(2), (3, SIDE, SIDE, 3))
labels = jnp.array([0, 1, 2])
small = dict(patch_size=2, width=16, depth=DEPTH, num_heads=2)


def small_generator(**options):
    return Generator(resolution=SIDE, latent_size=LATENT, **small | options)


def small_discriminator(**options):
    return Discriminator(**small | options)


def random_variables(network, *inputs):
    """Replace the initial variables, with which blocks are the identity."""
    random = np.random.default_rng(0)
    variables = jax.eval_shape(network.init, key, *inputs)
    return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), variables)


def without(params, name):
    return {"params": {key: value for key, value in params["params"].items() if key != name}}


def test_parameter_counts():
    """The sum over the layers in the papers' figures."""
    w, p, c, d = 16, 2, 3, DEPTH
    dense = lambda inputs, outputs: inputs * outputs + outputs
    feed_forward = dense(w, 4 * w) + dense(4 * w, w)
    block = dense(w, 3 * w) + dense(w, w) + feed_forward
    size = lambda variables: sum(a.size for a in jax.tree.leaves(variables))

    samples, variables = jax.eval_shape(
        small_generator(num_classes=CLASSES).init_with_output, key, latents, labels
    )
    expected = dense(LATENT, w) + CLASSES * w + dense(w, w) + dense(w, 2 * w) + dense(w, p * p * c)
    assert samples.shape == (3, SIDE, SIDE, 3) and size(variables) == expected + d * (
        block + dense(w, 6 * w)
    )

    logits, variables = jax.eval_shape(
        small_discriminator(num_classes=CLASSES).init_with_output, key, samples, labels
    )
    expected = dense((2 * p) ** 2 * c, w) + w + dense(w, 1) + CLASSES * w
    assert logits.shape == (3,) and size(variables) == expected + d * (block + 2 * w)


def test_samples_at_initialisation_depend_on_latent_and_class():
    """z acts although blocks are the identity, because tokens contain z, and by order one."""
    generator = small_generator(num_classes=CLASSES)
    apply = jax.jit(lambda z, labels: generator.init_with_output(key, z, labels)[0])
    many = jax.random.normal(key, (200, LATENT))
    assert 0.1 < apply(many, jnp.zeros(200, int)).std(axis=0).mean() < 3
    samples = apply(jnp.tile(latents[:1], (3, 1)), labels)
    assert (
        np.abs(samples[0] - samples[1]).max() > 0.1 and np.abs(samples[0] - samples[2]).max() > 0.1
    )


def test_samples_depend_on_all_of_their_own_latent_and_nothing_of_others():
    generator = small_generator(num_classes=CLASSES)
    variables = random_variables(generator, latents, labels)
    gradient = jax.jit(
        jax.grad(lambda z: generator.apply(variables, z, labels, train=True)[1, 2, 2, 0])
    )(latents)
    assert np.all(gradient[1] != 0) and np.all(gradient[0] == 0) and np.all(gradient[2] == 0)


def test_blocks_of_the_generator_are_modulated():
    """Tokens and blocks both get z from `map_out`: cutting off the modulation changes samples."""
    generator = small_generator()
    variables = random_variables(generator, latents)
    apply = jax.jit(generator.apply)
    blocks = variables["params"]["blocks"]
    cut = {"dense": blocks["modulation"]["dense"] | {"kernel": jnp.zeros((DEPTH, 16, 96))}}
    others = {"params": variables["params"] | {"blocks": blocks | {"modulation": cut}}}
    assert np.abs(apply(variables, latents) - apply(others, latents)).max() > 0.1


def test_logits_depend_on_every_pixel_of_their_own_image_and_on_where_it_is():
    discriminator = small_discriminator(num_classes=CLASSES)
    variables = random_variables(discriminator, images, labels)
    apply = lambda x: discriminator.apply(variables, x, labels, train=True)
    gradient = jax.jit(jax.grad(lambda x: apply(x)[1]))(images)
    assert np.all(gradient[1] != 0) and np.all(gradient[0] == 0) and np.all(gradient[2] == 0)
    # Without positions the mean over tokens would not depend on the order of inner patches.
    inner = jnp.zeros_like(images).at[:, 2:4, 2:4].set(images[:, 2:4, 2:4])
    apply = jax.jit(apply)
    assert np.abs(apply(inner) - apply(jnp.roll(inner, (2, 2), (1, 2)))).max() > 0.01


def test_classes_add_a_projection_to_the_logit():
    discriminator = small_discriminator(num_classes=CLASSES)
    variables = random_variables(discriminator, images, labels)

    def total(variables):
        logits = discriminator.apply(variables, images, labels)
        return logits.sum(), logits

    gradient, logits = jax.jit(jax.grad(total, has_aux=True))(variables)
    # Unconditional logits are linear in the features, so the head's gradient is the features' sum.
    features = gradient["params"]["label_embedding"]["embedding"]
    np.testing.assert_allclose(
        gradient["params"]["head"]["kernel"][:, 0], features.sum(axis=0), rtol=1e-4
    )
    plain = jax.jit(small_discriminator().apply)(without(variables, "label_embedding"), images)
    embedding = variables["params"]["label_embedding"]["embedding"]
    np.testing.assert_allclose(
        logits - plain, jnp.sum(embedding * features, axis=1), rtol=1e-4, atol=1e-5
    )


def test_gradient_penalty_can_be_trained():
    discriminator = small_discriminator(num_classes=CLASSES)
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
def test_unroll_and_dtype(network, inputs):
    params = random_variables(network(), inputs)
    apply = lambda **options: np.asarray(jax.jit(network(**options).apply)(params, inputs))
    expected = apply()
    # float32 sums in another order; and bfloat16's rounding of 2⁻⁹ = .002 in some ten products.
    np.testing.assert_allclose(
        apply(unroll=DEPTH), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    program = jax.make_jaxpr(network(unroll=DEPTH).apply)(params, inputs)
    assert f" unroll={DEPTH}" in str(program)
    output = apply(dtype=jnp.bfloat16)
    assert output.dtype == np.float32
    assert 1e-4 < np.linalg.norm(output - expected) / np.linalg.norm(expected) < 0.05


def test_resolution_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="resolution 9 does not divide into patches of 2 pixels"):
        jax.eval_shape(Generator(resolution=9, latent_size=LATENT, **small).init, key, latents)
