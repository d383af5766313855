"""Wan's causal video autoencoders: 2.1 with an eighth of each side, and 2.2 with a sixteenth.

Wan team 2025, "Wan: Open and advanced large-scale video generative models", section 4.1. The 3-D
convolutions see no later frame. The first frame has a latent frame of its own, so 1 + 4n frames
have 1 + n latent frames. An image is a video of one frame. Wan 2.2's takes patches of 2×2 pixels,
and its levels have shortcuts without parameters, as in Chen et al. 2024, "Deep compression
autoencoder", section 3.2.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.nn import Dense, attention, constrain
from genjax.nn.causal import CausalConv, continues, prepend_context
from genjax.nn.convolution import convolve_enlarged

Dtype = Any


def _norm(x: Array, name: str, param_dtype: Dtype) -> Array:
    """Return x/√(mean square over channels), scaled, at each position of each frame, in float32."""
    # The authors' code divides by max(norm, 1e-12), so the epsilon is as small.
    return nn.RMSNorm(epsilon=1e-24, dtype=jnp.float32, param_dtype=param_dtype, name=name)(x)


def _averaged(
    x: Float[Array, "batch time height width channels"], features: int, frames: int, side: int
) -> Float[Array, "batch out_time out_height out_width features"]:
    """Return a video with fewer frames and pixels, each feature the mean of a group of values.

    The values are those of `frames`×`side`×`side` positions in turn for each channel. Zeros precede
    a first frame that would have no partner.
    """
    x = jnp.pad(x, [(0, 0), (-x.shape[1] % frames, 0), (0, 0), (0, 0), (0, 0)])
    pattern = "b (t p) (h q) (w r) c -> b t h w (c p q r)"
    x = rearrange(x, pattern, p=frames, q=side, r=side)
    if x.shape[-1] % features:
        raise ValueError(
            f"residual levels average {x.shape[-1]} values to {features} features, which does not "
            "divide them: choose other widths"
        )
    return x.reshape(*x.shape[:-1], features, -1).mean(-1)


def _duplicated(
    x: Float[Array, "batch time height width channels"], features: int, frames: int, side: int
) -> Float[Array, "batch out_time out_height out_width features"]:
    """Return a video with more frames and pixels, whose values are the transpose of `_averaged`."""
    values = features * frames * side**2
    if values % x.shape[-1]:
        raise ValueError(
            f"residual levels repeat {x.shape[-1]} features to {values} values, which they do not "
            "divide: choose other widths"
        )
    x = jnp.repeat(x, values // x.shape[-1], axis=-1)
    pattern = "b t h w (c p q r) -> b (t p) (h q) (w r) c"
    return rearrange(x, pattern, p=frames, q=side, r=side)


class ResidualBlock(nn.Module):
    """Add two normalized causal 3×3×3 convolutions to their input.

    A dense layer adapts the input where the number of features changes.
    """

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
    """Double the sides, change the channels to `features` and, if `temporal`, double the frames.

    1 + n frames become 1 + 2n: a causal convolution makes two frames of each but the first. It
    neither changes nor sees the first frame.
    """

    features: int
    temporal: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch out_time out_height out_width features"]:
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
            self.features, (3, 3), conv_general_dilated=convolve_enlarged, name="spatial"
        )
        return spatial(x)


class Middle(nn.Module):
    """Two residual blocks, and self-attention within frames between them."""

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
    residual: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch latent_time latent_height latent_width out_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = CausalConv(self.widths[0], name="conv_in", **types)(x)
        for level, width in enumerate(self.widths):
            before, frames, side = x, 1, 1
            for i in range(self.blocks):
                x = ResidualBlock(width, name=f"level_{level}_block_{i}", **types)(x)
            if level < len(self.widths) - 1:
                temporal = self.temporal_downsample[level]
                frames, side = 1 + temporal, 2
                x = Downsample(temporal, name=f"level_{level}_downsample", **types)(x)
            if self.residual:
                x = x + _averaged(before, width, frames, side)
        x = Middle(name="middle", **types)(x)
        x = nn.silu(_norm(x, "norm_out", self.param_dtype))
        return CausalConv(self.out_channels, name="conv_out", **types)(x)


class Decoder(nn.Module):
    """The decoder of `AutoencoderWan`, with fields of the same meaning. Level 0 is the coarsest."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    temporal_downsample: Sequence[bool]
    residual: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, latents: Float[Array, "batch latent_time latent_height latent_width channels"]
    ) -> Float[Array, "batch time height width out_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        starts = not self.has_variable("cache", "conv_in")
        x = CausalConv(self.widths[-1], name="conv_in", **types)(latents)
        x = Middle(name="middle", **types)(x)
        for level, width in enumerate(reversed(self.widths)):
            before = x
            for i in range(self.blocks + 1):
                x = ResidualBlock(width, name=f"level_{level}_block_{i}", **types)(x)
            if level == len(self.widths) - 1:
                break
            temporal = self.temporal_downsample[-1 - level]
            features = width if self.residual else width // 2
            x = Upsample(features, temporal, name=f"level_{level}_upsample", **types)(x)
            if self.residual:  # the first frame is not doubled
                x = x + _duplicated(before, width, 1 + temporal, 2)[:, int(temporal and starts) :]
        x = nn.silu(_norm(x, "norm_out", self.param_dtype))
        return CausalConv(self.out_channels, name="conv_out", **types)(x)


class AutoencoderWan(GaussianAutoencoder):
    """Wan's autoencoder, whose defaults are the sizes of Wan 2.1's published weights.

    `encode` and `decode` compute all frames of a video at once. `genjax.nn.causal.apply_chunk`
    computes one chunk of a long video. `apply_chunks` computes all chunks in one program. The
    results are the same. The first chunk to encode has one frame (or 1 + 4n), and each other chunk
    has a multiple of four. The first chunk to decode has one latent frame (or 1 + n), and each
    other chunk has any number.

    Decoding 81 frames of 480×832 in float32 takes 58.4 GiB, without weights and output. Each four
    frames more take 2.9 GiB. A chunk of four frames takes 3.2 GiB. Its cache takes 3.5 GiB and
    exists twice, before and after the chunk. XLA reports these numbers for its CPU programs.

    First weights are Flax's. The authors' are PyTorch's, which are √3 times as small, and their
    attention's last layer starts at zero.

    Attributes:
        latent_channels: number of channels of the latents.
        image_channels: number of channels of the decoded video. The encoder takes any number.
        widths: number of channels of each level, from the finest. All but the first are even.
        decoder_widths: those of the decoder; `widths` if None.
        blocks: number of residual blocks of a level of the encoder. The decoder has one more.
        temporal_downsample: for each level but the coarsest, whether its end halves the frames too.
        residual: whether a level adds its input to its output, averaged or repeated to its shape.
        patch_size: side of the patches of pixels that are channels to encoder and decoder.
        latent_mean, latent_deviation: one value for each latent channel. A diffusion model's
            latents are (latents − mean)/deviation.
        dtype: type of the convolutions. Norms, softmax and the outputs are always float32.
    """

    latent_channels: int = 16
    image_channels: int = 3
    widths: Sequence[int] = (96, 192, 384, 384)
    decoder_widths: Sequence[int] | None = None
    blocks: int = 2
    temporal_downsample: Sequence[bool] = (False, True, True)
    residual: bool = False
    patch_size: int = 1
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
    encoder_causal: ClassVar[bool] = True
    decoder_causal: ClassVar[bool] = True

    @property
    def factor(self) -> int:
        """Number of pixels per latent position, along height and along width."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

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
        decoder_widths = self.decoder_widths or self.widths
        if len(decoder_widths) != len(self.widths):
            raise ValueError(
                f"encoder and decoder have as many levels; got widths={self.widths} and "
                f"decoder_widths={decoder_widths}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sizes = (self.blocks, self.temporal_downsample, self.residual)
        self.encoder = Encoder(2 * self.latent_channels, self.widths, *sizes, **types)
        self.quant_conv = Dense(2 * self.latent_channels, **types)
        self.post_quant_conv = Dense(self.latent_channels, **types)
        channels = self.image_channels * self.patch_size**2
        self.decoder = Decoder(channels, decoder_widths, *sizes, **types)

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
        sides = dict(p=self.patch_size, q=self.patch_size)
        patches = rearrange(video, "b t (h p) (w q) c -> b t h w (c q p)", **sides)
        moments = self.quant_conv(self.encoder(patches)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(
        self, latents: Float[Array, "batch latent_time latent_height latent_width latent_channels"]
    ) -> Float[Array, "batch time height width channels"]:
        """Decode latents to a video, in float32 and not clipped to [−1, 1]."""
        patches = self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)
        sides = dict(p=self.patch_size, q=self.patch_size)
        return rearrange(patches, "b t h w (c q p) -> b t (h p) (w q) c", **sides)


def autoencoder_wan_22(**options) -> AutoencoderWan:
    """Return the autoencoder of Wan 2.2's network of 5 billion parameters."""
    sizes = dict(
        latent_channels=48,
        widths=(160, 320, 640, 640),
        decoder_widths=(256, 512, 1024, 1024),
        residual=True,
        patch_size=2,
        latent_mean=(
            *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
            *(-0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825),
            *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
            *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123),
            *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748),
            *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        ),
        latent_deviation=(
            *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013),
            *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
            *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
            *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
            *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
            *(0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
        ),
    )
    return AutoencoderWan(**sizes | options)
