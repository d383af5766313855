"""The blur of StyleGAN3's discriminator against SciPy and the authors' formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from genjax.adversarial import FadingBlur, blur

SIGMAS = (10.0, 2.4, 1.0, 0.34)
blurred = jax.jit(blur, static_argnums=2)


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape, 3)))


@pytest.mark.parametrize("shape", [(24, 40), (9, 7)])
def test_it_is_scipys_gaussian_filter(float64, shape):
    """Also of images that are smaller than the filter; σ may change without a new program."""
    x, traces = images(*shape), blurred._cache_size()
    for sigma in SIGMAS:
        expected = scipy.ndimage.gaussian_filter(
            x,
            sigma / np.sqrt(2 * np.log(2)),
            mode="constant",
            radius=int(np.floor(3 * sigma)),
            axes=(1, 2),
        )
        np.testing.assert_allclose(blurred(x, jnp.asarray(sigma), 30), expected, atol=1e-13)
    assert blurred._cache_size() == traces + 1


@pytest.mark.parametrize("sigma", SIGMAS)
def test_an_impulse_shows_the_authors_weights(float64, sigma):
    """f = 2^−(x/σ)² for x from −⌊3σ⌋ to ⌊3σ⌋, over the sum of f."""
    reach = int(np.floor(3 * sigma))
    places = np.arange(-reach, reach + 1)
    weights = 2.0 ** -((places / sigma) ** 2)
    weights /= weights.sum()
    side = 2 * reach + 3
    impulse = jnp.zeros((1, side, side, 1)).at[0, reach + 1, reach + 1].set(1)
    expected = np.pad(np.outer(weights, weights), 1)
    np.testing.assert_allclose(blur(impulse, sigma, 30)[0, ..., 0], expected, atol=1e-15)


def test_it_fades_linearly_to_the_images_themselves():
    fading = FadingBlur(sigma=10.0, images=200_000)
    seen = jnp.array([0.0, 50_000.0, 100_000.0, 200_000.0, 10_000_000.0])
    np.testing.assert_allclose(jax.vmap(fading.sigma_at)(seen), [10, 7.5, 5, 0, 0], rtol=1e-6)
    x = images(16, 16)
    see = jax.jit(fading)
    np.testing.assert_allclose(see(x, 150_000.0), blurred(x, 2.5, 30), atol=1e-6)
    # The last σ of a third of a pixel or more is at 193,333 images.
    assert np.abs(see(x, 193_000.0) - x).max() > 0.01
    np.testing.assert_array_equal(see(x, 194_000.0), x)
    np.testing.assert_array_equal(see(x, 300_000.0), x)


def test_images_keep_their_type():
    """bfloat16 has 8 bits, and these sums of weights and values are below 4."""
    x = images(8, 8).astype(jnp.bfloat16)
    assert blurred(x, 1.0, 3).dtype == jnp.bfloat16
    expected = blurred(x.astype(jnp.float32), 1.0, 3)
    np.testing.assert_allclose(np.float32(blurred(x, 1.0, 3)), expected, atol=2**-7)


@pytest.mark.parametrize("seen", [0.0, 300_000.0])
def test_its_derivatives_are_finite(seen):
    """R1 takes both orders. Without a blur they are those of the identity."""
    fading, x = FadingBlur(10.0, 200_000), images(6, 6)
    first = jax.grad(lambda x: jnp.sin(fading(x, jnp.float32(seen))).sum())
    second = jax.jit(jax.grad(lambda x: jnp.sum(first(x) ** 2)))(x)
    assert np.isfinite(second).all()
    if seen:
        np.testing.assert_allclose(second, -2 * np.cos(x) * np.sin(x), atol=1e-5)
