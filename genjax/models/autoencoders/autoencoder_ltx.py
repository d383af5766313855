"""The autoencoders of LTX-Video and LTX-2: latents of 128 channels for 8 frames of 32×32 pixels.

HaCohen et al. 2024, "LTX-Video: realtime video latent diffusion", section 2.1. The encoder sees no
later frame. The decoder does unless `decoder_causal`. Copies of a video's first and last frame pad
convolutions in time. The first frame has a latent frame of its own, so 1 + 8n frames have 1 + n
latent frames. From version 0.9.1 on, the decoder takes the noise level of its latents and denoises
them too. The decoder of LTX-2 (HaCohen et al. 2026, "LTX-2: efficient joint audio-visual foundation
model") does not.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.nn import Dense, VectorEmbedding, constrain, sinusoidal_embedding
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.causal import continues, convolve_video, prepend_context

Dtype = Any
Video = Float[Array, "batch time height width channels"]
Vector = Float[Array, "batch channels"]
Changed = Float[Array, "batch new_time new_height new_width new_channels"]
# The strides in time, height and width of a level, by the kind of its change of size.
STRIDES = dict(conv=(2, 2, 2), spatial=(1, 2, 2), temporal=(2, 1, 1), spatiotemporal=(2, 2, 2))


def _norm(x: Video) -> Video:
    """Return x/√(mean square over channels), at each position of each frame, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-8)


def _modulated(x: Video, shift: Vector, scale: Vector) -> Video:
    shift, scale = (part[:, None, None, None] for part in (shift, scale))
    return x * (1 + scale) + shift


def _gathered(x: Video, strides: Sequence[int]) -> Changed:
    """Return a video whose channels are the values of `strides` frames, rows and columns."""
    sizes = dict(zip("pqr", strides, strict=True))
    return rearrange(x, "b (t p) (h q) (w r) c -> b t h w (c p q r)", **sizes)


def _spread(x: Video, strides: Sequence[int]) -> Changed:
    """Return the video from which `_gathered` makes `x`."""
    sizes = dict(zip("pqr", strides, strict=True))
    return rearrange(x, "b t h w (c p q r) -> b (t p) (h q) (w r) c", **sizes)


def _product(kinds: Sequence[str | None]) -> np.ndarray:
    """Return the product of the strides of all levels, in time, height and width."""
    return np.prod([(1, 1, 1), *(STRIDES[kind] for kind in kinds if kind)], axis=0)


class Conv(nn.Module):
    """A 3×3×3 convolution; the first frame is repeated before a video, and the last one after it.

    Attributes:
        causal: whether no output depends on a later frame: then two copies precede the video.
        strides: in time, height and width.
        reflect: whether mirrored pixels surround a frame instead of zeros. A side then has 2 pixels
            or more.
    """

    features: int
    causal: bool
    dtype: Dtype
    param_dtype: Dtype
    strides: Sequence[int] = (1, 1, 1)
    reflect: bool = False

    @nn.compact
    def __call__(self, x: Video) -> Changed:
        shape = (3, 3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.causal:
            # Outputs are at frames 0, stride, …; those of a later chunk begin with its first one.
            early = self.strides[0] - 1 if continues(self) else 0
            x = prepend_context(self, x, jnp.repeat(x[:, :1], 2, axis=1))[:, early:]
        else:
            x = jnp.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
        padding = [(1, 1), (1, 1)]
        if self.reflect:
            x = jnp.pad(x, [(0, 0), (0, 0), *padding, (0, 0)], mode="reflect")
            padding = [(0, 0), (0, 0)]
        if max(self.strides) == 1:
            x = convolve_video(x, kernel, padding)
        else:
            axes = ("NDHWC", "DHWIO", "NDHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, self.strides, [(0, 0), *padding], dimension_numbers=axes
            )
        return x + bias.astype(self.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm that the time may modulate."""

    features: int
    causal: bool
    noise: bool
    dtype: Dtype
    param_dtype: Dtype
    reflect: bool = False

    @nn.compact
    def __call__(
        self, x: Video, time: Float[Array, "batch time_features"] | None = None
    ) -> Float[Array, "batch time height width features"]:
        """
        Args:
            time: the level's embedding of the time; None for a network without times.
        """
        parts, h = (), x
        if time is not None:
            table = ModulationTable(4, self.param_dtype, name="modulation")
            parts = table(time.reshape(len(time), 4, -1))
        for i in (1, 2):
            h = _norm(h)
            h = _modulated(h, *parts[2 * i - 2 : 2 * i]) if parts else h
            types = self.causal, self.dtype, self.param_dtype
            conv = Conv(self.features, *types, reflect=self.reflect, name=f"conv{i}")
            h = conv(nn.silu(h))
            if self.noise:
                h = h + self._noise(h, f"noise{i}")
        if x.shape[-1] != self.features:
            types = dict(param_dtype=self.param_dtype)
            x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm3", **types)(x)
            x = Dense(self.features, dtype=self.dtype, name="shortcut", **types)(x)
        return constrain(x + h, ("data", "fsdp"))

    def _noise(self, x: Video, name: str) -> Float[Array, "height width features"] | float:
        """Return noise, the same for all frames; none without the random stream "noise"."""
        scale = self.param(name, nn.initializers.zeros, (self.features,), self.param_dtype)
        if self.is_initializing() or not self.has_rng("noise"):
            return 0.0
        noise = jax.random.normal(self.make_rng("noise"), x.shape[2:4])
        return noise[..., None] * scale


class Downsample(nn.Module):
    """Fewer frames, rows or columns: a convolution and a mean, of `strides` values in turn."""

    features: int
    strides: Sequence[int]
    causal: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Video) -> Changed:
        values = self.features // math.prod(self.strides)
        conv = Conv(values, self.causal, self.dtype, self.param_dtype, name="conv")
        early = 0 if continues(conv) else self.strides[0] - 1
        x = jnp.concatenate([x[:, :early], x], axis=1)
        mean = _gathered(x, self.strides)
        mean = mean.reshape(*mean.shape[:-1], self.features, -1).mean(-1)
        return _gathered(conv(x), self.strides) + mean


class Upsample(nn.Module):
    """More frames, rows or columns; with a stride of 2 in time, 1 + n frames become 1 + 2n.

    Attributes:
        strides: how many times the frames, the rows and the columns are multiplied.
        factor: the input's channels are divided by this number.
        residual: whether the input is added, its channels spread and repeated.
    """

    strides: Sequence[int]
    factor: int
    residual: bool
    causal: bool
    dtype: Dtype
    param_dtype: Dtype
    reflect: bool = False

    @nn.compact
    def __call__(self, x: Video) -> Changed:
        types = self.causal, self.dtype, self.param_dtype
        values = math.prod(self.strides)
        features = values * x.shape[-1] // self.factor
        conv = Conv(features, *types, reflect=self.reflect, name="conv")
        early = 0 if continues(conv) else self.strides[0] - 1
        h = _spread(conv(x), self.strides)
        if self.residual:
            h = h + jnp.tile(_spread(x, self.strides), values // self.factor)
        return h[:, early:]


class Encoder(nn.Module):
    """The encoder of `AutoencoderLTX`, with fields of the same meaning."""

    out_channels: int
    widths: Sequence[int]
    blocks: Sequence[int]
    downsample: Sequence[str | None]
    causal: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Video) -> Changed:
        types = dict(causal=self.causal, dtype=self.dtype, param_dtype=self.param_dtype)
        block = functools.partial(ResidualBlock, noise=False, **types)
        x = Conv(self.widths[0], name="conv_in", **types)(x)
        for level, kind in enumerate(self.downsample):
            width, after = self.widths[level : level + 2]
            for i in range(self.blocks[level]):
                x = block(width, name=f"level_{level}_block_{i}")(x)
            if kind == "conv":
                x = Conv(width, strides=STRIDES[kind], name=f"level_{level}_conv", **types)(x)
            elif kind is not None:
                down = Downsample(after, STRIDES[kind], name=f"level_{level}_downsample", **types)
                x = down(x)
            if x.shape[-1] != after:
                x = block(after, name=f"level_{level}_change")(x)
        for i in range(self.blocks[-1]):
            x = block(self.widths[-1], name=f"middle_block_{i}")(x)
        return Conv(self.out_channels, name="conv_out", **types)(nn.silu(_norm(x)))


class Decoder(nn.Module):
    """The decoder of `AutoencoderLTX`, with fields of the same meaning. Level 0 is the coarsest."""

    out_channels: int
    widths: Sequence[int]
    blocks: Sequence[int]
    upsample: Sequence[str | None]
    noise: Sequence[bool]
    upsample_residual: Sequence[bool]
    upsample_factor: Sequence[int]
    takes_time: bool
    causal: bool
    reflect: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, latents: Video, t: Float[Array, " batch"] | None) -> Changed:
        types = dict(causal=self.causal, dtype=self.dtype, param_dtype=self.param_dtype)
        types |= dict(reflect=self.reflect)
        if self.takes_time:
            scale = self.param("time_scale", nn.initializers.constant(1000.0), ())
            t = sinusoidal_embedding(t * scale, 256)

        def embed(features: int, name: str) -> Float[Array, "batch features"] | None:
            if not self.takes_time:
                return None
            return VectorEmbedding(features, self.param_dtype, name=name)(t)

        x = Conv(self.widths[-1], name="conv_in", **types)(latents)
        time = embed(4 * x.shape[-1], "middle_time")
        for i in range(self.blocks[-1]):
            x = ResidualBlock(x.shape[-1], noise=self.noise[-1], name=f"middle_block_{i}", **types)(
                x, time
            )
        for level, index in enumerate(reversed(range(len(self.widths)))):
            factor, noise = self.upsample_factor[index], self.noise[index]
            width = self.widths[index] // factor
            time = embed(4 * width, f"level_{level}_time")
            if x.shape[-1] != width * factor:
                change = ResidualBlock(width, noise=noise, name=f"level_{level}_change", **types)
                x = change(x)
            if self.upsample[index]:
                sizes = (STRIDES[self.upsample[index]], factor, self.upsample_residual[index])
                x = Upsample(*sizes, name=f"level_{level}_upsample", **types)(x)
            for i in range(self.blocks[index]):
                x = ResidualBlock(width, noise=noise, name=f"level_{level}_block_{i}", **types)(
                    x, time
                )
        x = _norm(x)
        if self.takes_time:
            table = ModulationTable(2, self.param_dtype, name="head_modulation")
            time = embed(2 * x.shape[-1], "head_time")
            x = _modulated(x, *table(time.reshape(len(time), 2, -1)))
        return Conv(self.out_channels, name="conv_out", **types)(nn.silu(x))


class AutoencoderLTX(GaussianAutoencoder):
    """LTX-Video's autoencoder, whose defaults are the sizes of version 0.9.0's published weights.

    With a causal encoder or decoder, `genjax.nn.causal.apply_chunks` computes a video chunk by
    chunk. Any other decoder sees later frames, so it decodes a video as a whole.

    Attributes:
        latent_channels: number of channels of the latents.
        widths: number of channels of each level of the encoder, and after its last level.
        blocks: number of residual blocks of each level of the encoder, and of its middle.
        downsample: how each level ends, a key of `STRIDES`, or None.
        decoder_widths, decoder_blocks: those of the decoder's levels, the finest first.
        upsample: what each level of the decoder doubles, a key of `STRIDES`, or None.
        noise: for each level of the decoder, and its middle, whether blocks add noise.
        upsample_residual, upsample_factor: of each level's `Upsample`.
        takes_time: whether the decoder takes the noise level of its latents.
        patch_size: side of the patches of pixels that are channels to encoder and decoder.
        encoder_causal, decoder_causal: whether no frame depends on a later one.
        decoder_reflect: whether the decoder's convolutions mirror a frame at its edges, instead of
            zeros beyond them. A side of the latents is then 2 or more.
        latent_mean, latent_deviation: one value for each latent channel, or one for all. A
            diffusion model's latents are (latents − mean)/deviation.
        dtype: type of the convolutions. Norms and the outputs are always float32.
    """

    latent_channels: int = 128
    widths: Sequence[int] = (128, 256, 512, 512, 512)
    blocks: Sequence[int] = (4, 3, 3, 3, 4)
    downsample: Sequence[str | None] = ("conv", "conv", "conv", None)
    decoder_widths: Sequence[int] = (128, 256, 512, 512)
    decoder_blocks: Sequence[int] = (4, 3, 3, 3, 4)
    upsample: Sequence[str | None] = ("spatiotemporal",) * 3 + (None,)
    noise: Sequence[bool] = (False,) * 5
    upsample_residual: Sequence[bool] = (False,) * 4
    upsample_factor: Sequence[int] = (1,) * 4
    takes_time: bool = False
    patch_size: int = 4
    encoder_causal: bool = True
    decoder_causal: bool = False
    decoder_reflect: bool = False
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Number of pixels per latent position, along height and along width."""
        return self.patch_size * int(_product(self.upsample)[1])

    @property
    def temporal_factor(self) -> int:
        """Number of frames per latent frame after the first."""
        return int(_product(self.upsample)[0])

    def setup(self):
        down, up = _product(self.downsample), _product(self.upsample)
        if (down != up).any():
            raise ValueError(
                f"downsample={self.downsample} divides frames, rows and columns by {down}, and "
                f"upsample={self.upsample} multiplies them by {up}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sizes = (self.widths, self.blocks, self.downsample, self.encoder_causal)
        self.encoder = Encoder(self.latent_channels + 1, *sizes, **types)
        self.decoder = Decoder(
            3 * self.patch_size**2,
            self.decoder_widths,
            self.decoder_blocks,
            self.upsample,
            self.noise,
            self.upsample_residual,
            self.upsample_factor,
            self.takes_time,
            self.decoder_causal,
            self.decoder_reflect,
            **types,
        )

    def encode(
        self, video: Float[Array, "batch time height width 3"]
    ) -> tuple[
        Float[Array, "batch latent_time latent_height latent_width latent_channels"],
        Float[Array, "batch latent_time latent_height latent_width latent_channels"],
    ]:
        """Return the mean and the log-variance of the latents, in float32.

        The log-variance is one for all channels, clipped to [−30, 20].

        Raises:
            ValueError: the sides are not multiples of `factor`, or the number of frames is not
                1 + n·`temporal_factor` (n·`temporal_factor` in a chunk after the first).
        """
        frames, height, width = video.shape[1:4]
        first = 0 if self.has_variable("cache", "encoder") else 1
        if (frames - first) % self.temporal_factor or height % self.factor or width % self.factor:
            raise ValueError(
                f"a video has 1 + n·{self.temporal_factor} frames and sides of n·{self.factor} "
                f"pixels; got {frames} frames of {height}×{width}: crop or resize"
            )
        sides = dict(p=self.patch_size, q=self.patch_size)
        patches = rearrange(video, "b t (h p) (w q) c -> b t h w (c q p)", **sides)
        moments = self.encoder(patches).astype(jnp.float32)
        mean, log_variance = moments[..., :-1], jnp.clip(moments[..., -1:], -30, 20)
        return mean, jnp.broadcast_to(log_variance, mean.shape)

    def decode(
        self,
        latents: Float[Array, "batch latent_time latent_height latent_width latent_channels"],
        t: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch time height width 3"]:
        """Decode latents to a video, in float32 and not clipped to [−1, 1].

        Args:
            t: the noise level of the latents, (1 − t)·latents + t·noise, for a decoder that takes
                it; 0 if None.
        """
        if t is None and self.takes_time:
            t = jnp.zeros(len(latents))
        patches = self.decoder(latents, t).astype(jnp.float32)
        sides = dict(p=self.patch_size, q=self.patch_size)
        return rearrange(patches, "b t h w (c q p) -> b t (h p) (w q) c", **sides)


class AutoencoderLTX2(AutoencoderLTX):
    """LTX-2's autoencoder, whose defaults are the sizes of version 2.0's published weights.

    It differs from LTX-Video's in sizes, in `decoder_reflect`, and in the form of published files.
    The first of `widths` is the number of latent channels.
    """

    widths: Sequence[int] = (128, 256, 512, 1024, 2048)
    blocks: Sequence[int] = (4, 6, 6, 2, 2)
    downsample: Sequence[str | None] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    decoder_widths: Sequence[int] = (256, 512, 1024)
    decoder_blocks: Sequence[int] = (5, 5, 5, 5)
    upsample: Sequence[str | None] = ("spatiotemporal",) * 3
    noise: Sequence[bool] = (False,) * 4
    upsample_residual: Sequence[bool] = (True,) * 3
    upsample_factor: Sequence[int] = (2,) * 3
    decoder_reflect: bool = True


def autoencoder_ltx_23(**options) -> AutoencoderLTX2:
    """Return the autoencoder of LTX-2.3 in its published sizes."""
    sizes = dict(
        widths=(128, 256, 512, 1024, 1024),
        blocks=(4, 6, 4, 2, 2),
        decoder_widths=(256, 512, 512, 1024),
        decoder_blocks=(4, 6, 4, 2, 2),
        upsample=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        decoder_reflect=False,
    )
    return AutoencoderLTX2(**sizes | options)
