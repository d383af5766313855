"""ADM (Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis", section 3)."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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

Dtype = Any
EPSILON, HEAD_FEATURES = 1e-5, 64
# U(−1/√fan_in, 1/√fan_in), PyTorch's own, and zeros for the last layer of each branch.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zeros = nn.initializers.zeros


class ADM(OfClasses, nn.Module):
    """A convolutional U-Net with self-attention, whose conditioning scales and shifts features.

    Label `num_classes` is the null class of classifier-free guidance (`null_label`). Its embedding
    is zero, so the network has no weights for it.

    The network embeds t times `time_scale`. The authors feed steps up to 999, so t in [0, 1] needs
    a `time_scale` of 1000. EDM trains the network of ImageNet-64 on t = log(sigma)/4, as
    `diffusion.EDM` does, with a `time_scale` of 1.

    Differences from the authors' code: biases start at zero. Heads come before queries, keys and
    values also in the network of ImageNet-64, which permutes weights.

    Attributes:
        width: channels that `multipliers` multiply; a multiple of 4.
        multipliers: factors of the levels' channels, from the images' side down; each level halves
            the side.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels with self-attention in every block; 0 is the images' side.
        num_heads: heads of self-attention; None for heads of 64 features.
        num_classes: classes besides the null one; 0 for a network that ignores labels.
        out_channels: channels of the output; None for the input's number. The authors' networks
            have twice as many, for a learned variance.
        time_scale: the factor of t before its embedding.
        dropout_rate: the rate within blocks, if `apply` is given `rngs={"dropout": key}`.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of convolutions and products; norms, softmax and the output layer are float32.
    """

    width: int = 192
    multipliers: Sequence[int | float] = (1, 2, 3, 4)
    blocks: int = 3
    attention_levels: Sequence[int] = (1, 2, 3)
    num_heads: int | None = None
    num_classes: int = 0
    out_channels: int | None = None
    time_scale: float = 1000.0
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
    ) -> Float[Array, "batch height width out_channels"]:
        check_sides(x, self.divisor)
        conditioning = self._embed(t, labels)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        residual_block = functools.partial(
            rematerialized(self.remat_policy),
            scale_shift=True,
            skip_scale=1.0,
            project_resampled=False,
            epsilon=EPSILON,
            dropout_rate=self.dropout_rate,
            kernel_init=uniform,
            attention_init=uniform,
            last_init=zeros,
            **types,
        )

        def block(x, features, name, resample=None, attend=False):
            num_heads = (self.num_heads or max(1, features // HEAD_FEATURES)) if attend else 0
            return residual_block(features, resample, num_heads, name=name)(x, conditioning)

        widths = [int(self.width * multiplier) for multiplier in self.multipliers]
        levels = Levels(widths, self.blocks, self.attention_levels, every_block=True)
        conv_in = convolution(widths[0], uniform, name="conv_in", **types)
        h = decode(encode(x, conv_in, block, levels), block, levels)
        h = nn.silu(group_norm(h, EPSILON, self.param_dtype, "norm_out"))
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        channels = self.out_channels or x.shape[-1]
        return convolution(channels, zeros, name="conv_out", **types)(h)

    def _embed(self, t: Array, labels: Array | None) -> Array:
        """Return the conditioning that every block reads, `[batch 4·width]`, in float32."""
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        dense = functools.partial(Dense, 4 * self.width, kernel_init=uniform, **types)
        h = sinusoidal_embedding(t * self.time_scale, self.width)
        h = dense(name="linear_out")(nn.silu(dense(name="linear_in")(h)))
        if self.num_classes:
            init = nn.initializers.normal(1.0)
            embed = dense(use_bias=False, kernel_init=init, name="label_embedding")
            h += embed(jax.nn.one_hot(labels, self.num_classes))
        return nn.silu(h)


# The networks of ImageNet at these sides (README of the authors' code).
ADM_ImageNet64 = functools.partial(ADM, num_classes=1000, dropout_rate=0.1)
_large = functools.partial(ADM, width=256, blocks=2, num_classes=1000)
ADM_ImageNet128 = functools.partial(
    _large,
    multipliers=(1, 1, 2, 3, 4),
    attention_levels=(2, 3, 4),
    num_heads=4,
)
ADM_ImageNet256 = functools.partial(
    _large,
    multipliers=(1, 1, 2, 2, 4, 4),
    attention_levels=(3, 4, 5),
)
ADM_ImageNet512 = functools.partial(
    _large,
    multipliers=(0.5, 1, 1, 2, 2, 4, 4),
    attention_levels=(4, 5, 6),
)
