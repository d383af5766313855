"""LTX-Video (HaCohen et al. 2024, "LTX-Video: realtime video latent diffusion").

A transformer over the latents of a clip, which stand for 8 frames and 32×32 pixels each. The time
enters by adaLN-single and the text by cross-attention. Rotary positions are in seconds and pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.nn import (
    BATCH_AXES,
    Dense,
    Text,
    VectorEmbedding,
    attention,
    constrain,
    constrain_tokens,
    modulate,
    scanned,
    sinusoidal_embedding,
)
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.modulation import per_frame, shift_and_scale
from genjax.nn.rotary import rotate
from genjax.nn.transformer import FeedForward, inline

Dtype = Any
LATENT_FRAMES, LATENT_PIXELS = 8, 32  # that a latent stands for
SECONDS, PIXELS = 20.0, 2048.0  # of the clip that fills the range of positions
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)


class Coordinates(NamedTuple):
    """Where the latents of a clip lie.

    Attributes:
        seconds: of each frame of latents.
        rows, columns: in pixels, of each row and column of latents.
    """

    seconds: Float[Array, " time"]
    rows: Float[Array, " height"]
    columns: Float[Array, " width"]


def video_coordinates(
    time: int,
    height: int,
    width: int,
    frame_rate: float | Float[Array, ""] = 25.0,
    causal: bool = False,
) -> Coordinates:
    """Return the coordinates of `time`×`height`×`width` latents.

    Args:
        frame_rate: frames per second.
        causal: whether the first latents stand for one frame alone, as from LTX-Video 0.9.5 on.
    """
    frames = LATENT_FRAMES * jnp.arange(time, dtype=jnp.float32)
    if causal:
        frames = jnp.maximum(frames + 1 - LATENT_FRAMES, 0)
    rows, columns = (LATENT_PIXELS * jnp.arange(n, dtype=jnp.float32) for n in (height, width))
    return Coordinates(frames / frame_rate, rows, columns)


def rotations(coordinates: Coordinates, features: int) -> Float[Array, "length pairs 2"]:
    """Return (cos, sin) of the angles of each pair of features, as `rotary.rotate` takes them.

    Coordinate a in [0, 1] has the angles (2a − 1)·(π/2)·10000^(i/(n − 1)), i = 0 … n − 1. Pair
    3i + j is of coordinate j. The first features stay as they are if 6 does not divide `features`.

    Angles are float32, as in the published networks: the largest, 15,708, errs by up to 5e-4.
    """
    count = features // 6
    frequencies = np.float32(10_000.0) ** np.linspace(0, 1, count, dtype=np.float32)
    frequencies = frequencies * np.float32(np.pi) / np.float32(2)
    wholes = SECONDS, PIXELS, PIXELS
    fractions = [places / whole for places, whole in zip(coordinates, wholes, strict=True)]
    return fraction_rotations(fractions, frequencies, features)


def fraction_rotations(
    fractions: Sequence[Float[Array, " _"]],
    frequencies: Float[np.ndarray, " count"],
    features: int,
) -> Float[Array, "length pairs 2"]:
    """Return (cos, sin) of (2a − 1)·frequency for every point of a grid, in row-major order.

    Args:
        fractions: the coordinates a along each axis, in [0, 1].
        frequencies: of each axis. With n axes, pair n·i + j turns by frequency i of axis j.
        features: of a token; the first pairs stay as they are if the others are fewer.
    """
    grid, axes, count = tuple(map(len, fractions)), len(fractions), len(frequencies)
    tables = []
    for axis, places in enumerate(fractions):
        angles = (2 * places - 1)[:, None] * frequencies
        table = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        shape = [1] * axes + [count, 2]
        shape[axis] = grid[axis]
        tables.append(jnp.broadcast_to(table.reshape(shape), (*grid, count, 2)))
    turned = jnp.stack(tables, axis=-2).reshape(-1, axes * count, 2)
    still = features // 2 - axes * count
    unturned = jnp.broadcast_to(jnp.array([1.0, 0.0]), (len(turned), still, 2))
    return jnp.concatenate([unturned, turned], axis=1)


class WideNormAttention(nn.Module):
    """Attention whose norms of queries and keys are over all heads, as are the rotations.

    Attributes:
        num_heads: divides the features of a token.
        dtype: type of the matrix products.
    """

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys features"],
        rotations: Float[Array, "queries pairs 2"] | None = None,
        mask: Bool[Array, "batch 1 1 keys"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda name: Dense(x.shape[-1], kernel_init=xavier, name=name, **types)
        norm = lambda name: nn.RMSNorm(
            epsilon=1e-5, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )
        query = norm("query_norm")(dense("query")(x))
        key = norm("key_norm")(dense("key")(context))
        if rotations is not None:
            query, key = (rotate(a[:, :, None], rotations) for a in (query, key))
        split = lambda a: a.astype(self.dtype).reshape(*a.shape[:2], self.num_heads, -1)
        out = attention(*map(split, (query, key, dense("value")(context))), mask)
        return dense("projection")(out.reshape(x.shape))


def rms_norm(x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """Return x/√(mean(x²) + ε) over the features, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


class Block(nn.Module):
    """Self-attention, cross-attention to text, and a feed-forward layer (figure 4).

    The time modulates the first and the last.
    """

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        modulation: Float[Array, "batch times 6 features"],
        text: Float[Array, "batch text_length features"],
        rotations: Float[Array, "length pairs 2"],
        mask: Bool[Array, "batch 1 1 text_length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        parts = ModulationTable(6, self.param_dtype, name="modulation")(modulation)
        parts = [per_frame(part, x.shape[1]) for part in parts]
        attend = lambda name: WideNormAttention(self.num_heads, name=name, **types)
        h = shift_and_scale(rms_norm(x), *parts[:2])
        x = x + parts[2] * attend("self_attention")(h, h, rotations)
        x = constrain_tokens(x + attend("cross_attention")(x, text, mask=mask))
        mlp = FeedForward(4 * x.shape[-1], rms_norm, **types)
        return inline(self, mlp)(x, *parts[3:]), None


class LTXVideo(nn.Module):
    """A transformer over latents of video, with the time by adaLN-single and text beside it.

    Any length, height and width will do.

    Attributes:
        width: features of a token; divisible by 2 and by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    width: int
    depth: int
    num_heads: int
    out_channels: int | None = None
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    patch_size: ClassVar[int] = 1  # side of a token, in latents
    divisor: ClassVar[int] = 1  # number that the input's height and width are multiples of

    def _dense(self, features: int, init: Callable, name: str, dtype: Dtype) -> Dense:
        types = dict(dtype=dtype, param_dtype=self.param_dtype)
        return Dense(features, kernel_init=init, name=name, **types)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time height width channels"],
        t: Float[Array, " batch *times"],
        text: Text,
        coordinates: Coordinates | None = None,
    ) -> Float[Array, "batch time height width out_channels"]:
        """
        Args:
            t: one time for a clip, `[batch]`, or one for each frame, `[batch time]`; a frame that
                is given has time 0.
            coordinates: of the latents; those of 25 frames per second if None.
        """
        batch, *sides, channels = x.shape
        tokens = self._dense(self.width, xavier, "patch_embedding", self.dtype)(
            x.reshape(batch, -1, channels)
        )
        tokens = constrain_tokens(tokens.astype(jnp.float32))

        conditioning = VectorEmbedding(self.width, self.param_dtype, name="time_embedding")(
            sinusoidal_embedding(t.reshape(-1) * self.time_scale, 256)
        ).reshape(batch, -1, self.width)
        modulation = self._dense(6 * self.width, small, "modulation", jnp.float32)(
            nn.silu(conditioning)
        ).reshape(batch, -1, 6, self.width)

        states = self._dense(self.width, small, "text_in", self.dtype)(text.tokens)
        states = self._dense(self.width, small, "text_out", self.dtype)(nn.gelu(states))
        mask = None if text.mask is None else text.mask[:, None, None]
        coordinates = video_coordinates(*sides) if coordinates is None else coordinates

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        tokens, _ = blocks(self.num_heads, self.dtype, self.param_dtype, name="blocks")(
            tokens, modulation, states, rotations(coordinates, self.width), mask
        )

        parts = ModulationTable(2, self.param_dtype, name="head_modulation")(
            conditioning[:, :, None]
        )
        shift, scale = (per_frame(part, tokens.shape[1]) for part in parts)
        out_channels = self.out_channels or channels
        out = self._dense(out_channels, zeros, "head", jnp.float32)(modulate(tokens, shift, scale))
        return constrain(out.reshape(batch, *sides, out_channels), BATCH_AXES)


def ltx_video_2b(**options) -> LTXVideo:
    """Return the network of LTX-Video 0.9: 1.9 billion parameters, latents of 128 channels."""
    return LTXVideo(width=2048, depth=28, num_heads=32, **options)


def ltx_video_13b(**options) -> LTXVideo:
    """Return the network of LTX-Video 0.9.7 with 13 billion parameters."""
    return LTXVideo(width=4096, depth=48, num_heads=32, **options)
