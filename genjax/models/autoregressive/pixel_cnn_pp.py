"""PixelCNN++ (Salimans et al. 2017), with the layers of the authors' code.

Two streams of gated residual blocks go down to a quarter of the sides and back up. One sees the
rows above, the other also what is to the left. The authors set gains and biases from the first
batch; here gains start at the scales that they aim at, 1 and 0.1.

Sampling computes one row of the first stream, and one pixel of the other, at all three sizes. The
collection "cache" holds what convolutions need of earlier rows and pixels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from genjax.models.autoregressive.rows import Levels, as_input, shifted

Dtype = Any
Features = Float[Array, "batch height width features"]
LAYOUT = ("NHWC", "HWIO", "NHWC")


class Place(NamedTuple):
    """A row, or a pixel if there is a column, of a picture whose rows have `width` pixels."""

    row: Int[Array, ""]
    column: Int[Array, ""] | None
    width: int

    def halved(self) -> "Place":
        column = None if self.column is None else self.column // 2
        return Place(self.row // 2, column, self.width // 2)


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
    def __call__(
        self, x: Features, place: Place | None = None
    ) -> Float[Array, "batch out_height out_width out_features"]:
        """Return the output of the whole picture, or of one row or pixel.

        Args:
            place: of x, or of the output if it is enlarged. The cache must hold the rows above and
                the pixels to the left.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.05), shape, self.param_dtype)
        fill = lambda name, value: self.param(
            name, nn.initializers.constant(value), (self.features,), self.param_dtype
        )
        length = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(0, 1, 2)))
        kernel = fill("gain", self.gain) * kernel / length
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if place is None:
            y = self._whole(x, kernel)
        else:
            y = (self._enlarged if self.enlarge > 1 else self._at)(x, kernel, place)
        return y + fill("bias", 0.0).astype(self.dtype)

    @property
    def _padding(self) -> tuple[int, int]:
        """The columns that are seen to the left and to the right."""
        columns = self.kernel_size[1]
        sides = columns // 2 if self.both_sides else 0
        return columns - 1 - sides, sides

    def _whole(self, x: Features, kernel: Array) -> Array:
        last, (left, right) = self.enlarge - 1, self._padding
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride,) * 2,
            [(self.kernel_size[0] - 1, last), (left, right + last)],
            lhs_dilation=(self.enlarge,) * 2,
            dimension_numbers=LAYOUT,
        )

    def _at(self, x: Features, kernel: Array, place: Place) -> Array:
        """Convolve a row or pixel together with what the cache holds of the rows and pixels before.

        The cache has as many rows as the kernel, and row r is at r modulo this number.
        """
        rows, columns = self.kernel_size
        shape = (len(x), rows, place.width + columns - 1, x.shape[-1])
        seen = self.variable("cache", "seen", jnp.zeros, shape, x.dtype)
        start = (0 if place.column is None else place.column) + self._padding[0]
        seen.value = jax.lax.dynamic_update_slice(
            seen.value, x, (0, place.row % rows, jnp.asarray(start, place.row.dtype), 0)
        )
        window = jnp.roll(seen.value, -(place.row + 1), axis=1)  # the newest row is the last
        if place.column is not None:
            window = jax.lax.dynamic_slice_in_dim(window, place.column, columns, axis=2)
        strides = (1, self.stride)
        y = jax.lax.conv_general_dilated(window, kernel, strides, "VALID", dimension_numbers=LAYOUT)
        return y if self.stride == 1 else self._held(y, place)

    def _held(self, y: Array, place: Place) -> Array:
        """Return the new output in even rows and columns, and elsewhere that of the last one."""
        shape = (len(y), 1, place.width // 2, self.features)
        held = self.variable("cache", "held", jnp.zeros, shape, y.dtype)
        column, is_new = 0, place.row % 2 == 0
        if place.column is not None:
            column, is_new = place.column // 2, is_new & (place.column % 2 == 0)
        old = jax.lax.dynamic_slice_in_dim(held.value, column, y.shape[2], axis=2)
        y = jnp.where(is_new, y, old)
        held.value = jax.lax.dynamic_update_slice_in_dim(held.value, y, column, axis=2)
        return y

    def _enlarged(self, x: Features, kernel: Array, place: Place) -> Array:
        """Return a row or pixel of the enlarged picture, whose zeros leave a part of the kernel."""
        kernel = jax.lax.dynamic_slice_in_dim(kernel, 1 - place.row % 2, 1, axis=0)
        if place.column is not None:
            kernel = jax.lax.dynamic_slice_in_dim(kernel, 1 - place.column % 2, 1, axis=1)
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT
            )
        left, right = self._padding
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(0, 0), (left, right + 1)],
            lhs_dilation=(1, 2),
            dimension_numbers=LAYOUT,
        )


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
    def __call__(
        self,
        x: Features,
        other: Array | None,
        labels: Int[Array, " batch"],
        place: Place | None = None,
    ) -> Features:
        width, options = x.shape[-1], dict(both_sides=self.both_sides, **self.types)
        h = Conv(width, self.kernel_size, name="conv_in", **options)(concat_elu(x), place)
        if other is not None:
            h += Conv(width, name="skip", **self.types)(concat_elu(other))
        dropout = nn.Dropout(self.dropout_rate, deterministic=not self.has_rng("dropout"))
        conv = Conv(2 * width, self.kernel_size, name="conv_out", gain=0.1, **options)
        h = conv(dropout(concat_elu(h)), place)
        if self.num_classes:
            init = nn.initializers.normal(0.05)
            embed = nn.Embed(self.num_classes, 2 * width, embedding_init=init, name="classes")
            h += embed(labels)[:, None, None]
        a, b = jnp.split(h, 2, axis=-1)
        return x + a * nn.sigmoid(b)


class Stream(nn.Module):
    """Gated residual blocks down to a quarter of the sides, and back up with skips.

    Attributes:
        stream: begins the names of its layers.
        kernel_size, both_sides: of its convolutions.
        width, depth, num_classes, dropout_rate: as of the network.
    """

    stream: str
    kernel_size: tuple[int, int]
    both_sides: bool
    width: int
    depth: int
    num_classes: int
    dropout_rate: float
    types: Any

    @nn.compact
    def __call__(
        self,
        x: Features,
        others: Iterator[Array] | None,
        labels: Int[Array, " batch"],
        place: Place | None,
    ) -> tuple[Features, list[Array]]:
        """Return the last features, and those after each block.

        Args:
            others: features after each block of the other stream, which the blocks read.
            place: the row or pixel to compute; None for the whole picture.
        """
        kernel, blocks, skips = (self.kernel_size, self.both_sides), [], [x]
        places = [place, place and place.halved(), place and place.halved().halved()]

        def conv(name, x, size, **options):
            name = f"{self.stream}_{name}"
            return Conv(self.width, *kernel, name=name, **options, **self.types)(x, places[size])

        def block(name, x, other, size):
            options = *kernel, self.num_classes, self.dropout_rate, self.types
            layer = GatedResidual(*options, name=f"{self.stream}_{name}")
            blocks.append(layer(x, other, labels, places[size]))
            return blocks[-1]

        for size in range(3):
            for i in range(self.depth):
                other = None if others is None else next(others)
                skips.append(block(f"down_{size}_{i}", skips[-1], other, size))
            if size < 2:
                skips.append(conv(f"half_{size}", skips[-1], size, stride=2))
        x = skips.pop()
        for size in (2, 1, 0):
            for i in range(self.depth + (size < 2)):
                other = skips.pop()
                if others is not None:
                    other = jnp.concatenate([next(others), other], axis=-1)
                x = block(f"up_{size}_{i}", x, other, size)
            if size:
                x = conv(f"double_{size}", x, size - 1, enlarge=2)
        return x, blocks


class Cache(NamedTuple):
    """The state of sampling by rows.

    Attributes:
        row: levels of the current row so far.
        above: features of the current row that see rows above: the start of the left stream, and
            after each block of the other.
        seen: the collection "cache", of both streams.
        outputs: of the current pixel.
    """

    row: Int[Array, "batch width channels"]
    labels: Int[Array, " batch"]
    above: PyTree
    seen: PyTree
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

    reads_given = False

    divisor = 4

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        first = lambda size, sides: Conv(self.width, size, sides, **types)
        self.above_start, self.row_start = first((2, 3), True), first((1, 3), True)
        self.left_start = first((2, 1), False)
        shared = self.width, self.depth, self.num_classes, self.dropout_rate, types
        self.above = Stream("above", (2, 3), True, *shared)
        self.left = Stream("left", (2, 2), False, *shared)
        for stream in (self.above, self.left):
            nn.share_scope(self, stream)
        self.out = Conv(*self.outputs, **types)

    def __call__(
        self, levels: Levels, labels: Int[Array, " batch"]
    ) -> Float[Array, "batch height width parameters"]:
        x = as_input(levels, self.num_levels)
        _, above = self.above(shifted(self.above_start(x), 1), None, labels, None)
        left = shifted(self.row_start(x), 1) + shifted(self.left_start(x), 2)
        return self._outputs(self.left(left, iter(above), labels, None)[0])

    def _outputs(self, x: Features) -> Float[Array, "batch height width parameters"]:
        return self.out(nn.elu(x)).astype(jnp.float32)

    def prefill(
        self, labels: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch parameters"], Cache]:
        """Return the outputs of a picture's first pixel, and the cache for `step`."""
        _, width, channels = self.image_shape
        row = jnp.zeros((len(labels), width, channels), jnp.int32)
        zero = jnp.int32(0)
        cache = self._next_row(Cache(row, labels, None, {}, None), zero)
        cache = self._next_pixel(cache, zero, zero)
        return cache.outputs, cache

    def step(
        self, cache: Cache, tokens: Int[Array, " batch"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch parameters"], Cache]:
        """Read the sub-pixel at a position in raster order; return the outputs for the next."""
        _, width, channels = self.image_shape
        at = lambda position: (
            position // (channels * width),
            position // channels % width,
            position % channels,
        )
        _, column, channel = at(position)
        cache = cache._replace(row=cache.row.at[:, column, channel].set(tokens))
        row, column, channel = at(position + 1)
        keep = lambda cache, *place: cache
        turn = (column == 0) & (channel == 0)
        cache = jax.lax.cond(turn, self._next_row, keep, cache, row)
        cache = jax.lax.cond(channel == 0, self._next_pixel, keep, cache, row, column)
        return cache.outputs, cache

    def _next_row(self, cache: Cache, row: Int[Array, ""]) -> Cache:
        x = jnp.where(row == 0, 0, as_input(cache.row[:, None], self.num_levels))
        above, seen = self._cached(cache, x, cache.labels, row, method="row_above")
        return cache._replace(above=above, seen=seen)

    def _next_pixel(self, cache: Cache, row: Int[Array, ""], column: Int[Array, ""]) -> Cache:
        before = jax.lax.dynamic_slice_in_dim(cache.row, jnp.maximum(column - 1, 0), 1, axis=1)
        x = jnp.where(column == 0, 0, as_input(before[:, None], self.num_levels))
        inputs = x, cache.above, cache.labels, row, column
        outputs, seen = self._cached(cache, *inputs, method="pixel_left")
        return cache._replace(outputs=outputs[:, 0, 0], seen=seen)

    def _cached(self, cache: Cache, *inputs: Any, method: str) -> tuple[Any, PyTree]:
        """Return what a method returns, and the collection "cache" after it."""
        network, variables = self.unbind()
        variables = {"params": variables["params"], "cache": cache.seen}
        output, after = network.apply(variables, *inputs, method=method, mutable=["cache"])
        return output, cache.seen | after["cache"]

    def row_above(
        self,
        x: Float[Array, "batch 1 width channels_and_one"],
        labels: Int[Array, " batch"],
        row: Int[Array, ""],
    ) -> list[Array]:
        """Return `Cache.above` of a row from the pixels of the row before it."""
        width = x.shape[2]
        before = Place(row - 1, None, width)
        start = lambda conv: jnp.where(row == 0, 0, conv(x, before))
        place = Place(row, None, width)
        _, above = self.above(start(self.above_start), None, labels, place)
        return [start(self.row_start), *above]

    def pixel_left(
        self,
        x: Float[Array, "batch 1 1 channels_and_one"],
        above: list[Array],
        labels: Int[Array, " batch"],
        row: Int[Array, ""],
        column: Int[Array, ""],
    ) -> Float[Array, "batch 1 1 parameters"]:
        """Return the outputs of a pixel from the pixel before it and `Cache.above`."""
        width = self.image_shape[1]
        before = Place(row, jnp.maximum(column - 1, 0), width)

        def of_pixel(features):
            halvings = width // features.shape[2]
            return jax.lax.dynamic_slice_in_dim(features, column // halvings, 1, axis=2)

        first, *above = map(of_pixel, above)
        left = first + jnp.where(column == 0, 0, self.left_start(x, before))
        place = Place(row, column, width)
        return self._outputs(self.left(left, iter(above), labels, place)[0])
