"""Clips with given frames: what the network sees, what the loss counts, what samplers keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion
from genjax.diffusion import times
from genjax.diffusion.targets import clean, edm, noise, score, velocity
from genjax.diffusion.weightings import bounded_velocity, min_snr, truncated_snr

FLOW = diffusion.RectifiedFlow()
RANDOM = np.random.default_rng(0)
CLIPS = jnp.asarray(RANDOM.standard_normal((64, 4, 3, 2), np.float32))


def test_given_frames_are_clean_at_time_0_and_the_loss_is_of_the_others():
    """The network returns zeros, so the loss is the mean of (z − x)², with z from what it sees."""
    seen = {}

    def apply(x_t, t):
        seen.update(x_t=np.asarray(x_t), t=np.asarray(t))
        return jnp.zeros_like(x_t)

    options = dict(process=FLOW, target=velocity, times=times.uniform, given=((0,), (0, -1)))
    options |= dict(variates=times.stratified)
    losses, t = diffusion.given_frames_loss(jax.random.key(0), apply, CLIPS, **options)
    x, x_t, own = np.asarray(CLIPS), seen["x_t"], seen["t"]
    assert np.all(own[:, 0] == 0) and np.all(own[:, 1] > 0)
    assert len(np.unique(np.floor(64 * t))) == 64  # one time in each part
    last = own[:, 3] == 0
    assert 20 < last.sum() < 44  # half of 64, within three deviations of 4
    np.testing.assert_array_equal(x_t[:, 0], x[:, 0])
    np.testing.assert_array_equal(x_t[last, 3], x[last, 3])
    for i in range(64):
        others = slice(1, 3) if last[i] else slice(1, 4)
        assert np.all(own[i, others] == t[i])
        z = (x_t[i, others] - (1 - t[i]) * x[i, others]) / t[i]
        # division by t, at least 1/200 here, enlarges float32's rounding
        np.testing.assert_allclose(losses[i], np.mean((z - x[i, others]) ** 2), rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "weighting"),
    [(clean, bounded_velocity), (score, None), (score, min_snr), (noise, truncated_snr)],
)
def test_given_frames_do_not_spoil_gradients(target, weighting):
    """At time 0 the clean target's weights and the score are infinite, and no loss counts them.

    At time 1, the last weights are.
    """
    seen, options = [], dict(process=FLOW, target=target, times=times.uniform, weighting=weighting)

    def loss(scale):
        def apply(x_t, t):
            seen.append(t)
            return scale * x_t

        return diffusion.given_frames_loss(jax.random.key(0), apply, CLIPS, **options)[0].mean()

    value, slope = jax.value_and_grad(loss)(0.5)
    assert np.isfinite(value) and np.isfinite(slope) and slope != 0
    assert np.all(seen[0][:, 0] == 0)


def test_given_frames_have_a_time_that_the_network_knows():
    """EDM's network takes log(sigma)/4, and the clean end, sigma = 0, is outside its domain."""
    seen, process = [], diffusion.EDM()

    def apply(x_t, t):
        seen.append(np.asarray(t))
        return x_t

    options = dict(process=process, target=edm, times=times.log_normal_sigma)
    losses, _ = diffusion.given_frames_loss(jax.random.key(0), apply, CLIPS, **options)
    np.testing.assert_allclose(seen[0][:, 0], np.log(process.domain[0]) / 4, rtol=1e-6)
    assert np.isfinite(losses).all()
    grid = diffusion.given_grid(process, jnp.ones(3), diffusion.given_mask((0,), 4))
    assert not np.any(grid[:, 0])


def test_samplers_keep_given_frames_and_fill_in_the_others():
    """A denoiser that expects the mean of the frames at time 0 makes all frames that mean."""
    mask = diffusion.given_mask((0, -1), 4)
    grid = diffusion.given_grid(FLOW, diffusion.uniform_grid(FLOW, 5), mask)

    def denoiser(x_t, t):
        clean = (t == 0)[..., None, None]
        mean = jnp.sum(x_t * clean, 1, keepdims=True) / jnp.sum(clean, 1, keepdims=True)
        mean = jnp.broadcast_to(mean, x_t.shape)
        noise = (x_t - (1 - t)[..., None, None] * mean) / jnp.maximum(t, 1e-6)[..., None, None]
        return diffusion.targets.Prediction(mean, noise)

    start = jnp.where(mask[:, None, None], CLIPS, 10.0)
    sample = jax.jit(functools.partial(diffusion.euler, denoiser, FLOW))
    samples = np.asarray(sample(start, grid))
    np.testing.assert_array_equal(samples[:, [0, 3]], CLIPS[:, jnp.array([0, 3])])
    mean = np.asarray(CLIPS[:, 0] + CLIPS[:, 3]) / 2
    np.testing.assert_allclose(samples[:, 1], mean, atol=1e-4)
    np.testing.assert_allclose(samples[:, 2], mean, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [((4,), "frames 0 to 3"), ((-5,), "frames 0 to 3"), ((0, 1, 2, -1), "all 4 frames are given")],
)
def test_frames_that_cannot_be_given_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        diffusion.given_mask(given, 4)
