"""VAR: a transformer that predicts maps of codes from coarse to fine, one map at once.

Tian et al. 2024, "Visual autoregressive modeling: Scalable image generation via next-scale
prediction". The maps are those of `genjax.nn.multiscale`. All tokens of a map attend to each other
and to the maps before it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import Dense, Modulation, Text, attention, constrain_tokens, scanned
from genjax.nn.modulation import layer_norm, modulate, shift_and_scale
from genjax.nn.transformer import Cache, FeedForward, empty_cache, inline

Dtype = Any
small = nn.initializers.normal(0.02)
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
LARGEST_SCALE = 100.0


class CosineAttention(nn.Module):
    """Self-attention between queries and keys of unit length, with a learned scale for each head.

    The half-block is x + gate·attention(norm(x)·(1 + scale) + shift). Keys have no bias. The scale
    starts at 4 and is at most 100.
    """

    num_heads: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        shift: Float[Array, "batch features"],
        scale: Float[Array, "batch features"],
        gate: Float[Array, "batch features"],
        mask: Bool[Array, "1 1 length keys"] | None,
        cache: Cache | None,
        filled: int | None,
    ) -> tuple[Float[Array, "batch length features"], Cache | None]:
        """Return the tokens after this half-block, and the cache with their keys and values.

        Args:
            filled: how many places of the cache are filled after those of `x`.
        """
        h = shift_and_scale(layer_norm()(x), shift, scale)
        layer = lambda name, use_bias=True: Dense(
            x.shape[-1],
            use_bias,
            kernel_init=small,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
        of_heads = lambda a: a.reshape(*a.shape[:2], self.num_heads, -1)
        query, value = of_heads(layer("query")(h)), of_heads(layer("value")(h))
        key = unit(of_heads(layer("key", use_bias=False)(h))).astype(value.dtype)
        init = nn.initializers.constant(math.log(4))
        log_scale = self.param("log_scale", init, (self.num_heads,), self.param_dtype)
        query = unit(query) * jnp.exp(jnp.minimum(log_scale, math.log(LARGEST_SCALE)))[:, None]
        if cache is not None:
            cache = cache.append(key, value)
            key, value, _ = cache.of_layer(filled)
            cache = cache.next_layer()
        out = attention(query.astype(value.dtype), key, value, mask, scale=1.0).reshape(x.shape)
        return constrain_tokens(x + gate[:, None] * layer("projection")(out)), cache


def unit(x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """Return x over its length, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, modulated by the class (adaLN).

    With `shared_modulation` the network makes six vectors for all blocks, and each block adds its
    own.
    """

    num_heads: int
    mlp_ratio: float
    shared_modulation: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "batch length features"], Cache | None],
        conditioning: Float[Array, "batch conditioning_features"],
        mask: Bool[Array, "1 1 length length"] | None,
        filled: int | None,
    ) -> tuple[tuple[Float[Array, "batch length features"], Cache | None], None]:
        x, cache = carry
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.shared_modulation:
            init = nn.initializers.normal(x.shape[-1] ** -0.5)
            own = self.param("own_modulation", init, (6 * x.shape[-1],), self.param_dtype)
            parts = jnp.split(conditioning + own, 6, axis=-1)
        else:
            parts = Modulation(6, self.param_dtype, name="modulation")(conditioning)
        gate, mlp_gate, scale, mlp_scale, shift, mlp_shift = parts
        half = CosineAttention(self.num_heads, **types)
        x, cache = inline(self, half)(x, shift, scale, gate, mask, cache, filled)
        features = round(self.mlp_ratio * x.shape[-1])
        mlp = FeedForward(features, layer_norm(), kernel_init=small, out_init=small, **types)
        return (inline(self, mlp)(x, mlp_shift, mlp_scale, mlp_gate), cache), None


class State(NamedTuple):
    """The state of decoding: the caches of all blocks, and the state of the class or text."""

    layers: Cache
    label: Float[Array, "batch features"]


class VAR(nn.Module):
    """A transformer over the maps of codes of a `MultiScaleQuantizer`.

    `start` and `step` are what `genjax.autoregression.decode_scales` calls. Label `num_classes` is
    the null class of classifier-free guidance. There is no dropout or stochastic depth; the authors
    train with the latter.

    Attributes:
        vocabulary: number of codes.
        sides: of the maps, from the first to the last.
        of_text: whether the condition is a text, whose `pooled` is projected to the state of the
            class (Zhang et al. 2024, "VAR-CLIP").
        width: features of a token.
        depth: number of blocks, scanned with stacked parameters.
        shared_modulation: whether one layer modulates all blocks, which saves parameters.
        unroll: blocks per iteration of the scan; `depth` compiles slowest and runs fastest.
        remat_policy: name of a policy (`rematerialized`), or None to keep every activation.
        dtype: type of the matrix products, and of the cache. Norms, modulation, softmax and logits
            are float32 always.
    """

    vocabulary: int
    sides: tuple[int, ...]
    width: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    of_text: bool = False
    mlp_ratio: float = 4.0
    shared_modulation: bool = False
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def length(self) -> int:
        """The number of tokens of all maps."""
        return sum(side**2 for side in self.sides)

    @property
    def scales(self) -> Int[np.ndarray, " length"]:
        """The number of the map of each token."""
        return np.repeat(np.arange(len(self.sides)), [side**2 for side in self.sides])

    def setup(self):
        init = nn.initializers.truncated_normal((1 / self.width / 3) ** 0.5)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        vectors = lambda name, count: self.param(name, init, (count, self.width), self.param_dtype)
        if self.of_text:
            self.text_embedding = Dense(self.width, **types)
        else:
            self.labels = nn.Embed(
                self.num_classes + 1, self.width, embedding_init=init, param_dtype=self.param_dtype
            )
        self.start_positions = vectors("start_positions", self.sides[0] ** 2)
        self.positions = vectors("positions", self.length)
        self.levels = vectors("levels", len(self.sides))
        self.input_embedding = Dense(self.width, kernel_init=init, **types)
        if self.shared_modulation:
            self.modulation = SharedModulation(6, self.param_dtype)
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        options = self.num_heads, self.mlp_ratio, self.shared_modulation
        self.blocks = blocks(*options, *types.values())
        self.head_modulation = Modulation(2, self.param_dtype)
        self.head = Dense(
            self.vocabulary,
            kernel_init=nn.initializers.zeros,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
        )

    def __call__(
        self, inputs: Float[Array, "batch _ features"], condition: Int[Array, " batch"] | Text
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of the tokens of all maps, each map given those before it.

        Args:
            inputs: `MultiScaleQuantizer.inputs` of the tokens.

        Raises:
            ValueError: there is another number of inputs than tokens after the first map.
        """
        count = self.length - self.sides[0] ** 2
        if inputs.shape[1] != count:
            raise ValueError(
                f"maps of sides {self.sides} need {count} inputs; got {inputs.shape[1]}: the "
                "tokenizer and the network must have one list of sides"
            )
        label = self._label(condition)
        x = jnp.concatenate([self._first(label), self.input_embedding(inputs)], axis=1)
        x = constrain_tokens((x + self._places()).astype(jnp.float32))
        mask = jnp.asarray(self.scales[:, None] >= self.scales)[None, None]
        (x, _), _ = self.blocks((x, None), self._conditioning(label), mask, None)
        return self._logits(x, label)

    def start(self, condition: Int[Array, " batch"] | Text) -> State:
        """Return the state of decoding before the first map."""
        label = self._label(condition)
        head = self.num_heads, self.length, self.width // self.num_heads
        return State(empty_cache(self.depth, len(label), *head, dtype=self.dtype), label)

    def step(
        self, state: State, inputs: Float[Array, "batch tokens features"] | None, scale: int
    ) -> tuple[Float[Array, "batch _ vocabulary"], State]:
        """Return the logits of a map, and the next state. Read no later places of the cache.

        Args:
            inputs: of this map, from `MultiScaleQuantizer.extend`; None for the first map.
        """
        embedded = self._first(state.label) if inputs is None else self.input_embedding(inputs)
        x = (embedded + self._places()[self.scales == scale]).astype(jnp.float32)
        conditioning = self._conditioning(state.label)
        carry = constrain_tokens(x), state.layers
        filled = int(np.sum(self.scales <= scale))
        (x, layers), _ = self.blocks(carry, conditioning, None, filled)
        return self._logits(x, state.label), state._replace(layers=layers)

    def _label(self, condition: Int[Array, " batch"] | Text) -> Float[Array, "batch width"]:
        """Return the state of a class or of a text."""
        label = self.text_embedding(condition.pooled) if self.of_text else self.labels(condition)
        return label.astype(jnp.float32)

    def _first(self, label: Float[Array, "batch width"]) -> Float[Array, "batch _ width"]:
        return label[:, None] + self.start_positions

    def _places(self) -> Float[Array, "length width"]:
        return jnp.asarray(self.positions) + jnp.asarray(self.levels)[self.scales]

    def _conditioning(self, label: Float[Array, "batch width"]) -> Float[Array, "batch _"]:
        return self.modulation(label) if self.shared_modulation else label

    def _logits(
        self, x: Float[Array, "batch length width"], label: Float[Array, "batch width"]
    ) -> Float[Array, "batch length vocabulary"]:
        scale, shift = self.head_modulation(label)
        return self.head(modulate(x, shift, scale))


class SharedModulation(Modulation):
    """The vectors of `Modulation` as one."""

    @nn.compact
    def __call__(self, conditioning: Float[Array, "batch features"]) -> Float[Array, "batch _"]:
        return jnp.concatenate(super().__call__(conditioning), axis=-1)


def _size(depth: int, **fixed: Any) -> Callable[..., VAR]:
    """Return the builder of a depth, from which width and number of heads follow."""

    def build(vocabulary: int = 4096, sides: tuple[int, ...] = SIDES_256, **options: Any) -> VAR:
        return VAR(vocabulary, sides, 64 * depth, depth, depth, **fixed, **options)

    return build


VAR_d12 = _size(12)
VAR_d16 = _size(16)
VAR_d20 = _size(20)
VAR_d24 = _size(24)
VAR_d30 = _size(30)
VAR_d36s = _size(36, shared_modulation=True)
