"""Blocks of pixels: where each pixel goes, and the way back."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.inputs.pixel_blocks import PixelBlocks
from genjax.training.workdir import Config

CLIPS = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 6, 3)).astype(np.uint8)


def space(shape=CLIPS.shape[1:], **fields):
    data = Config(image_shape=shape, feature="video", name="clips")
    return PixelBlocks.from_data(data, **dict(frames=4, side=2, mean=-0.5, deviation=0.25) | fields)


def test_a_block_holds_its_frames_rows_and_columns():
    blocks = space().encode(jnp.asarray(CLIPS))
    assert blocks.shape[1:] == space().shape == (3, 2, 3, 4 * 2 * 2 * 3)
    standard = (CLIPS / 127.5 - 1 + 0.5) / 0.25
    second = standard[:, 1:5, 2:4, 4:6].reshape(2, -1)  # frames 1 to 4, row 1 and column 2
    np.testing.assert_allclose(blocks[:, 1, 1, 2], second, rtol=1e-5, atol=1e-5)
    first = np.repeat(standard[:, :1, 2:4, 4:6], 4, axis=1).reshape(2, -1)  # the first frame alone
    np.testing.assert_allclose(blocks[:, 0, 1, 2], first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_no_byte_is_lost_whatever_the_length(frames):
    clips = jnp.asarray(CLIPS[:, :frames])
    decoded = space().decode(space().encode(clips))
    np.testing.assert_array_equal(space().to_data(decoded), clips)


def test_the_first_frame_is_the_mean_of_its_repetitions():
    blocks = space().encode(jnp.asarray(CLIPS))
    noise = np.zeros(blocks.shape, np.float32)
    noise[:, 0, :, :, :12] = 4.0  # of the first of four repetitions
    shifted = space().decode(blocks + noise) - space().decode(blocks)
    np.testing.assert_allclose(shifted[:, 0], 4.0 / 4 * 0.25, atol=1e-5)
    np.testing.assert_allclose(shifted[:, 1:], 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 4, 6, 3), (9, 5, 6, 3), (9, 4, 7, 3)])
def test_clips_that_do_not_divide_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"blocks of 4 frames of 2×2 pixels need clips of 1 \+ n·4"
    ):
        space(shape)
