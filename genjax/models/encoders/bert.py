"""BERT, an encoder of text (Devlin et al. 2019).

"BERT: pre-training of deep bidirectional transformers for language understanding".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import Dense, Text, constrain_tokens, scanned
from genjax.nn.transformer import Attention, FeedForward, exact_gelu, inline

Dtype = Any
small = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each residual and followed by a norm."""

    num_heads: int
    mlp_width: int
    epsilon: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        mask: Bool[Array, "batch 1 1 length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.LayerNorm(
            self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )
        x, _ = Attention(self.num_heads, name="attention", **types)(x, mask=mask)
        types |= dict(activation=exact_gelu, kernel_init=small, out_init=small)
        x = inline(self, FeedForward(self.mlp_width, **types))(norm("attention_norm")(x))
        return constrain_tokens(norm("mlp_norm")(x)), None


class Bert(nn.Module):
    """A transformer over text that returns a state per token, and one of the whole text.

    Attributes:
        num_tokens: size of the vocabulary.
        width: features of a token; divisible by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        mlp_width: features within the feed-forward layers.
        max_length: number of embedded positions.
        num_types: types of tokens; the original had two, for a first and a second sentence.
        pooler: whether a layer makes `Text.pooled` of the first token's state.
        epsilon: the norms' epsilon.
        unroll: blocks per iteration of the scan.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products. Norms and softmax are always float32.
    """

    num_tokens: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    max_length: int = 512
    num_types: int = 2
    pooler: bool = True
    epsilon: float = 1e-12
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        types: Int[Array, "batch length"] | None = None,
    ) -> Text:
        """Encode tokens.

        Args:
            ids: tokens.
            mask: False at padding, which then changes no other token's state; by default everything
                is text.
            types: the type of each token; by default 0.

        Returns:
            The last block's states, the pooled vector (if `pooler`), and the given mask.

        Raises:
            ValueError: there are more tokens than `max_length`.
        """
        length = ids.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"texts of {length} tokens; there are {self.max_length} positions: truncate the "
                "texts to these"
            )
        types = jnp.zeros_like(ids) if types is None else types
        embed = lambda size, name: nn.Embed(
            size, self.width, embedding_init=small, param_dtype=self.param_dtype, name=name
        )
        x = embed(self.num_tokens, "token_embedding")(ids) + embed(
            self.num_types, "type_embedding"
        )(types)
        x = x + embed(self.max_length, "position_embedding")(jnp.arange(length))
        x = nn.LayerNorm(
            self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name="norm"
        )(x)

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)(
            self.num_heads,
            self.mlp_width,
            self.epsilon,
            self.dtype,
            self.param_dtype,
            name="blocks",
        )
        x, _ = blocks(constrain_tokens(x), None if mask is None else mask[:, None, None])

        pooled = None
        if self.pooler:
            dense = Dense(
                self.width,
                kernel_init=small,
                dtype=jnp.float32,
                param_dtype=self.param_dtype,
                name="pooler",
            )
            pooled = jnp.tanh(dense(x[:, 0]))
        return Text(x, pooled, mask)


def sentence_embedding(text: Text) -> Float[Array, "batch features"]:
    """Return the mean of a text's states, of length 1, so that inner products are cosines.

    `text.mask` excludes padding; without a mask all states count. MiniLM was trained for this
    embedding.

    Source: Reimers & Gurevych 2019 ("Sentence-BERT"), section 3.
    """
    weights = (
        jnp.ones(text.tokens.shape[:2]) if text.mask is None else text.mask.astype(jnp.float32)
    )
    mean = jnp.einsum("blf,bl->bf", text.tokens, weights / weights.sum(axis=1, keepdims=True))
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _size(depth: int, width: int, num_heads: int) -> Callable[..., Bert]:
    def build(num_tokens: int = 30522, **options) -> Bert:
        return Bert(
            num_tokens=num_tokens,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=4 * width,
            **options,
        )

    return build


# Devlin et al. 2019, section 3. MiniLM (Wang et al. 2020) keeps every second of its twelve layers.
bert_base = _size(12, 768, 12)
bert_large = _size(24, 1024, 16)
minilm_l6 = _size(6, 384, 12)
