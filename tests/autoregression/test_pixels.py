"""Sampling of pictures from laws that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import categorical, mixture_of_logistics, read, sample, sample_pixels
from genjax.diffusion import sample_keys

SHAPE, LEVELS, BATCH = (2, 3, 2), 4, 5
LENGTH = 12
TABLE = 3 * np.random.default_rng(0).normal(size=(LENGTH, LEVELS, LEVELS)).astype(np.float32)
KEYS = sample_keys(jax.random.key(0), jnp.arange(BATCH))


def step(cache, tokens, position):
    """A Markov chain that differs from place to place; its cache is all that was read."""
    return jnp.asarray(TABLE)[position + 1, tokens], cache.at[:, position].set(tokens)


FIRST = jnp.broadcast_to(TABLE[0, 0], (BATCH, LEVELS))
EMPTY = jnp.full((BATCH, LENGTH), -1)


def test_given_places_are_kept_and_later_ones_have_the_same_draws():
    """A completion of the start of a sample is that sample."""
    draw = lambda given, first=FIRST, cache=EMPTY, num_read=0: sample_pixels(
        KEYS, step, first, cache, categorical(LEVELS), SHAPE, given=given, num_read=num_read
    )
    whole = draw(None)
    assert whole.shape == (BATCH, *SHAPE)
    flat = whole.reshape(BATCH, -1)
    np.testing.assert_array_equal(draw(flat[:, :7]), whole)
    already = read(step, FIRST, EMPTY, flat[:, :5])  # as by a network's `prefill`
    np.testing.assert_array_equal(draw(flat[:, :7], *already, num_read=5), whole)
    with pytest.raises(ValueError, match="5 given sub-pixels have been read; got 4"):
        draw(flat[:, :4], *already, num_read=5)
    other = (flat[:, :7] + 1) % LEVELS
    completed = draw(other)
    np.testing.assert_array_equal(completed.reshape(BATCH, -1)[:, :7], other)
    assert np.any(completed.reshape(BATCH, -1)[:, 7:] != flat[:, 7:])


def test_reading_remembers_what_was_read():
    given = jnp.arange(BATCH * 3).reshape(BATCH, 3) % LEVELS
    logits, cache = read(step, FIRST, EMPTY, given)
    np.testing.assert_array_equal(cache[:, :3], given)
    np.testing.assert_array_equal(cache[:, 3:], -1)
    np.testing.assert_array_equal(logits, TABLE[3, given[:, 2]])


def test_channels_of_a_mixture_are_drawn_given_those_before():
    """Means of green and blue follow red, by coefficients near 1 and narrow scales."""
    components, count = 1, 64
    outputs = np.zeros((count, 10), np.float32)
    mean, scale, coefficient = np.zeros(3), np.full(3, -6.0), [4.0, -4.0, 0.0]
    mean[1], scale[0] = 0.1, 0.0
    outputs[:, 1:] = np.stack([mean, scale, coefficient], axis=1).ravel()
    keys = sample_keys(jax.random.key(1), jnp.arange(count))
    likelihood = mixture_of_logistics(256, components)
    same = lambda cache, tokens, position: (cache, cache)
    draw = functools.partial(
        sample_pixels, keys, same, jnp.asarray(outputs), outputs, likelihood, (1, 2, 3)
    )
    pictures = draw()
    first = pictures.reshape(count, -1)[:, :2]  # red and green of a pixel, read by `prefill`
    np.testing.assert_array_equal(draw(given=first, num_read=2), pictures)
    red, green, blue = 2 * np.asarray(pictures).reshape(-1, 3).T / 255 - 1
    assert np.std(red) > 0.4
    # scales are e^−6, so 0.02 is eight of them; levels are 0.008 apart
    alpha = np.tanh(4.0)
    np.testing.assert_allclose(green, np.clip(0.1 + alpha * red, -1, 1), atol=0.025)
    np.testing.assert_allclose(blue, np.clip(-alpha * red, -1, 1), atol=0.025)


def test_temperature_0_takes_the_likeliest_level():
    law = lambda keys, logits: sample(keys, logits, temperature=0.0)
    levels = sample_pixels(KEYS, step, FIRST, EMPTY, categorical(LEVELS), SHAPE, law)
    expected = [TABLE[0, 0].argmax()]
    for place in range(1, LENGTH):
        expected.append(TABLE[place, expected[-1]].argmax())
    np.testing.assert_array_equal(levels.reshape(BATCH, -1), [expected] * BATCH)


def test_a_whole_picture_leaves_nothing_to_sample():
    with pytest.raises(ValueError, match="12 sub-pixels are given of pictures that have 12"):
        sample_pixels(
            KEYS,
            step,
            FIRST,
            EMPTY,
            categorical(LEVELS),
            SHAPE,
            given=jnp.zeros((BATCH, 12), jnp.int32),
        )


def test_one_key_for_several_pictures_is_refused(unchecked_annotations):
    with pytest.raises(ValueError, match=r"keys are one per example, \(5,\); got \(\): give"):
        sample_pixels(jax.random.key(0), step, FIRST, EMPTY, categorical(LEVELS), SHAPE)
