"""The convolutional autoencoder of latent diffusion (Rombach et al. 2022, "High-resolution image synthesis with latent
diffusion models", sections 3.1 and G), its encoder and decoder those of VQGAN (Esser et al. 2021).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn import Dense, GroupNorm, attention, constrain
from genjax.nn.convolution import convolve, convolve_enlarged

Dtype = Any
# U(−1/√fan_in, 1/√fan_in), which the authors trained from (PyTorch's own).
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(features: int, side: int, **options) -> nn.Conv:
    options = dict(conv_general_dilated=_product if side == 1 else convolve) | options
    return nn.Conv(features, (side, side), kernel_init=uniform, **options)


def _product(x: Array, kernel: Array, *_: Any, precision: Any = None, **__: Any) -> Array:
    """A convolution of 1×1 as one matrix product over all places: two to eight times as fast on XLA's CPU back end."""
    product = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return product.reshape(*x.shape[:-1], -1)


def _norm(groups: int, param_dtype: Dtype, name: str) -> GroupNorm:
    return GroupNorm(groups, param_dtype=param_dtype, name=name)


def _activate(x: Array, groups: int, param_dtype: Dtype, name: str) -> Array:
    return nn.silu(_norm(groups, param_dtype, name)(x))


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and a 3×3 convolution, added to the input, or to a projection of it to `features`."""

    features: int
    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in_features"]
    ) -> Float[Array, "batch height width features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = _activate(x, self.groups, self.param_dtype, "norm1")
        h = convolution(self.features, 3, name="conv1", **types)(h)
        h = _activate(h, self.groups, self.param_dtype, "norm2")
        h = convolution(self.features, 3, name="conv2", **types)(h)
        if x.shape[-1] != self.features:
            x = convolution(self.features, 1, name="shortcut", **types)(x)
        return constrain(x + h, ("data", "fsdp"))


class SelfAttention(nn.Module):
    """One head over all positions of a group-normalized map, without positions, added to the map."""

    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        dense = functools.partial(
            Dense, x.shape[-1], kernel_init=uniform, dtype=self.dtype, param_dtype=self.param_dtype
        )
        h = _norm(self.groups, self.param_dtype, "norm")(x).reshape(x.shape[0], -1, 1, x.shape[-1])
        query, key, value = (dense(name=name)(h) for name in ("query", "key", "value"))
        h = dense(name="projection")(attention(query, key, value)).reshape(x.shape)
        return constrain(x + h, ("data", "fsdp"))


def _middle(x: Array, attend: bool, *options: Any) -> Array:
    x = ResidualBlock(x.shape[-1], *options, name="mid_block_0")(x)
    if attend:
        x = SelfAttention(*options, name="mid_attention")(x)
    return ResidualBlock(x.shape[-1], *options, name="mid_block_1")(x)


class Encoder(nn.Module):
    """Levels of residual blocks, each of half the last one's side, and a pair of blocks around self-attention.

    Attributes:
        out_channels: of the map it ends with.
        widths: channels of the levels, from the images' side down.
        blocks: residual blocks of a level.
        attention_levels: levels with self-attention after each block; 0 is the images' side.
        mid_attention: whether there is self-attention between the last two blocks.
        groups: of group norm; divides every width.
        dtype: type of the convolutions and products; norms and softmax are float32 always.
    """

    out_channels: int
    widths: Sequence[int]
    blocks: int
    attention_levels: Sequence[int]
    mid_attention: bool
    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns out_channels"]:
        options = (self.groups, self.dtype, self.param_dtype)
        conv = functools.partial(convolution, dtype=self.dtype, param_dtype=self.param_dtype)
        x = conv(self.widths[0], 3, name="conv_in")(x)
        for level, width in enumerate(self.widths):
            for i in range(self.blocks):
                x = ResidualBlock(width, *options, name=f"block_{level}_{i}")(x)
                if level in self.attention_levels:
                    x = SelfAttention(*options, name=f"attention_{level}_{i}")(x)
            if level < len(self.widths) - 1:
                padding = ((0, 1), (0, 1))  # below and to the right only, as the authors have it
                x = conv(width, 3, strides=2, padding=padding, name=f"downsample_{level}")(x)
        x = _middle(x, self.mid_attention, *options)
        x = _activate(x, self.groups, self.param_dtype, "norm_out")
        return conv(self.out_channels, 3, name="conv_out")(x).astype(jnp.float32)


class Decoder(nn.Module):
    """The encoder's mirror image, with one more block a level. The attributes are the encoder's."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    attention_levels: Sequence[int]
    mid_attention: bool
    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"]
    ) -> Float[Array, "batch height width out_channels"]:
        options = (self.groups, self.dtype, self.param_dtype)
        conv = functools.partial(convolution, dtype=self.dtype, param_dtype=self.param_dtype)
        x = conv(self.widths[-1], 3, name="conv_in")(x)
        x = _middle(x, self.mid_attention, *options)
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks + 1):
                x = ResidualBlock(width, *options, name=f"block_{level}_{i}")(x)
                if level in self.attention_levels:
                    x = SelfAttention(*options, name=f"attention_{level}_{i}")(x)
            if level:
                x = conv(
                    width, 3, conv_general_dilated=convolve_enlarged, name=f"upsample_{level}"
                )(x)
        x = _activate(x, self.groups, self.param_dtype, "norm_out")
        return conv(self.out_channels, 3, name="conv_out")(x).astype(jnp.float32)


def check_size(images: Array, factor: int) -> None:
    """
    Raises:
        ValueError: a side is less than the factor; what a factor leaves over is cut off as convolutions do.
    """
    height, width = images.shape[1:3]
    if min(height, width) < factor:
        raise ValueError(
            f"images of {height}×{width} have no latents at a down-sampling of {factor}; "
            f"both sides have to be {factor} or more"
        )


class AutoencoderKL(nn.Module):
    """Images to Gaussians of latents at a fraction of their side, and latents to images.

    Images of any sides not under `factor` are encoded, to height//factor × width//factor latents.

    Attributes:
        latent_channels: of the latents; the encoder ends with a mean and a log-variance of each.
        widths: channels of the levels, from the images' side down.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention_levels: levels with self-attention after each block; 0 is the images' side.
        decoder_attention_levels: the decoder's, if they are not the encoder's.
        mid_attention: whether there is self-attention at the latents' side.
        groups: of group norm; divides every width.
        image_channels: of the decoded images; the encoder takes any number.
        use_quant_conv: whether a 1×1 convolution follows the encoder.
        use_post_quant_conv: whether a 1×1 convolution precedes the decoder.
        latent_mean: with `latent_deviation`, what a diffusion model's latents are standardized by:
            (latents − mean)/deviation. One for all channels or one each.
        dtype: type of the convolutions and products; norms and softmax are float32 always.
    """

    latent_channels: int
    widths: Sequence[int]
    blocks: int = 2
    attention_levels: Sequence[int] = ()
    mid_attention: bool = True
    groups: int = 32
    image_channels: int = 3
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    decoder_attention_levels: Sequence[int] | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        levels = dict(
            widths=self.widths,
            blocks=self.blocks,
            attention_levels=self.attention_levels,
            mid_attention=self.mid_attention,
            groups=self.groups,
            **types,
        )
        self.encoder = Encoder(2 * self.latent_channels, **levels)
        if self.decoder_attention_levels is not None:
            levels["attention_levels"] = self.decoder_attention_levels
        self.decoder = Decoder(self.image_channels, **levels)
        if self.use_quant_conv:
            self.quant_conv = convolution(2 * self.latent_channels, 1, **types)
        if self.use_post_quant_conv:
            self.post_quant_conv = convolution(self.latent_channels, 1, **types)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[
        Float[Array, "batch rows columns latent_channels"],
        Float[Array, "batch rows columns latent_channels"],
    ]:
        """Mean and log-variance, the latter in [−30, 20], in float32.

        Raises:
            ValueError: a side is less than `factor`.
        """
        check_size(images, self.factor)
        moments = self.encoder(images)
        if self.use_quant_conv:
            moments = self.quant_conv(moments).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(
        self, latents: Float[Array, "batch rows columns latent_channels"]
    ) -> Float[Array, "batch height width image_channels"]:
        """Images, in float32, not clipped to [−1, 1]."""
        if self.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns image_channels"]:
        """The decoded mean."""
        return self.decode(self.encode(images)[0])


_F8 = functools.partial(AutoencoderKL, widths=(128, 256, 512, 512))
_F8_16 = functools.partial(_F8, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
# Stable Diffusion 1 and 2 (Rombach et al. 2022), 3 (Esser et al. 2024) and FLUX.1 (Black Forest Labs 2024).
AutoencoderKL_SD = functools.partial(_F8, latent_channels=4, latent_deviation=(1 / 0.18215,))
AutoencoderKL_SD3 = functools.partial(_F8_16, latent_mean=(0.0609,), latent_deviation=(1 / 1.5305,))
AutoencoderKL_FLUX = functools.partial(
    _F8_16, latent_mean=(0.1159,), latent_deviation=(1 / 0.3611,)
)
