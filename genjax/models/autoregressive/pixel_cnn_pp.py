"""PixelCNN++ (Salimans et al. 2017), with the layers of the authors' code.

Two streams of gated residual blocks go down to a quarter of the sides and back up. One sees the
rows above, the other also what is to the left. The authors set gains and biases from the first
batch; here gains start at the scales that they aim at, 1 and 0.1.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.autoregressive.rows import Levels, as_input, shifted

Dtype = Any
Features = Float[Array, "batch height width features"]


class Conv(nn.Module):
    """A convolution whose kernel has a learned length for each output (weight normalization).

    It sees rows above and its own row; columns on both sides, or its own and those to the left.

    Attributes:
        kernel_size: rows and columns.
        both_sides: whether columns to the right are seen too.
        stride: 2 halves the sides.
        enlarge: 2 doubles the sides: a transposed convolution, whose kernel is stored as that of
            the convolution of the picture with zeros between its pixels.
        gain: first length of the kernel.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    both_sides: bool = False
    stride: int = 1
    enlarge: int = 1
    gain: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch out_height out_width out_features"]:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.05), shape, self.param_dtype)
        fill = lambda name, value: self.param(
            name, nn.initializers.constant(value), (self.features,), self.param_dtype
        )
        length = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(0, 1, 2)))
        kernel = fill("gain", self.gain) * kernel / length
        rows, columns = self.kernel_size
        last = self.enlarge - 1
        sides = columns // 2 if self.both_sides else 0
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride,) * 2,
            [(rows - 1, last), (columns - 1 - sides, sides + last)],
            lhs_dilation=(self.enlarge,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + fill("bias", 0.0).astype(self.dtype)


def concat_elu(x: Features) -> Float[Array, "batch height width twice_features"]:
    """Return the ELU of features and of their negatives."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


class GatedResidual(nn.Module):
    """A gated residual block, which also reads another array, and the class.

    Attributes:
        kernel_size, both_sides: of its convolutions.
        num_classes: 0 for no classes.
        dropout_rate: the rate before the last convolution, if `apply` is given
            `rngs={"dropout": key}`.
    """

    kernel_size: tuple[int, int]
    both_sides: bool
    num_classes: int
    dropout_rate: float
    types: Any

    @nn.compact
    def __call__(self, x: Features, other: Array | None, labels: Int[Array, " batch"]) -> Features:
        width, options = x.shape[-1], dict(both_sides=self.both_sides, **self.types)
        h = Conv(width, self.kernel_size, name="conv_in", **options)(concat_elu(x))
        if other is not None:
            h += Conv(width, name="skip", **self.types)(concat_elu(other))
        dropout = nn.Dropout(self.dropout_rate, deterministic=not self.has_rng("dropout"))
        conv = Conv(2 * width, self.kernel_size, name="conv_out", gain=0.1, **options)
        h = conv(dropout(concat_elu(h)))
        if self.num_classes:
            init = nn.initializers.normal(0.05)
            embed = nn.Embed(self.num_classes, 2 * width, embedding_init=init, name="classes")
            h += embed(labels)[:, None, None]
        a, b = jnp.split(h, 2, axis=-1)
        return x + a * nn.sigmoid(b)


class Cache(NamedTuple):
    """The state of sampling: the picture so far, and the outputs of the current pixel."""

    levels: Levels
    labels: Int[Array, " batch"]
    outputs: Float[Array, "batch parameters"]


class PixelCNNPlusPlus(nn.Module):
    """Streams of gated residual blocks at three sizes, joined by skips.

    Height and width are multiples of 4. Every pixel's outputs depend on earlier pixels alone.

    Attributes:
        image_shape: height, width, channels.
        outputs: numbers for each pixel, as of `genjax.autoregression.mixture_of_logistics`.
        num_levels: levels of a sub-pixel.
        num_classes: 0 for an unconditional network, which ignores labels.
        width: features of each stream.
        depth: blocks at each size on the way down; on the way up the larger sizes have one more.
        dropout_rate: the rate within blocks, if `apply` is given `rngs={"dropout": key}`.
    """

    image_shape: tuple[int, int, int]
    outputs: tuple[int] = (100,)
    num_levels: int = 256
    num_classes: int = 0
    width: int = 160
    depth: int = 5
    dropout_rate: float = 0.5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    divisor = 4

    @nn.compact
    def __call__(
        self, levels: Levels, labels: Int[Array, " batch"]
    ) -> Float[Array, "batch height width parameters"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        told = (self.num_classes, self.dropout_rate, types)
        streams = dict(above=((2, 3), True), left=((2, 2), False))  # kernels

        def conv(stream, name, x, **options):
            kernel = streams[stream]
            return Conv(self.width, *kernel, name=f"{stream}_{name}", **options, **types)(x)

        def block(stream, name, x, other):
            return GatedResidual(*streams[stream], *told, name=f"{stream}_{name}")(x, other, labels)

        first = lambda name, size, sides: Conv(self.width, size, sides, name=name, **types)(x)
        x = as_input(levels, self.num_levels)
        above = [shifted(first("above_start", (2, 3), True), 1)]
        left = [shifted(first("row_start", (1, 3), True), 1)]
        left[0] += shifted(first("left_start", (2, 1), False), 2)
        for size in range(3):
            for i in range(self.depth):
                above.append(block("above", f"down_{size}_{i}", above[-1], None))
                left.append(block("left", f"down_{size}_{i}", left[-1], above[-1]))
            if size < 2:
                above.append(conv("above", f"half_{size}", above[-1], stride=2))
                left.append(conv("left", f"half_{size}", left[-1], stride=2))
        u, v = above.pop(), left.pop()
        for size in (2, 1, 0):
            for i in range(self.depth + (size < 2)):
                u = block("above", f"up_{size}_{i}", u, above.pop())
                both = jnp.concatenate([u, left.pop()], axis=-1)
                v = block("left", f"up_{size}_{i}", v, both)
            if size:
                u = conv("above", f"double_{size}", u, enlarge=2)
                v = conv("left", f"double_{size}", v, enlarge=2)
        return Conv(*self.outputs, name="out", **types)(nn.elu(v)).astype(jnp.float32)

    def prefill(
        self, labels: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch parameters"], Cache]:
        """Return the outputs of a picture's first pixel, and the cache for `step`."""
        levels = jnp.zeros((len(labels), *self.image_shape), jnp.int32)
        outputs = self(levels, labels)[:, 0, 0]
        return outputs, Cache(levels, labels, outputs)

    def step(
        self, cache: Cache, tokens: Int[Array, " batch"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch parameters"], Cache]:
        """Read the sub-pixel at a position in raster order; return the outputs for the next.

        Each pixel takes a pass over the whole picture.
        """
        shape, channels = cache.levels.shape, self.image_shape[-1]
        levels = cache.levels.reshape(len(tokens), -1).at[:, position].set(tokens)
        cache = cache._replace(levels=levels.reshape(shape))
        keep = lambda network, cache, pixel: cache
        is_new, pixel = (position + 1) % channels == 0, (position + 1) // channels
        cache = nn.cond(is_new, PixelCNNPlusPlus._next_pixel, keep, self, cache, pixel)
        return cache.outputs, cache

    def _next_pixel(self, cache: Cache, pixel: Int[Array, ""]) -> Cache:
        outputs = self(cache.levels, cache.labels)
        outputs = outputs.reshape(len(outputs), -1, outputs.shape[-1])
        return cache._replace(
            outputs=jax.lax.dynamic_index_in_dim(outputs, pixel, 1, keepdims=False)
        )
