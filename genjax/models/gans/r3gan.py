"""R3GAN (Huang, Gokaslan, Kuleshov & Tompkin 2024, "The GAN is dead; long live the GAN!").

The authors' generators have these fields; a discriminator has the same `widths` and `cardinalities`
in reverse order:

| data        | widths                         | cardinalities             | float32_stages |
|-------------|--------------------------------|---------------------------|----------------|
| CIFAR-10    | 768 ×4                         | 96 ×4                     | 1              |
| FFHQ-64     | 768 ×4, 384                    | 96 ×4, 48                 | 1              |
| FFHQ-256    | 768 ×4, 384, 192, 96           | 96 ×4, 48, 24, 12         | 3              |
| ImageNet-32 | 1536 ×4                        | 96 ×4                     | 1              |
| ImageNet-64 | 1536 ×5                        | 96 ×5                     | 1              |

All generators have two blocks per stage. Class embeddings have 64 features in the conditional
generators, and as many as the widest stage in the discriminators.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.nn import Dense
from genjax.nn.fir import downsample, upsample
from genjax.nn.grouped import grouped_convolve

Dtype = Any
normal = nn.initializers.normal


def leaky_relu(x: Array) -> Array:
    """Return x for positive x, and 0.2·x otherwise."""
    return nn.leaky_relu(x, 0.2)


def convolution(features: int, side: int, gain: float = 1.0, **options) -> nn.Conv:
    """Return a convolution with weights N(0, gain²/fan_in), "MSR" (He et al. 2015)."""
    init = (
        nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
        if gain
        else nn.initializers.zeros
    )
    return nn.Conv(features, (side, side), kernel_init=init, **options)


class ResidualBlock(nn.Module):
    """1×1, grouped 3×3 and 1×1 convolutions with biased leaky ReLUs and no norm.

    Source: figure 3, section 3.3. The block starts as the identity. The scale of its weights falls
    with the network's `total_blocks` (Fixup: Zhang, Dauphin & Ma 2019).
    """

    cardinality: int
    expansion: int
    total_blocks: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        features = x.shape[-1]
        gain = np.sqrt(2 / (1 + 0.2**2)) * self.total_blocks**-0.25
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        grouped = dict(
            feature_group_count=self.cardinality,
            conv_general_dilated=grouped_convolve,
            name="grouped",
            **types,
        )
        h = leaky_relu(convolution(self.expansion * features, 1, gain, name="expand", **types)(x))
        h = leaky_relu(convolution(self.expansion * features, 3, gain, **grouped)(h))
        return x + convolution(features, 1, 0.0, use_bias=False, name="contract", **types)(h)


class Generator(nn.Module):
    """A learned basis scaled channelwise by z, then stages of residual blocks that double the side.

    Attributes:
        widths: channels of every stage, from side `start` to side start·2^(stages − 1).
        cardinalities: groups of the 3×3 convolutions, which have widths·expansion channels.
        blocks: residual blocks of every stage.
        start: side of the basis, 4 in the paper; 7 is for images of 28 pixels in three stages.
        num_classes: 0 if unconditional.
        embedding_features: size of the class embedding, which is concatenated to z.
        float32_stages: number of coarsest stages that compute in float32, whatever `dtype` is.
    """

    widths: Sequence[int]
    cardinalities: Sequence[int]
    blocks: Sequence[int]
    start: int = 4
    expansion: int = 2
    latent_size: int = 64
    image_channels: int = 3
    num_classes: int = 0
    embedding_features: int = 64
    float32_stages: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    first_layer: ClassVar[str] = "basis_scale"  # the linear layer that takes z

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        if self.num_classes:
            embedding = nn.Embed(
                self.num_classes,
                self.embedding_features,
                # The embedding is the authors' matrix applied to a one-hot vector.
                embedding_init=normal(self.num_classes**-0.5),
                param_dtype=self.param_dtype,
                name="label_embedding",
            )(labels)
            z = jnp.concatenate([z, embedding], axis=-1)
        scale = Dense(
            self.widths[0],
            use_bias=False,
            kernel_init=normal(z.shape[-1] ** -0.5),
            param_dtype=self.param_dtype,
            name="basis_scale",
        )(z)
        basis = self.param(
            "basis", normal(1.0), (self.start, self.start, self.widths[0]), self.param_dtype
        )
        x = basis * scale[:, None, None]
        stages = zip(self.widths, self.cardinalities, self.blocks, strict=True)
        for stage, (width, cardinality, blocks) in enumerate(stages):
            dtype = self.dtype if stage >= self.float32_stages else jnp.float32
            types = dict(dtype=dtype, param_dtype=self.param_dtype)
            x = x.astype(dtype)
            if stage:
                if width != x.shape[-1]:
                    x = convolution(width, 1, use_bias=False, name=f"width_{stage}", **types)(x)
                x = upsample(x)
            block = functools.partial(
                ResidualBlock, cardinality, self.expansion, sum(self.blocks), **types
            )
            for i in range(blocks):
                x = block(name=f"block_{stage}_{i}")(x)
        x = convolution(
            self.image_channels,
            1,
            use_bias=False,
            dtype=x.dtype,
            param_dtype=self.param_dtype,
            name="to_image",
        )(x)
        return x.astype(jnp.float32)


class Discriminator(nn.Module):
    """The generator's mirror image: residual blocks, then a sum weighted by a learned basis.

    A class's logit is the inner product of its embedding with the features (Miyato & Koyama 2018),
    without an unconditional term.

    Attributes:
        widths: channels of every stage, from the images' side to side `start`.
        cardinalities: groups of the 3×3 convolutions, which have widths·expansion channels.
        blocks: residual blocks of every stage.
        start: side of the basis, 4 in the paper; 7 is for images of 28 pixels in three stages.
        num_classes: 0 if unconditional.
        embedding_features: size of the class embedding.
        float32_stages: number of coarsest stages that compute in float32, whatever `dtype` is.

    Raises:
        ValueError: the images' side is not start·2^(stages − 1).
    """

    widths: Sequence[int]
    cardinalities: Sequence[int]
    blocks: Sequence[int]
    start: int = 4
    expansion: int = 2
    num_classes: int = 0
    embedding_features: int = 768
    float32_stages: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " batch"]:
        side = self.start * 2 ** (len(self.widths) - 1)
        if images.shape[1:3] != (side, side):
            height, width = images.shape[1:3]
            raise ValueError(
                f"{len(self.widths)} stages need images of {side}×{side}; these are "
                f"{height}×{width}"
            )
        x = images
        stages = zip(self.widths, self.cardinalities, self.blocks, strict=True)
        for stage, (width, cardinality, blocks) in enumerate(stages):
            dtype = self.dtype if stage < len(self.widths) - self.float32_stages else jnp.float32
            types = dict(dtype=dtype, param_dtype=self.param_dtype)
            if stage:
                x = downsample(x)
            if stage == 0 or width != x.shape[-1]:
                x = convolution(width, 1, use_bias=False, name=f"width_{stage}", **types)(x)
            x = x.astype(dtype)
            block = functools.partial(
                ResidualBlock, cardinality, self.expansion, sum(self.blocks), **types
            )
            for i in range(blocks):
                x = block(name=f"block_{stage}_{i}")(x)
        basis = self.param(
            "basis", normal(1 / self.start), (self.start, self.start, x.shape[-1]), self.param_dtype
        )
        features = jnp.sum(x * basis, axis=(1, 2))
        out_features = self.embedding_features if self.num_classes else 1
        out = Dense(
            out_features,
            use_bias=False,
            kernel_init=normal(x.shape[-1] ** -0.5),
            param_dtype=self.param_dtype,
            name="head",
        )(features)
        if not self.num_classes:
            return out[:, 0]
        embedding = nn.Embed(
            self.num_classes,
            self.embedding_features,
            embedding_init=normal((self.num_classes * self.embedding_features) ** -0.5),
            param_dtype=self.param_dtype,
            name="label_embedding",
        )(labels)
        return jnp.sum(out * embedding, axis=-1)
