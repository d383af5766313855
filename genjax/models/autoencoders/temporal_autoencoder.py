"""A video autoencoder made of an image one: Movie Gen's temporal autoencoder (Polyak et al. 2024, "Movie Gen:
A cast of media foundation models", section 3.1.1), with an eighth of the frames and of each side and 16
channels.

The paper's: the image autoencoder of Rombach et al. 2022 with a 1-D convolution in time after each 2-D
convolution in space and 1-D attention in time after each attention in space; frames replicated before and
after the video; half the frames by a convolution of stride 2, twice the frames by repetition before a
convolution; ⌈T/8⌉ latent frames of T frames, what is decoded in excess discarded; an image as a video of one
frame.

Ours, where it says nothing: convolutions in time have three taps and follow those of 3×3, not of 1×1; frames
are halved where sides are; group norms are of each frame for itself; a place attends in time to itself, with
one head and no positions; and what is added to the image autoencoder starts as the identity.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from genjax.models.autoencoders.autoencoder_kl import SelfAttention, convolution
from genjax.nn import Dense, GroupNorm, attention, constrain
from genjax.nn.convolution import convolve_enlarged

Dtype = Any


def identity(key: jax.Array, shape: Sequence[int], dtype: Dtype) -> Array:
    """Of a convolution in time whose middle tap leaves the channels as they are and whose others are zero."""
    return jnp.zeros(shape, dtype).at[shape[0] // 2].set(jnp.eye(*shape[-2:]))


# What the functions below, called in compact modules, add to an image autoencoder has "time" in its name.


def _convolve(
    x: Array,
    features: int,
    name: str,
    dtype: Dtype,
    param_dtype: Dtype,
    *,
    change: str | None = None,
) -> Array:
    """A 3×3 convolution of frames, then one in time; `change` is "half" or "twice" the sides and frames."""
    types = dict(dtype=dtype, param_dtype=param_dtype)
    strides = 2 if change == "half" else 1
    options = {
        "half": dict(strides=2, padding=((0, 1), (0, 1))),
        "twice": dict(conv_general_dilated=convolve_enlarged),
        None: {},
    }[change]
    x = convolution(features, 3, name=name, **options, **types)(x)
    if change == "twice":
        x = x.repeat(
            2, axis=1
        )  # after the convolution in space, which is the same for equal frames
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)), mode="edge")
    return nn.Conv(
        features,
        (3, 1, 1),
        strides=(strides, 1, 1),
        padding="VALID",
        kernel_init=identity,
        name=f"{name}_time",
        **types,
    )(x)


def _norm(x: Array, groups: int, name: str, param_dtype: Dtype) -> Array:
    return GroupNorm(groups, param_dtype=param_dtype, name=name)(x)  # of each frame


def _middle(x: Array, attend: bool, groups: int, dtype: Dtype, param_dtype: Dtype) -> Array:
    options = (groups, dtype, param_dtype)
    x = ResidualBlock(x.shape[-1], *options, name="mid_block_0")(x)
    if attend:
        frames = rearrange(x, "b t h w c -> (b t) h w c")
        frames = SelfAttention(*options, name="mid_attention")(frames)
        x = frames.reshape(x.shape)
        x = TimeAttention(*options, name="mid_attention_time")(x)
    return ResidualBlock(x.shape[-1], *options, name="mid_block_1")(x)


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and the convolutions, added to the input, or to a projection of it to
    `features`."""

    features: int
    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width in_features"]
    ) -> Float[Array, "batch time height width features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = nn.silu(_norm(x, self.groups, "norm1", self.param_dtype))
        h = _convolve(h, self.features, "conv1", **types)
        h = nn.silu(_norm(h, self.groups, "norm2", self.param_dtype))
        h = _convolve(h, self.features, "conv2", **types)
        if x.shape[-1] != self.features:
            x = convolution(self.features, 1, name="shortcut", **types)(x)
        return constrain(x + h, ("data", "fsdp"))


class TimeAttention(nn.Module):
    """Self-attention of every place over its frames, with one head and no positions; zero at
    initialisation."""

    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width features"]
    ) -> Float[Array, "batch time height width features"]:
        batch, _, height, _, features = x.shape
        dense = functools.partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        h = _norm(x, self.groups, "norm", self.param_dtype)
        h = dense(3 * features, name="qkv")(h)
        h = attention(*rearrange(h, "b t h w (parts c) -> parts (b h w) t 1 c", parts=3))
        h = rearrange(h, "(b h w) t 1 c -> b t h w c", b=batch, h=height)
        x = x + dense(features, kernel_init=nn.initializers.zeros, name="projection")(h)
        return constrain(x, ("data", "fsdp"))


class Encoder(nn.Module):
    """The attributes are the autoencoder's."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    mid_attention: bool
    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch latent_time rows columns out_channels"]:
        options = (self.groups, self.dtype, self.param_dtype)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = _convolve(x, self.widths[0], "conv_in", **types)
        for level, width in enumerate(self.widths):
            for i in range(self.blocks):
                x = ResidualBlock(width, *options, name=f"block_{level}_{i}")(x)
            if level < len(self.widths) - 1:
                x = _convolve(x, width, f"downsample_{level}", **types, change="half")
        x = _middle(x, self.mid_attention, *options)
        x = nn.silu(_norm(x, self.groups, "norm_out", self.param_dtype))
        return _convolve(x, self.out_channels, "conv_out", **types).astype(jnp.float32)


class Decoder(nn.Module):
    """The encoder's mirror image, with one more block a level."""

    out_channels: int
    widths: Sequence[int]
    blocks: int
    mid_attention: bool
    groups: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch latent_time rows columns channels"]
    ) -> Float[Array, "batch time height width out_channels"]:
        options = (self.groups, self.dtype, self.param_dtype)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = _convolve(x, self.widths[-1], "conv_in", **types)
        x = _middle(x, self.mid_attention, *options)
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks + 1):
                x = ResidualBlock(width, *options, name=f"block_{level}_{i}")(x)
            if level:
                x = _convolve(x, width, f"upsample_{level}", **types, change="twice")
        x = nn.silu(_norm(x, self.groups, "norm_out", self.param_dtype))
        return _convolve(x, self.out_channels, "conv_out", **types).astype(jnp.float32)


class TemporalAutoencoder(nn.Module):
    """Videos to Gaussians of latents at a fraction of their frames and sides, and latents to videos.

    Its parameters are those of an `AutoencoderKL` of the same attributes, without quant convolutions, under
    the same names, and others with "time" in theirs; `inflate` puts the former in. The networks look ahead in
    time: of a long video `genjax.autoencoding.tiling` encodes and decodes overlapping tiles.

    Attributes:
        latent_channels: of the latents; the encoder ends with a mean and a log-variance of each.
        widths: channels of the levels, from the video's size down.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        mid_attention: whether there is attention, in space and in time, at the latents' size.
        groups: of group norm; divides every width.
        latent_mean: with `latent_deviation`, what a diffusion model's latents are standardized by:
            (latents − mean)/deviation. One for all channels or one each.
        dtype: type of the convolutions and products; norms and softmax are float32 always.
    """

    latent_channels: int = 16
    widths: Sequence[int] = (128, 256, 512, 512)
    blocks: int = 2
    mid_attention: bool = True
    groups: int = 32
    image_channels: int = 3
    latent_mean: tuple[float, ...] = (0.0,)
    latent_deviation: tuple[float, ...] = (1.0,)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def factor(self) -> int:
        """Pixels per latent place, along height and width."""
        return 2 ** (len(self.widths) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame."""
        return self.factor

    def setup(self):
        options = dict(
            widths=self.widths,
            blocks=self.blocks,
            mid_attention=self.mid_attention,
            groups=self.groups,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.encoder = Encoder(2 * self.latent_channels, **options)
        self.decoder = Decoder(self.image_channels, **options)

    def encode(
        self, video: Float[Array, "batch time height width channels"]
    ) -> tuple[
        Float[Array, "batch latent_time rows columns latent_channels"],
        Float[Array, "batch latent_time rows columns latent_channels"],
    ]:
        """Mean and log-variance, the latter in [−30, 20], float32: of T frames ⌈T/`temporal_factor`⌉.

        Raises:
            ValueError: the sides are no multiples of `factor`.
        """
        height, width = video.shape[2:4]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width are multiples of {self.factor}; got {height}×{width}: crop or resize"
            )
        mean, log_variance = jnp.split(self.encoder(video), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(
        self,
        latents: Float[Array, "batch latent_time rows columns latent_channels"],
        num_frames: int | None = None,
    ) -> Float[Array, "batch time height width image_channels"]:
        """The video, float32, not clipped to [−1, 1]: its first `num_frames`, or `temporal_factor` a latent
        frame.

        Raises:
            ValueError: another number of latent frames than `num_frames` are encoded to.
        """
        if num_frames is not None and latents.shape[1] != -(-num_frames // self.temporal_factor):
            raise ValueError(
                f"{num_frames} frames have {-(-num_frames // self.temporal_factor)} latent frames; "
                f"got {latents.shape[1]}"
            )
        return self.decoder(latents)[:, :num_frames]

    def __call__(
        self, video: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width image_channels"]:
        """The decoded mean, as many frames as the video has."""
        return self.decode(self.encode(video)[0], video.shape[1])


def inflate(variables: PyTree, image_variables: PyTree) -> PyTree:
    """A temporal autoencoder's initial `variables` with those of an `AutoencoderKL` in their places.

    Then every latent frame is the image autoencoder's of every `temporal_factor`-th frame, from the first,
    and is decoded to as many equal frames.

    Raises:
        ValueError: the image autoencoder has other parameters, or of other shapes, than the temporal one less
            what it has for time.
    """
    video, image = flatten_dict(variables), flatten_dict(image_variables)
    shapes = lambda flat: {("/".join(path), leaf.shape) for path, leaf in flat.items()}
    space = {path: leaf for path, leaf in video.items() if not any("time" in name for name in path)}
    different = sorted(shapes(space) ^ shapes(image))
    if different:
        raise ValueError(
            f"not of the same attributes; only one of the two autoencoders has {different}"
        )
    return unflatten_dict(video | image)
