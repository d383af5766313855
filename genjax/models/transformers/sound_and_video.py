"""A small transformer of sound and video whose streams attend to each other, for one's own data.

Each modality is a stream of tokens with its own width, noise level and modulation. In every block a
stream attends to itself and to the text, as `VideoDiT` does. Then the streams attend to each other,
and each ends with its feed-forward layer: the order of LTX-2 (HaCohen et al. 2026). In attention
between streams, rotary positions are seconds, which both modalities share. So a frame finds the
sounds of its moment, whatever the two rates are.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from genjax.models.transformers.video_dit import (
    Block,
    Ends,
    embed_positions,
    rotary_features,
    self_attentions,
)
from genjax.nn import (
    Dense,
    Text,
    attention,
    constrain_tokens,
    modulate,
    patchify_video,
    scanned,
    unpatchify_video,
)
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.modulation import per_frame
from genjax.nn.rotary import grid_positions, rotate, rotations_at
from genjax.nn.transformer import Heads, inline

Dtype = Any
Params = dict[str, Any]
Streams = dict[str, Any]  # by "video" and "sound", or by one of them
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)
EXCHANGED = 5  # shift, scale and gate of a stream that attends to another; shift and scale of both
OTHER = {"video": "sound", "sound": "video"}


class WithActions(NamedTuple):
    """A condition of whole clips, and the action at each frame; `num_actions` is no action."""

    condition: Int[Array, " batch"] | Text
    actions: Int[Array, "batch frames"]


class Stream(NamedTuple):
    """A modality as tokens.

    Attributes:
        tokens: `[batch length features]`.
        t: a time for each clip `[batch 1]`, or for each frame or patch.
        kinds: the self-attentions of a block, as of `VideoDiT`.
        places: number of tokens of a frame.
        positions: frame, row and column of each token.
        middles: the seconds from the stream's start to the middle of each token.
    """

    tokens: Array
    t: Array
    kinds: tuple[tuple[str, str], ...]
    places: int
    positions: Int[np.ndarray, "length 3"]
    middles: Float[np.ndarray, " length"]


class Exchange(nn.Module):
    """Attention of one stream's tokens to those of the other, by seconds.

    The last layer starts at zero, so the streams of a new network do not know each other.
    """

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys context_features"],
        own: list[Float[Array, "batch one_or_queries features"]],
        others: list[Float[Array, "batch one_or_keys context_features"]],
        rotations: Float[Array, "queries pairs 2"],
        context_rotations: Float[Array, "keys pairs 2"],
    ) -> Float[Array, "batch queries features"]:
        """Return the tokens after this half-block.

        Args:
            own: shift, scale and gate.
            others: shift and scale of the context.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        shift, scale, gate = own
        heads = inline(self, Heads(self.num_heads, qk_norm=True, **types))
        query, key, value = heads(modulate(x, shift, scale), modulate(context, *others))
        query, key = rotate(query, rotations), rotate(key, context_rotations)
        out = attention(query.astype(value.dtype), key.astype(value.dtype), value)
        layer = Dense(x.shape[-1], kernel_init=zeros, name="projection", **types)
        return constrain_tokens(x + gate * layer(out.reshape(x.shape)))


class Sizes(NamedTuple):
    """The sizes of a stream that a block needs: see `Block`."""

    kinds: tuple[tuple[str, str], ...]
    places: int
    mlp_features: int


class JointBlock(nn.Module):
    """A block of `VideoDiT` for each stream; before the feed-forward layers they exchange.

    Attributes:
        streams: name and sizes of each; a stream alone has nothing to exchange.
    """

    num_heads: int
    streams: tuple[tuple[str, Sizes], ...]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        tokens: Streams,
        modulations: Streams,
        exchanged: Streams,
        rotations: Streams,
        shared_rotations: dict[str, Streams],
        text: Float[Array, "batch text_length text_features"] | None,
        text_mask: Bool[Array, "batch 1 1 text_length"] | None,
    ) -> tuple[Streams, None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        blocks = {n: Block(self.num_heads, *sizes, **types, name=n) for n, sizes in self.streams}
        text_inputs, attended, parts = (text, text_mask), {}, {}
        for name, block in blocks.items():
            masks = (None,) * len(block.kinds)
            inputs = tokens[name], None, modulations[name], rotations[name], masks
            attended[name], _, parts[name] = block.attend(*inputs, *text_inputs)
        if len(blocks) > 1:
            attended = self._exchange(attended, exchanged, shared_rotations)
        return {
            name: block.mlp(attended[name], *parts[name]) for name, block in blocks.items()
        }, None

    def _exchange(
        self, tokens: Streams, exchanged: Streams, shared_rotations: dict[str, Streams]
    ) -> Streams:
        """Return the tokens of both streams after each has attended to the other."""
        parts = {}
        for name, modulation in exchanged.items():
            table = ModulationTable(EXCHANGED, self.param_dtype, name=f"{name}_exchange")
            parts[name] = [per_frame(part, tokens[name].shape[1]) for part in table(modulation)]
        after = {}
        for name, x in tokens.items():
            other, types = OTHER[name], (self.dtype, self.param_dtype)
            attend = Exchange(self.num_heads, *types, name=f"{name}_from_{other}")
            turns = shared_rotations[name][name], shared_rotations[name][other]
            after[name] = attend(x, tokens[other], parts[name][:3], parts[other][3:], *turns)
        return after


class SoundAndVideoDiT(nn.Module):
    """A transformer of clips with sound, given the time of each modality and a class or a text.

    It takes and returns a tree `{"video": …, "sound": …}`. A tree of one modality runs that stream
    alone, which reads none of the other's parameters. Label `num_classes` is the null class.

    Attributes:
        video_patch: frames, rows and columns of a patch of the video.
        sound_patch: successive samples, or latents, of a patch of the sound.
        video_width, sound_width: features of a token; those of a head are even in number.
        frame_rate, sound_rate: frames of the video, and samples or latents of the sound, a second.
        num_classes: classes besides the null one; with None the condition is a text.
        num_actions: if given, the condition is `WithActions`. An action's embedding is added to
            that of its frame's time.
        factorized: as of `VideoDiT`, for the video.
        absolute_positions: as of `VideoDiT`, for both modalities.
        resolution: positions a second, in attention between streams. The fastest pair of features
            turns by one radian from one position to the next.
        time_scale, unroll, remat_policy, dtype: as of `VideoDiT`.
    """

    video_patch: tuple[int, int, int]
    sound_patch: int
    video_width: int
    sound_width: int
    depth: int
    num_heads: int
    frame_rate: float
    sound_rate: float
    num_classes: int | None = None
    num_actions: int | None = None
    factorized: bool = False
    absolute_positions: bool = False
    resolution: float = 100.0
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: dict[str, Float[Array, "batch ..."]],
        t: dict[str, Float[Array, " batch *times"]],
        condition: Int[Array, " batch"] | Text | WithActions,
        starts: dict[str, float | Float[Array, ""]] | None = None,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """
        Args:
            x: "video" `[batch frames height width channels]`, "sound" `[batch length channels]`, or
                one of them.
            t: one time for a clip, `[batch]`, or one for each frame or row of sound; a patch has
                the time of its first.
            starts: the seconds at which the modalities begin, 0 if not given. Only the difference
                matters.

        Raises:
            ValueError: a modality does not divide into patches.
        """
        actions = None
        if self.num_actions is not None:
            condition, actions = condition
        is_text = self.num_classes is None
        label = None if is_text else condition[:, None]
        streams = {name: self._stream(name, x[name], t[name]) for name in x}
        ends = {name: self._ends(name, stream) for name, stream in streams.items()}
        tokens, conditionings = {}, {}
        for name, stream in streams.items():
            tokens[name], conditionings[name] = ends[name].embed(stream.tokens, stream.t, label)
            if self.absolute_positions:
                places = embed_positions(stream.positions, self._width(name))
                tokens[name] = constrain_tokens(tokens[name] + places)
        if actions is not None and "video" in streams:
            conditionings["video"] = conditionings["video"] + self._embed_actions(actions)
        text_inputs = (None, None)
        if is_text:
            mask = condition.mask
            text_inputs = condition.tokens, None if mask is None else mask[:, None, None]
        tokens = self._blocks(streams, ends, tokens, conditionings, text_inputs, starts or {})
        outputs = {}
        for name, like in x.items():
            output = ends[name].output(tokens[name], conditionings[name])
            sides = like.shape[1:4] if name == "video" else (like.shape[1], 1, 1)
            output = unpatchify_video(output, self._patch(name), sides)
            outputs[name] = output.reshape(like.shape)
        return outputs

    @staticmethod
    def adopted(params: Params) -> Params:
        """Return the parameters of a `VideoDiT` as the video's stream; other parameters as given.

        Training can start from a network of video alone (`--init_from`).
        """
        if "blocks" not in params or set(params) & {"video", "sound"}:
            return params
        ends = {name: part for name, part in params.items() if name != "blocks"}
        return {"video": ends, "blocks": {"video": params["blocks"]}}

    def _width(self, name: str) -> int:
        return {"video": self.video_width, "sound": self.sound_width}[name]

    def _patch(self, name: str) -> tuple[int, int, int]:
        return {"video": self.video_patch, "sound": (self.sound_patch, 1, 1)}[name]

    def _stream(self, name: str, x: Array, t: Array) -> Stream:
        """Return a modality as tokens; each row of sound is a frame of one place."""
        patch, rate = self._patch(name), dict(video=self.frame_rate, sound=self.sound_rate)[name]
        x = x if name == "video" else x[:, :, None, None]
        counts = [side // size for side, size in zip(x.shape[1:4], patch, strict=True)]
        positions = grid_positions(*counts)
        return Stream(
            tokens=patchify_video(x, patch),
            t=t[:, None] if t.ndim == 1 else t[:, :: patch[0]],
            kinds=self_attentions(self.factorized and name == "video"),
            places=math.prod(counts[1:]),
            positions=positions,
            middles=(positions[:, 0] + 0.5) * patch[0] / rate,
        )

    def _ends(self, name: str, stream: Stream) -> Ends:
        parts, features = 3 * len(stream.kinds) + 3, stream.tokens.shape[-1]
        sizes = self._width(name), parts, features, self.num_classes, self.time_scale
        return Ends(*sizes, self.dtype, self.param_dtype, name=name)

    def _embed_actions(
        self, actions: Int[Array, "batch frames"]
    ) -> Float[Array, "batch times width"]:
        """Return the mean embedding of the actions of each patch's frames."""
        options = dict(embedding_init=small, param_dtype=self.param_dtype)
        table = nn.Embed(self.num_actions + 1, self.video_width, name="action_embedding", **options)
        embedded = rearrange(table(actions), "b (t p) w -> b t p w", p=self.video_patch[0])
        return embedded.mean(2)

    def _blocks(
        self,
        streams: dict[str, Stream],
        ends: dict[str, Ends],
        tokens: Streams,
        conditionings: Streams,
        text_inputs: tuple,
        starts: Streams,
    ) -> Streams:
        """Return the tokens after all blocks."""
        modulations, exchanged, rotations, shared = {}, {}, {}, {}
        for name, stream in streams.items():
            modulations[name] = ends[name].modulate_blocks(conditionings[name])
            features = rotary_features(self._width(name) // self.num_heads)
            rotations[name] = rotations_at(stream.positions, features)
        if len(streams) > 1:
            exchanged = {name: self._exchanged(name, conditionings[name]) for name in streams}
            shared = {name: self._shared_rotations(name, streams, starts) for name in streams}
        sizes = tuple(
            (name, Sizes(stream.kinds, stream.places, int(self.mlp_ratio * self._width(name))))
            for name, stream in streams.items()
        )
        blocks = scanned(JointBlock, self.depth, self.unroll, self.remat_policy)
        blocks = blocks(self.num_heads, sizes, self.dtype, self.param_dtype, name="blocks")
        return blocks(tokens, modulations, exchanged, rotations, shared, *text_inputs)[0]

    def _exchanged(
        self, name: str, conditioning: Float[Array, "batch times width"]
    ) -> Float[Array, "batch times parts width"]:
        """Return the modulation of the attention between streams."""
        options = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        width = self._width(name)
        layer = Dense(EXCHANGED * width, kernel_init=small, name=f"{name}_exchange", **options)
        return rearrange(layer(nn.silu(conditioning)), "b t (p w) -> b t p w", w=width)

    def _shared_rotations(
        self, name: str, streams: dict[str, Stream], starts: Streams
    ) -> dict[str, Float[Array, "length pairs 2"]]:
        """Return the rotations of both streams for the heads of one, by seconds."""
        features = (self._width(name) // self.num_heads,)
        seconds = lambda each: streams[each].middles.astype(np.float32) + starts.get(each, 0.0)
        return {n: rotations_at(self.resolution * seconds(n)[:, None], features) for n in streams}
