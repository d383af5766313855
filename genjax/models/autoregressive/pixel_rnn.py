"""A recurrent network over rows, as the row LSTM of van den Oord et al. 2016.

"Pixel recurrent neural networks", section 3.1. The paper's pixels see a triangle of the rows above.
Here a GRU from right to left over each row's states completes it to all earlier pixels, and one
from left to right reads the row itself. No loop runs along diagonals.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from genjax.models.autoregressive.rows import Head, Image, Levels, RowNetwork
from genjax.nn import Dense

Dtype = Any


class RowCell(nn.RNNCellBase):
    """An LSTM over rows: the state of a pixel follows from those near it in the row above.

    A convolution would do the same, but inside a loop it is slow on CPUs.

    Attributes:
        features: of a state.
        reach: columns on each side whose states in the row above are seen.
    """

    features: int
    reach: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    num_feature_axes = 2  # columns and features

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        memory, state = carry
        columns = x.shape[-2]
        padded = jnp.pad(state, ((0, 0), (self.reach, self.reach), (0, 0)))
        near = [padded[:, i : i + columns] for i in range(2 * self.reach + 1)]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gates = Dense(4 * self.features, name="gates", **types)(jnp.concatenate([x, *near], -1))
        keep, write, value, show = jnp.split(gates, 4, axis=-1)
        memory = nn.sigmoid(keep + 1) * memory + nn.sigmoid(write) * jnp.tanh(value)
        state = nn.sigmoid(show) * jnp.tanh(memory)
        return (memory, state), state

    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
        zeros = jnp.zeros((*input_shape[:-1], self.features), self.dtype)
        return zeros, zeros


class PixelRNN(RowNetwork):
    """An LSTM down the rows and GRUs along them, each one `lax.scan`.

    Attributes:
        width: features of every state.
        kernel_size: columns of the row above that a state of the LSTM sees; odd.
    """

    width: int = 64
    kernel_size: int = 3
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; take an odd number")
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        row_cell = RowCell(self.width, self.kernel_size // 2, **types)
        self.down = nn.RNN(row_cell, return_carry=True)
        self.backward = nn.RNN(nn.GRUCell(self.width, **types), reverse=True, keep_order=True)
        self.forward = nn.RNN(nn.GRUCell(self.width, **types), return_carry=True)
        self.embed_above, self.embed_left = (Dense(self.width, **types) for _ in range(2))
        if self.num_classes:
            self.classes = nn.Embed(self.num_classes, self.width, **types)
        self.head = Head(self.num_levels, 2 * self.width, **types)

    def __call__(
        self, levels: Levels, labels: Int[Array, " batch"]
    ) -> Float[Array, "batch height width channels levels"]:
        return self.whole(levels, labels)

    def above(
        self, x: Image, labels: Int[Array, " batch"], carry: PyTree
    ) -> tuple[Float[Array, "batch height width features"], PyTree]:
        """Return features of all pixels of these and earlier rows."""
        x = self._add_class(self.embed_above(x), labels)
        carry, states = self.down(x, initial_carry=carry)
        return self.backward(states), carry

    def left(
        self,
        x: Image,
        above: Float[Array, "batch rows columns features"],
        labels: Int[Array, " batch"],
        carry: PyTree,
    ) -> tuple[Float[Array, "batch rows columns out_features"], PyTree]:
        """Return features of these and earlier pixels of each row, and of the rows above."""
        x = jnp.concatenate([self._add_class(self.embed_left(x), labels), above], axis=-1)
        carry, states = self.forward(x, initial_carry=carry)
        return jnp.concatenate([states, above], axis=-1), carry

    def _add_class(self, x: Array, labels: Array) -> Array:
        return x + self.classes(labels)[:, None, None] if self.num_classes else x
