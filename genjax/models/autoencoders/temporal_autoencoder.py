"""Movie Gen's temporal autoencoder: a video autoencoder made of an image autoencoder.

Polyak et al. 2024, "Movie Gen: A cast of media foundation models", section 3.1.1. Latents have 16
channels, an eighth of the frames and an eighth of each side.

The paper starts from the image autoencoder of Rombach et al. 2022. A 1-D convolution in time
follows each 2-D convolution in space. 1-D attention in time follows each attention in space.
Replicated frames pad the video at both ends. A convolution of stride 2 halves the frames, and
repetition before a convolution doubles them. T frames have ⌈T/8⌉ latent frames, and excess decoded
frames are discarded. An image is a video of one frame.

The paper leaves some details open. Here, convolutions in time have three taps and follow those of
3×3, not those of 1×1. Frames are halved where sides are halved. Group norms treat each frame by
itself. Attention in time has one head and no position encodings, and each position attends to its
own frames only. All layers in time start as the identity.
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
    """Return the kernel of a convolution in time that changes nothing.

    Its middle tap is the identity on channels, and its other taps are zero.
    """
    return jnp.zeros(shape, dtype).at[shape[0] // 2].set(jnp.eye(*shape[-2:]))


# The functions below are called in compact modules. Parameters that an image autoencoder does not
# have get names with "time".


def _convolve(
    x: Array,
    features: int,
    name: str,
    dtype: Dtype,
    param_dtype: Dtype,
    *,
    change: str | None = None,
) -> Array:
    """Apply a 3×3 convolution to each frame, then a convolution in time.

    `change` halves ("half") or doubles ("twice") the sides and the frames, or keeps them (None).
    """
    types = dict(dtype=dtype, param_dtype=param_dtype)
    strides = 2 if change == "half" else 1
    options = {
        "half": dict(strides=2, padding=((0, 1), (0, 1))),
        "twice": dict(conv_general_dilated=convolve_enlarged),
        None: {},
    }[change]
    x = convolution(features, 3, name=name, **options, **types)(x)
    if change == "twice":
        # Equal frames have equal convolutions in space, so repeat frames only now.
        x = x.repeat(2, axis=1)
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
    return GroupNorm(groups, param_dtype=param_dtype, name=name)(x)  # each frame by itself


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
    """Group norm, SiLU and convolutions in space and time, all twice, with a residual connection.

    A 1×1 convolution projects the input if it does not have `features` channels.
    """

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
    """Self-attention of each position over its frames, with a residual connection.

    There is one head, and there are no position encodings. At initialisation attention adds zero.
    """

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
    """The encoder of `TemporalAutoencoder`, with fields of the same meaning."""

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
    """The mirror image of `Encoder`, with one more block per level."""

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
    """A convolutional autoencoder from videos to Gaussians of latents, and back to videos.

    The parameters include those of an `AutoencoderKL` with the same attributes and without quant
    convolutions, under the same names. `inflate` inserts these. All other parameters have "time" in
    their names. The networks look ahead in time. So `genjax.autoencoding.tiling` encodes and
    decodes a long video in overlapping tiles.

    Attributes:
        latent_channels: number of channels of the latents. The encoder returns a mean and a
            log-variance of each.
        widths: number of channels of each level, from the video's size down.
        blocks: number of residual blocks of a level of the encoder. The decoder has one more.
        mid_attention: whether there is attention, in space and in time, at the latents' size.
        groups: number of groups of group norm, which divides every width.
        image_channels: number of channels of the decoded video. The encoder takes any number.
        latent_mean, latent_deviation: one value for all channels, or one each. A diffusion model's
            latents are (latents − mean)/deviation.
        dtype: type of the convolutions and products. Norms and softmax are always float32.
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
        """Number of pixels per latent position, along height and along width."""
        return 2 ** (len(self.widths) - 1)

    @property
    def temporal_factor(self) -> int:
        """Number of frames per latent frame."""
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
        """Return the mean and the log-variance of the latents, in float32.

        The log-variance is clipped to [−30, 20]. T frames have ⌈T/`temporal_factor`⌉ latent frames.

        Raises:
            ValueError: the sides are not multiples of `factor`.
        """
        height, width = video.shape[2:4]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width are multiples of {self.factor}; got {height}×{width}: "
                "crop or resize"
            )
        mean, log_variance = jnp.split(self.encoder(video), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(
        self,
        latents: Float[Array, "batch latent_time rows columns latent_channels"],
        num_frames: int | None = None,
    ) -> Float[Array, "batch time height width image_channels"]:
        """Decode latents to a video, in float32 and not clipped to [−1, 1].

        Args:
            num_frames: number of frames to return, from the first. None returns `temporal_factor`
                frames per latent frame.

        Raises:
            ValueError: the number of latent frames is not that of `num_frames` frames.
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
        """Return the reconstruction from the latents' mean, with as many frames as the video."""
        return self.decode(self.encode(video)[0], video.shape[1])


def inflate(variables: PyTree, image_variables: PyTree) -> PyTree:
    """Insert the variables of an `AutoencoderKL` into a temporal autoencoder's initial `variables`.

    Then the latent frames are the image autoencoder's latents of every `temporal_factor`-th frame,
    from the first. The decoder returns each as `temporal_factor` equal frames.

    Raises:
        ValueError: parameters of the image autoencoder differ, in names or shapes, from those of
            the temporal autoencoder that are not for time.
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
