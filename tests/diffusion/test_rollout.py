"""Roll-outs: equal to the computation without a cache, guided, and independent of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from genjax import diffusion
from genjax.diffusion.rollout import Rolled
from genjax.diffusion.targets import velocity
from genjax.models.transformers.video_dit import VideoDiT

FLOW = diffusion.RectifiedFlow()
LENGTH, WINDOW, GIVEN = 5, 3, 1
NETWORK = VideoDiT((1, 2, 2), 24, 2, 3, num_classes=3, causal=True, window=WINDOW)
RANDOM = np.random.default_rng(0)
GRID = jnp.array([1.0, 0.6, 0.0])
SCALES = 1.5, 2.5


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape, np.float32))


def perturbed():
    """Return variables with which attention is far from an average."""
    inputs = normal(1, 2, 2, 4, 2), jnp.ones(1), jnp.zeros(1, int)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs)
    is_norm = lambda path: "_norm" in jax.tree_util.keystr(path)
    return jax.tree.map_with_path(lambda path, a: is_norm(path) + 0.2 * normal(*a.shape), shapes)


VARIABLES = perturbed()
NOISE, CLIP, LABELS = normal(2, LENGTH, 2, 4, 2), normal(2, GIVEN, 2, 4, 2), jnp.array([0, 2])


def network(x, t, labels, cache):
    return NETWORK.apply(VARIABLES, x, t, labels, cache, method="extend")


@jax.jit
def with_cache(noise, given, labels, scales):
    denoiser = diffusion.predict(lambda *inputs: network(*inputs)[0], FLOW, velocity)
    remember = lambda *inputs: network(*inputs)[1]
    rolled = diffusion.guide_roll_out(denoiser, remember, FLOW, labels, 3, *scales)
    memory = NETWORK.empty_cache((1 + len(scales)) * len(noise), *noise.shape[1:4])
    return diffusion.roll_out(rolled, diffusion.euler, FLOW, noise, GRID, memory, given=given)


@jax.jit
def last_velocity(frames, t, labels):
    """Return the velocity of the last frame, of a whole clip without a cache."""
    return NETWORK.apply(VARIABLES, frames, t, labels)[:, -1]


def without_cache(noise, given, labels, scales):
    """Euler's steps of each frame after all frames before it, each guided part on its own."""
    frames = given
    for i in range(GIVEN, LENGTH):
        x = noise[:, i]
        clean, absent = jnp.zeros((2, i)), jnp.ones((2, i))
        for t, s in zip(GRID[:-1], GRID[1:], strict=True):
            now = jnp.full((2, 1), t)
            whole = jnp.concatenate([frames, x[:, None]], 1)
            hidden = jnp.concatenate([noise[:, :i], x[:, None]], 1)
            times = jnp.concatenate([clean, now], 1)
            full = last_velocity(whole, times, labels)
            guided = full + (scales[0] - 1) * (full - last_velocity(whole, times, 3 + 0 * labels))
            if len(scales) > 1:
                times = jnp.concatenate([absent, now], 1)
                guided += (scales[1] - 1) * (full - last_velocity(hidden, times, labels))
            x = x + (s - t) * guided
        frames = jnp.concatenate([frames, x[:, None]], 1)
    return frames


def test_a_cached_roll_out_equals_the_whole_computation():
    """A clip is longer than the window, starts with a given frame, and is guided twice."""
    expected = without_cache(NOISE, CLIP, LABELS, SCALES)
    made = with_cache(NOISE, CLIP, LABELS, SCALES)
    assert 0.1 < np.std(expected[:, GIVEN:]) < 10
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(made[:, :GIVEN], CLIP)
    once = with_cache(NOISE, CLIP, LABELS, SCALES[:1])
    expected = without_cache(NOISE, CLIP, LABELS, SCALES[:1])
    np.testing.assert_allclose(once, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(once - made)[:, GIVEN:].max() > 0.01  # guidance on the history does something
    plain = with_cache(NOISE, CLIP, LABELS, (SCALES[0], 1.0))
    np.testing.assert_allclose(plain, once, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_is_that_of_condition_and_history():
    """The denoiser answers its condition as the fraction; 3 is the null condition."""
    denoiser = lambda x_t, t, condition, memory: diffusion.Prediction(x_t, x_t, 1.0 * condition)
    rolled = diffusion.guide_roll_out(denoiser, print, FLOW, LABELS, 3, *SCALES)
    frame = NOISE[:, :1]
    np.testing.assert_array_equal(rolled.denoise(frame, jnp.ones(2), ()).fraction, LABELS)


def test_clean_frames_are_remembered_at_the_first_time_that_the_network_knows():
    """EDM's is sigma = 0.002. Frames without a history are noise, at 80."""
    remember = lambda frames, t, condition, memory: (frames, t, condition)
    rolled = diffusion.guide_roll_out(print, remember, diffusion.EDM(), LABELS, 3, *SCALES)
    clean, noise = NOISE[:, :1], NOISE[:, 1:2]
    shown, times, labels = rolled.remember(clean, noise, ())
    np.testing.assert_array_equal(shown, np.concatenate([clean, clean, noise]))
    np.testing.assert_array_equal(times[:, 0], np.float32([0.002] * 4 + [80.0] * 2))
    np.testing.assert_array_equal(labels, [0, 2, 3, 3, 0, 2])


def test_each_frame_of_each_sample_draws_its_own_noise():
    """The sampler returns what its keys draw, and a sample is the same in a smaller batch."""
    draw = lambda denoiser, process, z, times, *, keys: jax.vmap(
        lambda key: jax.random.normal(key, z.shape[1:])
    )(keys)
    rolled = Rolled(None, lambda frames, noise, memory: memory)
    keys = diffusion.sample_keys(jax.random.key(0), jnp.arange(3))
    roll_out = functools.partial(diffusion.roll_out, rolled, draw, FLOW)
    clips = roll_out(jnp.zeros((3, 4, 5)), GRID, (), keys=keys)
    assert len(np.unique(clips)) == 3 * 4 * 5
    alone = roll_out(jnp.zeros((1, 4, 5)), GRID, (), keys=keys[2:])
    np.testing.assert_array_equal(alone[0], clips[2])
    continued = roll_out(jnp.zeros((3, 4, 5)), GRID, (), given=clips[:, :2], keys=keys)
    np.testing.assert_array_equal(continued, clips)  # noise depends on a frame's number in the clip
