"""The residual block of DDPM++, NCSN++ and ADM, and the U-Net that they build from it.

The code of Karras et al. 2022 ("Elucidating the design space of diffusion-based generative models")
has one block for the three networks. Blocks differ in channels, so they are not scanned.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn import BATCH_AXES, Dense, GroupNorm, attention, constrain, heads_of
from genjax.nn.convolution import convolve
from genjax.nn.fir import downsample, upsample

Dtype = Any
Block = Callable[..., Array]  # (x, features, name, resample=None, attend=False) -> x


def convolution(features: int, kernel_init: Callable, **options) -> nn.Conv:
    """Return a 3×3 convolution."""
    options = dict(kernel_init=kernel_init, conv_general_dilated=convolve) | options
    return nn.Conv(features, (3, 3), **options)


def group_norm(x: Array, epsilon: float, param_dtype: Dtype, name: str) -> Array:
    """Normalize groups of four features or more, as many as divide the features, 32 at most."""
    features = x.shape[-1]
    groups = max(n for n in range(1, 33) if features % n == 0 and features >= 4 * n)
    return GroupNorm(groups, epsilon, param_dtype=param_dtype, name=name)(x)


class SelfAttention(nn.Module):
    """Attention among all positions of a group-normalized map, without positional encoding.

    Attributes:
        num_heads: divides the features.
        kernel_init: initializer of queries, keys and values.
        last_init: initializer of the projection after attention.
        epsilon: the norm's epsilon.
    """

    num_heads: int
    kernel_init: Callable
    last_init: Callable
    epsilon: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        features, types = x.shape[-1], dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = group_norm(x, self.epsilon, self.param_dtype, "norm").reshape(len(x), -1, features)
        h = Dense(3 * features, kernel_init=self.kernel_init, name="query_key_value", **types)(h)
        h = attention(*heads_of(h, self.num_heads)).reshape(x.shape)
        return Dense(features, kernel_init=self.last_init, name="projection", **types)(h)


class ResidualBlock(nn.Module):
    """Apply norm, SiLU and a 3×3 convolution twice, add the input, then add self-attention.

    The conditioning enters before the second convolution. It scales and shifts the normalized
    features, or is added to the features before their norm.

    Attributes:
        features: channels of the output.
        resample: applied to the input and before the first convolution; None keeps the size.
        num_heads: heads of self-attention after the convolutions; 0 for no attention.
        scale_shift: whether the conditioning scales and shifts; it is added otherwise.
        skip_scale: factor after each addition.
        project_resampled: whether a resampled input passes a 1×1 convolution; an input with
            other channels than the output's always does.
        epsilon: the norms' epsilon.
        dropout_rate: the rate before the second convolution, if `apply` is given `rngs={"dropout":
            key}`.
        kernel_init: initializer of the weights that the next two do not name.
        attention_init: initializer of queries, keys and values.
        last_init: initializer of the last layer of each branch.
        dtype: type of convolutions and products; norms and softmax are float32.
    """

    features: int
    resample: Callable[[Array], Array] | None
    num_heads: int
    scale_shift: bool
    skip_scale: float
    project_resampled: bool
    epsilon: float
    dropout_rate: float
    kernel_init: Callable
    attention_init: Callable
    last_init: Callable
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch in_height in_width in_features"],
        conditioning: Float[Array, "batch conditioning_features"],
    ) -> Float[Array, "batch height width features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(group_norm, epsilon=self.epsilon, param_dtype=self.param_dtype)
        resample = self.resample or (lambda x: x)

        h = resample(nn.silu(norm(x, name="norm_in")))
        h = convolution(self.features, self.kernel_init, name="conv_in", **types)(h)
        modulation = Dense(
            (2 if self.scale_shift else 1) * self.features,
            kernel_init=self.kernel_init,
            param_dtype=self.param_dtype,
            name="modulation",
        )(conditioning)[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm(h, name="norm_out") * (1 + scale) + shift
        else:
            h = norm(h + modulation, name="norm_out")
        dropout = nn.Dropout(self.dropout_rate, deterministic=not self.has_rng("dropout"))
        h = dropout(nn.silu(h))
        h = convolution(self.features, self.last_init, name="conv_out", **types)(h)

        x = resample(x)
        if x.shape[-1] != self.features or (self.resample and self.project_resampled):
            x = Dense(self.features, kernel_init=self.kernel_init, name="shortcut", **types)(x)
        # Attention splits positions over `context`. XLA doubled the gradients of 3×3 kernels when
        # that split spread to their maps.
        x = constrain((x + h) * self.skip_scale, BATCH_AXES)
        if self.num_heads:
            inits = (self.attention_init, self.last_init)
            h = SelfAttention(self.num_heads, *inits, self.epsilon, **types, name="attention")(x)
            x = constrain((x + h) * self.skip_scale, BATCH_AXES)
        return x


def rematerialized(policy: str | None) -> type[ResidualBlock]:
    """Return the block, computed again in the backward pass except for what the policy saves."""
    if policy is None:
        return ResidualBlock
    return nn.remat(ResidualBlock, policy=getattr(jax.checkpoint_policies, policy))


def check_sides(images: Float[Array, "batch height width channels"], divisor: int) -> None:
    """Check that the images can be halved at every level.

    Raises:
        ValueError: a side is not a multiple of `divisor`.
    """
    height, width = images.shape[1:3]
    if height % divisor or width % divisor:
        raise ValueError(
            f"images of {height}×{width} cannot be halved at every level; both sides have to be "
            f"multiples of {divisor}"
        )


class Levels(NamedTuple):
    """The sizes of a U-Net.

    Attributes:
        widths: channels of the levels, from the images' side down; each level halves the side.
        num_blocks: residual blocks per level of the encoder, besides the one that halves the side.
            The decoder has one more.
        attention_levels: levels whose blocks have self-attention; 0 is the images' side.
        every_block: whether every block of the decoder's levels has attention; only the last block
            if False.
        taps: the filter's taps, applied before the side is halved and after it is doubled. The
            default averages 2×2 pixels and repeats pixels.
    """

    widths: Sequence[int]
    num_blocks: int
    attention_levels: Collection[int]
    every_block: bool
    taps: Sequence[int] = (1, 1)


def encode(
    image: Float[Array, "batch height width channels"],
    conv_in: Callable[[Array], Array],
    block: Block,
    levels: Levels,
    add_image: Callable[[Array, Array, int], Array] | None = None,
) -> list[Array]:
    """Return the outputs of the first convolution and of all blocks of the encoder, in order.

    Args:
        block: `(x, features, name, resample=None, attend=False) -> x` makes and applies a block.
        add_image: `(x, image, level) -> x` is applied to the output of each block that halves the
            side. Its result takes the image's place at the next level.
    """
    halve = functools.partial(downsample, taps=levels.taps)
    outputs = [x := conv_in(image)]
    for level, width in enumerate(levels.widths):
        if level:
            x = block(x, x.shape[-1], f"down_{level}", resample=halve)
            if add_image is not None:
                x = image = add_image(x, image, level)
            outputs.append(x)
        for i in range(levels.num_blocks):
            x = block(x, width, f"encoder_{level}_{i}", attend=level in levels.attention_levels)
            outputs.append(x)
    return outputs


def decode(
    outputs: list[Array],
    block: Block,
    levels: Levels,
) -> Float[Array, "batch height width features"]:
    """Return the features at the images' side from the outputs of `encode`.

    The decoder mirrors the encoder. Every block that keeps the side also reads the latest output
    that no block has read yet.
    """
    double = functools.partial(upsample, taps=levels.taps)
    outputs, x = outputs.copy(), outputs[-1]
    x = block(x, x.shape[-1], "middle_0", attend=True)
    x = block(x, x.shape[-1], "middle_1")
    for level, width in reversed(list(enumerate(levels.widths))):
        if level < len(levels.widths) - 1:
            x = block(x, x.shape[-1], f"up_{level}", resample=double)
        for i in range(levels.num_blocks + 1):
            attend = levels.every_block or i == levels.num_blocks
            attend = attend and level in levels.attention_levels
            x = jnp.concatenate([x, outputs.pop()], axis=-1)
            x = block(x, width, f"decoder_{level}_{i}", attend=attend)
    return x
