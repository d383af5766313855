"""LTX-2 (HaCohen et al. 2026, "LTX-2: efficient joint audio-visual foundation model").

Two streams of tokens, video and audio, side by side in every block. Each attends to itself and to
its text, then to the other stream, and ends with a feed-forward layer. Data, times and texts are
dictionaries of the two streams, as `genjax.diffusion` takes trees:

    velocity = network.apply(variables, {"video": …, "audio": …}, {"video": t, "audio": t}, text)
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.models.transformers.ltx_video import (
    LATENT_FRAMES,
    LATENT_PIXELS,
    PIXELS,
    SECONDS,
    Coordinates,
    fraction_rotations,
    rms_norm,
)
from genjax.nn import (
    BATCH_AXES,
    Dense,
    Text,
    VectorEmbedding,
    attention,
    constrain,
    constrain_tokens,
    modulate,
    scanned,
    sinusoidal_embedding,
)
from genjax.nn.adaln_single import ModulationTable
from genjax.nn.modulation import per_frame, shift_and_scale
from genjax.nn.transformer import FeedForward

Dtype = Any
STREAMS = "video", "audio"
FRAMES_PER_SECOND = 24.0
# A latent of audio stands for four spectra, which are `HOP_LENGTH` samples apart.
LATENT_SPECTRA, HOP_LENGTH, SAMPLE_RATE = 4, 160, 16_000
LATENTS_PER_SECOND = SAMPLE_RATE / HOP_LENGTH / LATENT_SPECTRA
TIME_SCALE = 1000.0
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
small = nn.initializers.normal(0.02)


def video_coordinates(
    time: int, height: int, width: int, frame_rate: float | Float[Array, ""] = FRAMES_PER_SECOND
) -> Coordinates:
    """Return the middles of `time`×`height`×`width` latents, in seconds and pixels.

    The first latents stand for one frame, all others for `LATENT_FRAMES`.
    """
    edges = LATENT_FRAMES * jnp.arange(time + 1, dtype=jnp.float32)
    edges = jnp.maximum(edges + 1 - LATENT_FRAMES, 0) / frame_rate
    rows, columns = (
        _middles(LATENT_PIXELS * jnp.arange(n + 1, dtype=jnp.float32)) for n in (height, width)
    )
    return Coordinates(_middles(edges), rows, columns)


def audio_seconds(length: int) -> Float[Array, " length"]:
    """Return the middles of `length` latents of audio, in seconds.

    The first latent stands for one spectrum, all others for `LATENT_SPECTRA`.
    """
    edges = LATENT_SPECTRA * jnp.arange(length + 1, dtype=jnp.float32)
    edges = jnp.maximum(edges + 1 - LATENT_SPECTRA, 0)
    return _middles(edges * HOP_LENGTH / SAMPLE_RATE)


def _middles(edges: Float[Array, " one_more"]) -> Float[Array, " length"]:
    return (edges[:-1] + edges[1:]) / 2


def head_rotations(
    fractions: list[Float[Array, " _"]], features: int, num_heads: int
) -> Float[Array, "length heads pairs 2"]:
    """Return (cos, sin) for each pair of features of each head, as `rotate_halves` takes them.

    The frequencies go from π/2 to 10,000·π/2 over the features of all heads, so heads differ. They
    are made in float64 and rounded to float32, and angles are float32, as in the published
    networks.

    Args:
        fractions: the coordinates along each axis of a grid, in [0, 1].
        features: of all heads together.
    """
    count = features // (2 * len(fractions))
    frequencies = (10_000.0 ** np.linspace(0, 1, count) * np.pi / 2).astype(np.float32)
    rotations = fraction_rotations(fractions, frequencies, features)
    return rotations.reshape(len(rotations), num_heads, -1, 2)


def rotate_halves(
    x: Float[Array, "batch length heads features"],
    rotations: Float[Array, "length heads pairs 2"],
) -> Float[Array, "batch length heads features"]:
    """Turn each pair of features (i, i + features/2) of a head by its angle."""
    cos, sin = jnp.moveaxis(rotations, -1, 0)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class GatedAttention(nn.Module):
    """Attention with norms of queries and keys over all heads, and a gate for each head.

    Attributes:
        width: features of all heads together, divisible by 2·`num_heads`.
        gated: whether a head's output is multiplied by 2·sigmoid(w·x + b).
        dtype: type of the matrix products.
    """

    width: int
    num_heads: int
    gated: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys context_features"],
        rotations: Float[Array, "queries heads pairs 2"] | None = None,
        context_rotations: Float[Array, "keys heads pairs 2"] | None = None,
        mask: Bool[Array, "batch 1 1 keys"] | None = None,
        perturbed: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """
        Args:
            perturbed: the examples in which each token attends to itself alone, for self-attention.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda features, name: Dense(features, kernel_init=xavier, name=name, **types)
        norm = lambda name: nn.RMSNorm(
            epsilon=1e-6, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )
        query = norm("query_norm")(dense(self.width, "query")(x))
        key = norm("key_norm")(dense(self.width, "key")(context))
        split = lambda a: a.reshape(*a.shape[:2], self.num_heads, -1)
        query, key, value = map(split, (query, key, dense(self.width, "value")(context)))
        if rotations is not None:
            query = rotate_halves(query, rotations)
            key = rotate_halves(key, context_rotations)
        out = attention(query.astype(self.dtype), key.astype(self.dtype), value, mask)
        if perturbed is not None:
            out = jnp.where(perturbed[:, None, None, None], value, out)
        if self.gated:
            out = out * 2 * nn.sigmoid(dense(self.num_heads, "gate")(x))[..., None]
        return dense(x.shape[-1], "projection")(out.reshape(*x.shape[:2], -1))


class Given(NamedTuple):
    """The inputs of a block that belong to one stream.

    Attributes:
        modulation: shift, scale and gate of self-attention and of the feed-forward layer; from 2.3
            on also of the attention to text. `groups` are all tokens, frames or single tokens.
        exchange: scale and shift where video attends to audio, scale and shift where audio attends
            to video, and the gate of this stream.
        text: what the stream attends to.
        text_modulation: shift and scale of the text, from 2.3 on.
        mask: True at tokens of the text to attend to.
        rotations: by the stream's own positions.
        shared_rotations: by seconds alone, where the streams attend to each other.
    """

    modulation: Float[Array, "batch groups parts features"]
    exchange: Float[Array, "batch 1 5 features"]
    text: Float[Array, "batch text_length features"]
    text_modulation: Float[Array, "batch 1 2 features"] | None
    mask: Bool[Array, "batch 1 1 text_length"] | None
    rotations: Float[Array, "length heads pairs 2"]
    shared_rotations: Float[Array, "length heads pairs 2"]


class Stream(nn.Module):
    """Self-attention and attention to text of one stream.

    Attributes:
        num_heads: heads of both.
        gated: whether heads are gated and the attention to text is modulated, as from 2.3 on.
    """

    num_heads: int
    gated: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        given: Given,
        perturbed: Bool[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch length features"], list[Float[Array, "batch _ features"]]]:
        """Return the tokens, and shift, scale and gate of the feed-forward layer that follows."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attend = lambda name: GatedAttention(
            x.shape[-1], self.num_heads, self.gated, name=name, **types
        )
        table = ModulationTable(given.modulation.shape[2], self.param_dtype, name="modulation")
        parts = [per_frame(part, x.shape[1]) for part in table(given.modulation)]

        h = shift_and_scale(rms_norm(x), *parts[:2])
        turned = given.rotations, given.rotations
        h = attend("self_attention")(h, h, *turned, perturbed=perturbed)
        x = x + parts[2] * h

        h, text, gate = rms_norm(x), given.text, 1.0
        if self.gated:
            h, gate = shift_and_scale(h, *parts[6:8]), parts[8]
            table = ModulationTable(2, self.param_dtype, name="text_modulation")
            text = shift_and_scale(text, *table(given.text_modulation))
        h = attend("text_attention")(h, text, mask=given.mask)
        return constrain_tokens(x + gate * h), parts[3:6]


class Exchange(nn.Module):
    """The streams attend to each other, both to what the other was before.

    Attributes:
        num_heads: heads over the features of the audio stream, for both directions.
    """

    num_heads: int
    gated: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Mapping[str, Float[Array, "batch _ _"]],
        given: Mapping[str, Given],
        kept: Float[Array, "batch 1 1"] | None,
    ) -> dict[str, Float[Array, "batch _ _"]]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = x["audio"].shape[-1]
        parts = {
            name: ModulationTable(5, self.param_dtype, name=f"{name}_modulation")(
                given[name].exchange
            )
            for name in STREAMS
        }
        normed = {name: rms_norm(x[name]) for name in STREAMS}

        def attend(name: str, other: str, first: int) -> Array:
            """Return what stream `name` adds; its scale and shift begin at part `first`."""
            h, context = (
                shift_and_scale(normed[each], parts[each][first + 1], parts[each][first])
                for each in (name, other)
            )
            layer = GatedAttention(
                width, self.num_heads, self.gated, name=f"{other}_to_{name}", **types
            )
            turned = (given[each].shared_rotations for each in (name, other))
            gate = parts[name][4] if kept is None else parts[name][4] * kept
            return gate * layer(h, context, *turned)

        added = dict(video=attend("video", "audio", 0), audio=attend("audio", "video", 2))
        return {name: constrain_tokens(x[name] + added[name]) for name in STREAMS}


class Block(nn.Module):
    """Attention within each stream and to its text, between the streams, and feed-forward layers.

    Attributes:
        video_bias: whether the video's feed-forward layer has biases.
    """

    num_heads: int
    gated: bool
    video_bias: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Mapping[str, Float[Array, "batch _ _"]],
        given: Mapping[str, Given],
        kept: Float[Array, "batch 1 1"] | None,
        perturbed: Bool[Array, " batch"] | None,
    ) -> tuple[dict[str, Float[Array, "batch _ _"]], None]:
        """
        Args:
            kept: 0 for examples whose streams do not attend to each other, else 1.
            perturbed: examples in whose self-attention each token attends to itself alone.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        attended, parts, out = {}, {}, {}
        for name in STREAMS:
            stream = Stream(self.num_heads, self.gated, name=name, **types)
            attended[name], parts[name] = stream(x[name], given[name], perturbed)
        exchange = Exchange(self.num_heads, self.gated, name="exchange", **types)
        for name, h in exchange(attended, given, kept).items():
            bias = name != "video" or self.video_bias
            mlp = FeedForward(4 * h.shape[-1], rms_norm, use_bias=bias, name=f"{name}_mlp", **types)
            out[name] = mlp(h, *parts[name])
        return out, None


class TimeModulation(nn.Module):
    """`parts` vectors for each time (adaLN-single), and the embedding that they come from."""

    parts: int
    width: int
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, t: Float[Array, "batch groups"]
    ) -> tuple[
        Float[Array, "batch groups {self.parts} features"], Float[Array, "batch groups features"]
    ]:
        sinusoids = sinusoidal_embedding(t.reshape(-1) * TIME_SCALE, 256)
        embedding = VectorEmbedding(self.width, self.param_dtype, name="embedding")(sinusoids)
        types = dict(dtype=jnp.float32, param_dtype=self.param_dtype)
        dense = Dense(self.parts * self.width, kernel_init=small, name="dense", **types)
        parts = dense(nn.silu(embedding)).reshape(*t.shape, self.parts, self.width)
        return constrain(parts, BATCH_AXES), embedding.reshape(*t.shape, self.width)


class LTX2(nn.Module):
    """The network of LTX-2.0, 2.3 and 2.5: velocities of the latents of video and of audio.

    Any length, height and width will do. The streams may have different times. The other stream's
    time modulates the exchange between them. Where a stream has several times, this is the largest:
    tokens with smaller times are given.

    Attributes:
        width, audio_width: features of a token; divisible by 2·`num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        num_heads: heads of every attention. Where the streams attend to each other, they share
            `audio_width` features.
        out_channels, audio_out_channels: as many as the input's if None.
        gated: whether heads are gated and the attention to text is modulated, as from 2.3 on. Texts
            then have the widths of the streams. In 2.0 two layers bring them there.
        video_bias: whether the video's feed-forward layers have biases; in 2.5 they have none.
        keyframe_embedding: whether a vector is added to the latents of `keyframes`, as in 2.5.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; modulation, norms, rotations and softmax are always float32.
    """

    width: int
    audio_width: int
    depth: int
    num_heads: int
    out_channels: int | None = None
    audio_out_channels: int | None = None
    gated: bool = False
    video_bias: bool = True
    keyframe_embedding: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    patch_size: ClassVar[int] = 1  # side of a token, in latents
    divisor: ClassVar[int] = 1  # number that the video's height and width are multiples of

    @nn.compact
    def __call__(
        self,
        x: Mapping[str, Float[Array, "batch ..."]],
        t: Mapping[str, Float[Array, " batch ..."]],
        text: Mapping[str, Text],
        frame_rate: float | Float[Array, ""] = FRAMES_PER_SECOND,
        perturbed: Bool[Array, "batch {self.depth}"] | None = None,
        isolated: Bool[Array, " batch"] | None = None,
        keyframes: Bool[Array, "batch time"] | None = None,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Return the velocities, with the shapes of `x` but for the channels.

        Args:
            x: video `[batch time height width channels]` and audio `[batch length channels]`.
            t: for each stream one time `[batch]`, or one for each frame `[batch time]` or
                `[batch length]`. Frames that are given have time 0.
            text: the text for each stream.
            frame_rate: frames per second of the video.
            perturbed: the blocks in which each token attends to itself alone instead of to its
                stream, for spatio-temporal guidance (Hyung et al. 2025).
            isolated: the examples whose streams do not attend to each other.
            keyframes: latents that stand for one frame, for networks with `keyframe_embedding`.
        """
        batch = len(x["video"])
        t = {name: t[name].reshape(batch, -1) for name in STREAMS}
        given, embeddings = self._given(t, text, self._rotations(x, frame_rate))

        axes = nn.broadcast, nn.broadcast, 0
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy, in_axes=axes)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        blocks = blocks(self.num_heads, self.gated, self.video_bias, name="blocks", **types)
        kept = None if isolated is None else 1 - isolated[:, None, None].astype(jnp.float32)
        tokens = self._tokens(x, keyframes)
        tokens, _ = blocks(tokens, given, kept, None if perturbed is None else perturbed.T)

        channels = dict(video=self.out_channels, audio=self.audio_out_channels)
        return {
            name: self._head(name, tokens[name], embeddings[name], x[name].shape, channels[name])
            for name in STREAMS
        }

    @property
    def _widths(self) -> dict[str, int]:
        return dict(video=self.width, audio=self.audio_width)

    def _tokens(
        self,
        x: Mapping[str, Float[Array, "batch ..."]],
        keyframes: Bool[Array, "batch time"] | None,
    ) -> dict[str, Float[Array, "batch _ _"]]:
        """Return the latents of each stream as tokens."""
        tokens = {
            name: self._dense(width, xavier, f"{name}_in", self.dtype)(
                x[name].reshape(len(x[name]), -1, x[name].shape[-1])
            ).astype(jnp.float32)
            for name, width in self._widths.items()
        }
        if self.keyframe_embedding:
            mark = self.param("keyframe_embedding", zeros, (1, self.width), self.param_dtype)
            if keyframes is not None:
                places = tokens["video"].shape[1] // keyframes.shape[1]
                marked = jnp.repeat(keyframes, places, axis=1)[..., None]
                tokens["video"] = tokens["video"] + marked * mark
        return {name: constrain_tokens(tokens[name]) for name in STREAMS}

    def _rotations(
        self, x: Mapping[str, Float[Array, "batch ..."]], frame_rate: float | Float[Array, ""]
    ) -> dict[str, tuple[Float[Array, "_ heads _ 2"], Float[Array, "_ heads _ 2"]]]:
        """Return the rotations of each stream by its own positions, and those by seconds alone."""
        seconds, rows, columns = video_coordinates(*x["video"].shape[1:4], frame_rate)
        fractions = [seconds / SECONDS, rows / PIXELS, columns / PIXELS]
        turn = lambda fractions, width: head_rotations(fractions, width, self.num_heads)
        shared = turn([seconds / SECONDS], self.audio_width)
        shared = jnp.repeat(shared, len(rows) * len(columns), axis=0)
        audio = turn([audio_seconds(x["audio"].shape[1]) / SECONDS], self.audio_width)
        return dict(video=(turn(fractions, self.width), shared), audio=(audio, audio))

    def _given(
        self,
        t: Mapping[str, Float[Array, "batch _"]],
        text: Mapping[str, Text],
        rotations: Mapping[str, tuple[Array, Array]],
    ) -> tuple[dict[str, Given], dict[str, Float[Array, "batch _ _"]]]:
        """Return what blocks are given of each stream, and the embeddings of its times."""
        given, embeddings, widths = {}, {}, self._widths
        level = {name: t[name].max(axis=1, keepdims=True) for name in STREAMS}
        for name, other in zip(STREAMS, STREAMS[::-1], strict=True):
            embed = lambda parts, part, name=name: TimeModulation(
                parts, widths[name], self.param_dtype, name=f"{name}_{part}"
            )
            parts, embeddings[name] = embed(9 if self.gated else 6, "time")(t[name])
            exchange, _ = embed(4, "exchange")(level[other])
            gate, _ = embed(1, "exchange_gate")(level[other])
            states, of_text = text[name].tokens, None
            if self.gated:
                of_text, _ = embed(2, "text_time")(level[name])
            else:
                dense = lambda part, name=name: self._dense(
                    widths[name], small, f"{name}_text_{part}", self.dtype
                )
                states = dense("out")(nn.gelu(dense("in")(states)))
            exchange = jnp.concatenate([exchange, gate], axis=2)
            mask = None if text[name].mask is None else text[name].mask[:, None, None]
            given[name] = Given(parts, exchange, states, of_text, mask, *rotations[name])
        return given, embeddings

    def _head(
        self,
        name: str,
        tokens: Float[Array, "batch length features"],
        embedding: Float[Array, "batch groups features"],
        shape: tuple[int, ...],
        channels: int | None,
    ) -> Float[Array, "batch ..."]:
        """Return the output of a stream, with the shape of its input but for the channels."""
        table = ModulationTable(2, self.param_dtype, name=f"{name}_head_modulation")
        shift, scale = (per_frame(part, tokens.shape[1]) for part in table(embedding[:, :, None]))
        head = self._dense(channels or shape[-1], zeros, f"{name}_head", jnp.float32)
        out = head(modulate(tokens, shift, scale))
        return constrain(out.reshape(*shape[:-1], -1), BATCH_AXES)

    def _dense(self, features: int, init: Any, name: str, dtype: Dtype) -> Dense:
        types = dict(dtype=dtype, param_dtype=self.param_dtype)
        return Dense(features, kernel_init=init, name=name, **types)


def ltx_2_0(**options) -> LTX2:
    """Return the network of LTX-2.0: 18.9 billion parameters, latents of 128 channels."""
    return LTX2(width=4096, audio_width=2048, depth=48, num_heads=32, **options)


def ltx_2_3(**options) -> LTX2:
    """Return the network of LTX-2.3, with gated attention and modulated attention to text."""
    return ltx_2_0(gated=True, **options)


def ltx_2_5(**options) -> LTX2:
    """Return the network of LTX-2.5, whose first latents of video have a learned vector."""
    return ltx_2_3(video_bias=False, keyframe_embedding=True, **options)
