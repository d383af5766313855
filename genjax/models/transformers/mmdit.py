"""Multimodal diffusion transformer of Stable Diffusion 3 and 3.5.

Esser et al. 2024, "Scaling rectified flow transformers for high-resolution image synthesis".
"""

import itertools
from collections import Counter
from collections.abc import Callable
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
    unpatchify,
)
from genjax.nn.scanned import rematerialized
from genjax.nn.transformer import Heads

Dtype = Any
xavier = nn.initializers.xavier_uniform()


def axis_embedding(positions: np.ndarray, features: int) -> np.ndarray:
    """Return sines, then cosines, of position·10000^(−i/(features/2)), `[length, features]`."""
    half = features // 2
    frequencies = 1 / 10_000.0 ** (np.arange(half) / half)
    angles = np.outer(np.asarray(positions, np.float32), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


_Image = Float[Array, "batch image heads head_features"]
_Text = Float[Array, "batch text heads head_features"]


def joint_attention(
    image: tuple[_Image, _Image, _Image],
    text: tuple[_Text, _Text, _Text],
    text_mask: Bool[Array, "batch text"] | None,
) -> tuple[Float[Array, "batch image features"], Float[Array, "batch text features"]]:
    """Attention of two streams' queries to the keys and values of both (figure 2b).

    No query attends to text where the mask is False.
    """
    query, key, value = (join(parts) for parts in zip(image, text, strict=True))
    lengths = image[0].shape[1], text[0].shape[1]
    mask = None
    if text_mask is not None:
        mask = join([jnp.ones((len(text_mask), lengths[0]), bool), text_mask])[:, None, None]
    out = attention(query, key, value, mask)
    image_out, text_out = separate(out.reshape(*out.shape[:2], -1), lengths)
    return image_out, text_out


class Block(nn.Module):
    """Joint attention and a feed-forward layer for each of two streams, image and text (figure 2b).

    Attributes:
        dual: the image stream attends to itself too, beside the joint attention (Stable Diffusion
            3.5 medium).
        last: whether this is the last block. It discards the text stream, so it has no text output
            layers.
    """

    num_heads: int
    qk_norm: bool
    dual: bool
    last: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        streams: tuple[Float[Array, "batch image features"], Float[Array, "batch text features"]],
        conditioning: Float[Array, "batch features"],
        text_mask: Bool[Array, "batch text"] | None,
    ) -> tuple[
        tuple[Float[Array, "batch image features"], Float[Array, "batch text features"]], None
    ]:
        image, text = streams
        features = image.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def dense(size: int, name: str) -> Dense:
            return Dense(size, kernel_init=xavier, name=name, **types)

        def modulation(parts: int, name: str) -> list[Array]:
            return Modulation(parts, self.param_dtype, name=name)(conditioning)

        def project(x: Array, name: str) -> tuple[Array, Array, Array]:
            heads = Heads(self.num_heads, qk_norm=self.qk_norm, name=name, **types)
            query, key, value = heads(x)
            return query.astype(self.dtype), key.astype(self.dtype), value

        def feed_forward(x: Array, shift: Array, scale: Array, gate: Array, name: str) -> Array:
            h = nn.gelu(dense(4 * features, f"{name}_mlp_in")(modulate(x, shift, scale)))
            return x + gate[:, None] * dense(features, f"{name}_mlp_out")(h)

        image_parts = modulation(9 if self.dual else 6, "image_modulation")
        image_shift, image_scale, image_gate = image_parts[:3]
        if self.last:
            # In this order in the published weights, as in the network's last modulation.
            text_scale, text_shift = modulation(2, "text_modulation")
        else:
            text_shift, text_scale, text_gate, *text_parts = modulation(6, "text_modulation")
        image_out, text_out = joint_attention(
            project(modulate(image, image_shift, image_scale), "image_heads"),
            project(modulate(text, text_shift, text_scale), "text_heads"),
            text_mask,
        )
        image_out = image_gate[:, None] * dense(features, "image_projection")(image_out)
        if self.dual:
            shift, scale, gate = image_parts[6:]
            h = attention(*project(modulate(image, shift, scale), "dual_heads")).reshape(
                image.shape
            )
            image_out = image_out + gate[:, None] * dense(features, "dual_projection")(h)
        image = feed_forward(image + image_out, *image_parts[3:6], "image")
        if not self.last:
            text = text + text_gate[:, None] * dense(features, "text_projection")(text_out)
            text = feed_forward(text, *text_parts, "text")
        return (constrain_tokens(image), constrain_tokens(text)), None


class MMDiT(OverPatches, nn.Module):
    """A transformer over image patches and text tokens, two streams with weights of their own.

    The position of patch i of an axis is position_start + position_step·i, in a grid of `max_size`
    patches a side whose centre an image takes.

    Attributes:
        patch_size: side of a patch, in pixels of the latents.
        width: features of a token; divisible by 4 and by `num_heads`.
        depth: number of blocks; the last one reads the text and leaves it.
        dual_layers: the blocks, counted from 0, that have a second attention of the image to
            itself.
        qk_norm: queries and keys are normalized (Stable Diffusion 3.5).
        max_size: largest height and width, in patches.
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        takes_end_time: whether the network takes the end of its jump, `end_time` (flow maps).
        takes_guidance: whether the network takes a guidance scale, `guidance`.
        unroll: blocks per iteration of the scans; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: type of the matrix products; modulation, norms and softmax are float32 always.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    dual_layers: tuple[int, ...] = ()
    qk_norm: bool = False
    max_size: int = 192
    position_start: float = 0.0
    position_step: float = 1.0
    out_channels: int | None = None
    time_scale: float = 1000.0
    takes_end_time: bool = False
    takes_guidance: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def runs(self) -> dict[str, list[int]]:
        """Yield the blocks of one kind that are scanned together, by name; the last block is alone.

        The names are "dual_blocks" and "blocks", and "dual_blocks_1", … where a kind comes again.
        """
        runs, counts = {}, Counter()
        for dual, indices in itertools.groupby(
            range(self.depth - 1), self.dual_layers.__contains__
        ):
            name = "dual_blocks" if dual else "blocks"
            runs[f"{name}_{counts[name]}" if counts[name] else name] = list(indices)
            counts[name] += 1
        return runs

    def _positions(self, height: int, width: int) -> Float[Array, "tokens features"]:
        """Return positions of the central patches: columns in the first features, then rows."""
        if max(height, width) > self.max_size:
            raise ValueError(
                f"an image of {height}×{width} patches; positions of at most "
                f"max_size = {self.max_size} each way are known"
            )

        def axis(length: int) -> np.ndarray:
            indices = (self.max_size - length) // 2 + np.arange(length)
            return axis_embedding(
                self.position_start + self.position_step * indices, self.width // 2
            )

        shape = height, width, self.width // 2
        columns, rows = axis(width)[None], axis(height)[:, None]
        table = jnp.concatenate(
            [jnp.broadcast_to(columns, shape), jnp.broadcast_to(rows, shape)], axis=-1
        )
        return table.reshape(height * width, self.width)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        text: Text,
        end_time: Float[Array, " batch"] | None = None,
        guidance: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """
        Raises:
            ValueError: height or width is not divisible by `patch_size`, or is of more than
                `max_size` patches; `end_time` or `guidance` is given and not taken, or missing.
        """
        height, width, channels = x.shape[1:]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        image = Dense(self.width, kernel_init=xavier, name="patch_embedding", **types)(
            patchify(x, self.patch_size)
        )
        image = image + self._positions(height // self.patch_size, width // self.patch_size)
        tokens = Dense(self.width, kernel_init=xavier, name="text_embedding", **types)(text.tokens)
        streams = tuple(constrain_tokens(h.astype(jnp.float32)) for h in (image, tokens))

        time = sinusoidal_embedding(t * self.time_scale, 256)
        conditioning = VectorEmbedding(self.width, self.param_dtype, name="time_embedding")(time)
        conditioning += jump_conditioning(self, t, end_time, guidance)
        if text.pooled is not None:
            pooled = text.pooled.astype(jnp.float32)
            conditioning += VectorEmbedding(self.width, self.param_dtype, name="pooled_embedding")(
                pooled
            )

        fields = dict(num_heads=self.num_heads, qk_norm=self.qk_norm, **types)
        for name, indices in self.runs.items():
            blocks = scanned(Block, len(indices), self.unroll, self.remat_policy)
            blocks = blocks(dual=indices[0] in self.dual_layers, last=False, name=name, **fields)
            streams, _ = blocks(streams, conditioning, text.mask)
        last = rematerialized(Block, self.remat_policy)
        last = last(dual=self.depth - 1 in self.dual_layers, last=True, name="last_block", **fields)
        (image, _), _ = last(streams, conditioning, text.mask)

        scale, shift = Modulation(2, self.param_dtype, name="modulation")(conditioning)
        features = self.patch_size**2 * (self.out_channels or channels)
        out = output_layer(features, self.param_dtype)(modulate(image, shift, scale))
        return unpatchify(out, self.patch_size, height, width)


def _published(depth: int, width: int, max_size: int, **fields) -> Callable[..., MMDiT]:
    """Build the network with positions of section 5.3.2 at 1024 pixels, as in training at 256.

    They are (i − (max_size − 64)/2)·256/1024.
    """

    def build(**options) -> MMDiT:
        step = 256 / 1024
        positions = dict(position_step=step, position_start=-(max_size - 64) / 2 * step)
        defaults = dict(
            patch_size=2, width=width, depth=depth, num_heads=width // 64, max_size=max_size
        )
        return MMDiT(**defaults | positions | fields | options)

    return build


sd3_medium = _published(24, 1536, 192)
sd35_medium = _published(24, 1536, 384, dual_layers=tuple(range(13)), qk_norm=True)
sd35_large = _published(38, 2432, 192, qk_norm=True)
