"""A small transformer over patches of space and time, for one's own videos.

It is DiT (Peebles & Xie 2023) over frames, rows and columns, with rotary positions. Attention is
among all tokens, or first among those of a frame and then among those of a place (Arnab et al.
2021, "ViViT", model 3). Frames may have times of their own (Chen et al. 2024, "Diffusion forcing").
A causal network attends to no later frame. It continues a video frame by frame, and keeps keys and
values of earlier frames in a cache.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from genjax.models.traits import OfClasses
from genjax.nn import (
    Dense,
    Segments,
    Text,
    VectorEmbedding,
    attention,
    constrain_tokens,
    modulate,
    patchify_video,
    scanned,
    sinusoidal_embedding,
    unpatchify_video,
)
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.modulation import layer_norm, per_frame
from genjax.nn.packing import gather_slots
from genjax.nn.rotary import grid_positions, rotations_at
from genjax.nn.transformer import Attention, Cache, FeedForward, Heads, empty_cache, inline

Dtype = Any
Mask = Bool[Array, "#batch 1 queries keys"] | Segments | None
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)

# More patches than a side of a frame has. Numbers of 32 bits tell the places of 512 clips apart.
SIDE = 2**11
# How tokens, f frames of s places each, become sequences that attend to themselves.
ALL, SPACE, TIME = "b (f s)", "(b f) s", "(b s) f"


class Layout(NamedTuple):
    """How tokens of video attend to each other.

    Attributes:
        kinds: the name of each self-attention of a block, and its sequences.
        places: number of tokens of a frame.
        positions: frame, row and column of each token.
        masks: of each self-attention.
        segments: the number within a row of each token's clip, if clips are packed.
    """

    kinds: tuple[tuple[str, str], ...]
    places: int
    positions: Int[Array, "*rows length 3"]
    masks: tuple[Mask, ...]
    segments: Int[Array, "rows length"] | None = None


def self_attentions(factorized: bool) -> tuple[tuple[str, str], ...]:
    """Return the self-attentions of a block: the name and the sequences of each."""
    factors = ("space_attention", SPACE), ("time_attention", TIME)
    return factors if factorized else (("attention", ALL),)


class SelfAttention(nn.Module):
    """Attention of tokens to those of the same sequence.

    Attributes:
        sequences: `ALL`, `SPACE` or `TIME`.
        places: number of tokens of a frame.
        dtype: type of the matrix products.
    """

    num_heads: int
    sequences: str
    places: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        shift: Float[Array, "batch one_or_length features"],
        scale: Float[Array, "batch one_or_length features"],
        gate: Float[Array, "batch one_or_length features"],
        rotations: Float[Array, "*examples length pairs 2"],
        mask: Mask,
        cache: Cache | None,
    ) -> tuple[Float[Array, "batch length features"], Cache | None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        heads = inline(self, Heads(self.num_heads, qk_norm=True, **types))
        query, key, value = heads(modulate(x, shift, scale), rotations=rotations)
        query, key = query.astype(value.dtype), key.astype(value.dtype)
        if cache is not None:
            cache = cache.append(key, value)
            key, value, *_ = cache.of_layer(cache.capacity)
            cache = cache.next_layer()
        split = lambda a: rearrange(a, f"b (f s) h d -> {self.sequences} h d", s=self.places)
        out = attention(*map(split, (query, key, value)), mask)
        sizes = dict(b=len(x), s=self.places)
        out = rearrange(out, f"{self.sequences} h d -> b (f s) (h d)", **sizes)
        out = Dense(x.shape[-1], kernel_init=xavier, name="projection", **types)(out)
        return constrain_tokens(x + gate * out), cache


class Block(nn.Module):
    """Self-attention of one or two kinds, cross-attention to text, and a feed-forward layer.

    The time modulates all but the cross-attention.

    Attributes:
        kinds: the name of each self-attention, and its `sequences`.
        mlp_features: between the two layers of the feed-forward part.
    """

    num_heads: int
    kinds: tuple[tuple[str, str], ...]
    places: int
    mlp_features: int
    dtype: Dtype
    param_dtype: Dtype

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.modulation = ModulationTable(3 * len(self.kinds) + 3, self.param_dtype)
        for name, sequences in self.kinds:
            setattr(self, name, SelfAttention(self.num_heads, sequences, self.places, **types))
        options = dict(norm=layer_norm(), out_init=zeros, **types)
        self.cross_attention = Attention(self.num_heads, **options)
        self.mlp = FeedForward(self.mlp_features, layer_norm(), **types)
        inline(self, self.mlp)

    def __call__(
        self,
        carry: tuple[Float[Array, "batch length features"], Cache | None],
        modulation: Float[Array, "batch times parts features"],
        rotations: Float[Array, "*examples length pairs 2"],
        masks: tuple[Mask, ...],
        text: Float[Array, "batch text_length text_features"] | None,
        text_mask: Bool[Array, "batch 1 _ text_length"] | Segments | None,
    ) -> tuple[tuple[Float[Array, "batch length features"], Cache | None], None]:
        x, cache = carry
        x, cache, parts = self.attend(x, cache, modulation, rotations, masks, text, text_mask)
        return (self.mlp(x, *parts), cache), None

    def attend(
        self,
        x: Float[Array, "batch length features"],
        cache: Cache | None,
        modulation: Float[Array, "batch times parts features"],
        rotations: Float[Array, "*examples length pairs 2"],
        masks: tuple[Mask, ...],
        text: Float[Array, "batch text_length text_features"] | None,
        text_mask: Bool[Array, "batch 1 _ text_length"] | Segments | None,
    ) -> tuple[Float[Array, "batch length features"], Cache | None, list[Array]]:
        """Return tokens and cache before the feed-forward part, and that part's modulation."""
        parts = [per_frame(part, x.shape[1]) for part in self.modulation(modulation)]
        for (name, sequences), mask in zip(self.kinds, masks, strict=True):
            earlier = None if sequences == SPACE else cache  # a frame knows its own tokens
            x, updated = getattr(self, name)(x, *parts[:3], rotations, mask, earlier)
            parts = parts[3:]
        if text is not None:
            x, _ = self.cross_attention(x, context=text, mask=text_mask)
        return x, updated, parts


class Ends(nn.Module):
    """The layers before and after the blocks of a stream of tokens.

    Before: the tokens are embedded, and the time and the class give the modulation of the blocks.
    After: a modulated linear head.

    Attributes:
        parts: vectors of modulation that a block takes.
        out_features: of each token's output.
        num_classes: None if the stream takes no class.
    """

    width: int
    parts: int
    out_features: int
    num_classes: int | None
    time_scale: float
    dtype: Dtype
    param_dtype: Dtype

    def setup(self):
        self.patch_embedding = self._dense(self.width, xavier, self.dtype)
        self.time_embedding = VectorEmbedding(self.width, self.param_dtype)
        if self.num_classes is not None:
            options = dict(embedding_init=small, param_dtype=self.param_dtype)
            self.label_embedding = nn.Embed(self.num_classes + 1, self.width, **options)
        self.modulation = self._dense(self.parts * self.width, small, jnp.float32)
        self.head_modulation = ModulationTable(2, self.param_dtype)
        self.head = self._dense(self.out_features, zeros, jnp.float32)

    def _dense(self, features: int, init: Callable, dtype: Dtype) -> Dense:
        return Dense(features, kernel_init=init, dtype=dtype, param_dtype=self.param_dtype)

    def embed(
        self,
        tokens: Float[Array, "batch length features"],
        t: Float[Array, "batch times"],
        label: Int[Array, "batch clips"] | None,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch times width"]]:
        """Return the embedded tokens, and the conditioning by time and class."""
        tokens = constrain_tokens(self.patch_embedding(tokens).astype(jnp.float32))
        waves = sinusoidal_embedding(t.reshape(-1) * self.time_scale, 256)
        conditioning = self.time_embedding(waves).reshape(len(tokens), -1, self.width)
        if label is not None:
            conditioning = conditioning + self.label_embedding(label)
        return tokens, conditioning

    def modulate_blocks(
        self, conditioning: Float[Array, "batch times width"]
    ) -> Float[Array, "batch times parts width"]:
        """Return the modulation that all blocks share."""
        modulation = self.modulation(nn.silu(conditioning))
        return modulation.reshape(len(conditioning), -1, self.parts, self.width)

    def output(
        self,
        tokens: Float[Array, "batch length width"],
        conditioning: Float[Array, "batch times width"],
    ) -> Float[Array, "batch length out_features"]:
        """Return the output of each token."""
        parts = self.head_modulation(conditioning[:, :, None])
        shift, scale = (per_frame(part, tokens.shape[1]) for part in parts)
        return self.head(modulate(tokens, shift, scale))


class VideoDiT(OfClasses, nn.Module):
    """A transformer over patches of video, conditioned on the time and a class or a text.

    Any length, height and width that the patches divide will do. Label `num_classes` is the null
    class of classifier-free guidance.

    Attributes:
        patch_size: frames, rows and columns of a patch.
        width: features of a token; those of a head, `width / num_heads`, are divisible by 2.
        depth: number of blocks, scanned with stacked parameters.
        num_classes: classes besides the null one; with None the condition is a text.
        factorized: whether a token attends to its frame and then to its place in all frames, in
            place of all tokens.
        causal: whether a token attends to no later frame.
        window: number of frames that a token of a causal network attends to, the last of which is
            its own; all if None. Clips longer than in training need no longer distances then.
        absolute_positions: whether tokens know their frame, row and column (`embed_positions`).
            Rotary positions tell them distances alone: from an input without contrast, such a
            network gives the same output everywhere.
        out_channels: channels of the output; as many as the input's if None.
        time_scale: what t in [0, 1] is multiplied by before its sinusoidal embedding.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    patch_size: tuple[int, int, int]
    width: int
    depth: int
    num_heads: int
    num_classes: int | None = None
    factorized: bool = False
    causal: bool = False
    window: int | None = None
    absolute_positions: bool = False
    mlp_ratio: float = 4.0
    out_channels: int | None = None
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        return self_attentions(self.factorized)

    def __call__(
        self,
        x: Float[Array, "batch time height width channels"],
        t: Float[Array, " batch *times"],
        condition: Int[Array, " batch"] | Text,
    ) -> Float[Array, "batch time height width out_channels"]:
        """
        Args:
            t: one time for a clip, `[batch]`, or one for each frame, `[batch time]`; a patch has
                the time of its first frame.
        """
        return self.extend(x, t, condition, None)[0]

    def extend(
        self,
        x: Float[Array, "batch time height width channels"],
        t: Float[Array, " batch *times"],
        condition: Int[Array, " batch"] | Text,
        cache: Cache | None,
    ) -> tuple[Float[Array, "batch time height width out_channels"], Cache | None]:
        """Return the output for the frames after those of `cache`, and the cache with them.

        While frames are denoised, drop the new cache. Call once more with the clean frames and time
        0, and keep it.

        Raises:
            ValueError: the network is not causal, so what it computed of earlier frames changes.
        """
        if cache is not None and not self.causal:
            raise ValueError("causal=False, and a cache is given: only a causal network takes one")
        sides = x.shape[1:4]
        tokens = patchify_video(x, self.patch_size)
        frames, *grid = (side // size for side, size in zip(sides, self.patch_size, strict=True))
        places, start, end = grid[0] * grid[1], 0, frames
        if cache is not None:
            start, end = cache.length[0] // places, cache.capacity // places
        positions = jnp.asarray(grid_positions(frames, *grid)) + jnp.array([start, 0, 0])
        masks = dict.fromkeys((ALL, SPACE, TIME))
        if self.causal:  # the empty places of a cache are later frames
            new, known = start + jnp.arange(frames)[None], jnp.arange(end)[None]
            clip = lambda a: (jnp.zeros_like(a), a)  # tokens of one clip, and their frames
            masks[TIME] = self._mask(*clip(new), *clip(known))
            by_token = lambda a: jnp.repeat(a, places, axis=1)
            masks[ALL] = self._mask(*clip(by_token(new)), *clip(by_token(known)))
        masks = tuple(masks[sequences] for _, sequences in self.kinds)
        layout = Layout(self.kinds, places, positions, masks)
        t = t[:, None] if t.ndim == 1 else t[:, :: self.patch_size[0]]
        condition = condition if isinstance(condition, Text) else condition[:, None]
        out, cache = self._network(tokens, t, condition, layout, cache)
        return unpatchify_video(out, self.patch_size, sides), cache

    def packed(
        self,
        tokens: Float[Array, "rows length features"],
        t: Float[Array, "rows length"],
        condition: Int[Array, "rows slots"] | Text,
        segments: Int[Array, "rows length"],
        positions: Int[Array, "rows length 3"],
    ) -> Float[Array, "rows length out_features"]:
        """Return the outputs for patches of several clips in each row (`genjax.nn.packing`).

        Args:
            tokens: patches, as `patchify_video` makes them.
            t: the time of each token.
            condition: for each clip of a row; of a text the tokens are `[rows slots text_length
                text_features]`, and the mask is `[rows slots text_length]`.
            segments, positions: as `Packing` has them.
        """
        frame, row, column = jnp.moveaxis(jnp.asarray(positions), -1, 0)
        clip = jnp.asarray(segments)
        of_frame, of_place = clip * SIDE**2 + frame, (clip * SIDE + row) * SIDE + column
        masks = {ALL: self._mask(clip, frame), SPACE: Segments.of(of_frame, of_frame)}
        masks[TIME] = self._mask(of_place, frame)
        masks = tuple(masks[sequences] for _, sequences in self.kinds)
        kinds = tuple((name, ALL) for name, _ in self.kinds)
        layout = Layout(kinds, 1, positions, masks, segments)
        return self._network(tokens, t, condition, layout)[0]

    def _mask(
        self,
        segments: Int[Array, "#batch queries"],
        frames: Int[Array, "#batch queries"],
        known_segments: Int[Array, "#batch keys"] | None = None,
        known_frames: Int[Array, "#batch keys"] | None = None,
    ) -> Mask:
        """Return whether tokens of a segment and a frame attend to others, or to each other."""
        keys = segments if known_segments is None else known_segments
        if not self.causal:
            return Segments.of(segments, keys)
        known = frames if known_frames is None else known_frames
        mask = Segments.of(segments, keys, frames, known)
        if self.window is None:
            return mask
        return mask.whole & (mask.query_times - mask.key_times < self.window)

    def empty_cache(self, batch: int, time: int, height: int, width: int) -> Cache:
        """Return the cache before the first frame, for `time` frames of `height`×`width`."""
        sides = zip((time, height, width), self.patch_size, strict=True)
        capacity = math.prod(side // size for side, size in sides)
        head = self.num_heads, capacity, self.width // self.num_heads
        return empty_cache(self.depth, batch, *head, dtype=self.dtype)

    @nn.compact
    def _network(
        self,
        tokens: Float[Array, "batch length features"],
        t: Float[Array, "batch times"],
        condition: Int[Array, "batch clips"] | Text,
        layout: Layout,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "batch length out_features"], Cache | None]:
        """Return the output of each token, and the cache with these tokens.

        Raises:
            ValueError: there is a window without frames, or of a network that is not causal.
        """
        if self.window is not None and not (self.causal and self.window > 0):
            raise ValueError(
                f"window={self.window} and causal={self.causal}: a window has 1 or more frames, "
                "and a causal network alone has one"
            )
        text = text_mask = label = None
        if self.num_classes is None:
            text, text_mask = _text(condition, layout.segments)
        else:
            segments = layout.segments
            label = condition if segments is None else gather_slots(condition, segments)
        features, types = tokens.shape[-1], (self.dtype, self.param_dtype)
        if self.out_channels is not None:
            features = math.prod(self.patch_size) * self.out_channels
        parts = 3 * len(self.kinds) + 3
        ends = Ends(self.width, parts, features, self.num_classes, self.time_scale, *types)
        ends = inline(self, ends)
        tokens, conditioning = ends.embed(tokens, t, label)
        if self.absolute_positions:
            # Roll-outs reach frames that training has not seen: causal networks know no frame.
            positions = layout.positions * jnp.array([not self.causal, 1, 1])
            tokens = constrain_tokens(tokens + embed_positions(positions, self.width))
        modulation = ends.modulate_blocks(conditioning)

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        mlp_features = int(self.mlp_ratio * self.width)
        sizes = self.num_heads, layout.kinds, layout.places, mlp_features
        rotations = rotations_at(layout.positions, rotary_features(self.width // self.num_heads))
        (tokens, cache), _ = blocks(*sizes, *types, name="blocks")(
            (tokens, cache), modulation, rotations, layout.masks, text, text_mask
        )
        return ends.output(tokens, conditioning), cache


def rotary_features(features: int) -> tuple[int, int, int]:
    """Return a head's features for frames, rows and columns: a third each, in pairs, as in Wan."""
    third = 2 * (features // 6)
    return features - 2 * third, third, third


def embed_positions(
    positions: Int[Array | np.ndarray, "*rows length 3"], features: int
) -> Float[Array, "*rows length features"]:
    """Return sines and cosines of frames, rows and columns, a third of the features each."""
    axes = jnp.asarray(positions, jnp.float32).reshape(-1, 3).T
    sizes = rotary_features(features)
    waves = [sinusoidal_embedding(axis, size) for axis, size in zip(axes, sizes, strict=True)]
    return jnp.concatenate(waves, axis=-1).reshape(*positions.shape[:-1], features)


def _text(
    text: Text, segments: Int[Array, "rows length"] | None
) -> tuple[Float[Array, "batch _ features"], Bool[Array, "batch 1 _ _"] | Segments | None]:
    """Return the tokens of the text, and which of them each token of the video attends to.

    A packed row has the texts of its clips one after the other.
    """
    if segments is None:
        return text.tokens, None if text.mask is None else text.mask[:, None, None]
    rows, slots, length, _ = text.tokens.shape
    of_words = jnp.repeat(jnp.arange(slots), length)[None]
    if text.mask is not None:
        of_words = jnp.where(text.mask.reshape(rows, -1), of_words, -1)
    mask = Segments.of(jnp.maximum(segments, 0), of_words)
    return text.tokens.reshape(rows, slots * length, -1), mask
