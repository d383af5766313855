"""CREPE: the published number of parameters, and frames of sounds at any rate."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.encoders.crepe import CENTS, CREPE, FULL, crepe_frames


def test_parameter_count():
    """The paper has 22.2 million: 22,244,328 with the means and variances of the norms."""
    frames = jax.ShapeDtypeStruct((1, 1024), jnp.float32)
    variables = jax.eval_shape(CREPE(FULL).init, jax.random.key(0), frames)
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    convolutions = (512 + 1) * 1024 + 64 * (1024 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512)
    biases, norms = 3 * 128 + 256 + 512, 2 * (1024 + 3 * 128 + 256 + 512)
    expected = convolutions + biases + norms + (4 * 512 + 1) * 360
    assert count(variables["params"]) == expected and count(variables) == 22_244_328


def test_bins_are_a_fifth_of_a_semitone_apart():
    """The ends are those of the authors' code."""
    np.testing.assert_allclose(10 * 2 ** (CENTS[[0, -1]] / 1200), [31.7, 2005.5], rtol=1e-3)
    np.testing.assert_allclose(np.diff(CENTS), 20, rtol=1e-12)


def test_frames_at_other_rates():
    """A tone at 48 kHz has the frames of the tone at 16 kHz, and a quieter one the same frames."""
    tone = lambda rate: np.sin(2 * np.pi * 440 * np.arange(rate // 4) / rate)[None, :, None]
    frames = crepe_frames(jnp.asarray(tone(16_000), jnp.float32), 16_000)
    others = crepe_frames(jnp.asarray(0.1 * tone(48_000), jnp.float32), 48_000)
    assert frames.shape == others.shape == (1, 26, 1024)
    np.testing.assert_allclose(others[:, 4:-4], frames[:, 4:-4], atol=2e-2)
    np.testing.assert_allclose(frames.mean(-1), 0, atol=1e-5)
