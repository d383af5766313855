"""Deep-compression autoencoder (DC-AE), whose latents are 32 to 128 times smaller along each side.

Chen et al. 2024, "Deep compression autoencoder for efficient high-resolution diffusion models".
Each change of resolution learns a residual to a shortcut without parameters (section 3.2). On the
way down, the shortcut moves pixels to channels and averages groups of channels. On the way up, it
duplicates channels and moves them to pixels.
"""

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from genjax.nn import Dense, constrain

Dtype = Any
BLOCKS = ("residual", "efficient_vit")
NORMS = ("rms", "batch")
ACTIVATIONS = ("silu", "relu")


@dataclass(frozen=True)
class Stage:
    """The blocks of one resolution.

    Attributes:
        channels: number of channels of the feature maps.
        num_blocks: number of blocks. Only the first stage may have 0; then the network's outermost
            layer changes the resolution.
        block: "residual" for two convolutions, or "efficient_vit" for linear attention and a gated
            convolution.
        scales: sides of depth-wise kernels, each of which adds heads to an "efficient_vit" block.
        norm: "rms", or "batch" for batch normalization.
        activation: "silu" or "relu", used by "residual" blocks.
    """

    channels: int
    num_blocks: int
    block: str = "residual"
    scales: tuple[int, ...] = ()
    norm: str = "rms"
    activation: str = "silu"


def space_to_channels(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width four_channels"]:
    """Move squares of 2×2 pixels to channels.

    The channels are ordered (channel, row, column), as by PyTorch's `pixel_unshuffle`.
    """
    return rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=2, q=2)


def channels_to_space(
    x: Float[Array, "batch height width four_channels"],
) -> Float[Array, "batch double_height double_width channels"]:
    """Move channels to squares of 2×2 pixels: the inverse of `space_to_channels`."""
    return rearrange(x, "b h w (c p q) -> b (h p) (w q) c", p=2, q=2)


def average_channels(
    x: Float[Array, "*batch channels"], num_channels: int
) -> Float[Array, "*batch averages"]:
    """Return the means of `num_channels` groups of neighbouring channels."""
    return x.reshape(*x.shape[:-1], num_channels, -1).mean(axis=-1)


def duplicate_channels(
    x: Float[Array, "*batch channels"], num_channels: int
) -> Float[Array, "*batch duplicates"]:
    """Repeat each channel to reach `num_channels` in total; copies are neighbours."""
    return jnp.repeat(x, num_channels // x.shape[-1], axis=-1)


def linear_attention(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
) -> Float[Array, "batch queries heads features"]:
    """Return Σ_k (relu(q)·relu(k))·v / Σ_k relu(q)·relu(k), computed in float32.

    The cost is linear in the number of tokens. A query that is orthogonal to all keys gives 0. Cai
    et al. 2023, "EfficientViT".
    """
    query, key, value = (a.astype(jnp.float32) for a in (nn.relu(query), nn.relu(key), value))
    sums = jnp.einsum("bkhf,bkhg->bhfg", key, value)
    weights = jnp.einsum("bqhf,bhf->bqh", query, key.sum(axis=1))
    return jnp.einsum("bqhf,bhfg->bqhg", query, sums) / (weights[..., None] + 1e-15)


def _conv(features: int, side: int, dtype: Dtype, param_dtype: Dtype, **options: Any) -> nn.Conv:
    """Return a convolution with equal padding on all sides; "SAME" is uneven at stride 2."""
    margin = side // 2
    return nn.Conv(
        features,
        (side, side),
        padding=((margin, margin), (margin, margin)),
        dtype=dtype,
        param_dtype=param_dtype,
        **options,
    )


class RMSNorm(nn.Module):
    """RMS norm with a bias, in float32: x/√(mean of x² over channels + 1e-5)·scale + bias."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)
        return (x * scale + bias).astype(self.dtype)


def _norm(kind: str, dtype: Dtype, param_dtype: Dtype, train: bool, name: str) -> nn.Module:
    if kind == "rms":
        return RMSNorm(dtype, param_dtype, name=name)
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class ResidualBlock(nn.Module):
    """Add two 3×3 convolutions, the second of which is normalized, to their input.

    Attributes:
        norm: "batch" or "rms".
        activation: a function of `flax.linen`, such as "relu" or "silu".
    """

    norm: str
    activation: str
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        channels, types = x.shape[-1], (self.dtype, self.param_dtype)
        h = getattr(nn, self.activation)(_conv(channels, 3, *types, name="conv1")(x))
        h = _conv(channels, 3, *types, use_bias=False, name="conv2")(h)
        return x + _norm(self.norm, *types, train, "norm")(h)


class MultiscaleLinearAttention(nn.Module):
    """Linear attention among tokens and among their neighbourhoods (EfficientViT, figure 2).

    Each scale adds heads. Their queries, keys and values come from a depth-wise convolution with a
    kernel of that side.
    """

    head_features: int
    scales: tuple[int, ...]
    norm: str
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        height, width, channels = x.shape[1:]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        features = channels // self.head_features * self.head_features
        dense = functools.partial(Dense, use_bias=False, **types)
        # Published weights have the layers to_q, to_k and to_v, but these names do not separate
        # queries, keys and values. Each head takes 3·head_features neighbouring channels of the
        # concatenation.
        h = jnp.concatenate([dense(features, name=f"to_{part}")(x) for part in "qkv"], axis=-1)
        parts = [h]
        for i, side in enumerate(self.scales):
            conv = functools.partial(_conv, 3 * features, **types, use_bias=False)
            part = conv(side=side, feature_group_count=3 * features, name=f"scale{i}_depth")(h)
            groups = 3 * features // self.head_features
            parts.append(conv(side=1, feature_group_count=groups, name=f"scale{i}_point")(part))
        heads = rearrange(
            jnp.concatenate(parts, axis=-1),
            "b h w (n k f) -> k b (h w) n f",
            k=3,
            f=self.head_features,
        )
        h = rearrange(linear_attention(*heads), "b (h w) n f -> b h w (n f)", h=height, w=width)
        h = dense(channels, name="to_out")(h)
        return x + _norm(self.norm, self.dtype, self.param_dtype, train, "norm")(h)


class GatedConv(nn.Module):
    """An inverted bottleneck with a gated depth-wise convolution, a norm and a residual connection.

    A point-wise convolution expands the channels to twice the hidden size. A depth-wise convolution
    follows, and one half of its output gates the other. A point-wise convolution projects back.
    """

    dtype: Dtype
    param_dtype: Dtype
    expansion: int = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        channels, types = x.shape[-1], (self.dtype, self.param_dtype)
        hidden = 2 * self.expansion * channels
        h = nn.silu(_conv(hidden, 1, *types, name="expand")(x))
        h, gate = jnp.split(
            _conv(hidden, 3, *types, feature_group_count=hidden, name="depth")(h), 2, axis=-1
        )
        h = _conv(channels, 1, *types, use_bias=False, name="project")(h * nn.silu(gate))
        return x + RMSNorm(*types, name="norm")(h)


class EfficientViTBlock(nn.Module):
    """Multiscale linear attention, then a gated convolution (Cai et al. 2023, EfficientViT).

    Fields are those of `MultiscaleLinearAttention`.
    """

    head_features: int
    scales: tuple[int, ...]
    norm: str
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        types = (self.dtype, self.param_dtype)
        x = MultiscaleLinearAttention(
            self.head_features, self.scales, self.norm, *types, name="attention"
        )(x, train)
        return GatedConv(*types, name="gated_conv")(x)


def _block(
    stage: Stage, head_features: int, dtype: Dtype, param_dtype: Dtype, name: str
) -> nn.Module:
    types = dict(dtype=dtype, param_dtype=param_dtype, name=name)
    if stage.block == "residual":
        return ResidualBlock(stage.norm, stage.activation, **types)
    return EfficientViTBlock(head_features, stage.scales, stage.norm, **types)


class Downsample(nn.Module):
    """Halve the resolution.

    Attributes:
        channels: number of output channels.
        rearranging: whether `space_to_channels` halves the resolution, after a convolution to a
            quarter of the channels. Otherwise a convolution has stride 2.
        shortcut: whether to add the input, with its pixels moved to channels and averaged.
    """

    channels: int
    rearranging: bool
    shortcut: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in_channels"]
    ) -> Float[Array, "batch half_height half_width channels"]:
        conv = functools.partial(
            _conv, side=3, dtype=self.dtype, param_dtype=self.param_dtype, name="conv"
        )
        if self.rearranging:
            h = space_to_channels(conv(self.channels // 4)(x))
        else:
            h = conv(self.channels, strides=(2, 2))(x)
        return h + average_channels(space_to_channels(x), self.channels) if self.shortcut else h


class Upsample(nn.Module):
    """Double the resolution.

    Attributes:
        channels: number of output channels.
        rearranging: whether `channels_to_space` doubles the resolution, after a convolution to four
            times the channels. Otherwise a convolution follows repeated pixels.
        shortcut: whether to add the input, with its channels duplicated and moved to pixels.
    """

    channels: int
    rearranging: bool
    shortcut: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in_channels"]
    ) -> Float[Array, "batch double_height double_width channels"]:
        conv = functools.partial(
            _conv, side=3, dtype=self.dtype, param_dtype=self.param_dtype, name="conv"
        )
        if self.rearranging:
            h = channels_to_space(conv(4 * self.channels)(x))
        else:
            h = conv(self.channels)(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return (
            h + channels_to_space(duplicate_channels(x, 4 * self.channels)) if self.shortcut else h
        )


class Encoder(nn.Module):
    """The encoder of `AutoencoderDC`, with fields of the same meaning."""

    latent_channels: int
    stages: tuple[Stage, ...]
    head_features: int
    rearranging: bool
    shortcut: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch latent_height latent_width latent_channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        first, second, *_ = self.stages
        x = x.astype(self.dtype)
        if first.num_blocks:
            x = _conv(first.channels, 3, **types, name="conv_in")(x)
        else:
            x = Downsample(second.channels, self.rearranging, False, **types, name="conv_in")(x)
        for i, stage in enumerate(self.stages):
            for j in range(stage.num_blocks):
                x = _block(stage, self.head_features, **types, name=f"stage{i}_block{j}")(x, train)
                x = constrain(x, ("data", "fsdp"))
            if stage.num_blocks and i + 1 < len(self.stages):
                channels = self.stages[i + 1].channels
                x = Downsample(
                    channels, self.rearranging, True, **types, name=f"stage{i}_downsample"
                )(x)
        latents = _conv(self.latent_channels, 3, **types, name="conv_out")(x)
        if self.shortcut:
            latents = latents + average_channels(x, self.latent_channels)
        return latents.astype(jnp.float32)


class Decoder(nn.Module):
    """The decoder of `AutoencoderDC`, with fields of the same meaning."""

    image_channels: int
    stages: tuple[Stage, ...]
    head_features: int
    rearranging: bool
    shortcut: bool
    out_activation: str
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, latents: Float[Array, "batch latent_height latent_width latent_channels"], train: bool
    ) -> Float[Array, "batch height width channels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        latents = latents.astype(self.dtype)
        channels = self.stages[-1].channels
        x = _conv(channels, 3, **types, name="conv_in")(latents)
        if self.shortcut:
            x = x + duplicate_channels(latents, channels)
        for i, stage in reversed(list(enumerate(self.stages))):
            if stage.num_blocks and i + 1 < len(self.stages):
                x = Upsample(
                    stage.channels, self.rearranging, True, **types, name=f"stage{i}_upsample"
                )(x)
            for j in range(stage.num_blocks):
                x = _block(stage, self.head_features, **types, name=f"stage{i}_block{j}")(x, train)
                x = constrain(x, ("data", "fsdp"))
        x = getattr(nn, self.out_activation)(RMSNorm(**types, name="norm_out")(x))
        if self.stages[0].num_blocks:
            x = _conv(self.image_channels, 3, **types, name="conv_out")(x)
        else:
            x = Upsample(self.image_channels, self.rearranging, False, **types, name="conv_out")(x)
        return x.astype(jnp.float32)


class AutoencoderDC(nn.Module):
    """A deterministic autoencoder whose latents have few positions and many channels.

    Stages with batch normalization keep running statistics in the collection "batch_stats". With
    `train`, a call normalizes by the statistics of its batch. It also updates the running
    statistics if the collection is mutable. First weights are Flax's.

    Attributes:
        latent_channels: number of channels of the latents.
        encoder_stages: at least two, from the images' resolution to the latents'.
        decoder_stages: as many stages, also from the images' resolution to the latents'.
        image_channels: number of channels of the decoded images.
        head_features: number of features of an attention head.
        rearranging_downsample: whether moving pixels to channels halves the resolution. Otherwise a
            convolution has stride 2.
        rearranging_upsample: whether moving channels to pixels doubles the resolution. Otherwise
            pixels are repeated.
        encoder_shortcut: whether the encoder's last convolution has a shortcut.
        decoder_shortcut: whether the decoder's first convolution has a shortcut.
        out_activation: "relu" or "silu", before the last convolution.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation.
        dtype: type of the convolutions. Norms and the attention's sums are always float32.
    """

    latent_channels: int
    encoder_stages: tuple[Stage, ...]
    decoder_stages: tuple[Stage, ...]
    image_channels: int = 3
    head_features: int = 32
    rearranging_downsample: bool = True
    rearranging_upsample: bool = True
    encoder_shortcut: bool = True
    decoder_shortcut: bool = True
    out_activation: str = "relu"
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        return 2 ** (len(self.encoder_stages) - 1)

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.encoder = Encoder(
            self.latent_channels,
            self.encoder_stages,
            self.head_features,
            self.rearranging_downsample,
            self.encoder_shortcut,
            **types,
        )
        self.decoder = Decoder(
            self.image_channels,
            self.decoder_stages,
            self.head_features,
            self.rearranging_upsample,
            self.decoder_shortcut,
            self.out_activation,
            **types,
        )

    def _check_stages(self) -> None:
        if len(self.encoder_stages) != len(self.decoder_stages) or len(self.encoder_stages) < 2:
            raise ValueError(
                "encoder and decoder have the same number of stages, two or more; "
                f"got {len(self.encoder_stages)} and {len(self.decoder_stages)}"
            )
        both = (
            ("encoder", self.encoder_stages, self.encoder_shortcut),
            ("decoder", self.decoder_stages, self.decoder_shortcut),
        )
        for side, stages, shortcut in both:
            for i, stage in enumerate(stages):
                given = (
                    (stage.block, BLOCKS),
                    (stage.norm, NORMS),
                    (stage.activation, ACTIVATIONS),
                )
                for value, known in given:
                    if value not in known:
                        raise ValueError(
                            f"{side} stage {i} takes one of {', '.join(known)}; got {value!r}"
                        )
                if stage.num_blocks == 0 and i > 0:
                    raise ValueError(
                        f"only the first stage may have no blocks; {side} stage {i} has none"
                    )
            for before, after in pairwise(stage.channels for stage in stages):
                if 4 * before % after:
                    raise ValueError(
                        "four times the channels of a stage divide by those of the next; "
                        f"the {side} has {before} and {after}"
                    )
            if shortcut and stages[-1].channels % self.latent_channels:
                raise ValueError(
                    "the last stage's channels divide by those of the latents, "
                    f"{self.latent_channels}, or take no shortcut; "
                    f"the {side} has {stages[-1].channels}"
                )
        if self.out_activation not in ACTIVATIONS:
            raise ValueError(
                f"out_activation is one of {', '.join(ACTIVATIONS)}; got {self.out_activation!r}"
            )

    def encode(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch latent_height latent_width latent_channels"]:
        """Encode images in [−1, 1] to latents.

        Raises:
            ValueError: height or width is not divisible by `factor`, or the stages are invalid.
        """
        self._check_stages()
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"images of {height}×{width} do not divide by {self.factor}; pad or crop them"
            )
        return self.encoder(images, train)

    def decode(
        self,
        latents: Float[Array, "batch latent_height latent_width latent_channels"],
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Decode latents to images, which lie around [−1, 1] but are not clipped."""
        return self.decoder(latents, train)

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        return self.decode(self.encode(images, train), train)


def _published(factor: int, latent_channels: int) -> AutoencoderDC:
    channels = (128, 256, 512, 512, 1024, 1024, 2048, 2048)[: factor.bit_length()]

    def stages(num_convolutional: tuple[int, ...], norm: str, activation: str) -> tuple[Stage, ...]:
        return tuple(
            Stage(channels[i], num_convolutional[i], norm=norm, activation=activation)
            if i < 3
            else Stage(channels[i], 2, "efficient_vit")
            for i in range(len(channels))
        )

    return AutoencoderDC(
        latent_channels, stages((0, 4, 8), "rms", "silu"), stages((0, 5, 10), "batch", "relu")
    )


# The models whose weights the authors published as "in" and "mix", by factor and channels.
dc_ae_f32c32 = functools.partial(_published, 32, 32)
dc_ae_f64c128 = functools.partial(_published, 64, 128)
dc_ae_f128c512 = functools.partial(_published, 128, 512)


def dc_ae_f32c32_sana() -> AutoencoderDC:
    """Return the autoencoder of Sana (Xie et al. 2024).

    Its attention has a second scale. Strides and repeated pixels change the resolution.
    """
    channels = (128, 256, 512, 512, 1024, 1024)

    def stages(num_convolutional: int) -> tuple[Stage, ...]:
        return tuple(
            Stage(size, num_convolutional) if i < 3 else Stage(size, 3, "efficient_vit", (5,))
            for i, size in enumerate(channels)
        )

    return AutoencoderDC(
        32,
        stages(2),
        stages(3),
        rearranging_downsample=False,
        rearranging_upsample=False,
        latent_deviation=(1 / 0.41407,),
    )
