"""LTX-2's connectors, between a text encoder and the network (HaCohen et al. 2026, "LTX-2").

The states of all layers of the encoder become one text for the video and one for the audio. Each
goes through a small transformer. Learned registers take the place of padding, so all tokens of the
results may be attended to.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.models.transformers.ltx2 import STREAMS, GatedAttention, head_rotations
from genjax.models.transformers.ltx_video import rms_norm
from genjax.nn import Dense, Text, constrain_tokens, scanned
from genjax.nn.transformer import FeedForward, inline

Dtype = Any
POSITIONS = 4096  # that fill the range of positions
xavier = nn.initializers.xavier_uniform()


def normalized_states(
    states: Float[Array, "batch length states features"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch length states features"]:
    """Return 8·(x − mean)/(maximum − minimum) of each state of a text, and zeros at padding."""
    mask = mask[:, :, None, None]
    over = dict(axis=(1, 3), keepdims=True)
    count = mask.sum(1, keepdims=True) * states.shape[-1]
    mean = jnp.where(mask, states, 0).sum(**over) / (count + 1e-6)
    low = jnp.where(mask, states, jnp.inf).min(**over)
    high = jnp.where(mask, states, -jnp.inf).max(**over)
    return jnp.where(mask, 8 * (states - mean) / (high - low + 1e-6), 0)


def replace_padding(
    x: Float[Array, "batch length features"],
    mask: Bool[Array, "batch length"],
    registers: Float[Array, "registers features"],
) -> Float[Array, "batch length features"]:
    """Return the tokens of each text, and after them the registers of the places that remain.

    Place i has register i modulo their number.
    """
    tokens = jnp.take_along_axis(x, jnp.argsort(~mask, axis=1, stable=True)[..., None], axis=1)
    filled = jnp.arange(x.shape[1]) < mask.sum(1, keepdims=True)
    repeated = jnp.tile(registers, (x.shape[1] // len(registers), 1))
    return jnp.where(filled[..., None], tokens, repeated)


class Block(nn.Module):
    """Self-attention and a feed-forward layer; neither has parameters of its norm."""

    num_heads: int
    gated: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        rotations: Float[Array, "length heads pairs 2"],
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attend = GatedAttention(x.shape[-1], self.num_heads, self.gated, name="attention", **types)
        h = rms_norm(x)
        x = constrain_tokens(x + attend(h, h, rotations, rotations))
        return inline(self, FeedForward(4 * x.shape[-1], rms_norm, **types))(x), None


class Connector(nn.Module):
    """A transformer over the tokens of a text and learned registers instead of its padding."""

    depth: int
    num_heads: int
    num_registers: int
    gated: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length features"]:
        shape = self.num_registers, x.shape[-1]
        init = lambda key, shape, dtype: 2 * nn.initializers.uniform(1.0)(key, shape, dtype) - 1
        registers = self.param("registers", init, shape, self.param_dtype).astype(jnp.float32)
        x = replace_padding(x.astype(jnp.float32), mask, registers)
        places = jnp.arange(x.shape[1], dtype=jnp.float32) / POSITIONS
        rotations = head_rotations([places], x.shape[-1], self.num_heads)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        blocks = scanned(Block, self.depth)(self.num_heads, self.gated, name="blocks", **types)
        return rms_norm(blocks(x, rotations)[0])


class LTX2Connectors(nn.Module):
    """The connectors of LTX-2.0 and 2.3.

    Attributes:
        width, audio_width: features of a token of either text; divisible by 2·`num_heads`.
        depth: number of blocks of each connector, scanned with stacked parameters.
        num_heads: heads of each connector.
        num_states: number of the encoder's states of a token, its embedding included.
        num_registers: divides the length of texts.
        gated: whether heads are gated and each text has its own projection with biases, as from 2.3
            on. In 2.0 both start from one projection.
        dtype: type of the matrix products; norms, rotations and softmax are float32 always.
    """

    width: int
    audio_width: int
    depth: int
    num_heads: int
    num_states: int = 49
    num_registers: int = 128
    gated: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "batch length {self.num_states} features"],
        mask: Bool[Array, "batch length"],
    ) -> dict[str, Text]:
        """Return the texts for the streams "video" and "audio".

        Args:
            states: of all layers of the encoder.
            mask: True at tokens of the text, False at padding.

        Raises:
            ValueError: `num_registers` does not divide the length.
        """
        batch, length, _, features = states.shape
        if length % self.num_registers:
            raise ValueError(
                f"texts have {length} tokens; take a multiple of num_registers={self.num_registers}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda size, name: Dense(size, self.gated, kernel_init=xavier, name=name, **types)
        flat = lambda x: x.swapaxes(2, 3).reshape(batch, length, -1)
        states, widths = states.astype(jnp.float32), dict(video=self.width, audio=self.audio_width)
        if self.gated:
            normed = flat(jnp.where(mask[..., None, None], rms_norm(states), 0))
            projected = {
                name: dense(size, f"{name}_projection")(normed * np.sqrt(size / features))
                for name, size in widths.items()
            }
        else:
            both = dense(self.width, "projection")(flat(normalized_states(states, mask)))
            projected = dict.fromkeys(STREAMS, both)
        sizes = self.depth, self.num_heads, self.num_registers, self.gated
        return {
            name: Text(Connector(*sizes, name=f"{name}_connector", **types)(x, mask))
            for name, x in projected.items()
        }


def ltx_2_0_connectors(**options) -> LTX2Connectors:
    """Return the connectors of LTX-2.0: 1.4 billion parameters, for the 12B model of Gemma 3."""
    return LTX2Connectors(width=3840, audio_width=3840, depth=2, num_heads=30, **options)


def ltx_2_3_connectors(**options) -> LTX2Connectors:
    """Return the connectors of LTX-2.3: 3.2 billion parameters, for the 12B model of Gemma 3."""
    return LTX2Connectors(
        width=4096, audio_width=2048, depth=8, num_heads=32, gated=True, **options
    )
