"""The tiny autoencoder of Stable Diffusion, TAESD (Boer Bohan 2023), distilled for quick previews.

Its latents are those of the autoencoder that it was distilled from, standardized as a diffusion
model takes them. TAESD and TAESDXL have latents of 4 channels, TAESD3 and TAEF1 of 16.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from genjax.nn import constrain

Dtype = Any


def _conv(
    features: int, dtype: Dtype, param_dtype: Dtype, stride: int = 1, **options: Any
) -> nn.Conv:
    """Return a 3×3 convolution with padding 1 on all sides; "SAME" is uneven at stride 2."""
    return nn.Conv(
        features,
        (3, 3),
        (stride, stride),
        ((1, 1), (1, 1)),
        dtype=dtype,
        param_dtype=param_dtype,
        **options,
    )


class Block(nn.Module):
    """A residual block of three convolutions, relu(x + f(x))."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        h = x
        for i in range(3):
            h = _conv(x.shape[-1], self.dtype, self.param_dtype, name=f"conv{i}")(
                nn.relu(h) if i else h
            )
        return constrain(nn.relu(x + h), ("data", "fsdp"))


class Encoder(nn.Module):
    """The encoder of `AutoencoderTiny`, with fields of the same meaning."""

    latent_channels: int
    num_blocks: tuple[int, ...]
    width: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch latent_height latent_width latent_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = _conv(self.width, **types, name="conv_in")(((images + 1) / 2).astype(self.dtype))
        for i, num_blocks in enumerate(self.num_blocks):
            if i:
                x = _conv(
                    self.width, **types, stride=2, use_bias=False, name=f"stage{i}_downsample"
                )(x)
            for j in range(num_blocks):
                x = Block(**types, name=f"stage{i}_block{j}")(x)
        return _conv(self.latent_channels, **types, name="conv_out")(x).astype(jnp.float32)


class Decoder(nn.Module):
    """The decoder of `AutoencoderTiny`, with fields of the same meaning."""

    image_channels: int
    num_blocks: tuple[int, ...]
    width: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, latents: Float[Array, "batch latent_height latent_width latent_channels"]
    ) -> Float[Array, "batch height width channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = (3 * jnp.tanh(latents / 3)).astype(self.dtype)
        x = nn.relu(_conv(self.width, **types, name="conv_in")(x))
        for i, num_blocks in enumerate(self.num_blocks):
            for j in range(num_blocks):
                x = Block(**types, name=f"stage{i}_block{j}")(x)
            if i + 1 < len(self.num_blocks):
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(self.width, **types, use_bias=False, name=f"stage{i}_upsample")(x)
        return 2 * _conv(self.image_channels, **types, name="conv_out")(x).astype(jnp.float32) - 1


class AutoencoderTiny(nn.Module):
    """A deterministic autoencoder of 2.4 million parameters, with convolutions of one width.

    Images lie in [−1, 1], and the network works on [0, 1] inside. Its output is not clipped. The
    latents are not bounded either. The decoder takes 3·tanh(latents/3), so it hardly distinguishes
    latents beyond ±9.

    Attributes:
        latent_channels: number of channels of the latents.
        encoder_blocks: number of blocks at each resolution, from the images' to the latents'.
        decoder_blocks: number of blocks at each resolution, from the latents' to the images'.
        width: number of channels of all other feature maps.
        image_channels: number of channels of the decoded images.
        latent_magnitude, latent_shift: range of the latents that `to_bytes` keeps.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation.
        dtype: type of the convolutions. Latents and images are always float32.
    """

    latent_channels: int = 4
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    width: int = 64
    image_channels: int = 3
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return 2 ** (len(self.encoder_blocks) - 1)

    def setup(self):
        types = dict(width=self.width, dtype=self.dtype, param_dtype=self.param_dtype)
        self.encoder = Encoder(self.latent_channels, self.encoder_blocks, **types)
        self.decoder = Decoder(self.image_channels, self.decoder_blocks, **types)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch latent_height latent_width latent_channels"]:
        """Encode images in [−1, 1] to latents.

        Raises:
            ValueError: height or width is not divisible by `factor`, or encoder and decoder have
                different numbers of resolutions.
        """
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                "encoder and decoder have as many resolutions; "
                f"got {len(self.encoder_blocks)} and {len(self.decoder_blocks)}"
            )
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"images of {height}×{width} do not divide by {self.factor}; pad or crop them"
            )
        return self.encoder(images)

    def decode(
        self, latents: Float[Array, "batch latent_height latent_width latent_channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Decode latents to images, which lie around [−1, 1] but are not clipped."""
        return self.decoder(latents)

    def to_bytes(self, latents: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
        """Return 255·(latents/(2·magnitude) + shift), rounded and clipped to bytes.

        With a shift of 0.5, latents are clipped to ±magnitude. Latents of four channels become an
        RGBA image that can be kept in a file.
        """
        share = jnp.clip(latents / (2 * self.latent_magnitude) + self.latent_shift, 0, 1)
        return jnp.round(255 * share).astype(jnp.uint8)

    def from_bytes(self, stored: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the latents that `to_bytes` stored, to within magnitude/255."""
        return (stored.astype(jnp.float32) / 255 - self.latent_shift) * (2 * self.latent_magnitude)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Return the reconstruction, without the rounding to bytes that diffusers' module has."""
        return self.decode(self.encode(images))
