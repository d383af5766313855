"""MAR: masked autoregression over continuous tokens, each of which a small diffusion model draws.

Li et al. 2024, "Autoregressive image generation without vector quantization", section 4. An encoder
sees the tokens that are not masked, and a decoder all places. For each place the decoder's state
conditions a network of a few layers, the denoiser of that token.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genjax.models.autoregressive.grids import OverGrid, wrong_length
from genjax.models.autoregressive.maskgit import Block
from genjax.models.autoregressive.prefixes import TextPrefix
from genjax.nn import (
    Dense,
    Modulation,
    Text,
    VectorEmbedding,
    constrain_tokens,
    modulate,
    scanned,
    sinusoidal_embedding,
)
from genjax.nn.transformer import FeedForward, inline

Dtype = Any
small = nn.initializers.normal(0.02)
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros


class DenoiserBlock(nn.Module):
    """Two layers after a norm with adaLN-Zero."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "tokens 1 features"], conditioning: Float[Array, "tokens features"]
    ) -> tuple[Float[Array, "tokens 1 features"], None]:
        modulation = Modulation(3, self.param_dtype, name="modulation")(conditioning)
        norm = nn.LayerNorm(dtype=jnp.float32, param_dtype=self.param_dtype, name="norm")
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        mlp = FeedForward(x.shape[-1], norm, nn.silu, **types)
        return inline(self, mlp)(x, *modulation), None


class TokenDenoiser(nn.Module):
    """A residual network over single tokens, with the time and a state by adaLN-Zero (section 3.2).

    Attributes:
        width: features between the layers.
        depth: number of blocks.
        out_channels: channels of the output: twice the token's with a learned variance.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
    """

    width: int
    depth: int
    out_channels: int
    time_scale: float = 1000.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "tokens channels"],
        t: Float[Array, " tokens"],
        states: Float[Array, "tokens state_features"],
    ) -> Float[Array, "tokens out_channels"]:
        layer = lambda name, init, features=self.width: Dense(
            features, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )
        time = VectorEmbedding(self.width, self.param_dtype, name="time_embedding")
        conditioning = time(sinusoidal_embedding(t * self.time_scale, 256))
        conditioning = conditioning + layer("state_embedding", xavier)(states)
        h = layer("token_embedding", xavier)(x)[:, None].astype(jnp.float32)
        blocks = scanned(DenoiserBlock, self.depth)(self.dtype, self.param_dtype, name="blocks")
        h, _ = blocks(h, conditioning)
        shift, scale = Modulation(2, self.param_dtype, name="modulation")(conditioning)
        h = modulate(h, shift, scale)[:, 0]
        return layer("head", zeros, self.out_channels)(h).astype(jnp.float32)


class MAR(OverGrid, nn.Module):
    """An encoder and a decoder over a grid of continuous tokens, with the denoiser of a token.

    `states` and `denoise` are what `genjax.autoregression.mar` calls. Label `num_classes` is the
    null class of classifier-free guidance. Every token is in the encoder's arrays, and attention
    hides the masked ones; the authors leave them out, to the same result. There is no dropout; the
    authors train with rates of 0.1.

    Attributes:
        channels: of a token.
        grid: rows and columns of tokens.
        width: features of a token in the encoder and in the decoder.
        depth: number of blocks of the encoder, and as many of the decoder.
        denoiser_width, denoiser_depth: of `TokenDenoiser`.
        buffer: number of copies of the class state before the tokens, or the states of a text.
        of_text: whether the condition is a text.
        learned_variance: whether the denoiser's output has a second half for the variance.
        unroll: blocks per iteration of the scans; `depth` compiles slowest and runs fastest.
        remat_policy: name of a policy (`rematerialized`), or None to keep every activation.
        dtype: type of the matrix products. Norms, modulation and softmax are float32 always.
    """

    channels: int
    grid: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    denoiser_width: int
    denoiser_depth: int
    num_classes: int = 1000
    buffer: int = 64
    of_text: bool = False
    mlp_ratio: float = 4.0
    learned_variance: bool = True
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda: nn.LayerNorm(dtype=jnp.float32, param_dtype=self.param_dtype)
        layer = lambda: Dense(self.width, kernel_init=xavier, **types)
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        stack = lambda: blocks(self.num_heads, self.mlp_ratio, *types.values(), xavier)
        vectors = lambda name, *shape: self.param(
            name, small, (*shape, self.width), self.param_dtype
        )

        if self.of_text:
            self.text_prefix = TextPrefix(self.buffer)
        else:
            self.label_embedding = nn.Embed(
                self.num_classes + 1, self.width, embedding_init=small, param_dtype=self.param_dtype
            )
        self.token_embedding, self.embedding_norm = layer(), norm()
        self.encoder, self.encoder_norm = stack(), norm()
        self.decoder_embedding = layer()
        self.decoder, self.decoder_norm = stack(), norm()
        self.encoder_positions = vectors("encoder_positions", self.buffer + self.length)
        self.decoder_positions = vectors("decoder_positions", self.buffer + self.length)
        self.state_positions = vectors("state_positions", self.length)
        self.mask_token = vectors("mask_token")
        out_channels = self.channels * (1 + self.learned_variance)
        self.denoiser = TokenDenoiser(
            self.denoiser_width, self.denoiser_depth, out_channels, **types
        )

    def __call__(
        self,
        tokens: Float[Array, "batch length channels"],
        mask: Bool[Array, "batch length"],
        condition: Int[Array, " batch"] | Text,
        x_t: Float[Array, "batch length channels"],
        t: Float[Array, " batch *times"],
    ) -> Float[Array, "batch length out_channels"]:
        """Return `denoise` of x_t at t, with the `states` of the tokens."""
        return self.denoise(x_t, t, self.states(tokens, mask, condition))

    def states(
        self,
        tokens: Float[Array, "batch length channels"],
        mask: Bool[Array, "batch length"],
        condition: Int[Array, " batch"] | Text,
    ) -> Float[Array, "batch length width"]:
        """Return the state of every place, given the condition and the tokens that are not masked.

        Raises:
            ValueError: there is another number of tokens than the grid has places.
        """
        if tokens.shape[1] != self.length:
            raise wrong_length(tokens.shape[1], self.grid)
        hidden = jnp.pad(mask, ((0, 0), (self.buffer, 0)))
        x = self.token_embedding(tokens).astype(jnp.float32)
        first, seen = self._first(condition)
        x = jnp.concatenate([first, x], axis=1) + self.encoder_positions
        x = constrain_tokens(self.embedding_norm(x))
        x, _ = self.encoder(x, (seen & ~hidden)[:, None, None])

        x = self.decoder_embedding(self.encoder_norm(x)).astype(jnp.float32)
        x = jnp.where(hidden[..., None], self.mask_token, x) + self.decoder_positions
        x, _ = self.decoder(constrain_tokens(x), seen[:, None, None] if self.of_text else None)
        return self.decoder_norm(x)[:, self.buffer :] + self.state_positions

    def _first(
        self, condition: Int[Array, " batch"] | Text
    ) -> tuple[Float[Array, "batch buffer width"], Bool[Array, "batch sequence"]]:
        """Return the states before the tokens, and which states of the sequence are no padding."""
        if self.of_text:
            first, mask = self.text_prefix(condition, self.width, self.dtype, self.param_dtype)
        else:
            first, mask = self.label_embedding(condition)[:, None], None
        shape = len(first), self.buffer
        first = jnp.broadcast_to(first.astype(jnp.float32), (*shape, self.width))
        mask = jnp.ones(shape, bool) if mask is None else mask
        return first, jnp.pad(mask, ((0, 0), (0, self.length)), constant_values=True)

    def denoise(
        self,
        x_t: Float[Array, "batch places channels"],
        t: Float[Array, " batch *times"],
        states: Float[Array, "batch places width"],
    ) -> Float[Array, "batch places out_channels"]:
        """Return the denoiser's output for tokens x_t at t, one time per example or per token."""
        batch, places, channels = x_t.shape
        t = jnp.broadcast_to(t.reshape(batch, -1), (batch, places)).reshape(-1)
        out = self.denoiser(x_t.reshape(-1, channels), t, states.reshape(-1, self.width))
        return out.reshape(batch, places, -1)


def _size(depth: int, width: int, num_heads: int, *denoiser: int) -> Callable[..., MAR]:
    def build(channels: int = 16, grid: tuple[int, int] = (16, 16), **options: Any) -> MAR:
        return MAR(channels, grid, width, depth, num_heads, *denoiser, **options)

    return build


# Li et al. 2024, appendix B: blocks of each half, and width and depth of the denoiser.
MAR_B = _size(12, 768, 12, 1024, 6)
MAR_L = _size(16, 1024, 16, 1280, 8)
MAR_H = _size(20, 1280, 16, 1536, 12)
