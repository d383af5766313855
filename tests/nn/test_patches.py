import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import patchify, patchify_video, unpatchify, unpatchify_video


def test_order_is_row_major_over_patches_and_then_row_column_channel():
    images = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    tokens = patchify(images, 2)
    assert tokens.shape == (2, 2 * 3, 2 * 2 * 3)
    for b, i, j, row, column, channel in np.ndindex(2, 2, 3, 2, 2, 3):
        feature = (row * 2 + column) * 3 + channel
        assert tokens[b, i * 3 + j, feature] == images[b, 2 * i + row, 2 * j + column, channel]


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_unpatchify_is_the_inverse(patch_size):
    images = jnp.arange(2 * 6 * 12 * 3, dtype=jnp.float32).reshape(2, 6, 12, 3)
    np.testing.assert_array_equal(
        unpatchify(patchify(images, patch_size), patch_size, 6, 12), images
    )


@pytest.mark.parametrize("shape", [(1, 5, 4, 1), (1, 4, 5, 1)])
def test_patchify_refuses_sides_that_do_not_divide(shape):
    with pytest.raises(ValueError, match=f"images of {shape[1]}×{shape[2]} .* patches of 2×2"):
        patchify(jnp.zeros(shape), 2)


def test_patches_of_videos_are_in_row_major_order():
    video = jnp.arange(2 * 4 * 2 * 9 * 3, dtype=jnp.float32).reshape(2, 4, 2, 9, 3)
    tokens = patchify_video(video, (2, 1, 3))
    assert tokens.shape == (2, 2 * 2 * 3, 2 * 1 * 3 * 3)
    patch = video[1, 2:4, 1:2, 6:9]
    np.testing.assert_array_equal(tokens[1, 1 * 2 * 3 + 1 * 3 + 2], patch.reshape(-1))
    np.testing.assert_array_equal(unpatchify_video(tokens, (2, 1, 3), (4, 2, 9)), video)


def test_patches_of_one_frame_are_those_of_images():
    video = jnp.arange(2 * 3 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 3, 4, 6, 3)
    expected = [patchify(video[:, i], 2) for i in range(3)]
    np.testing.assert_array_equal(
        patchify_video(video, (1, 2, 2)), jnp.concatenate(expected, axis=1)
    )


def test_videos_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3×4×4 .* do not divide into patches of 2×2×2"):
        patchify_video(jnp.zeros((1, 3, 4, 4, 1)), (2, 2, 2))
