"""DDPM++ and NCSN++ (Song et al. 2021, "Score-based generative modeling through SDEs").

Their form is that of EDM (Karras et al. 2022, "Elucidating the design space of diffusion-based
generative models", and its code).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.models.traits import OfClasses
from genjax.models.unets.blocks import (
    Levels,
    check_sides,
    convolution,
    decode,
    encode,
    group_norm,
    rematerialized,
)
from genjax.nn import Dense, sinusoidal_embedding
from genjax.nn.fir import BINOMIAL, convolve_downsample

Dtype = Any
EPSILON = 1e-6
xavier = nn.initializers.xavier_uniform()
# Xavier's weights times √0.2 for queries, keys and values, and times 1e-5 for the last layer of
# each branch.
attention_init = nn.initializers.variance_scaling(0.2, "fan_avg", "uniform")
nearly_zero = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def geometric_embedding(x: Float[Array, " batch"], features: int) -> Float[Array, "batch features"]:
    """Return [cos(wx), sin(wx)] with w geometric from 1 to 1/10,000, both included, in float32."""
    half = features // 2
    return sinusoidal_embedding(x, features, 10_000.0 ** (half / (half - 1)))


def fourier_embedding(
    x: Float[Array, " batch"], features: int, scale: float
) -> Float[Array, "batch features"]:
    """Return [cos(2πwx), sin(2πwx)] with fixed w ~ N(0, scale²), in float32.

    The frequencies w are not trained. Networks with the same number of features share them (Tancik
    et al. 2020, "Fourier features let networks learn high frequency functions", section 4).
    """
    # NumPy never changes this generator's numbers, so checkpoints keep their frequencies.
    frequencies = scale * np.random.RandomState(0).standard_normal(features // 2)
    angles = x.astype(jnp.float32)[:, None] * (2 * np.pi * frequencies).astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class SongUNet(OfClasses, nn.Module):
    """A convolutional U-Net with self-attention: DDPM++ by default, NCSN++ by three fields.

    NCSN++ differs in three places. Its frequencies of time are random (`fourier_scale` 16). Its
    filters are free of aliasing (`taps` 1, 3, 3, 1). Its encoder adds the image at every level
    (`residual_input`).

    Label `num_classes` is the null class of classifier-free guidance (`null_label`). Its one-hot
    code is zero, so the network has no weights for it.

    The network embeds t times `time_scale`. EDM feeds log(sigma)/4, as `diffusion.EDM` does, with a
    `time_scale` of 1. DDPM feeds steps up to 999, so t in [0, 1] needs a `time_scale` of 1000.

    Difference from EDM's code: cosines of time come before sines, which permutes weights.

    Attributes:
        width: channels of the first convolution, which `multipliers` multiply; a multiple of 4.
        multipliers: factors of the levels' channels, from the images' side down; each level halves
            the side.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels with self-attention, in every block of the encoder and in the last
            block of the decoder; 0 is the images' side.
        num_classes: classes besides the null one; 0 for a network that ignores labels.
        augmentation_features: size of the vector that describes an image's augmentation; 0 for
        none.
        out_channels: channels of the output; None for the input's number.
        time_scale: the factor of t before its embedding.
        fourier_scale: standard deviation of the random frequencies of time; None for geometric
            frequencies.
        taps: the filter's taps, applied before the side is halved and after it is doubled.
        residual_input: whether every level of the encoder adds the image, halved by convolutions.
        dropout_rate: the rate within blocks, if `apply` is given `rngs={"dropout": key}`.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of convolutions and products; norms, softmax and the output layer are float32.
    """

    width: int = 128
    multipliers: Sequence[int] = (2, 2, 2)
    blocks: int = 4
    attention_levels: Sequence[int] = (1,)
    num_classes: int = 0
    augmentation_features: int = 0
    out_channels: int | None = None
    time_scale: float = 1.0
    fourier_scale: float | None = None
    taps: Sequence[int] = (1, 1)
    residual_input: bool = False
    dropout_rate: float = 0.0
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def divisor(self) -> int:
        """The number that each side of an image is a multiple of."""
        return 2 ** (len(self.multipliers) - 1)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        labels: Int[Array, " batch"] | None = None,
        augmentation: Float[Array, "batch augmentation_features"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        check_sides(x, self.divisor)
        conditioning = self._embed(t, labels, augmentation)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        residual_block = functools.partial(
            rematerialized(self.remat_policy),
            scale_shift=False,
            skip_scale=math.sqrt(0.5),
            project_resampled=True,
            epsilon=EPSILON,
            dropout_rate=self.dropout_rate,
            kernel_init=xavier,
            attention_init=attention_init,
            last_init=nearly_zero,
            **types,
        )

        def block(x, features, name, resample=None, attend=False):
            return residual_block(features, resample, int(attend), name=name)(x, conditioning)

        widths = [self.width * multiplier for multiplier in self.multipliers]
        levels = Levels(widths, self.blocks, self.attention_levels, False, self.taps)
        conv_in = convolution(self.width, xavier, name="conv_in", **types)
        add_image = self._add_image if self.residual_input else None
        h = decode(encode(x, conv_in, block, levels, add_image), block, levels)
        h = nn.silu(group_norm(h, EPSILON, self.param_dtype, "norm_out"))
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        channels = self.out_channels or x.shape[-1]
        return convolution(channels, nearly_zero, name="conv_out", **types)(h)

    def _embed(self, t: Array, labels: Array | None, augmentation: Array | None) -> Array:
        """Return the conditioning that every block reads, `[batch 4·width]`, in float32."""
        dense = functools.partial(Dense, kernel_init=xavier, param_dtype=self.param_dtype)
        if self.fourier_scale is None:
            h = geometric_embedding(t * self.time_scale, self.width)
        else:
            h = fourier_embedding(t * self.time_scale, 2 * self.width, self.fourier_scale)
        if self.num_classes:
            code = jax.nn.one_hot(labels, self.num_classes) * math.sqrt(self.num_classes)
            h += dense(h.shape[-1], name="label_embedding")(code)
        if self.augmentation_features:
            if augmentation is None:
                augmentation = jnp.zeros((t.shape[0], self.augmentation_features))
            h += dense(h.shape[-1], use_bias=False, name="augmentation_embedding")(augmentation)
        h = nn.silu(dense(4 * self.width, name="linear_in")(h))
        return nn.silu(dense(4 * self.width, name="linear_out")(h))

    def _add_image(self, x: Array, image: Array, level: int) -> Array:
        conv = nn.Conv(
            x.shape[-1],
            (3, 3),
            kernel_init=xavier,
            conv_general_dilated=functools.partial(_convolve_downsample, taps=self.taps),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"image_{level}",
        )
        return (x + conv(image)) * math.sqrt(0.5)


def _convolve_downsample(x: Array, kernel: Array, *_: Any, taps: Sequence[int], **__: Any) -> Array:
    """Compute `convolve_downsample` as `flax.linen.Conv` calls its convolution."""
    return convolve_downsample(x, kernel, taps)


# The networks that EDM trains, without its `augmentation_features=9` (README of its code). EDM's
# network of AFHQv2 is that of FFHQ with a dropout rate of 0.25.
DDPMpp_CIFAR10 = functools.partial(SongUNet, dropout_rate=0.13)
DDPMpp_FFHQ64 = functools.partial(
    SongUNet,
    multipliers=(1, 2, 2, 2),
    attention_levels=(2,),
    dropout_rate=0.05,
)
_ncsnpp = dict(fourier_scale=16.0, taps=BINOMIAL, residual_input=True)
NCSNpp_CIFAR10 = functools.partial(DDPMpp_CIFAR10, **_ncsnpp)
NCSNpp_FFHQ64 = functools.partial(DDPMpp_FFHQ64, **_ncsnpp)
