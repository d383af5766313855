"""Residual GANs for many classes: SNGAN with a projection discriminator, and BigGAN.

SNGAN's networks are those of Miyato & Koyama 2018 ("cGANs with projection discriminator") and
Miyato et al. 2018 ("Spectral normalization for generative adversarial networks"). BigGAN's networks
are those of Brock, Donahue & Simonyan 2019, appendix B. The authors' generators and discriminators
have these fields:

| network, side  | widths of the generator    | `shared_features`, `spectral_norm`, attention |
|----------------|----------------------------|-----------------------------------------------|
| SNGAN, 64      | 1024, 512, 256, 128, 64    | 0, no, none                                   |
| BigGAN, 128    | 96 × (16, 16, 8, 4, 2, 1)  | 128, yes, at side 64                          |

| network, side  | widths of the discriminator | `halvings`, `wide`, attention |
|----------------|-----------------------------|-------------------------------|
| SNGAN, 64      | 64, 128, 256, 512, 1024     | 5, no, none                   |
| BigGAN, 128    | 96 × (1, 2, 4, 8, 16, 16)   | 5, yes, at side 64            |

The generator sees its class as scale and shift of each batch norm. The discriminator sees it as one
inner product at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.nn import Dense

Dtype = Any
orthogonal = nn.initializers.orthogonal()


@dataclass(frozen=True)
class Layers:
    """How a network's layers are made and called.

    Attributes:
        spectral_norm: divide each weight by its largest singular value. A step of power iteration
            estimates that value (Miyato et al. 2018, algorithm 1). Its vectors are in
            "batch_stats", and move in training.
    """

    spectral_norm: bool
    dtype: Dtype
    param_dtype: Dtype

    def call(self, layer: nn.Module, x: Array, train: bool) -> Array:
        """Return the output of a layer with a name."""
        if not self.spectral_norm:
            return layer(x)
        return nn.SpectralNorm(layer, name=f"{layer.name}_norm")(x, update_stats=train)

    def convolve(
        self,
        name: str,
        features: int,
        side: int,
        x: Float[Array, "batch height width channels"],
        train: bool,
        **options: Any,
    ) -> Float[Array, "batch height width features"]:
        """Return a convolution that keeps the map's side."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sides = side, side
        layer = nn.Conv(features, sides, kernel_init=orthogonal, name=name, **types, **options)
        return self.call(layer, x, train)

    def multiply(
        self,
        name: str,
        features: int,
        x: Float[Array, "batch channels"],
        train: bool,
        **options: Any,
    ) -> Float[Array, "batch features"]:
        """Return a product in float32."""
        types = dict(param_dtype=self.param_dtype)
        layer = Dense(features, kernel_init=orthogonal, name=name, **types, **options)
        return self.call(layer, x.astype(jnp.float32), train)


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift are of the condition (Dumoulin et al. 2017).

    A class has its own scale and shift, from 1 and 0. A vector h has the scale 1 + A·h and the
    shift B·h. Without a condition this is batch norm. Running statistics decay by 0.9.

    Attributes:
        num_classes: of conditions that are labels.
    """

    layers: Layers
    num_classes: int
    epsilon: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width features"],
        condition: Int[Array, " batch"] | Float[Array, "batch condition"] | None,
        train: bool,
    ) -> Float[Array, "batch height width features"]:
        features, plain = x.shape[-1], condition is None
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=self.epsilon,
            use_scale=plain,
            use_bias=plain,
            dtype=self.layers.dtype,
            param_dtype=self.layers.param_dtype,
            name="norm",
        )(x)
        if plain:
            return x
        if condition.ndim == 1:
            table = lambda name, init: nn.Embed(
                self.num_classes,
                features,
                embedding_init=init,
                param_dtype=self.layers.param_dtype,
                name=name,
            )(condition)
            scale = table("scale", nn.initializers.ones)
            shift = table("shift", nn.initializers.zeros)
        else:
            scale = 1 + self.layers.multiply("scale", features, condition, train, use_bias=False)
            shift = self.layers.multiply("shift", features, condition, train, use_bias=False)
        return x * scale[:, None, None].astype(x.dtype) + shift[:, None, None].astype(x.dtype)


class Attention(nn.Module):
    """Self-attention over pixels (Zhang et al. 2019, SAGAN), x + γ·O(softmax(QKᵀ)·V) from γ = 0.

    Keys and values are the largest of 2×2 pixels, as in the authors' code. Queries and keys have an
    eighth of the features, values a half.
    """

    layers: Layers

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width features"], train: bool
    ) -> Float[Array, "batch height width features"]:
        batch, height, width, features = x.shape
        project = lambda name, size, y: self.layers.convolve(
            name, size, 1, y, train, use_bias=False
        )
        pool = lambda y: nn.max_pool(y, (2, 2), (2, 2)).reshape(batch, -1, y.shape[-1])
        q = project("queries", features // 8, x).reshape(batch, height * width, -1)
        k, v = pool(project("keys", features // 8, x)), pool(project("values", features // 2, x))
        logits = jnp.einsum("bqc, bkc -> bqk", q, k, preferred_element_type=jnp.float32)
        y = jax.nn.softmax(logits).astype(v.dtype) @ v
        y = project("out", features, y.reshape(batch, height, width, -1))
        gain = self.param("gain", nn.initializers.zeros, (), self.layers.param_dtype)
        return x + gain.astype(x.dtype) * y


def _double(x: Array) -> Array:
    """Return each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _halve(x: Array) -> Array:
    """Return means of 2×2 pixels."""
    return nn.avg_pool(x, (2, 2), (2, 2))


class UpBlock(nn.Module):
    """Norm, ReLU, doubling, 3×3, norm, ReLU, 3×3, added to a 1×1 convolution of the doubled map."""

    layers: Layers
    features: int
    num_classes: int
    epsilon: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch in_height in_width channels"],
        condition: Int[Array, " batch"] | Float[Array, "batch condition"] | None,
        train: bool,
    ) -> Float[Array, "batch height width features"]:
        options = self.layers, self.num_classes, self.epsilon
        norm = lambda name, y: nn.relu(ConditionalNorm(*options, name=name)(y, condition, train))
        h = _double(norm("norm_0", x))
        h = self.layers.convolve("conv_0", self.features, 3, h, train)
        h = self.layers.convolve("conv_1", self.features, 3, norm("norm_1", h), train)
        return h + self.layers.convolve("shortcut", self.features, 1, _double(x), train)


class DownBlock(nn.Module):
    """ReLU, 3×3, ReLU, 3×3 and means of 2×2 pixels, added to a 1×1 convolution and the means.

    Attributes:
        hidden: channels between the two convolutions.
        first: of images, which no ReLU precedes; means come first in the shortcut.
        halve: whether to take means. Without, channels that stay need no convolution.
    """

    layers: Layers
    features: int
    hidden: int
    first: bool
    halve: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch in_height in_width channels"], train: bool
    ) -> Float[Array, "batch height width features"]:
        mean = _halve if self.halve else lambda y: y
        h = x if self.first else nn.relu(x)
        h = self.layers.convolve("conv_0", self.hidden, 3, h, train)
        h = mean(self.layers.convolve("conv_1", self.features, 3, nn.relu(h), train))
        if self.first:
            return h + self.layers.convolve("shortcut", self.features, 1, mean(x), train)
        if self.halve or x.shape[-1] != self.features:
            x = mean(self.layers.convolve("shortcut", self.features, 1, x, train))
        return h + x


class Generator(nn.Module):
    """A product of z, then residual blocks of conditional batch norm that each double the side.

    With `train=True` the collection "batch_stats" must be mutable. Without classes norms are plain.

    Attributes:
        widths: channels of the map of side `start`, and of the output of each block.
        num_classes: 0 if unconditional.
        shared_features: 0 gives each norm a scale and a shift per class (SNGAN). Otherwise all
            norms share an embedding of so many features, and z has as many equal parts as widths:
            the first part makes the map, each block's norms see the embedding and the next part
            (BigGAN's "shared" and "skip-z").
        attention: side of the map after which there is self-attention; 0 for none.
        spectral_norm: of all weights except embeddings.
        epsilon: of the norms.

    Raises:
        ValueError: z does not divide into the parts, or no block makes a map of side `attention`.
    """

    first_layer: ClassVar[str] = "project"  # the linear layer that takes z, or its first part

    widths: Sequence[int]
    start: int = 4
    latent_size: int = 128
    image_channels: int = 3
    num_classes: int = 0
    shared_features: int = 0
    attention: int = 0
    spectral_norm: bool = False
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        layers = Layers(self.spectral_norm, self.dtype, self.param_dtype)
        blocks = self.widths[1:]
        sides = [self.start * 2 ** (i + 1) for i in range(len(blocks))]
        _check_attention(self.attention, sides)
        z, conditions = self._conditions(z, labels)
        x = layers.multiply("project", self.start**2 * self.widths[0], z, train)
        x = x.reshape(-1, self.start, self.start, self.widths[0]).astype(self.dtype)
        for i, (side, features, condition) in enumerate(
            zip(sides, blocks, conditions, strict=True)
        ):
            block = UpBlock(layers, features, self.num_classes, self.epsilon, name=f"block_{i}")
            x = block(x, condition, train)
            if side == self.attention:
                x = Attention(layers, name="attention")(x, train)
        x = nn.relu(ConditionalNorm(layers, 0, self.epsilon, name="norm")(x, None, train))
        x = layers.convolve("to_image", self.image_channels, 3, x, train)
        return jnp.tanh(x.astype(jnp.float32))

    def _conditions(self, z: Array, labels: Array | None) -> tuple[Array, list[Array | None]]:
        """Return what makes the first map, and the condition of each block."""
        blocks = len(self.widths) - 1
        if not self.num_classes:
            return z, [None] * blocks
        if not self.shared_features:
            return z, [labels] * blocks
        if z.shape[-1] % len(self.widths):
            raise ValueError(
                f"latent_size {z.shape[-1]} does not divide into {len(self.widths)} parts: one for "
                f"the first map and one for each of {blocks} blocks"
            )
        embedding = nn.Embed(
            self.num_classes,
            self.shared_features,
            embedding_init=orthogonal,
            param_dtype=self.param_dtype,
            name="label_embedding",
        )(labels)
        first, *others = jnp.split(z, len(self.widths), axis=-1)
        return first, [jnp.concatenate([embedding, part], axis=-1) for part in others]


class Discriminator(nn.Module):
    """Residual blocks that halve the side, a sum φ over pixels, and a projection of the class.

    The logit is v_yᵀφ(x) + ψᵀφ(x) + b, of the class's embedding v_y (Miyato & Koyama 2018, equation
    3). Spectral norm divides all weights, also the embedding. The power iteration's vectors are in
    "batch_stats". With `train=True` they move if that collection is mutable.

    Attributes:
        widths: channels after each block.
        halvings: number of the first blocks that halve the side; the others keep it.
        num_classes: 0 if unconditional.
        attention: side of the map after which there is self-attention; 0 for none.
        wide: a block has its output's channels between its convolutions, as in BigGAN; otherwise
            its input's, as in SNGAN.

    Raises:
        ValueError: no block makes a map of side `attention`.
    """

    widths: Sequence[int]
    halvings: int
    num_classes: int = 0
    attention: int = 0
    wide: bool = True
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
        layers = Layers(True, self.dtype, self.param_dtype)
        train = train and self.is_mutable_collection("batch_stats")
        sides = [images.shape[1] // 2 ** min(i + 1, self.halvings) for i in range(len(self.widths))]
        _check_attention(self.attention, sides)
        x = images.astype(self.dtype)
        for i, features in enumerate(self.widths):
            hidden = features if self.wide or not i else x.shape[-1]
            block = DownBlock(layers, features, hidden, not i, i < self.halvings, name=f"block_{i}")
            x = block(x, train)
            if sides[i] == self.attention and self.attention not in sides[:i]:
                x = Attention(layers, name="attention")(x, train)
        features = nn.relu(x).astype(jnp.float32).sum((1, 2))
        logits = layers.multiply("head", 1, features, train)[:, 0]
        if self.num_classes:
            embed = nn.Embed(
                self.num_classes,
                features.shape[-1],
                embedding_init=orthogonal,
                param_dtype=self.param_dtype,
                name="label_embedding",
            )
            logits += jnp.sum(layers.call(embed, labels, train) * features, axis=-1)
        return logits


def _check_attention(side: int, sides: Sequence[int]) -> None:
    if side and side not in sides:
        raise ValueError(
            f"attention must be the side of a block's output, of {', '.join(map(str, sides))}, or "
            f"0 for none; got {side}"
        )
