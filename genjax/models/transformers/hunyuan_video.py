"""HunyuanVideo-1.5 (Tencent 2025, "HunyuanVideo 1.5 technical report"), and its MeanFlow form.

Two streams with joint attention, as in FLUX.1: latents of video, and conditions. These are the
states of a language model, of the text to be written in the picture (glyphs), and of an image.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.models.transformers.flux import MLP_RATIO, DoubleBlock
from genjax.nn import (
    BATCH_AXES,
    Dense,
    Modulation,
    Text,
    VectorEmbedding,
    constrain,
    constrain_tokens,
    join,
    modulate,
    output_layer,
    scanned,
    sinusoidal_embedding,
)
from genjax.nn.jumps import check_numbers
from genjax.nn.rotary import grid_rotations
from genjax.nn.transformer import Attention, FeedForward, exact_gelu, inline

Dtype = Any
GLYPH_FEATURES = 2048  # between the layers for the states of glyphs
THETA = 256.0  # of the rotations
xavier = nn.initializers.xavier_uniform()
small = nn.initializers.normal(0.02)


class RefinerBlock(nn.Module):
    """Self-attention of the text and a feed-forward layer, of which the time has the gates."""

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        conditioning: Float[Array, "batch features"],
        mask: Bool[Array, "batch 1 1 length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.LayerNorm(1e-6, jnp.float32, self.param_dtype, name=name)
        gates = Modulation(2, self.param_dtype, name="modulation")(conditioning)
        attention = Attention(self.num_heads, norm=norm("attention_norm"), **types)
        x, _ = inline(self, attention)(x, gate=gates[0], mask=mask)
        mlp = FeedForward(MLP_RATIO * x.shape[-1], norm("mlp_norm"), nn.silu, **types)
        return inline(self, mlp)(x, gate=gates[1]), None


class TextRefiner(nn.Module):
    """Project the states of the text, and let them attend to each other at the time of the latents.

    Attributes:
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        dtype: type of the matrix products.
    """

    width: int
    depth: int
    num_heads: int
    unroll: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, text: Text, time: Float[Array, "batch sinusoids"]
    ) -> Float[Array, "batch length width"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        embed = lambda name: VectorEmbedding(self.width, self.param_dtype, name=name)
        weights = jnp.ones(text.tokens.shape[:2]) if text.mask is None else text.mask
        mean = jnp.einsum("blf,bl->bf", text.tokens, weights) / weights.sum(1, keepdims=True)
        conditioning = embed("time_embedding")(time) + embed("text_embedding")(mean)
        x = Dense(self.width, kernel_init=xavier, name="text_in", **types)(text.tokens)
        blocks = scanned(RefinerBlock, self.depth, self.unroll)
        mask = None if text.mask is None else text.mask[:, None, None]
        return blocks(self.num_heads, self.dtype, self.param_dtype, name="blocks")(
            x.astype(jnp.float32), conditioning, mask
        )[0]


class Projection(nn.Module):
    """A norm and linear layers with exact GELU between them, from an encoder's states to tokens.

    Attributes:
        sizes: features after each layer.
        out_norm: whether a norm follows the last layer.
        dtype: type of the matrix products.
    """

    sizes: tuple[int, ...]
    out_norm: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"]
    ) -> Float[Array, "batch length out_features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.LayerNorm(1e-5, jnp.float32, self.param_dtype, name=name)
        x = norm("norm")(x)
        for i, size in enumerate(self.sizes):
            x = exact_gelu(x) if i else x
            x = Dense(size, kernel_init=xavier, name=f"layer_{i}", **types)(x)
        return norm("out_norm")(x) if self.out_norm else x


class HunyuanVideo(nn.Module):
    """The network of HunyuanVideo-1.5, over single latents of video.

    Any length, height and width will do. The published networks are given the noisy latents, the
    latents of given frames and a mask of these, one after the other as channels.

    Attributes:
        depth: number of blocks of two streams, scanned with stacked parameters.
        num_heads: heads of attention.
        rotary_features: features of a head that turn with the frame, the row and the column;
            `width` is their sum times `num_heads`.
        refiner_depth: number of blocks of the text alone.
        takes_end_time: whether the network takes the end of its jump, `end_time` (MeanFlow).
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        unroll: blocks per iteration of the scans; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    depth: int
    num_heads: int
    rotary_features: tuple[int, int, int]
    refiner_depth: int = 2
    takes_end_time: bool = False
    out_channels: int | None = None
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def width(self) -> int:
        return self.num_heads * sum(self.rotary_features)

    def _times(
        self, t: Float[Array, " batch"], end_time: Float[Array, " batch"] | None
    ) -> tuple[Float[Array, "batch sinusoids"], Float[Array, "batch width"]]:
        """Return the sinusoids of the time, and the conditioning of the blocks."""
        check_numbers(self, end_time=end_time)
        sinusoids = lambda t: sinusoidal_embedding(t * self.time_scale, 256)
        embed = lambda name: VectorEmbedding(self.width, self.param_dtype, name=name)
        conditioning = embed("time_embedding")(sinusoids(t))
        if end_time is not None:
            conditioning = conditioning + embed("end_time_embedding")(sinusoids(end_time))
        return sinusoids(t), conditioning

    def _conditions(
        self, text: Text, glyphs: Text | None, image: Array | None, time: Array
    ) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch length"]]:
        """Return the tokens of all conditions, and which of them are not padding."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sizes = self.width, self.refiner_depth, self.num_heads, self.unroll
        refine = TextRefiner(*sizes, name="text_refiner", **types)
        parts = [(refine(text, time), text.mask, 0)]
        if glyphs is not None:
            sizes = GLYPH_FEATURES, GLYPH_FEATURES, self.width
            project = Projection(sizes, False, name="glyph_projection", **types)
            parts.append((project(glyphs.tokens), glyphs.mask, 1))
        if image is not None:
            sizes = image.shape[-1], self.width
            project = Projection(sizes, True, name="image_projection", **types)
            parts.append((project(image), None, 2))
        kind = nn.Embed(3, self.width, param_dtype=self.param_dtype, name="kind_embedding")
        tokens = [x + kind(jnp.array(i)) for x, _, i in parts]
        masks = [jnp.ones(x.shape[:2], bool) if m is None else m for x, m, _ in parts]
        return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time height width channels"],
        t: Float[Array, " batch"],
        text: Text,
        glyphs: Text | None = None,
        image: Float[Array, "batch image_length image_features"] | None = None,
        end_time: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch time height width out_channels"]:
        """
        Args:
            text: states of the language model (Qwen2.5-VL as published).
            glyphs: states of the words to be written in the picture (ByT5), if there are any.
            image: states of the given image (SigLIP), if there is one.

        Initialise the network with all three.

        Raises:
            ValueError: `end_time` is missing or not wanted.
        """
        batch, *sides, channels = x.shape
        options = dict(param_dtype=self.param_dtype)
        sinusoids, conditioning = self._times(t, end_time)
        words, mask = self._conditions(text, glyphs, image, sinusoids)
        embed = Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="embedding", **options)
        video = embed(x.reshape(batch, -1, channels))

        lengths = words.shape[1], video.shape[1]
        turns = grid_rotations([np.arange(n) for n in sides], self.rotary_features, THETA)
        unturned = jnp.broadcast_to(jnp.array([1.0, 0.0]), (lengths[0], *turns.shape[1:]))
        rotations = join([unturned[None], turns[None]])[0]
        mask = join([mask, jnp.ones((batch, lengths[1]), bool)])[:, None, None]

        streams = tuple(constrain_tokens(a.astype(jnp.float32)) for a in (words, video))
        blocks = scanned(DoubleBlock, self.depth, self.unroll, self.remat_policy)
        (_, video), _ = blocks(self.num_heads, self.dtype, self.param_dtype, name="blocks")(
            streams, conditioning, rotations, mask
        )
        scale, shift = Modulation(2, name="modulation", **options)(conditioning)  # FLUX's order
        out_channels = self.out_channels or channels
        out = output_layer(out_channels, self.param_dtype)(modulate(video, shift, scale))
        return constrain(out.reshape(batch, *sides, out_channels), BATCH_AXES)


def hunyuan_video_1_5(**options) -> HunyuanVideo:
    """Return the network of HunyuanVideo-1.5: 8.3 billion parameters, latents of 32 channels."""
    return HunyuanVideo(
        depth=54, num_heads=16, rotary_features=(16, 56, 56), out_channels=32, **options
    )
