"""A diffusion transformer over tokens: DiT with an embedding of states in place of patches."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.models.traits import OfClasses
from genjax.models.transformers.dit import Block, Embedding, small
from genjax.nn import (
    Modulation,
    Text,
    VectorEmbedding,
    constrain_tokens,
    modulate,
    output_layer,
    scanned,
    sincos_positions,
    sinusoidal_embedding,
)
from genjax.nn.transformer import inline

Dtype = Any


def block_mask(
    block: Int[np.ndarray, " length"], is_noisy: Bool[np.ndarray, " length"]
) -> Bool[np.ndarray, "length length"]:
    """Return where a token (row) sees another one (column), in block diffusion.

    Arriola et al. 2025, BD3LM, section 3.1. Noisy tokens see the noisy tokens of their own block
    and the clean ones of earlier blocks. Clean tokens see those of their own and earlier blocks.
    """
    own = is_noisy[:, None] & (block[:, None] == block)
    return np.where(is_noisy, own, block + is_noisy[:, None] <= block[:, None])


class TokenDiT(OfClasses, nn.Module):
    """A transformer over a grid of tokens, conditioned on the time and the class by adaLN-Zero.

    Sahoo et al. 2024, MDLM, and Lou et al. 2024, SEDD, take DiT so, for sequences. Label
    `num_classes` is the null class of classifier-free guidance (`null_label`). Logits are 0 at
    first: every token is as likely as the others.

    With a block length, tokens of a block in raster order share a time, and no token sees a later
    block (Arriola et al. 2025, BD3LM; LLaDA2). In training the network also sees the clean tokens,
    behind those of x_t, and noisy tokens see earlier blocks there alone. In sampling the earlier
    blocks of x_t are clean themselves, at time 0.

    Attributes:
        num_states: of the tokens that it sees: those of the data, and a mask.
        vocabulary_size: of the tokens that it predicts.
        num_classes: classes besides the null one; None with a prefix.
        prefix: makes the states of the condition, such as a text, which stand before the tokens
            (`genjax.models.autoregressive.prefixes`). adaLN-Zero then tells the time alone.
        block_length: tokens of a block, or None where all tokens see each other.
        width, depth, num_heads, mlp_ratio, time_scale, unroll, remat_policy, dtype,
            param_dtype: as of `DiT`.
    """

    num_states: int
    vocabulary_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int | None = None
    prefix: nn.Module | None = None
    block_length: int | None = None
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _times(self, t: Array, length: int) -> Array:
        """Return times `[batch]`, or 0 for clean tokens and each block's, `[batch 1+blocks]`."""
        if self.block_length is None:
            return t
        t = jnp.broadcast_to(t.reshape(len(t), -1), (len(t), length))
        return jnp.pad(t[:, :: self.block_length], ((0, 0), (1, 0)))

    def _conditioning(self, t: Array, condition: Array | Text) -> Array:
        """Return the embedding of times `[batch *groups]`, and of the class if that is one."""
        time = sinusoidal_embedding(t.reshape(-1) * self.time_scale, 256)
        if self.prefix is None:
            labels = jnp.repeat(condition, math.prod(t.shape[1:]))
            embedding = Embedding(self.width, self.num_classes, self.param_dtype)
            vectors = inline(self, embedding)(time, labels)
        else:
            vectors = VectorEmbedding(self.width, self.param_dtype, name="time_embedding")(time)
        return vectors.reshape(*t.shape, -1)

    def _sequence(
        self, grids: Sequence[Array], condition: Array | Text
    ) -> tuple[Array, int, Array | None]:
        """Return the prefix and the tokens of all grids, its length, and which of it are seen."""
        embed = nn.Embed(
            self.num_states,
            self.width,
            embedding_init=small,
            param_dtype=self.param_dtype,
            name="token_embedding",
        )
        height, width = grids[0].shape[1], math.prod(grids[0].shape[2:])
        positions = sincos_positions(height, width, self.width)
        parts, start, mask = [embed(x.reshape(len(x), -1)) + positions for x in grids], 0, None
        if self.prefix is not None:
            first, mask = self.prefix(condition, self.width, self.dtype, self.param_dtype)
            parts, start = [first, *parts], first.shape[1]
        tokens = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)
        if mask is not None:
            more = tokens.shape[1] - start
            mask = jnp.pad(mask, ((0, 0), (0, more)), constant_values=True)[:, None, None]
        return tokens, start, mask

    def _blocks(self, start: int, length: int, copies: int) -> tuple[Array, Array]:
        """Return the mask of blocks, and the place of each token's time among `_times`.

        Args:
            start: number of tokens before the first block, which are clean.
            copies: 2 if the clean tokens stand behind the `length` tokens of x_t.
        """
        block = np.arange(length) // self.block_length
        blocks = np.concatenate([np.full(start, -1), *[block] * copies])
        is_x_t = np.repeat([False, True, False], [start, length, length * (copies - 1)])
        mask = block_mask(blocks, is_x_t & (copies == 2))
        return jnp.asarray(mask)[None, None], jnp.asarray(np.where(is_x_t, 1 + blocks, 0))

    @nn.compact
    def __call__(
        self,
        x: Int[Array, "batch height *width"],
        t: Float[Array, " batch *tokens"],
        condition: Int[Array, " batch"] | Text,
        clean: Int[Array, "batch height *width"] | None = None,
    ) -> Float[Array, "batch height *width vocabulary"]:
        """Return the logits of all tokens of x.

        Args:
            t: one time for each example, or with blocks one for each token.
            clean: the tokens without noise, of which each block sees the blocks before it.

        Raises:
            ValueError: times of tokens, or clean tokens, for a network without blocks.
        """
        if self.block_length is None and (t.ndim > 1 or clean is not None):
            raise ValueError(
                "this TokenDiT has no blocks, and got times of tokens or clean tokens; set "
                "block_length"
            )
        grids, length = [x] if clean is None else [x, clean], math.prod(x.shape[1:])
        tokens, start, mask = self._sequence(grids, condition)
        conditioning, groups = self._conditioning(self._times(t, length), condition), None
        if self.block_length is not None:
            visible, groups = self._blocks(start, length, len(grids))
            mask = visible if mask is None else mask & visible
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy, nn.broadcast)
        tokens, _ = blocks(
            self.num_heads, self.mlp_ratio, self.dtype, self.param_dtype, name="blocks"
        )(constrain_tokens(tokens), conditioning, mask, groups)
        own = slice(start, start + length)
        modulation = Modulation(2, self.param_dtype, name="modulation")(conditioning)
        if groups is not None:
            modulation = [each[:, groups[own]] for each in modulation]
        head = output_layer(self.vocabulary_size, self.param_dtype)
        logits = head(modulate(tokens[:, own], *modulation))
        return logits.reshape(*x.shape, self.vocabulary_size)
