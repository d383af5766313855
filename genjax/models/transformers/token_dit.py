"""A diffusion transformer over tokens: DiT with an embedding of states in place of patches."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.transformers.dit import Block, Embedding, small, zeros
from genjax.nn import (
    Dense,
    Modulation,
    Text,
    VectorEmbedding,
    constrain_tokens,
    modulate,
    scanned,
    sincos_positions,
    sinusoidal_embedding,
)
from genjax.nn.transformer import inline

Dtype = Any


class TokenDiT(nn.Module):
    """A transformer over a grid of tokens, conditioned on the time and the class by adaLN-Zero.

    Sahoo et al. 2024, MDLM, and Lou et al. 2024, SEDD, take DiT so, for sequences. Label
    `num_classes` is the null class of classifier-free guidance (`null_label`). Logits are 0 at
    first: every token is as likely as the others.

    Attributes:
        num_states: of the tokens that it sees: those of the data, and a mask.
        vocabulary_size: of the tokens that it predicts.
        num_classes: classes besides the null one; None with a prefix.
        prefix: makes the states of the condition, such as a text, which stand before the tokens
            (`genjax.models.autoregressive.prefixes`). adaLN-Zero then tells the time alone.
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
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def null_label(self) -> int | None:
        return self.num_classes

    @nn.compact
    def __call__(
        self,
        x: Int[Array, "batch height *width"],
        t: Float[Array, " batch"],
        condition: Int[Array, " batch"] | Text,
    ) -> Float[Array, "batch height *width vocabulary"]:
        embed = nn.Embed(
            self.num_states,
            self.width,
            embedding_init=small,
            param_dtype=self.param_dtype,
            name="token_embedding",
        )
        tokens = embed(x.reshape(len(x), -1))
        positions = sincos_positions(x.shape[1], tokens.shape[1] // x.shape[1], self.width)
        tokens = (tokens + positions).astype(jnp.float32)
        time, mask, length = sinusoidal_embedding(t * self.time_scale, 256), None, tokens.shape[1]
        if self.prefix is None:
            embedding = Embedding(self.width, self.num_classes, self.param_dtype)
            conditioning = inline(self, embedding)(time, condition)
        else:
            conditioning = VectorEmbedding(self.width, self.param_dtype, name="time_embedding")(
                time
            )
            first, mask = self.prefix(condition, self.width, self.dtype, self.param_dtype)
            tokens = jnp.concatenate([first.astype(jnp.float32), tokens], axis=1)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, length)), constant_values=True)[:, None, None]
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy, nn.broadcast)
        tokens, _ = blocks(
            self.num_heads, self.mlp_ratio, self.dtype, self.param_dtype, name="blocks"
        )(constrain_tokens(tokens), conditioning, mask)
        shift, scale = Modulation(2, self.param_dtype, name="modulation")(conditioning)
        logits = Dense(
            self.vocabulary_size,
            kernel_init=zeros,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            name="head",
        )(modulate(tokens[:, -length:], shift, scale))
        return logits.reshape(*x.shape, self.vocabulary_size)
