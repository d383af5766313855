"""The gated PixelCNN of van den Oord et al. 2016, without a blind spot.

"Conditional image generation with PixelCNN decoders", section 2. The vertical stack reads the rows
above, and the horizontal stack its own row and the vertical stack (figure 2). Here channels of a
pixel are joined in the `Head`, not by masks of feature groups.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from genjax.models.autoregressive.rows import Head, Image, Levels, RowNetwork
from genjax.nn import Dense

Dtype = Any


class Conv(nn.Module):
    """A convolution over the present and past places of one axis, which a carry continues.

    Attributes:
        features: of the output.
        reach: places of the past, and of both sides across.
        axis: 1 for rows, whose neighbours across are columns; 2 for columns, without others.
    """

    features: int
    reach: int
    axis: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, carry: Array | None) -> tuple[Array, Array]:
        """Return the output, and the last `reach` places of `x` for the next call."""
        if carry is None:
            shape = [self.reach if a == self.axis else n for a, n in enumerate(x.shape)]
            carry = jnp.zeros(shape, x.dtype)
        x = jnp.concatenate([carry, x], axis=self.axis)
        carry = jax.lax.slice_in_dim(x, x.shape[self.axis] - self.reach, None, axis=self.axis)
        across = 2 * self.reach + 1 if self.axis == 1 else 1
        kernel = [self.reach + 1, across] if self.axis == 1 else [across, self.reach + 1]
        padding = [(0, 0), (across // 2,) * 2] if self.axis == 1 else "VALID"
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return nn.Conv(self.features, kernel, padding=padding, name="conv", **types)(x), carry


class GatedPixelCNN(RowNetwork):
    """Two stacks of gated convolutions, the vertical and the horizontal.

    A pixel sees all earlier pixels if `depth · (kernel_size // 2)` is at least the picture's sides.

    Attributes:
        width: features of each stack.
        depth: number of layers.
        kernel_size: side of the vertical convolutions, n of the paper; odd.
    """

    width: int = 64
    depth: int = 8
    kernel_size: int = 3
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; take an odd number")
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        layers = range(self.depth)
        conv = lambda axis: [
            Conv(2 * self.width, self.kernel_size // 2, axis, **types) for _ in layers
        ]
        dense = lambda width, count=self.depth: [Dense(width, **types) for _ in range(count)]
        self.vertical, self.horizontal = conv(1), conv(2)
        self.embed_above, self.embed_left = dense(self.width, 2)
        self.links, self.residual = dense(2 * self.width), dense(self.width)
        if self.num_classes:
            embed = lambda: nn.Embed(self.num_classes, 2 * self.width, **types)
            self.vertical_classes = [embed() for _ in layers]
            self.horizontal_classes = [embed() for _ in layers]
        self.head = Head(self.num_levels, 2 * self.width, **types)

    def __call__(
        self, levels: Levels, labels: Int[Array, " batch"]
    ) -> Float[Array, "batch height width channels levels"]:
        return self.whole(levels, labels)

    def above(
        self, x: Image, labels: Int[Array, " batch"], carry: PyTree
    ) -> tuple[tuple[Array, ...], PyTree]:
        """Return what each layer of the horizontal stack takes from the vertical stack."""
        links, carries = [], []
        v = self.embed_above(x)
        for i in range(self.depth):
            v, after = self.vertical[i](v, carry and carry[i])
            links.append(self.links[i](v))
            carries.append(after)
            v = _gate(v + self._class_bias("vertical_classes", i, labels))
        return tuple(links), tuple(carries)

    def left(
        self, x: Image, above: tuple[Array, ...], labels: Int[Array, " batch"], carry: PyTree
    ) -> tuple[Float[Array, "batch rows columns out_features"], PyTree]:
        """Return features of these and earlier pixels of each row, and of the rows above."""
        carries = []
        h = self.embed_left(x)
        for i in range(self.depth):
            out, after = self.horizontal[i](h, carry and carry[i])
            carries.append(after)
            out = _gate(out + above[i] + self._class_bias("horizontal_classes", i, labels))
            h += self.residual[i](out)
        return h, tuple(carries)

    def _class_bias(self, name: str, layer: int, labels: Array) -> Array | float:
        return getattr(self, name)[layer](labels)[:, None, None] if self.num_classes else 0.0


def _gate(x: Array) -> Array:
    """Return tanh(a)·σ(b) of the two halves of the features (equation 2)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)
