"""Networks that read a picture by rows, and their sampling with a cache.

The network has two halves. `above` reads whole rows from the top, so that each pixel gets features
of all rows above it. `left` reads one row from left to right, together with these features. Each
half keeps what it needs of earlier rows or pixels in its carry. `Head` adds the earlier channels of
the pixel itself.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from genjax.nn import Dense

Dtype = Any
Levels = Int[Array, "batch height width channels"]
Image = Float[Array, "batch height width channels_and_one"]


def as_input(
    levels: Int[Array, "*shape channels"], num_levels: int
) -> Float[Array, "*shape channels_and_one"]:
    """Return levels as numbers in [−1, 1], and a channel of ones.

    The ones tell pixels from the zeros that stand for pixels beyond the border.

    Raises:
        ValueError: the levels are not integers.
    """
    if not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels are integers from 0 to {num_levels - 1}; got {levels.dtype}")
    x = 2 * levels.astype(jnp.float32) / (num_levels - 1) - 1
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def shifted(x: Array, axis: int) -> Array:
    """Return `x` moved by one place along an axis; zeros come first and the last place is lost."""
    widths = [(int(a == axis), 0) for a in range(x.ndim)]
    return jax.lax.slice_in_dim(jnp.pad(x, widths), 0, x.shape[axis], axis=axis)


class Head(nn.Module):
    """Logits of every channel, from a pixel's features and its earlier channels.

    The last layer is zero at first, so that all levels are equally likely.

    Attributes:
        num_levels: levels of a sub-pixel.
        width: features of the hidden layer.
    """

    num_levels: int
    width: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch *shape features"], levels: Int[Array, "batch *shape c"]
    ) -> Float[Array, "batch *shape c levels"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        hidden, channels = Dense(self.width, name="hidden", **types)(features), levels.shape[-1]
        hidden = jnp.repeat(hidden[..., None, :], channels, axis=-2)
        if channels > 1:
            earlier = as_input(levels, self.num_levels)[..., None, :-1]
            earlier = earlier * jnp.tril(jnp.ones((channels, channels)), -1)
            one_of = jnp.broadcast_to(jnp.eye(channels), earlier.shape)
            inputs = jnp.concatenate([earlier, one_of, nn.silu(hidden)], axis=-1)
            hidden += Dense(self.width, name="channels", **types)(inputs)
        zeros = nn.initializers.zeros
        out = Dense(self.num_levels, kernel_init=zeros, name="logits", **types)
        return out(nn.silu(hidden)).astype(jnp.float32)


class Cache(NamedTuple):
    """The state of sampling by rows.

    Attributes:
        row: levels of the current row so far.
        labels: of the pictures.
        above: features of the rows above, for each pixel of the current row.
        above_carry: of `above`, after the rows above.
        left_carry: of `left`, after the pixels to the left.
        features: of the current pixel.
    """

    row: Int[Array, "batch width channels"]
    labels: Int[Array, " batch"]
    above: PyTree
    above_carry: PyTree
    left_carry: PyTree
    features: Float[Array, "batch features"]


class RowNetwork(nn.Module):
    """A network over pixels whose halves are `above` and `left`.

    A subclass defines these, with `carry` None at the start of a picture or of a row, and calls
    `whole` with the levels of pictures:

        above(x [batch rows width …], labels, carry) -> (features, carry)
        left(x [batch rows columns …], features of above, labels, carry) -> (features, carry)
        head(features, levels) -> logits

    Attributes:
        image_shape: height, width, channels.
        num_levels: levels of a sub-pixel.
        num_classes: 0 for an unconditional network, which ignores labels.
    """

    image_shape: tuple[int, int, int]
    num_levels: int = 256
    num_classes: int = 0

    reads_given = False  # a pixel waits for the features of the one to its left

    def whole(
        self, levels: Levels, labels: Int[Array, " batch"]
    ) -> Float[Array, "batch height width channels levels"]:
        """Return the logits of every sub-pixel given all before it, in raster order."""
        x = as_input(levels, self.num_levels)
        above, _ = self.above(shifted(x, 1), labels, None)
        features, _ = self.left(shifted(x, 2), above, labels, None)
        return self.head(features, levels)

    def prefill(self, labels: Int[Array, " batch"]) -> tuple[Float[Array, "batch levels"], Cache]:
        """Return the logits of a picture's first sub-pixel, and the cache for `step`."""
        _, width, channels = self.image_shape
        row = jnp.zeros((len(labels), width, channels), jnp.int32)
        nothing = shifted(as_input(row[:, None], self.num_levels), 1)
        above, above_carry = self.above(nothing, labels, None)
        features, left_carry = self.left(nothing[:, :, :1], _column(above, 0), labels, None)
        features = features[:, 0, 0]
        cache = Cache(row, labels, above, above_carry, left_carry, features)
        return self.head(features, row[:, 0])[:, 0], cache

    def step(
        self, cache: Cache, tokens: Int[Array, " batch"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "batch levels"], Cache]:
        """Read the sub-pixel at a position in raster order; return the logits of the next."""
        _, width, channels = self.image_shape
        at = lambda position: (position // channels % width, position % channels)
        column, channel = at(position)
        cache = cache._replace(row=cache.row.at[:, column, channel].set(tokens))
        column, channel = at(position + 1)
        keep = lambda network, cache, column: cache
        turn = (column == 0) & (channel == 0)
        cache = nn.cond(turn, RowNetwork._next_row, keep, self, cache, column)
        cache = nn.cond(channel == 0, RowNetwork._next_pixel, keep, self, cache, column)
        pixel = jax.lax.dynamic_index_in_dim(cache.row, column, 1, keepdims=False)
        logits = self.head(cache.features, pixel)
        return jax.lax.dynamic_index_in_dim(logits, channel, 1, keepdims=False), cache

    def _next_row(self, cache: Cache, column: Int[Array, ""]) -> Cache:
        row = as_input(cache.row[:, None], self.num_levels)
        above, carry = self.above(row, cache.labels, cache.above_carry)
        return cache._replace(above=above, above_carry=carry)

    def _next_pixel(self, cache: Cache, column: Int[Array, ""]) -> Cache:
        """Read the pixel to the left of `column`, which starts a row if it is 0."""
        is_first = column == 0
        pixel = jax.lax.dynamic_slice_in_dim(cache.row, column - 1, 1, axis=1)[:, None]
        x = jnp.where(is_first, 0, as_input(pixel, self.num_levels))
        # Every half starts from zeros, so a new row forgets the last by zeros.
        carry = jax.tree.map(lambda a: jnp.where(is_first, 0, a), cache.left_carry)
        features, carry = self.left(x, _column(cache.above, column), cache.labels, carry)
        return cache._replace(left_carry=carry, features=features[:, 0, 0])


def _column(above: PyTree, column: Int[Array, ""] | int) -> PyTree:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, column, 1, axis=2), above)
