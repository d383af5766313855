"""JiT: a transformer on large patches of pixels that predicts the clean image.

Li & He 2025, "Back to basics: let denoising generative models denoise".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.models.traits import OfClasses, OverPatches
from genjax.models.transformers.lightning_dit import Block, embed_time_and_class, image_head
from genjax.nn import (
    Dense,
    constrain_tokens,
    join,
    jump_conditioning,
    patchify,
    scanned,
    separate,
    sincos_positions,
)
from genjax.nn.rotary import grid_positions, rotary_positions

Dtype = Any
xavier = nn.initializers.xavier_uniform()
small = nn.initializers.normal(0.02)


class JiT(OverPatches, OfClasses, nn.Module):
    """LightningDiT's blocks on pixels, called as `DiT` is; its target is `clean`.

    A patch passes through a layer of few features, since images lie near a manifold of few
    dimensions (figure 4). Tokens of the class join the patches after a third of the blocks
    (section 4.4), at position 0 of the rotations.

    Label `num_classes` is the null class of classifier-free guidance (`null_label`).

    Attributes:
        patch_size: side of a patch, in pixels.
        width: features of a token; those of a head, `width / num_heads`, are divisible by 4.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: classes besides the null one.
        bottleneck: features of a patch before they become `width`.
        class_tokens: tokens of the class.
        start: number of blocks before the class tokens join.
        mlp_ratio: of a feed-forward layer without gate that has as many weights.
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
    bottleneck: int = 128
    class_tokens: int = 32
    start: int = 4
    mlp_ratio: float = 4.0
    time_scale: float = 1.0
    takes_end_time: bool = False
    takes_guidance: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _blocks(self, depth: int, name: str) -> nn.Module:
        types = self.dtype, self.param_dtype
        blocks = scanned(Block, depth, min(self.unroll, depth), self.remat_policy)
        return blocks(self.num_heads, self.mlp_ratio, True, *types, name=name)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        labels: Int[Array, " batch"],
        end_time: Float[Array, " batch"] | None = None,
        guidance: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        height, width, _ = x.shape[1:]
        rows, columns = height // self.patch_size, width // self.patch_size
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = Dense(
            self.bottleneck, use_bias=False, kernel_init=xavier, name="patch_projection", **types
        )(patchify(x, self.patch_size))
        tokens = Dense(self.width, kernel_init=xavier, name="patch_embedding", **types)(h)
        tokens = tokens + sincos_positions(rows, columns, self.width)
        tokens = constrain_tokens(tokens.astype(jnp.float32))

        time, label = embed_time_and_class(self, t, labels)
        conditioning = time + label + jump_conditioning(self, t, end_time, guidance)

        rotations = [np.zeros((self.class_tokens, 2)), grid_positions(rows, columns)]
        half = self.width // self.num_heads // 2
        rotations = [jnp.asarray(rotary_positions(p, (half, half)))[None] for p in rotations]
        tokens, _ = self._blocks(self.start, "blocks")(tokens, conditioning, rotations[1][0])
        shape = (self.class_tokens, self.width)
        table = self.param("class_positions", small, shape, self.param_dtype)
        lengths = [self.class_tokens, tokens.shape[1]]
        tokens = join([label[:, None] + table.astype(jnp.float32), tokens])
        tokens, _ = self._blocks(self.depth - self.start, "class_blocks")(
            constrain_tokens(tokens), conditioning, join(rotations)[0]
        )
        _, tokens = separate(tokens, lengths)

        return image_head(tokens, conditioning, self.patch_size, x.shape[1:], self.param_dtype)


def _size(depth: int, width: int, num_heads: int, start: int, bottleneck: int) -> Callable:
    def build(patch_size: int = 16, num_classes: int = 1000, **options) -> JiT:
        sizes = dict(bottleneck=bottleneck, start=start)
        return JiT(patch_size, width, depth, num_heads, num_classes, **sizes | options)

    return build


# JiT, table 9: patches of 16 at 256 pixels, and of 32 at 512.
JiT_B = _size(12, 768, 12, 4, 128)
JiT_L = _size(24, 1024, 16, 8, 128)
JiT_H = _size(32, 1280, 16, 10, 256)
