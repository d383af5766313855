import functools

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    adaptive_projected,
    classifier_free,
    frequency_decoupled,
    rescaled,
    tangential,
    zero_star,
)


def test_each_rule_against_plain_numpy(float64):
    generator = np.random.default_rng(3)
    c, u = generator.normal(size=(2, 5, 4, 4, 2))
    phi, eta, threshold, scale = 0.7, 0.3, 5.0, 4.0
    results = {
        rule: np.asarray(rule(jnp.asarray(c), jnp.asarray(u), scale))
        for rule in (
            functools.partial(rescaled, phi=phi),
            functools.partial(adaptive_projected, eta=eta, norm_threshold=threshold),
            zero_star,
        )
    }
    for i in range(5):
        (a, b), y = (c[i].ravel(), u[i].ravel()), (u + scale * (c - u))[i].ravel()
        difference = a - b
        assert np.linalg.norm(difference) > threshold
        difference *= threshold / np.linalg.norm(difference)
        along = a / np.linalg.norm(a)
        parallel = difference @ along * along
        optimal = np.linalg.lstsq(b[:, None], a, rcond=None)[0] * b
        expected = (
            phi * y * a.std() / y.std() + (1 - phi) * y,
            a + (scale - 1) * (difference - parallel + eta * parallel),
            optimal + scale * (a - optimal),
        )
        for result, value in zip(results.values(), expected, strict=True):
            np.testing.assert_allclose(result[i].ravel(), value, rtol=1e-12, atol=1e-12)
    # By default, nothing of the difference along c is added.
    added = adaptive_projected(jnp.asarray(c), jnp.asarray(u), scale) - c
    np.testing.assert_allclose(np.sum(added * c, (1, 2, 3)), 0, atol=1e-12)
    assert np.abs(added).max() > 1


def test_an_answer_without_deviation_is_not_rescaled():
    """A constant y has no deviation to correct, nor has a sample of one number."""
    for c, u in ((jnp.ones((2, 4)), jnp.full((2, 4), 0.5)), (jnp.ones((2, 1)), jnp.zeros((2, 1)))):
        expected = classifier_free(c, u, 2.0)
        np.testing.assert_array_equal(rescaled(c, u, 2.0, phi=0.5), expected)


def test_low_and_high_frequencies_have_scales_of_their_own(float64):
    """Away from the border, a shift of all pixels is low and a chessboard high.

    One scale for both is classifier-free guidance.
    """
    u = jnp.asarray(np.random.default_rng(7).normal(size=(3, 12, 8, 2)))
    rule = functools.partial(frequency_decoupled, low_scale=2.0)
    np.testing.assert_allclose(rule(u + 0.5, u, 7.0), u + 2 * 0.5, rtol=1e-12, atol=1e-13)
    chessboard = jnp.asarray((-1.0) ** np.add.outer(np.arange(12), np.arange(8)))[..., None]
    inside = np.s_[:, 3:-3, 3:-3]
    np.testing.assert_allclose(
        rule(u + chessboard, u, 7.0)[inside], (u + 7 * chessboard)[inside], rtol=1e-12, atol=1e-13
    )
    c = jnp.flip(u, 1)
    np.testing.assert_allclose(rule(c, u, 2.0), classifier_free(c, u, 2.0), rtol=1e-11, atol=1e-12)


def low_cosine(frequency, phase, i):
    """Return cos(frequency·i + phase) after shrinking to half and growing again, by hand.

    Shrinking weights the four nearest pixels by 1, 3, 3, 1 of 8, which is cos³(frequency/2) midway
    between the inner two. Growing weights the nearer midpoint by 3/4 and the other by 1/4.
    """
    wave = lambda place: np.cos(frequency * place + phase)
    side = np.where(i % 2, -0.5, 0.5)  # direction of a pixel's nearer midpoint
    return np.cos(frequency / 2) ** 3 * (0.75 * wave(i + side) + 0.25 * wave(i - 3 * side))


@pytest.mark.parametrize("frequencies", [(0.3, 0.0), (0.9, 1.7), (2.8, 0.4), (np.pi / 2, np.pi)])
def test_low_part_of_a_wave_by_its_frequency(frequencies, float64):
    """The closed form is for inner pixels, because those at the border have fewer neighbours."""
    rows, columns = np.mgrid[:20, :14]
    phases = 0.4, -1.1
    places = list(zip(frequencies, phases, (rows, columns), strict=True))
    wave = np.prod([np.cos(f * i + phase) for f, phase, i in places], axis=0)
    low = np.prod([low_cosine(*place) for place in places], axis=0)
    u = np.random.default_rng(8).normal(size=(2, 20, 14, 3))
    guided = frequency_decoupled(
        jnp.asarray(u + wave[..., None]), jnp.asarray(u), 7.0, low_scale=2.0
    )
    expected = u + (2 * low + 7 * (wave - low))[..., None]
    inside = np.s_[:, 3:-3, 3:-3]
    np.testing.assert_allclose(guided[inside], expected[inside], rtol=1e-12, atol=1e-12)


def test_equal_scales_are_plain_guidance_on_every_shape(float64):
    """This holds for sides that the factor does not divide, for one axis, and for videos.

    Sides may be shorter than the factor.
    """
    for shape in ((2, 7, 5, 3), (2, 9, 1), (1, 2, 4, 5, 2)):
        c, u = np.random.default_rng(9).normal(size=(2, *shape))
        guided = frequency_decoupled(jnp.asarray(c), jnp.asarray(u), 4.5, low_scale=4.5, factor=3)
        np.testing.assert_allclose(guided, u + 4.5 * (c - u), rtol=1e-12, atol=1e-12)


def test_tangential_guidance_against_a_singular_value_decomposition(float64):
    c, u = np.random.default_rng(8).normal(size=(2, 5, 4, 3))
    result = tangential(jnp.asarray(c), jnp.asarray(u), 4.0)
    for i in range(5):
        shared = np.linalg.svd(np.stack([c[i].ravel(), u[i].ravel()]))[2][0]
        damped = (shared @ u[i].ravel() * shared).reshape(4, 3)
        np.testing.assert_allclose(result[i], damped + 4 * (c[i] - damped), rtol=1e-11, atol=1e-12)


def test_in_one_dimension_zero_star_is_conditional(float64):
    """The optimal multiple of u is then c itself, for every scale."""
    c, u = jnp.array([[2.0], [-1.0]]), jnp.array([[0.5], [4.0]])
    np.testing.assert_allclose(zero_star(c, u, 7.0), c, rtol=1e-14)
    # The rule is defined there, and equals classifier-free guidance.
    np.testing.assert_array_equal(zero_star(c, jnp.zeros_like(u), 2.0), 2 * c)
