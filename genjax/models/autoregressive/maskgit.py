"""The bidirectional transformer of MaskGIT: every token of a grid, given those that are not masked.

Chang et al. 2022, "MaskGIT: Masked generative image transformer", section 3. Here norms come before
layers, as in later transformers; the authors follow BERT and put norms after layers. GELU is exact
here and approximated by tanh there. The authors' logits also count the classes and the mask.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.models.autoregressive.grids import OverGrid, wrong_length
from genjax.models.autoregressive.prefixes import ClassPrefix
from genjax.nn import Dense, Text, constrain_tokens, scanned
from genjax.nn.modulation import layer_norm
from genjax.nn.transformer import Attention, FeedForward, exact_gelu, inline

Dtype = Any
small = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a layer norm."""

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    param_dtype: Dtype
    kernel_init: Callable = small

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        mask: Bool[Array, "batch 1 1 length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        options = dict(kernel_init=self.kernel_init, out_init=self.kernel_init)
        options |= dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attention_norm, mlp_norm = (
            nn.LayerNorm(dtype=jnp.float32, param_dtype=self.param_dtype, name=name)
            for name in ("attention_norm", "mlp_norm")
        )
        attention = Attention(self.num_heads, norm=attention_norm, **options)
        x, _ = inline(self, attention)(x, mask=mask)
        features = int(self.mlp_ratio * x.shape[-1])
        mlp = FeedForward(features, mlp_norm, exact_gelu, **options)
        return inline(self, mlp)(x), None


class MaskGIT(OverGrid, nn.Module):
    """A transformer over a grid of codes, in which any of them may be masked.

    The logits are those of the token embedding, whose rows they share, after one more layer and
    norm (Devlin et al. 2019, "BERT").

    Attributes:
        vocabulary: number of codes. The token `vocabulary` is the mask (`mask_token`).
        grid: rows and columns of codes.
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        prefix: makes the states of the condition, which all tokens see.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of a policy (`rematerialized`), or None to keep every activation.
        dtype: type of the matrix products. Norms, softmax and logits are float32 always.
    """

    vocabulary: int
    grid: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    prefix: nn.Module = ClassPrefix()
    mlp_ratio: float = 4.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def mask_token(self) -> int:
        return self.vocabulary

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], condition: Int[Array, " batch"] | Text
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of all tokens, of those that are not masked too.

        Raises:
            ValueError: there is another number of tokens than the grid has places.
        """
        batch, length = tokens.shape
        if length != self.length:
            raise wrong_length(length, self.grid)
        embedding = nn.Embed(
            self.vocabulary + 1,
            self.width,
            embedding_init=small,
            param_dtype=self.param_dtype,
            name="token_embedding",
        )
        first, mask = self.prefix(condition, self.width, self.dtype, self.param_dtype)
        x = jnp.concatenate([first, embedding(tokens)], axis=1).astype(jnp.float32)
        x = x + self.param("positions", small, x.shape[1:], self.param_dtype)
        x = constrain_tokens(layer_norm()(x))
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, length)), constant_values=True)[:, None, None]

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        types = self.dtype, self.param_dtype
        x, _ = blocks(self.num_heads, self.mlp_ratio, *types, name="blocks")(x, mask)

        x = x[:, -length:]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = exact_gelu(Dense(self.width, kernel_init=small, name="head_in", **types)(x))
        x = nn.LayerNorm(dtype=jnp.float32, param_dtype=self.param_dtype, name="norm")(x)
        codes = embedding.embedding[: self.vocabulary].astype(self.dtype)
        bias = self.param("bias", zeros, (self.vocabulary,), self.param_dtype)
        return jnp.matmul(x.astype(self.dtype), codes.T, preferred_element_type=jnp.float32) + bias
