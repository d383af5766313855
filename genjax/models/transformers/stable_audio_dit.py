"""Stable Audio's transformer (Evans et al. 2024, "Stable Audio Open", section 3.3).

A transformer over the latents of a sound. One token before the latents holds the time and the
sound's timing; nothing modulates the layers. Text and timing enter by cross-attention too.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.nn import Dense, Text, constrain, constrain_tokens, scanned
from genjax.nn.rotary import rotary_positions
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros


def swiglu(x: Float[Array, "*batch two_features"]) -> Float[Array, "*batch features"]:
    """Return the first half of the features times SiLU of the second half."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * nn.silu(gate)


def rotations(length: int, features: int) -> Float[Array, "length pairs 2"]:
    """Return (cos, sin) for `rotary.rotate`, which turn the first half of a head's features."""
    turned = rotary_positions(np.arange(length)[:, None], (features // 2,))
    unturned = np.broadcast_to(np.float32([1, 0]), (length, features // 2 - turned.shape[1], 2))
    return jnp.asarray(np.concatenate([turned, unturned], axis=1))


class Block(nn.Module):
    """Self-attention, cross-attention to text and timing, and a SwiGLU layer, after layer norms."""

    num_heads: int
    num_kv_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        text: Float[Array, "batch text_length text_features"],
        rotations: Float[Array, "length pairs 2"],
        mask: Bool[Array, "batch 1 1 text_length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def attention(name: str, **options: Any) -> Attention:
            options |= dict(norm=self._norm(f"{name}_norm"), use_bias=False, out_init=zeros)
            return Attention(self.num_heads, name=name, **options, **types)

        x, _ = attention("self_attention")(x, rotations=rotations)
        cross_attention = attention("cross_attention", num_kv_heads=self.num_kv_heads)
        x, _ = cross_attention(x, context=text, mask=mask)
        norm = self._norm("mlp_norm")
        mlp = FeedForward(8 * x.shape[-1], norm, activation=swiglu, out_init=zeros, **types)
        return inline(self, mlp)(x), None

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(
            epsilon=1e-5, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )


class StableAudioDiT(nn.Module):
    """A transformer over latents of sound, with the time in a token and text by cross-attention.

    Any length will do. At first the network returns zeros.

    Attributes:
        width: features of a token; `num_heads` divides it, and 4 divides a head's features.
        depth: number of blocks, scanned with stacked parameters.
        num_heads: heads of the queries.
        num_kv_heads: heads of the keys and values of cross-attention, which divide `num_heads`.
        text_width: features of text and timing in cross-attention; a multiple of a head's.
        time_features: sines and cosines of the time, of fixed random frequencies.
        out_channels: channels of the output; as many as the input's if None.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products. Norms, rotations, softmax and the input's and output's
            layers are float32 always.
    """

    width: int = 1536
    depth: int = 24
    num_heads: int = 24
    num_kv_heads: int = 12
    text_width: int = 768
    time_features: int = 256
    out_channels: int | None = None
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    patch_size: ClassVar[int] = 1  # number of latents of a token

    def _dense(self, features: int, name: str, **options: Any) -> Dense:
        options = dict(kernel_init=xavier, use_bias=False, dtype=jnp.float32) | options
        return Dense(features, name=name, param_dtype=self.param_dtype, **options)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames channels"], t: Float[Array, " batch"], text: Text
    ) -> Float[Array, "batch frames out_channels"]:
        """
        Args:
            t: the time as the authors train: 2/π·arctan(sigma/alpha), from 0 to 1.
            text: `tokens` are the states of text and timing, and `pooled` the timing's states
                joined, which go into the first token.
        """
        x = x + self._dense(x.shape[-1], "convolution_in", kernel_init=zeros)(x)
        tokens = self._dense(self.width, "embedding")(x)
        first = self._time(t) + self._perceptron(text.pooled, self.width, "global")
        tokens = constrain_tokens(jnp.concatenate([first[:, None], tokens], axis=1))
        states = self._perceptron(text.tokens, self.text_width, "text", dtype=self.dtype)
        mask = None if text.mask is None else text.mask[:, None, None]

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        tokens, _ = blocks(
            self.num_heads, self.num_kv_heads, self.dtype, self.param_dtype, name="blocks"
        )(tokens, states, rotations(tokens.shape[1], self.width // self.num_heads), mask)

        out_channels = self.out_channels or x.shape[-1]
        out = self._dense(out_channels, "head", kernel_init=zeros)(tokens[:, 1:])
        out = out + self._dense(out_channels, "convolution_out", kernel_init=zeros)(out)
        return constrain(out, ("data", "fsdp"))

    def _time(self, t: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        """Return the embedding of the time, from cos(2πft) and sin(2πft)."""
        frequencies = self.param(
            "frequencies", nn.initializers.normal(1.0), (self.time_features // 2,), self.param_dtype
        )
        frequencies = jax.lax.stop_gradient(frequencies.astype(jnp.float32))
        angles = 2 * np.pi * t[:, None] * frequencies
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return self._perceptron(waves, self.width, "time", use_bias=True)

    def _perceptron(
        self, x: Float[Array, "*batch features"], features: int, name: str, **options: Any
    ) -> Float[Array, "*batch out_features"]:
        h = nn.silu(self._dense(features, f"{name}_in", **options)(x))
        return self._dense(features, f"{name}_out", **options)(h)
