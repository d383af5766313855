"""Windows give what a network gives for the whole; networks here pad with zeros at both ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.windows import apply_windows

SEQUENCE = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (2, 24, 3)), jnp.float32)


def sums(x, reach, stride, scale):
    """Return sums of frames around each frame, of blocks of `stride`, each `scale` times."""
    x = 1 + x.reshape(len(x), -1, stride, x.shape[-1]).sum(2)  # not 0 where padding is
    x = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    x = sum(jnp.roll(x, shift, axis=1) * (shift + 9) for shift in range(-reach, reach + 1))
    return dict(sums=jnp.repeat(x[:, reach : x.shape[1] - reach], scale, axis=1))


@pytest.mark.parametrize(
    ("size", "stride", "scale"), [(5, 1, 2), (4, 2, 1), (1, 1, 1), (12, 2, 3), (40, 1, 1)]
)
def test_windows_are_the_whole(size, stride, scale):
    """Sums of small integers are exact in float32, in any order."""
    function = functools.partial(sums, reach=2, stride=stride, scale=scale)
    options = dict(size=size, margin=2, stride=stride, scale=scale)
    ours = jax.jit(lambda x: apply_windows(function, x, **options))(SEQUENCE)
    np.testing.assert_array_equal(ours["sums"], function(SEQUENCE)["sums"])


def test_frames_at_the_end_without_outputs():
    """Outputs lie between frames, as of centred spectra: one fewer than frames."""

    def between(x):
        x = sums(x, reach=2, stride=1, scale=1)["sums"]
        return jnp.repeat(2 * x[:, :-1] + x[:, 1:], 3, axis=1)

    options = dict(size=5, margin=3, scale=3, end_frames=1)
    ours = jax.jit(lambda x: apply_windows(between, x, **options))(SEQUENCE)
    np.testing.assert_array_equal(ours, between(SEQUENCE))


def test_a_margin_too_small_is_not_the_whole():
    function = functools.partial(sums, reach=2, stride=1, scale=1)
    ours = apply_windows(function, SEQUENCE, size=4, margin=1)
    assert np.abs(ours["sums"] - function(SEQUENCE)["sums"]).max() > 1


def test_part_of_a_frame_is_refused():
    with pytest.raises(ValueError, match="whole frames of 5 places; got 24: crop"):
        apply_windows(lambda x: x, SEQUENCE, size=2, margin=1, stride=5)


def test_another_number_of_outputs_is_refused():
    """Outputs of windows would be put to wrong places."""
    twice = lambda x: jnp.repeat(x, 2, axis=1)
    with pytest.raises(ValueError, match="window of 4 frames has 8 outputs; windows need 1 for"):
        apply_windows(twice, SEQUENCE, size=2, margin=1)
    cut = lambda x: twice(x)[:, :-1]
    with pytest.raises(ValueError, match="window of 4 frames has 7 outputs; windows need 2 for"):
        apply_windows(cut, SEQUENCE, size=2, margin=1, scale=2)
