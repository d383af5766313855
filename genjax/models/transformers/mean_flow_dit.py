"""MeanFlowDiT: a transformer with conditions as tokens, which outputs two velocities.

The network of improved mean flows (Geng et al. 2025, "Improved mean flows", iMF), and on pixels of
pixel mean flows (Lu et al. 2026, pMF).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.models.traits import OfClasses, OverPatches
from genjax.models.transformers.lightning_dit import rms_norm
from genjax.nn import (
    Dense,
    VectorEmbedding,
    constrain_tokens,
    join,
    output_layer,
    patchify,
    scanned,
    separate,
    sinusoidal_embedding,
    unpatchify,
)
from genjax.nn.jumps import check_numbers
from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import Attention, FeedForward, inline

Dtype = Any
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
unit_variance = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# A normal distribution of deviation 0.32/√inputs, as in the authors' code.
block_init = nn.initializers.variance_scaling(0.32**2, "fan_in", "normal")
TOKENS = dict(label=8, guidance=4, interval_start=2, interval_end=2, time=4)  # of each condition


class Block(nn.Module):
    """Self-attention and a SwiGLU layer after RMS norms, each with a learned gate that starts at 0.

    No layer has a bias.
    """

    num_heads: int
    mlp_ratio: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        rotations: Float[Array, "length pairs 2"],
    ) -> tuple[Float[Array, "batch length features"], None]:
        options = dict(
            use_bias=False,
            kernel_init=block_init,
            out_init=block_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        gate = lambda name: self.param(name, zeros, x.shape[-1:], self.param_dtype)
        norm = lambda name: rms_norm(self.param_dtype, name)
        attention = Attention(self.num_heads, qk_norm=True, norm=norm("attention_norm"), **options)
        x, _ = inline(self, attention)(x, gate=gate("attention_scale"), rotations=rotations)
        mlp_features = int(self.mlp_ratio * x.shape[-1])
        mlp = FeedForward(mlp_features, norm("mlp_norm"), nn.silu, gated=True, **options)
        return inline(self, mlp)(x, gate=gate("mlp_scale")), None


class MeanFlowDiT(OverPatches, OfClasses, nn.Module):
    """A transformer over patches and tokens of the class, the jump's length, and the guidance.

    Its input is the length t − s of a jump, not t. The last `head_depth` blocks exist twice, for
    the average velocity of the jump and for the velocity at its start. The second answer is for
    training alone, so sampling needs no parameters whose name starts with "velocity".

    Label `num_classes` is the null class of classifier-free guidance (`null_label`).

    Attributes:
        patch_size: side of a patch, in pixels or latents.
        width: features of a token; those of a head, `width / num_heads`, are divisible by 4.
        depth: number of blocks from patches to an answer.
        num_classes: classes besides the null one.
        head_depth: how many of the blocks each answer has for its own.
        mlp_ratio: features between the layers of SwiGLU per feature of a token.
        bottleneck: features of a patch before they become `width`; None for `width` at once.
        grid: whether rotary positions are the patches' rows and columns, beside a learned position
            of each token (pMF). Otherwise they count the tokens (iMF).
        interval: times in which the network is guided, if the call gives none.
        takes_end_time: whether the network takes the end of its jump, `end_time`. Otherwise its
            input is t.
        takes_guidance: whether the network takes a guidance scale and interval.
        unroll: blocks per iteration of a scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products; norms, rotations and softmax are float32 always.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    head_depth: int = 8
    mlp_ratio: float = 8 / 3
    bottleneck: int | None = None
    grid: bool = False
    interval: tuple[float, float] = (0.0, 1.0)
    takes_end_time: bool = True
    takes_guidance: bool = True
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _patches(self, x: Array) -> Float[Array, "batch patches features"]:
        dense = lambda size, name: Dense(
            size, kernel_init=xavier, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )
        h = patchify(x, self.patch_size)
        if self.bottleneck is not None:
            h = dense(self.bottleneck, "patch_projection")(h)
        return dense(self.width, "patch_embedding")(h)

    def _condition_tokens(
        self, labels: Array, numbers: dict[str, Array]
    ) -> Float[Array, "batch tokens features"]:
        """Return the tokens of the class and of each number: learned ones plus its embedding."""
        init = nn.initializers.normal(self.width**-0.5)
        types = dict(param_dtype=self.param_dtype)
        embed = nn.Embed(
            self.num_classes + 1, self.width, embedding_init=init, name="label_embedding", **types
        )
        vectors = {"label": embed(labels)} | {
            name: VectorEmbedding(
                self.width, kernel_init=unit_variance, name=f"{name}_embedding", **types
            )(sinusoidal_embedding(number, 256))
            for name, number in numbers.items()
        }
        tables = {
            name: self.param(f"{name}_tokens", init, (TOKENS[name], self.width), self.param_dtype)
            for name in vectors
        }
        # Their places count, so they are not joined device by device (`join`).
        parts = [vectors[name][:, None] + tables[name] for name in vectors]
        return jnp.concatenate(parts, axis=1)

    def _rotations(self, prefix: int, rows: int, columns: int) -> Float[Array, "length pairs 2"]:
        size = self.width // self.num_heads
        if self.grid:
            parts = np.zeros((prefix, 2)), grid_positions(rows, columns)
            features = (size // 2, size // 2)
        else:
            places = np.arange(prefix + rows * columns)[:, None]
            parts, features = np.split(places, [prefix]), (size,)
        return join([jnp.asarray(rotary_positions(part, features))[None] for part in parts])[0]

    def _blocks(self, depth: int, name: str, *inputs: Array) -> Array:
        blocks = scanned(Block, depth, min(self.unroll, depth), self.remat_policy)
        types = self.dtype, self.param_dtype
        return blocks(self.num_heads, self.mlp_ratio, *types, name=name)(*inputs)[0]

    def _answer(self, name: str, tokens: Array, rotations: Array, prefix: int, shape: tuple):
        """Return an image by the blocks and the layer of one answer."""
        tokens = self._blocks(self.head_depth, f"{name}_blocks", tokens, rotations)
        _, patches = separate(tokens, [prefix, tokens.shape[1] - prefix])
        layer = output_layer(self.patch_size**2 * shape[-1], self.param_dtype, f"{name}_out")
        out = layer(rms_norm(self.param_dtype, f"{name}_norm")(patches))
        return unpatchify(out, self.patch_size, *shape[1:3])

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        labels: Int[Array, " batch"],
        end_time: Float[Array, " batch"] | None = None,
        guidance: Float[Array, " batch"] | None = None,
        interval: Float[Array, "batch 2"] | None = None,
        velocity: bool = False,
    ) -> Float[Array, "batch height width channels"] | tuple[Array, Array]:
        """Return the answer for the average velocity, with `velocity` also that for the velocity.

        Args:
            guidance: the scale ω of the guided velocity; 1 is none.
            interval: the first and last time at which it applies.

        Raises:
            ValueError: an argument is given that the network does not take, or one that it takes is
                missing; or the field `interval` is no interval within [0, 1].
        """
        check_numbers(self, end_time=end_time, guidance=guidance)
        numbers = {"time": t if end_time is None else t - end_time}
        if guidance is not None:
            if not 0 <= self.interval[0] < self.interval[1] <= 1:
                raise ValueError(
                    f"interval={self.interval}; give two times in [0, 1], the first below the last"
                )
            both = jnp.asarray(self.interval) if interval is None else interval
            start, end = jnp.broadcast_to(both, (len(t), 2)).T
            numbers = dict(guidance=1 - 1 / guidance, interval_start=start, interval_end=end) | (
                numbers
            )
        conditions = self._condition_tokens(labels, numbers)
        patches, prefix = self._patches(x), conditions.shape[1]
        tokens = join([conditions, patches.astype(jnp.float32)])
        if self.grid:
            init = nn.initializers.normal(0.02)
            table = self.param("positions", init, tokens.shape[1:], self.param_dtype)
            tokens = tokens + join([part[None] for part in jnp.split(table, [prefix])])
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        rotations = self._rotations(prefix, rows, columns)

        shared = self.depth - self.head_depth
        tokens = self._blocks(shared, "blocks", constrain_tokens(tokens), rotations)
        average = self._answer("average", tokens, rotations, prefix, x.shape)
        if velocity or self.is_initializing():
            own = self._answer("velocity", tokens, rotations, prefix, x.shape)
        return (average, own) if velocity else average


def _size(depth: int, width: int, num_heads: int, **fields) -> Callable[..., MeanFlowDiT]:
    patches = 16 if fields else 2

    def build(patch_size: int = patches, num_classes: int = 1000, **options) -> MeanFlowDiT:
        sizes = patch_size, width, depth, num_heads, num_classes
        return MeanFlowDiT(*sizes, **fields | options)

    return build


# iMF, table 4.
IMF_B = _size(12, 768, 12)
IMF_M = _size(24, 768, 12)
IMF_L = _size(32, 1024, 16)
IMF_XL = _size(48, 1024, 16)
# pMF, table 7: patches of 16 at 256 pixels, and of 32 at 512.
PMF_B = _size(16, 768, 12, bottleneck=128, grid=True)
PMF_L = _size(32, 1024, 16, bottleneck=128, grid=True)
PMF_H = _size(48, 1280, 16, bottleneck=256, grid=True)
