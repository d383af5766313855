"""LightningDiT: DiT with the parts of language models.

Yao & Wang 2025, "Reconstruction vs. generation".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from genjax.models.traits import OfClasses, OverPatches
from genjax.nn import (
    Dense,
    Modulation,
    VectorEmbedding,
    constrain_tokens,
    jump_conditioning,
    output_layer,
    patchify,
    scanned,
    sincos_positions,
    sinusoidal_embedding,
    unpatchify,
)
from genjax.nn.modulation import shift_and_scale
from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
small = nn.initializers.normal(0.02)


def xavier_part(count: int) -> Initializer:
    """Make Xavier's initializer of one of `count` layers that are one matrix in released code.

    The bound is √(6/(inputs + count·outputs)), smaller than that of a layer by itself.
    """

    def init(key: Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Array:
        bound = (6 / (shape[0] + count * shape[1])) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def rms_norm(param_dtype: Dtype, name: str) -> nn.RMSNorm:
    """Make the norm x/√mean(x²)·scale over the last axis, in float32 (Zhang & Sennrich 2019)."""
    return nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, param_dtype=param_dtype, name=name)


def embed_time_and_class(
    network: nn.Module, t: Float[Array, " batch"], labels: Int[Array, " batch"]
) -> tuple[Float[Array, "batch features"], Float[Array, "batch features"]]:
    """Return the embeddings of time and class. The last label is that of no class."""
    width, param_dtype = network.width, network.param_dtype
    time = VectorEmbedding(width, param_dtype, name="time_embedding")(
        sinusoidal_embedding(t * network.time_scale, 256)
    )
    options = dict(embedding_init=small, param_dtype=param_dtype, name="label_embedding")
    return time, nn.Embed(network.num_classes + 1, width, **options)(labels)


def image_head(
    tokens: Float[Array, "batch length features"],
    conditioning: Float[Array, "batch features"],
    patch_size: int,
    shape: tuple[int, int, int],
    param_dtype: Dtype,
) -> Float[Array, "batch height width channels"]:
    """Return images of a shape by the last norm, its modulation and a layer, all in float32."""
    height, width, channels = shape
    shift, scale = Modulation(2, param_dtype, name="modulation")(conditioning)
    h = shift_and_scale(rms_norm(param_dtype, "norm")(tokens), shift, scale)
    out = output_layer(patch_size**2 * channels, param_dtype)(h)
    return unpatchify(out, patch_size, height, width)


class Block(nn.Module):
    """Self-attention with rotary positions and a SwiGLU layer, each after an RMS norm and between
    adaLN-Zero's scale/shift and its gate.

    Attributes:
        gate_init: initializer of the first two layers of SwiGLU, one matrix in the released code.
    """

    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    dtype: Dtype
    param_dtype: Dtype
    gate_init: Callable = xavier_part(2)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        conditioning: Float[Array, "batch features"],
        rotations: Float[Array, "length pairs 2"],
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        modulation = Modulation(6, self.param_dtype, name="modulation")(conditioning)
        attention_norm, mlp_norm = (
            rms_norm(self.param_dtype, name) for name in ("attention_norm", "mlp_norm")
        )
        options = dict(qk_norm=self.qk_norm, kernel_init=xavier_part(3), norm=attention_norm)
        attention = Attention(self.num_heads, **options, **types)
        x, _ = inline(self, attention)(x, *modulation[:3], rotations=rotations)
        # Three matrices, together as large as the two of a layer without gate.
        mlp_features = int(2 / 3 * self.mlp_ratio * x.shape[-1])
        options = dict(gated=True, kernel_init=self.gate_init)
        mlp = FeedForward(mlp_features, mlp_norm, nn.silu, **options, **types)
        return inline(self, mlp)(x, *modulation[3:]), None


class LightningDiT(OverPatches, OfClasses, nn.Module):
    """A transformer over patches of latents, conditioned by adaLN-Zero and called as `DiT` is.

    Label `num_classes` is the null class of classifier-free guidance (`null_label`). Positions are
    added to the tokens, as in DiT, and rotate queries and keys.

    Attributes:
        patch_size: side of a patch, in pixels of the latents; 1 for latents of factor 16.
        width: features of a token; a head's, `width / num_heads`, are divisible by 4.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: classes besides the null one.
        qk_norm: whether queries and keys have an RMS norm: safer in half precision, slower to
            converge. The published networks have none.
        mlp_ratio: of a feed-forward layer without gate that has as many weights.
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        takes_end_time: whether the network takes the end of its jump, `end_time` (flow maps).
        takes_guidance: whether the network takes a guidance scale, `guidance`.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    qk_norm: bool = False
    mlp_ratio: float = 4.0
    out_channels: int | None = None
    time_scale: float = 1.0
    takes_end_time: bool = False
    takes_guidance: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def rotations(self, rows: int, columns: int) -> Float[np.ndarray, "length pairs 2"]:
        """Return the rotations of all patches.

        The first half of a head's features turns by the row, and the second half by the column.
        """
        half = self.width // self.num_heads // 2
        return rotary_positions(grid_positions(rows, columns), (half, half))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        labels: Int[Array, " batch"],
        end_time: Float[Array, " batch"] | None = None,
        guidance: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        height, width, channels = x.shape[1:]
        rows, columns = height // self.patch_size, width // self.patch_size
        tokens = Dense(
            self.width,
            kernel_init=xavier,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="patch_embedding",
        )(patchify(x, self.patch_size))
        tokens = tokens + sincos_positions(rows, columns, self.width)
        tokens = constrain_tokens(tokens.astype(jnp.float32))

        time, label = embed_time_and_class(self, t, labels)
        conditioning = time + label + jump_conditioning(self, t, end_time, guidance)

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        tokens, _ = blocks(
            self.num_heads,
            self.mlp_ratio,
            self.qk_norm,
            self.dtype,
            self.param_dtype,
            name="blocks",
        )(tokens, conditioning, jnp.asarray(self.rotations(rows, columns)))

        shape = height, width, self.out_channels or channels
        return image_head(tokens, conditioning, self.patch_size, shape, self.param_dtype)


def _size(depth: int, width: int, num_heads: int) -> Callable[..., LightningDiT]:
    def build(patch_size: int = 1, num_classes: int = 1000, **options) -> LightningDiT:
        return LightningDiT(patch_size, width, depth, num_heads, num_classes, **options)

    return build


LightningDiT_B = _size(12, 768, 12)
LightningDiT_L = _size(24, 1024, 16)
LightningDiT_XL = _size(28, 1152, 16)
