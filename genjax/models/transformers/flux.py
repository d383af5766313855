"""FLUX.1 (Black Forest Labs 2024): text and image in two streams with joint attention, then in one.

Its authors' report came after the network (Labs et al. 2025, "FLUX.1 Kontext", section 2). The two
streams are those of MMDiT (Esser et al. 2024). Attention and feed-forward layer stand side by side
as in ViT-22B (Dehghani et al. 2023).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.models.traits import OverPatches
from genjax.nn import (
    Dense,
    Modulation,
    Text,
    VectorEmbedding,
    attention,
    constrain_tokens,
    join,
    jump_conditioning,
    modulate,
    output_layer,
    patchify,
    scanned,
    separate,
    sinusoidal_embedding,
    unfused,
    unpatchify,
)
from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import Heads

Dtype = Any
MLP_RATIO = 4
xavier = nn.initializers.xavier_uniform()


def _attend(
    query: Float[Array, "batch length heads head_features"],
    key: Float[Array, "batch length heads head_features"],
    value: Float[Array, "batch length heads head_features"],
    mask: Bool[Array, "batch 1 1 length"] | None,
) -> Float[Array, "batch length features"]:
    query, key = query.astype(value.dtype), key.astype(value.dtype)
    return attention(query, key, value, mask).reshape(*value.shape[:2], -1)


def _rotations(
    text_length: int, rows: int, columns: int, rotary_features: tuple[int, int, int]
) -> Float[Array, "length pairs 2"]:
    """Return the rotations of the text, whose position is 0, and then of the image's patches."""
    positions = np.zeros((text_length, 3)), grid_positions(1, rows, columns)
    return join([jnp.asarray(rotary_positions(p, rotary_features))[None] for p in positions])[0]


class DoubleBlock(nn.Module):
    """Text and image, each with weights and modulation of its own, meet in attention over both."""

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        streams: tuple[
            Float[Array, "batch text_length features"], Float[Array, "batch image_length features"]
        ],
        conditioning: Float[Array, "batch features"],
        rotations: Float[Array, "length pairs 2"],
        mask: Bool[Array, "batch 1 1 length"] | None,
    ) -> tuple[tuple[Float[Array, "batch _ features"], Float[Array, "batch _ features"]], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        features = conditioning.shape[-1]
        dense = lambda size, name: Dense(size, kernel_init=xavier, name=name, **types)

        heads, modulations = [], []
        turns = separate(rotations[None], [x.shape[1] for x in streams])
        for name, x, (turn,) in zip(("text", "image"), streams, turns, strict=True):
            shift, scale, *rest = Modulation(6, self.param_dtype, name=f"{name}_modulation")(
                conditioning
            )
            project = Heads(self.num_heads, qk_norm=True, name=f"{name}_heads", **types)
            heads.append(project(modulate(x, shift, scale), rotations=turn))
            modulations.append(rest)
        query, key, value = (join(parts) for parts in zip(*heads, strict=True))
        attended = _attend(query, key, value, mask)
        attended = separate(attended, [x.shape[1] for x in streams])

        outputs = []
        for name, x, h, parts in zip(
            ("text", "image"), streams, attended, modulations, strict=True
        ):
            gate_attention, shift, scale, gate_mlp = parts
            h = unfused(dense(features, f"{name}_projection")(h))
            x = x + gate_attention[:, None] * h
            h = unfused(modulate(x, shift, scale).astype(self.dtype))
            h = nn.gelu(dense(MLP_RATIO * features, f"{name}_mlp_in")(h))
            h = unfused(dense(features, f"{name}_mlp_out")(h))
            x = x + gate_mlp[:, None] * h
            outputs.append(constrain_tokens(x))
        return tuple(outputs), None


class SingleBlock(nn.Module):
    """Self-attention and a feed-forward layer side by side, their outputs projected together."""

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        conditioning: Float[Array, "batch features"],
        rotations: Float[Array, "length pairs 2"],
        mask: Bool[Array, "batch 1 1 length"] | None,
    ) -> tuple[Float[Array, "batch length features"], None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        features = conditioning.shape[-1]
        dense = lambda size, name, **options: Dense(
            size, kernel_init=xavier, name=name, **types, **options
        )
        shift, scale, gate = Modulation(3, self.param_dtype, name="modulation")(conditioning)
        h = modulate(x, shift, scale)
        project = Heads(self.num_heads, qk_norm=True, name="heads", **types)
        attended = _attend(*project(h, rotations=rotations), mask)
        h = nn.gelu(dense(MLP_RATIO * features, "mlp_in")(h))
        h = dense(features, "projection")(attended) + dense(features, "mlp_out", use_bias=False)(h)
        return constrain_tokens(x + gate[:, None] * unfused(h)), None


class Flux(OverPatches, nn.Module):
    """The network of FLUX.1. With `num_double_blocks=0`, text is tokens before the image's.

    Positions have three coordinates: (0, row, column) for a patch, and (0, 0, 0) for every token of
    text. So any height and width will do, and only the tokens themselves carry the order of the
    text.

    Attributes:
        num_double_blocks: blocks of two streams; scanned with stacked parameters, as are the
            others.
        num_single_blocks: blocks of one stream, after them.
        num_heads: heads of attention.
        rotary_features: features of a head that turn with each of the three coordinates; `width` is
            their sum times `num_heads`.
        takes_guidance: whether the network takes a guidance scale (dev: distilled from guided
            samples).
        takes_end_time: whether the network takes the end of its jump, `end_time` (flow maps).
        patch_size: side of a patch, in latents.
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        unroll: blocks per iteration of a scan.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    num_double_blocks: int
    num_single_blocks: int
    num_heads: int
    rotary_features: tuple[int, int, int]
    takes_guidance: bool = False
    takes_end_time: bool = False
    patch_size: int = 2
    out_channels: int | None = None
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def width(self) -> int:
        return self.num_heads * sum(self.rotary_features)

    def _scan(self, block: type[nn.Module], depth: int, name: str, x: Any, *shared: Any) -> Any:
        """Return `x` after `depth` blocks, each of which also takes `shared`."""
        if not depth:
            return x
        blocks = scanned(block, depth, self.unroll, self.remat_policy)
        return blocks(self.num_heads, self.dtype, self.param_dtype, name=name)(x, *shared)[0]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        text: Text,
        guidance: Float[Array, " batch"] | None = None,
        end_time: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """
        Args:
            text: `pooled` may be None, if it is None at initialisation and in every call.
            guidance: the guidance scale of the samples that this network imitates, about 1 to 7.

        Raises:
            ValueError: `guidance` or `end_time` is missing or not wanted, or `x` does not divide
                into patches.
        """
        height, width, channels = x.shape[1:]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        embed = lambda size, name: VectorEmbedding(size, self.param_dtype, name=name)

        conditioning = embed(self.width, "time_embedding")(
            sinusoidal_embedding(t * self.time_scale, 256)
        )
        conditioning = conditioning + jump_conditioning(self, t, end_time, guidance)
        if text.pooled is not None:
            conditioning = conditioning + embed(self.width, "pooled_embedding")(text.pooled)

        dense = lambda name: Dense(self.width, kernel_init=xavier, name=name, **types)
        image = dense("patch_embedding")(patchify(x, self.patch_size))
        words = dense("text_embedding")(text.tokens)
        streams = tuple(constrain_tokens(a.astype(jnp.float32)) for a in (words, image))

        lengths = words.shape[1], image.shape[1]
        rows, columns = height // self.patch_size, width // self.patch_size
        rotations = _rotations(lengths[0], rows, columns, self.rotary_features)
        mask = text.mask
        if mask is not None:
            mask = join([mask, jnp.ones((len(mask), lengths[1]), bool)])[:, None, None]

        shared = conditioning, rotations, mask
        streams = self._scan(DoubleBlock, self.num_double_blocks, "double_blocks", streams, *shared)
        tokens = self._scan(
            SingleBlock, self.num_single_blocks, "single_blocks", join(streams), *shared
        )
        _, image = separate(tokens, lengths)

        # In the order of diffusers' weights; the authors' layer has the shift first.
        scale, shift = Modulation(2, self.param_dtype, name="modulation")(conditioning)
        features = self.patch_size**2 * (self.out_channels or channels)
        out = output_layer(features, self.param_dtype)(modulate(image, shift, scale))
        return unpatchify(out, self.patch_size, height, width)


def flux_schnell(**options) -> Flux:
    """Return FLUX.1 schnell, of 12 billion parameters. It takes no guidance scale."""
    return Flux(
        num_double_blocks=19,
        num_single_blocks=38,
        num_heads=24,
        rotary_features=(16, 56, 56),
        **options,
    )


def flux_dev(**options) -> Flux:
    """Return FLUX.1 dev, of 12 billion parameters. It takes the scale of its distilled guidance."""
    return flux_schnell(takes_guidance=True, **options)
