"""Wan 2.1's causal video autoencoder, with a quarter of the frames and an eighth of each side.

Wan team 2025, "Wan: Open and advanced large-scale video generative models", section 4.1. The 3-D
convolutions see no later frame. The first frame has a latent frame of its own, so 1 + 4n frames
have 1 + n latent frames. An image is a video of one frame.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from genjax.nn import Dense, attention, constrain
from genjax.nn.causal import CausalConv, continues, prepend_context
from genjax.nn.convolution import convolve_enlarged

Dtype = Any


def _norm(x: Array, name: str, param_dtype: Dtype) -> Array:
    """Return x/√(mean square over channels), scaled, at each position of each frame, in float32."""
    # The authors' code divides by max(norm, 1e-12), so the epsilon is as small.
    return nn.RMSNorm(epsilon=1e-24, dtype=jnp.float32, param_dtype=param_dtype, name=name)(x)


class ResidualBlock(nn.Module):
    features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = nn.silu(_norm(x, "norm1", self.param_dtype))
        h = CausalConv(self.features, name="conv1", **types)(h)
        h = nn.silu(_norm(h, "norm2", self.param_dtype))
        h = CausalConv(self.features, name="conv2", **types)(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, name="shortcut", **types)(x)
        return constrain(x + h, ("data", "fsdp"))


class FrameAttention(nn.Module):
    """Self-attention with one head among the positions of each frame."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width channels"]:
        batch, _, height, _, channels = x.shape
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = Dense(3 * channels, name="qkv", **types)(_norm(x, "norm", self.param_dtype))
        h = attention(*rearrange(h, "b t h w (parts c) -> parts (b t) (h w) 1 c", parts=3))
        h = rearrange(h, "(b t) (h w) 1 c -> b t h w c", b=batch, h=height)
        return constrain(x + Dense(channels, name="projection", **types)(h), ("data", "fsdp"))


class Downsample(nn.Module):
    """Halve the sides and, if `temporal`, the frames: 1 + 2n frames become 1 + n.

    The convolution in time does not change the first frame.
    """

    temporal: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch out_time out_height out_width channels"]:
        conv = functools.partial(
            nn.Conv, x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype
        )
        x = conv((3, 3), strides=2, padding=((0, 1), (0, 1)), name="spatial")(x)
        if not self.temporal:
            return x
        head, tail = jnp.split(x, [0 if continues(self) else 1], axis=1)
        tail = prepend_context(self, tail, x[:, :1])
        tail = conv((3, 1, 1), strides=(2, 1, 1), padding="VALID", name="temporal")(tail)
        return jnp.concatenate([head, tail], axis=1)


class Upsample(nn.Module):
    """Double the sides, halve the channels and, if `temporal`, double the frames.

    1 + n frames become 1 + 2n: a causal convolution makes two frames of each but the first. It
    neither changes nor sees the first frame.
    """

    temporal: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch out_time out_height out_width out_channels"]:
        channels = x.shape[-1]
        conv = functools.partial(nn.Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        if self.temporal:
            head, tail = jnp.split(x, [0 if continues(self) else 1], axis=1)
            tail = prepend_context(
                self, tail, jnp.zeros_like(x, shape=(x.shape[0], 2, *x.shape[2:]))
            )
            tail = conv(2 * channels, (3, 1, 1), padding="VALID", name="temporal")(tail)
            tail = rearrange(tail, "b t h w (two c) -> b (t two) h w c", two=2)
            x = jnp.concatenate([head, tail], axis=1)
        spatial = conv(
            channels // 2, (3, 3), conv_general_dilated=convolve_enlarged, name="spatial"
        )
        return spatial(x)


class Middle(nn.Module):
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = ResidualBlock(x.shape[-1], name="block_0", **types)(x)
        x = FrameAttention(name="attention", **types)(x)
        return ResidualBlock(x.shape[-1], name="block_1", **types)(x)


class Encoder(nn.Module):
    """The encoder of `AutoencoderWan`, with fields of the same meaning."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    temporal_downsample: Sequence[bool]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch latent_time latent_height latent_width out_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = CausalConv(self.widths[0], name="conv_in", **types)(x)
        for level, width in enumerate(self.widths):
            for i in range(self.blocks):
                x = ResidualBlock(width, name=f"level_{level}_block_{i}", **types)(x)
            if level < len(self.widths) - 1:
                temporal = self.temporal_downsample[level]
                x = Downsample(temporal, name=f"level_{level}_downsample", **types)(x)
        x = Middle(name="middle", **types)(x)
        x = nn.silu(_norm(x, "norm_out", self.param_dtype))
        return CausalConv(self.out_channels, name="conv_out", **types)(x)


class Decoder(nn.Module):
    """The decoder of `AutoencoderWan`, with fields of the same meaning. Level 0 is the coarsest."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    temporal_downsample: Sequence[bool]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, latents: Float[Array, "batch latent_time latent_height latent_width channels"]
    ) -> Float[Array, "batch time height width out_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = CausalConv(self.widths[-1], name="conv_in", **types)(latents)
        x = Middle(name="middle", **types)(x)
        for level, width in enumerate(reversed(self.widths)):
            for i in range(self.blocks + 1):
                x = ResidualBlock(width, name=f"level_{level}_block_{i}", **types)(x)
            if level < len(self.widths) - 1:
                temporal = self.temporal_downsample[-1 - level]
                x = Upsample(temporal, name=f"level_{level}_upsample", **types)(x)
        x = nn.silu(_norm(x, "norm_out", self.param_dtype))
        return CausalConv(self.out_channels, name="conv_out", **types)(x)


class AutoencoderWan(nn.Module):
    """Wan 2.1's autoencoder, whose defaults are the sizes of the published weights.

    `encode` and `decode` compute all frames of a video at once. `genjax.nn.causal.apply_chunk`
    computes one chunk of a long video. `apply_chunks` computes all chunks in one program. The
    results are the same. The first chunk to encode has one frame (or 1 + 4n), and each other chunk
    has a multiple of four. The first chunk to decode has one latent frame (or 1 + n), and each
    other chunk has any number.

    Decoding 81 frames of 480×832 in float32 takes 69.7 GiB, without weights and output. Each four
    frames more take 3.4 GiB. A chunk of four frames takes 3.4 GiB. Its cache takes 3.5 GiB and
    exists twice, before and after the chunk. XLA reports these numbers of its CPU programs.

    Attributes:
        latent_channels: number of channels of the latents.
        image_channels: number of channels of the decoded video. The encoder takes any number.
        widths: number of channels of each level, from the finest. All but the first are even.
        blocks: number of residual blocks of a level of the encoder. The decoder has one more.
        temporal_downsample: for each level but the coarsest, whether its end halves the frames too.
        latent_mean, latent_deviation: one value for each latent channel. A diffusion model's
            latents are (latents − mean)/deviation.
        dtype: type of the convolutions. Norms, softmax and the outputs are always float32.
    """

    latent_channels: int = 16
    image_channels: int = 3
    widths: Sequence[int] = (96, 192, 384, 384)
    blocks: int = 2
    temporal_downsample: Sequence[bool] = (False, True, True)
    latent_mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    latent_deviation: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Number of pixels per latent position, along height and along width."""
        return 2 ** (len(self.widths) - 1)

    @property
    def temporal_factor(self) -> int:
        """Number of frames per latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)

    def setup(self):
        if len(self.temporal_downsample) != len(self.widths) - 1:
            raise ValueError(
                f"temporal_downsample has an entry for each of {len(self.widths)} levels but the "
                f"coarsest; got {len(self.temporal_downsample)}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sizes = (self.widths, self.blocks, self.temporal_downsample)
        self.encoder = Encoder(2 * self.latent_channels, *sizes, **types)
        self.quant_conv = Dense(2 * self.latent_channels, **types)
        self.post_quant_conv = Dense(self.latent_channels, **types)
        self.decoder = Decoder(self.image_channels, *sizes, **types)

    def encode(
        self, video: Float[Array, "batch time height width channels"]
    ) -> tuple[
        Float[Array, "batch latent_time latent_height latent_width latent_channels"],
        Float[Array, "batch latent_time latent_height latent_width latent_channels"],
    ]:
        """Return the mean and the log-variance of the latents, in float32.

        The log-variance is clipped to [−30, 20].

        Raises:
            ValueError: the sides are not multiples of `factor`, or the number of frames is not
                1 + n·`temporal_factor` (n·`temporal_factor` in a chunk after the first).
        """
        first = 0 if self.has_variable("cache", "encoder") else 1
        frames, height, width = video.shape[1:4]
        if frames < 1 or (frames - first) % self.temporal_factor:
            raise ValueError(
                f"{'a chunk after the first' if not first else 'a video, or its first chunk,'} has "
                f"{'1 + ' * first}n·{self.temporal_factor} frames; got {frames}: leave out the "
                f"last {(frames - first) % self.temporal_factor} or repeat the last frame"
            )
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width are multiples of {self.factor}; got {height}×{width}: "
                "crop or resize"
            )
        moments = self.quant_conv(self.encoder(video)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(
        self, latents: Float[Array, "batch latent_time latent_height latent_width latent_channels"]
    ) -> Float[Array, "batch time height width channels"]:
        """Decode latents to a video, in float32 and not clipped to [−1, 1]."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(
        self, video: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width channels"]:
        """Return the reconstruction from the latents' mean."""
        return self.decode(self.encode(video)[0])
