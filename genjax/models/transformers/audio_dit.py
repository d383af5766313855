"""A small transformer over patches of a waveform, or of its latents, for one's own sounds.

It is `VideoDiT` whose frames are patches in time, with one place each: rotary positions in time,
a time and a class or a text.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from genjax.models.traits import OfClasses
from genjax.models.transformers.video_dit import VideoDiT
from genjax.nn import Text
from genjax.nn.transformer import inline

Dtype = Any


class AudioDiT(OfClasses, nn.Module):
    """A transformer over patches of sound, conditioned on the time and a class or a text.

    Any length that the patches divide will do. Label `num_classes` is the null class of
    classifier-free guidance.

    Attributes:
        patch_size: samples, or latents, of a patch.
        width: features of a token; those of a head, `width / num_heads`, are divisible by 2.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: classes besides the null one; with None the condition is a text.
        absolute_positions: whether tokens know their place in the sound, as of `VideoDiT`.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        unroll, remat_policy, dtype, param_dtype: as of `VideoDiT`.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int | None = None
    absolute_positions: bool = False
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def divisor(self) -> int:
        """The number that the input's length is a multiple of."""
        return self.patch_size

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        t: Float[Array, " batch"],
        condition: Int[Array, " batch"] | Text,
    ) -> Float[Array, "batch length channels"]:
        transformer = VideoDiT(
            (1, 1, 1),
            self.width,
            self.depth,
            self.num_heads,
            self.num_classes,
            absolute_positions=self.absolute_positions,
            mlp_ratio=self.mlp_ratio,
            time_scale=self.time_scale,
            unroll=self.unroll,
            remat_policy=self.remat_policy,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        patches = rearrange(x, "b (f p) c -> b f 1 1 (p c)", p=self.patch_size)
        out = inline(self, transformer)(patches, t, condition)
        return rearrange(out, "b f 1 1 (p c) -> b (f p) c", p=self.patch_size)
