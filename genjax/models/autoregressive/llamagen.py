"""LlamaGen: a language model over the codes of a picture, row by row.

Sun et al. 2024, "Autoregressive model beats diffusion: Llama for scalable image generation". The
sequence begins with a prefix, the state of a class or of a text. Blocks have RMS norms, SwiGLU and
rotary positions of two axes. There is no dropout; the authors train with rates of 0.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.models.autoregressive.grids import OverGrid, wrong_length
from genjax.models.autoregressive.prefixes import ClassPrefix
from genjax.nn import Dense, Text, constrain_tokens, scanned
from genjax.nn.dense import float32_product, in_token_loop
from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import Attention, Cache, FeedForward, empty_cache, inline

Dtype = Any
small = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros


class Block(nn.Module):
    """Causal self-attention and a SwiGLU layer, each after an RMS norm."""

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "batch length features"], Cache | None],
        rotations: Float[Array, "length pairs 2"],
        mask: Bool[Array, "batch 1 1 keys"] | None,
    ) -> tuple[tuple[Float[Array, "batch length features"], Cache | None], None]:
        x, cache = carry
        options = dict(use_bias=False, kernel_init=small, out_init=small)
        options |= dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attention_norm, mlp_norm = (
            rms_norm(self.param_dtype, name) for name in ("attention_norm", "mlp_norm")
        )
        attention = Attention(self.num_heads, norm=attention_norm, causal=True, **options)
        x, cache = inline(self, attention)(x, rotations=rotations, mask=mask, cache=cache)
        mlp = FeedForward(mlp_features(x.shape[-1]), mlp_norm, nn.silu, gated=True, **options)
        return (inline(self, mlp)(x), cache), None


def mlp_features(width: int) -> int:
    """Return the inner features of the SwiGLU layer: 8/3 of the width, up to a multiple of 256."""
    return -(-int(8 * width / 3) // 256) * 256


def rms_norm(param_dtype: Dtype, name: str | None = None) -> nn.RMSNorm:
    """Make the norm x/√mean(x²)·scale over the last axis, in float32."""
    return nn.RMSNorm(epsilon=1e-5, dtype=jnp.float32, param_dtype=param_dtype, name=name)


class State(NamedTuple):
    """The state of decoding: the caches of all layers, and which of their places are visible."""

    layers: Cache
    mask: Bool[Array, "batch 1 1 capacity"] | None


class LlamaGen(OverGrid, nn.Module):
    """A causal transformer over a grid of codes.

    `prefill` and `step` are what `genjax.autoregression.decode` calls.

    Attributes:
        vocabulary: number of codes.
        grid: rows and columns of codes.
        width: features of a token; a head's, `width / num_heads`, are divisible by 4.
        depth: number of blocks, scanned with stacked parameters.
        prefix: makes the first states of the sequence, `prefix.length` of them.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of a policy (`rematerialized`), or None to keep every activation.
        dtype: type of the matrix products, and of the cache. Norms, rotations, softmax and logits
            are float32 always.
    """

    vocabulary: int
    grid: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    prefix: nn.Module = ClassPrefix()
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def rotations(self) -> Float[np.ndarray, "positions pairs 2"]:
        """Rotations of the prefix and of the tokens.

        The first half of a head's features turns by the row, and the second half by the column. The
        authors' table has zeros for the prefix: the queries and keys of the prefix vanish, so every
        token sees all states of the prefix with the same logit 0.
        """
        half = self.width // self.num_heads // 2
        table = rotary_positions(grid_positions(*self.grid), (half, half))
        return np.concatenate([np.zeros((self.prefix.length, half, 2), np.float32), table])

    def setup(self):
        self.token_embedding = nn.Embed(
            self.vocabulary, self.width, embedding_init=small, param_dtype=self.param_dtype
        )
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        self.blocks = blocks(self.num_heads, self.dtype, self.param_dtype)
        self.norm = rms_norm(self.param_dtype)
        self.head = Dense(
            self.vocabulary,
            use_bias=False,
            kernel_init=zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=float32_product,
        )

    def __call__(
        self, tokens: Int[Array, "batch length"], condition: Int[Array, " batch"] | Text
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of each token, given the condition and the tokens before it.

        Raises:
            ValueError: there are more tokens than the grid has places.
        """
        if tokens.shape[1] > self.length:
            raise wrong_length(tokens.shape[1], self.grid)
        x, mask = self._sequence(condition, tokens[:, :-1])
        if mask is not None:
            mask = mask[..., : x.shape[1]]
        (x, _), _ = self.blocks((x, None), jnp.asarray(self.rotations[: x.shape[1]]), mask)
        return self._logits(x[:, self.prefix.length - 1 :])

    def prefill(
        self,
        condition: Int[Array, " batch"] | Text,
        tokens: Int[Array, "batch given"] | None = None,
    ) -> tuple[Float[Array, "batch vocabulary"], State]:
        """Read the condition and given first tokens in one pass.

        Returns:
            The logits of the next token, and the state for `step`.

        Raises:
            ValueError: the given tokens leave nothing to predict.
        """
        if tokens is not None and tokens.shape[1] >= self.length:
            raise ValueError(
                f"{tokens.shape[1]} tokens are given of a grid that has {self.length}; give fewer"
            )
        x, mask = self._sequence(condition, tokens)
        batch, length, width = x.shape
        capacity = self.prefix.length + self.length
        head = self.num_heads, capacity, width // self.num_heads
        cache = empty_cache(self.depth, batch, *head, dtype=self.dtype)
        (x, cache), _ = self.blocks((x, cache), jnp.asarray(self.rotations[:length]), mask)
        return self._logits(x[:, -1]), State(cache, mask)

    def step(
        self, state: State, tokens: Int[Array, " batch"], position: int | Int[Array, ""]
    ) -> tuple[Float[Array, "batch vocabulary"], State]:
        """Read the token at `position` of the grid, row by row.

        Returns:
            The logits of the next token, and the next state.
        """
        x = self._embedded(tokens[:, None])
        table = jnp.asarray(self.rotations)
        rotations = jax.lax.dynamic_slice_in_dim(table, self.prefix.length + position, 1)
        with in_token_loop(True):
            (x, cache), _ = self.blocks((x, state.layers), rotations, state.mask)
        return self._logits(x[:, 0]), State(cache, state.mask)

    def _sequence(
        self, condition: Int[Array, " batch"] | Text, tokens: Int[Array, "batch length"] | None
    ) -> tuple[Float[Array, "batch _ width"], Bool[Array, "batch 1 1 capacity"] | None]:
        """Return the prefix and the tokens as one sequence, and the visible places."""
        x, mask = self.prefix(condition, self.width, self.dtype, self.param_dtype)
        x = x.astype(jnp.float32)
        if tokens is not None:
            x = jnp.concatenate([x, self._embedded(tokens)], axis=1)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, self.length)), constant_values=True)[:, None, None]
        return constrain_tokens(x), mask

    def _embedded(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        return self.token_embedding(tokens).astype(jnp.float32)

    def _logits(
        self, x: Float[Array, "batch *length width"]
    ) -> Float[Array, "batch *length vocabulary"]:
        return self.head(self.norm(x))


def _size(depth: int, width: int, num_heads: int) -> Callable[..., LlamaGen]:
    def build(
        grid: tuple[int, int] = (16, 16), vocabulary: int = 16_384, **options: Any
    ) -> LlamaGen:
        return LlamaGen(vocabulary, grid, width, depth, num_heads, **options)

    return build


LlamaGen_B = _size(12, 768, 12)
LlamaGen_L = _size(24, 1024, 16)
LlamaGen_XL = _size(36, 1280, 20)
LlamaGen_XXL = _size(48, 1536, 24)
LlamaGen_1B = _size(22, 2048, 32)
LlamaGen_3B = _size(24, 3200, 32)
LlamaGen_7B = _size(32, 4096, 32)
