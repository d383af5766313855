"""The convolutional autoencoder of latent diffusion.

Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", sections 3.1
and G. The encoder and the decoder are those of VQGAN (Esser et al. 2021).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.models.autoencoders.gaussian_autoencoder import GaussianAutoencoder
from genjax.nn import Dense, GroupNorm, attention, constrain
from genjax.nn.convolution import convolve, convolve_enlarged

Dtype = Any
# U(−1/√fan_in, 1/√fan_in): PyTorch's default, from which the authors trained.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(features: int, side: int, **options) -> nn.Conv:
    """Return a convolution with a kernel of side×side, initialized as by PyTorch."""
    options = dict(conv_general_dilated=_product if side == 1 else convolve) | options
    return nn.Conv(features, (side, side), kernel_init=uniform, **options)


def _product(x: Array, kernel: Array, *_: Any, precision: Any = None, **__: Any) -> Array:
    """Compute a 1×1 convolution as one matrix product over all positions.

    The product is two to eight times as fast as a convolution on XLA's CPU backend.
    """
    product = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return product.reshape(*x.shape[:-1], -1)


def _norm(groups: int, param_dtype: Dtype, name: str) -> GroupNorm:
    return GroupNorm(groups, param_dtype=param_dtype, name=name)


def _activate(x: Array, groups: int, param_dtype: Dtype, name: str) -> Array:
    return nn.silu(_norm(groups, param_dtype, name)(x))


class ResidualBlock(nn.Module):
    """Group norm, SiLU and a 3×3 convolution, all twice, with a residual connection.

    A 1×1 convolution projects the input if it does not have `features` channels.
    """

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
    """Self-attention over all positions of a map, with group norm and a residual connection.

    There is one head, and there are no position encodings.
    """

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
    """Levels of residual blocks, each at half the side of the one before, and a middle part.

    The middle part has two residual blocks, with self-attention between them.

    Attributes:
        out_channels: number of channels of the output.
        widths: number of channels of each level, from the images' side down.
        blocks: number of residual blocks of a level.
        attention_levels: levels with self-attention after each block. Level 0 has the images' side.
        mid_attention: whether the middle part has self-attention.
        groups: number of groups of group norm, which divides every width.
        dtype: type of the convolutions and products. Norms and softmax are always float32.
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
                padding = ((0, 1), (0, 1))  # only below and to the right, as in the authors' code
                x = conv(width, 3, strides=2, padding=padding, name=f"downsample_{level}")(x)
        x = _middle(x, self.mid_attention, *options)
        x = _activate(x, self.groups, self.param_dtype, "norm_out")
        return conv(self.out_channels, 3, name="conv_out")(x).astype(jnp.float32)


class Decoder(nn.Module):
    """The mirror image of `Encoder`, with the same attributes and one more block per level."""

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
    """Check that images are large enough to be encoded.

    Sides need not be multiples of `factor`: the convolutions cut off the rest.

    Raises:
        ValueError: a side is less than `factor`.
    """
    height, width = images.shape[1:3]
    if min(height, width) < factor:
        raise ValueError(
            f"images of {height}×{width} have no latents at a down-sampling of {factor}; "
            f"both sides have to be {factor} or more"
        )


class AutoencoderKL(GaussianAutoencoder):
    """A convolutional autoencoder from images to Gaussians of latents, and back to images.

    The sides of an image may be any numbers of at least `factor`. Its latents have
    height//factor × width//factor positions.

    Attributes:
        latent_channels: number of channels of the latents. The encoder returns a mean and a
            log-variance of each.
        widths: number of channels of each level, from the images' side down.
        blocks: number of residual blocks of a level of the encoder. The decoder has one more.
        attention_levels: levels with self-attention after each block. Level 0 has the images' side.
        mid_attention: whether there is self-attention at the latents' side.
        groups: number of groups of group norm, which divides every width.
        image_channels: number of channels of the decoded images. The encoder takes any number.
        use_quant_conv: whether a 1×1 convolution follows the encoder.
        use_post_quant_conv: whether a 1×1 convolution precedes the decoder.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation.
        decoder_attention_levels: the decoder's `attention_levels`. None takes the encoder's.
        dtype: type of the convolutions and products. Norms and softmax are always float32.
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
        """Return the mean and the log-variance of the latents, in float32.

        The log-variance is clipped to [−30, 20].

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
        """Decode latents to images, in float32 and not clipped to [−1, 1]."""
        if self.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


_F8 = functools.partial(AutoencoderKL, widths=(128, 256, 512, 512))
_F8_16 = functools.partial(_F8, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
# The autoencoders of Stable Diffusion 1 and 2 (Rombach et al. 2022), Stable Diffusion 3 (Esser et
# al. 2024) and FLUX.1 (Black Forest Labs 2024).
AutoencoderKL_SD = functools.partial(_F8, latent_channels=4, latent_deviation=(1 / 0.18215,))
AutoencoderKL_SD3 = functools.partial(_F8_16, latent_mean=(0.0609,), latent_deviation=(1 / 1.5305,))
AutoencoderKL_FLUX = functools.partial(
    _F8_16, latent_mean=(0.1159,), latent_deviation=(1 / 0.3611,)
)
