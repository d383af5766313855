"""Tiles of functions whose whole is known: local ones are reproduced, others blend by a formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoencoding.tiling import Tiling, chunks_of_frames, decode_tiled, encode_tiled, stream

# Weights of float32 sum to 1, and values are of order 1.
ROUNDING = 1e-6
SHAPES = [(12, 19), (8, 5), (5, 9, 12)]  # many tiles, one tile, and a video's


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def enlarge(x, factor):
    """Return each place as a block, in which places differ by their position."""
    for axis, scale in enumerate(factor, x.ndim - 1 - len(factor)):
        x = jnp.repeat(x, scale, axis)
        position = jnp.arange(x.shape[axis]) % scale
        x = x + position.reshape(-1, *[1] * (x.ndim - 1 - axis))
    return x


def reduce(x, factor):
    """Return the mean of each block."""
    for axis, scale in enumerate(factor, x.ndim - 1 - len(factor)):
        x = x.reshape(*x.shape[:axis], -1, scale, *x.shape[axis + 1 :]).mean(axis + 1)
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_pointwise_functions_are_reproduced(shape):
    axes = len(shape)
    tile, overlap, factor = (8, 8, 3)[:axes][::-1], (2, 2, 2)[:axes], (2, 3, 4)[:axes]
    latents = normal(2, *shape, 3)

    @jax.jit
    def cycle(latents):
        decoded = decode_tiled(lambda x: enlarge(x, factor), latents, tile, overlap, factor)
        encode = lambda x: {"blocks": reduce(x, factor), "negative": -reduce(x, factor)}
        return decoded, encode_tiled(encode, decoded, tile, overlap, factor)

    decoded, encoded = cycle(latents)
    expected = enlarge(latents, factor)
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=10 * ROUNDING)  # values up to 10
    np.testing.assert_allclose(
        encoded["blocks"], reduce(expected, factor), rtol=0, atol=10 * ROUNDING
    )
    np.testing.assert_array_equal(encoded["negative"], -encoded["blocks"])


@pytest.mark.parametrize("size, tile, overlap", [*itertools.product([9, 16, 23], [5, 8], [1, 4])])
def test_tiles_cover_and_overlap(size, tile, overlap):
    """The input holds its own places, so the tiles show where they lie."""
    tiles = np.asarray(
        Tiling((size,), (tile,), (overlap,)).split(jnp.arange(float(size))[None, :, None])
    )[:, 0, :, 0]
    np.testing.assert_array_equal(tiles[:, 0] + tile - 1, tiles[:, -1])
    assert tiles[0, 0] == 0 and tiles[-1, -1] == size - 1
    overlaps = tiles[:-1, -1] - tiles[1:, 0] + 1
    assert np.all(overlaps >= overlap)
    # Fewer tiles would not be enough.
    assert tile + (len(tiles) - 2) * (tile - overlap) < size


def blur(x, radius):
    """Filter each axis with different taps and zeros beyond the sides, then a nonlinearity."""
    taps = 1.0 + np.arange(2 * radius + 1)
    for axis in (1, 2):
        margins = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(x, margins), x.shape[axis]
        places = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(len(taps))]
        x = sum(tap * place for tap, place in zip(taps / taps.sum(), places, strict=True))
    return jnp.sin(3 * x)


@pytest.mark.parametrize("radius, exact", [(1, True), (2, True), (3, False)])
def test_local_functions_are_those_of_the_whole(radius, exact):
    """An overlap of 8 hides what depends on places within 2 of a tile's edge."""
    x = normal(1, 30, 37, 2)
    tiled = jax.jit(lambda x: decode_tiled(lambda x: blur(x, radius), x, (14, 14), (8, 8), (1, 1)))(
        x
    )
    difference = np.abs(tiled - blur(x, radius)).max()
    assert (difference < ROUNDING) == exact


def test_one_tile_passes_into_the_next_linearly():
    """Tiles [0, 10) and [6, 16) have the values 1 and 3, with a factor of two.

    The transition is from place 14 to 18 of 32.
    """
    tiling = Tiling((16,), (10,), (4,))
    tiles = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1) * jnp.ones((2, 1, 20, 1))
    merged = tiling.merge(tiles, (2,))[0, :, 0]
    expected = np.clip(1 + 2 * (np.arange(32) + 0.5 - 14) / 4, 1, 3)
    np.testing.assert_allclose(merged, expected, atol=ROUNDING)
    rounded = tiling.merge(tiles.astype(jnp.bfloat16), (2,))[0, :, 0]
    np.testing.assert_array_equal(rounded, merged)  # 1 and 3 are exact, and sums are of float32


def test_no_seams():
    """The network gives each tile its own level, the mean of its input.

    Tiles of 16 places start at 0, 8, 16 and 24. So the levels of a linear input rise by 8·slope,
    each time over half of the overlap, 16 pixels.
    """
    slope = 0.1
    x = jnp.broadcast_to(slope * jnp.arange(40.0)[:, None, None], (1, 40, 40, 1))
    level = lambda x: jnp.repeat(jnp.repeat(jnp.broadcast_to(x.mean(), x.shape), 4, 1), 4, 2)
    merged = decode_tiled(level, x, (16, 16), (8, 8), (4, 4))[0, :, :, 0]
    steps = np.abs(np.diff(merged, axis=0)).max(axis=1)
    np.testing.assert_allclose(steps.max(), 8 * slope / 16, rtol=1e-4)
    # The steps over the tiles' borders are no larger than others.
    edges = 4 * np.array([8, 16, 24, 32]) - 1
    assert steps[edges].max() <= np.delete(steps, edges).max()
    np.testing.assert_allclose(np.diff(merged, axis=1), 0, atol=ROUNDING)


def test_the_network_is_traced_once():
    traced = []

    def decode(x):
        traced.append(x.shape)
        return enlarge(x, (2, 2))

    jax.jit(lambda x: decode_tiled(decode, x, (8, 8), (2, 2), (2, 2)))(normal(1, 30, 30, 1))
    assert traced == [(1, 8, 8, 1)]


def test_errors():
    decode = lambda x: x
    with pytest.raises(
        ValueError,
        match=r"at least 1 and less than a tile; got overlaps \(8, 2\) of tiles \(8, 8\)",
    ):
        decode_tiled(decode, normal(1, 9, 9, 1), (8, 8), (8, 2), (1, 1))
    with pytest.raises(ValueError, match="the same number of axes"):
        Tiling((9, 9), (4, 4), (1,))
    with pytest.raises(ValueError, match=r"multiples of \(4, 4\); got \(8, 10\)"):
        encode_tiled(decode, normal(1, 8, 10, 1), (2, 2), (1, 1), (4, 4))


def test_stream_keeps_the_cache_and_is_lazy():
    """A running sum over time reads the video chunk by chunk, no earlier than needed."""
    video, read = np.arange(1.0, 12.0, dtype=np.float32).reshape(1, 11, 1), []

    def chunks():
        for chunk in chunks_of_frames(video, first=1, length=4):
            read.append(chunk.shape[1])
            yield chunk

    @jax.jit
    def step(chunk, cache):
        sums = jnp.cumsum(chunk, axis=1) + (0 if cache is None else cache)
        return sums, sums[:, -1:]

    outputs = stream(step, chunks())
    first = next(outputs)
    assert read == [1]
    sums = np.concatenate([first, *outputs], axis=1)
    assert read == [1, 4, 4, 2]
    np.testing.assert_array_equal(sums, np.cumsum(video, axis=1))


def test_tiles_and_chunks_together():
    """A causal local function of tiles and chunks equals that of the whole.

    Each tile has its own cache.
    """
    video = normal(1, 9, 12, 20, 1)
    smooth = jax.vmap(lambda x: blur(x, 1), in_axes=1, out_axes=1)

    def step(chunk, cache):
        before = jnp.zeros_like(chunk[:, :1]) if cache is None else cache
        frames = jnp.concatenate([before, chunk], axis=1)
        return smooth(frames[:, 1:] - 0.5 * frames[:, :-1]), frames[:, -1:]

    tiling = Tiling((12, 20), (8, 8), (4, 4))

    @jax.jit
    def tiled_step(chunk, caches):
        tiles, caches = jax.lax.map(lambda tile: step(*tile), (tiling.split(chunk), caches))
        return tiling.merge(tiles), caches

    tiled = np.concatenate(
        list(stream(tiled_step, chunks_of_frames(video, first=1, length=4))), axis=1
    )
    np.testing.assert_allclose(tiled, step(video, None)[0], rtol=0, atol=ROUNDING)
