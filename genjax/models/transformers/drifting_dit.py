"""DriftingDiT: a generator of images in one call, from noise and random codes.

Deng et al. 2026, "Generative modeling via drifting".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.models.traits import OverPatches
from genjax.models.transformers.lightning_dit import Block, image_head, rms_norm
from genjax.nn import (
    Dense,
    VectorEmbedding,
    constrain_tokens,
    join,
    patchify,
    scanned,
    separate,
    sincos_positions,
    sinusoidal_embedding,
)
from genjax.nn.rotary import rotary_positions

Dtype = Any
xavier = nn.initializers.xavier_uniform()
small = nn.initializers.normal(0.02)
GUIDANCE_WEIGHT = 0.02  # of the scale's embedding beside the class's


class DriftingDiT(OverPatches, nn.Module):
    """LightningDiT's blocks without a time, given a class, a guidance scale and random codes.

    Tokens of the class stand before the patches. Rotary positions count all tokens, and each patch
    has a learned position.

    Attributes:
        patch_size: side of a patch, in pixels or latents.
        width: features of a token; those of a head, `width / num_heads`, are even.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: classes. There is no null class: unguided samples have the scale 1.
        mlp_ratio: of a feed-forward layer without gate that has as many weights.
        class_tokens: tokens of the class.
        num_codes: random codes of an image, a second source of variety beside the noise.
        code_classes: values of a code.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    mlp_ratio: float = 4.0
    class_tokens: int = 16
    num_codes: int = 32
    code_classes: int = 64
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _conditioning(self, labels: Array, guidance: Array, codes: Array) -> Array:
        """Return the sum of the embeddings of class, codes and, normalized, of the scale."""

        def embed(count: int, name: str) -> nn.Embed:
            types = dict(embedding_init=small, param_dtype=self.param_dtype)
            return nn.Embed(count, self.width, name=name, **types)

        own = codes + self.code_classes * np.arange(self.num_codes)  # each code has its own table
        code = embed(self.num_codes * self.code_classes, "code_embedding")(own).sum(axis=1)
        scale = VectorEmbedding(self.width, self.param_dtype, name="guidance_embedding")(
            sinusoidal_embedding(guidance, 256)
        )
        scale = rms_norm(self.param_dtype, "guidance_norm")(scale)
        label = embed(self.num_classes, "label_embedding")(labels)
        return label + code + GUIDANCE_WEIGHT * scale

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"],
        guidance: Float[Array, " batch"],
        codes: Int[Array, "batch codes"],
    ) -> Float[Array, "batch height width channels"]:
        """
        Args:
            guidance: the scale of classifier-free guidance that the samples are to have; 1 is none.
            codes: uniform from 0 to `code_classes` − 1.
        """
        height, width, _ = noise.shape[1:]
        rows, columns = height // self.patch_size, width // self.patch_size
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda name: Dense(self.width, kernel_init=xavier, name=name, **types)
        patches = dense("patch_embedding")(patchify(noise, self.patch_size))
        positions = lambda *_: sincos_positions(rows, columns, self.width)
        patches = patches + self.param("positions", positions)

        conditioning = self._conditioning(labels, guidance, codes)
        shape = (self.class_tokens, self.width)
        table = self.param("class_positions", small, shape, self.param_dtype)
        tokens = dense("class_embedding")(conditioning)[:, None] + table
        lengths = [self.class_tokens, patches.shape[1]]
        tokens = constrain_tokens(join([tokens, patches]).astype(jnp.float32))
        places = np.split(np.arange(sum(lengths))[:, None], [self.class_tokens])
        size = self.width // self.num_heads
        rotations = join([jnp.asarray(rotary_positions(p, (size,)))[None] for p in places])[0]

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        sizes = self.num_heads, self.mlp_ratio, True
        blocks = blocks(*sizes, *types.values(), gate_init=xavier, name="blocks")
        tokens, _ = blocks(tokens, conditioning, rotations)
        _, patches = separate(tokens, lengths)

        return image_head(patches, conditioning, self.patch_size, noise.shape[1:], self.param_dtype)


def _size(depth: int, width: int, num_heads: int, mlp_ratio: float) -> Callable[..., DriftingDiT]:
    def build(patch_size: int = 2, num_classes: int = 1000, **options) -> DriftingDiT:
        sizes = patch_size, width, depth, num_heads, num_classes
        return DriftingDiT(*sizes, **dict(mlp_ratio=mlp_ratio) | options)

    return build


# Patches of 2 on latents, and of 16 on pixels.
Drifting_B = _size(12, 768, 12, 4.0)
Drifting_L = _size(24, 1024, 16, 4.03125)  # 2,752 features, the next multiple of 32
