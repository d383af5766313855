"""Half-blocks of transformers: attention and the feed-forward layer.

A block is a few half-blocks in a row. Each computes

    x + gate·layer(norm(x)·(1 + scale) + shift)

Shift, scale and gate come from the conditioning (adaLN: Peebles & Xie 2023, "Scalable diffusion
models with transformers"). Without them this is the pre-norm layer of Xiong et al. 2020, "On layer
normalization in the transformer architecture". The block of a language model, with its cache:

    attention = Attention(8, num_kv_heads=2, causal=True, norm=nn.RMSNorm(name="attention_norm"))
    mlp = FeedForward(1024, nn.RMSNorm(name="mlp_norm"), nn.silu, gated=True)
    x, cache = inline(self, attention)(x, rotations=rotations, cache=cache)
    return inline(self, mlp)(x), cache
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from genjax.nn.attention.dispatch import attention, attention_weights, current_platform
from genjax.nn.attention.normed_rotation import normed_rotation, takes_kernel
from genjax.nn.attention.segments import Mask, Segments
from genjax.nn.dense import Dense, QueryKeyValue
from genjax.nn.modulation import per_token, shift_and_scale
from genjax.nn.rotary import rotate
from genjax.nn.sharding import BATCH_AXES, TENSOR, constrain, constrain_tokens

Dtype = Any
Norm = Callable | None
HalfBlock = TypeVar("HalfBlock", bound=nn.Module)
xavier = nn.initializers.xavier_uniform()
exact_gelu = functools.partial(nn.gelu, approximate=False)
FIRST_PART = 128  # places of a cache that a CPU reads at least


def inline(block: nn.Module, half: HalfBlock) -> HalfBlock:
    """Return `half` with its layers among the block's own: `query`, not `attention/query`."""
    nn.share_scope(block, half)
    return half


class Cache(NamedTuple):
    """Keys and values of the tokens that attention has seen, in arrays of fixed size.

    Layers have their caches stacked on a first axis, and the whole cache is carried from layer to
    layer. Each layer writes the new tokens into its own part, so XLA updates the arrays in place.
    As inputs and outputs of a scan they would be copied whole for every token.

    The places of a head lie one after another, as products with a query read them. In the order of
    `attention`'s arguments, XLA's CPU backend would copy what is read for every token.

    Attributes:
        keys, values: the first `length` of `capacity` places are filled.
        length: number of tokens seen.
        layer: the layer whose part is read and written; None if the arrays are of one layer.
    """

    keys: Float[Array, "*layers batch kv_heads capacity head_features"]
    values: Float[Array, "*layers batch kv_heads capacity head_features"]
    length: Int[Array, "*layers"]
    layer: Int[Array, ""] | None = None

    @property
    def capacity(self) -> int:
        return self.keys.shape[-2]

    def append(
        self,
        keys: Float[Array, "batch length kv_heads head_features"],
        values: Float[Array, "batch length kv_heads head_features"],
    ) -> "Cache":
        """Return the cache after these tokens of its layer, which must fit in the empty places."""
        at = () if self.layer is None else (self.layer,)

        def write(old: Array, new: Array) -> Array:
            new = new.astype(old.dtype).swapaxes(1, 2)
            new = new.reshape(*[1 for _ in at], *new.shape)
            return jax.lax.dynamic_update_slice(old, new, (*at, 0, 0, self.length[at], 0))

        length = self.length.at[at].add(keys.shape[1])
        return Cache(write(self.keys, keys), write(self.values, values), length, self.layer)

    def of_layer(
        self, size: int
    ) -> tuple[
        Float[Array, "batch {size} kv_heads head_features"],
        Float[Array, "batch {size} kv_heads head_features"],
        Int[Array, ""],
    ]:
        """Return keys and values of the first `size` places of the layer, and its `length`."""
        at = () if self.layer is None else (self.layer,)

        def part(a: Array) -> Array:
            batch, heads, _, features = a.shape[-4:]
            shape = (*[1 for _ in at], batch, heads, size, features)
            part = jax.lax.dynamic_slice(a, (*at, 0, 0, 0, 0), shape)
            return part.reshape(shape[-4:]).swapaxes(1, 2)

        return part(self.keys), part(self.values), self.length[at]

    def next_layer(self) -> "Cache":
        """Return the cache for the layer above, or from the last layer for the first."""
        if self.layer is None:
            return self
        return self._replace(layer=(self.layer + 1) % len(self.length))


def empty_cache(*shape: int, dtype: Dtype = jnp.float32) -> Cache:
    """Return the `Cache` before the first token, with heads split over the mesh axis `tensor`.

    Args:
        shape: `[*layers batch kv_heads capacity head_features]`, of the keys and of the values.
    """
    layers = shape[:-4]
    axes = (*[None for _ in layers], BATCH_AXES, TENSOR, None, None)
    keys, values = (constrain(jnp.zeros(shape, dtype), *axes) for _ in range(2))
    return Cache(keys, values, jnp.zeros(layers, jnp.int32), jnp.int32(0) if layers else None)


class Heads(nn.Module):
    """Project tokens to the query, key and value of each head.

    Attributes:
        num_heads: heads of the queries; divides the features of a token.
        num_kv_heads: heads of the keys and values, each shared by `num_heads / num_kv_heads`
            successive heads of the queries (Ainslie et al. 2023, "GQA"); `num_heads` if None.
        qk_norm: whether each query and key has an RMS norm. They are then float32.
        width_norm: whether queries and keys have one RMS norm over the features of all heads. They
            are then float32.
        fused: whether one layer, `query_key_value`, makes all three. It knows no context or groups.
        dtype: type of the matrix products.
    """

    num_heads: int
    num_kv_heads: int | None = None
    qk_norm: bool = False
    width_norm: bool = False
    fused: bool = False
    use_bias: bool = True
    kernel_init: Callable = xavier
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys context_features"] | None = None,
        rotations: Float[Array, "*examples queries pairs 2"] | None = None,
    ) -> tuple[
        Float[Array, "batch queries heads head_features"],
        Float[Array, "batch keys kv_heads head_features"],
        Float[Array, "batch keys kv_heads head_features"],
    ]:
        """Return query, key and value, the last two of `context`, or of `x` if that is None.

        Args:
            rotations: `rotary.rotary_positions` by which queries and keys are turned, the same for
                all examples or one for each.
        """
        context = x if context is None else context
        layer = functools.partial(_dense, self, init=self.kernel_init)
        if self.fused:
            options = dict(
                use_bias=self.use_bias, kernel_init=self.kernel_init, name="query_key_value"
            )
            types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            layer = QueryKeyValue(3 * x.shape[-1], num_heads=self.num_heads, **options, **types)
            query, key, value = layer(x)
        else:
            size = x.shape[-1] // self.num_heads
            query = layer(x.shape[-1], name="query")(x)
            key, value = (
                layer((self.num_kv_heads or self.num_heads) * size, name=name)(context)
                for name in ("key", "value")
            )
            if self.width_norm:
                norm = functools.partial(
                    nn.RMSNorm, dtype=jnp.float32, param_dtype=self.param_dtype
                )
                query, key = norm(name="query_norm")(query), norm(name="key_norm")(key)
            query, key, value = (a.reshape(*a.shape[:2], -1, size) for a in (query, key, value))
        if self.qk_norm:
            norm = functools.partial(HeadNorm, dtype=jnp.float32, param_dtype=self.param_dtype)
            query = norm(name="query_norm")(query, rotations)
            key = norm(name="key_norm")(key, rotations)
        elif rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)
        return query, key, value


class HeadNorm(nn.RMSNorm):
    """The RMS norm of each head's queries or keys, turned by their positions if these are given."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length heads features"],
        rotations: Float[Array, "*examples length pairs 2"] | None = None,
    ) -> Float[Array, "batch length heads features"]:
        if rotations is None:
            return super().__call__(x)
        if rotations.ndim > 3 or not takes_kernel(x):
            return rotate(super().__call__(x), rotations)
        scale = self.param("scale", self.scale_init, (x.shape[-1],), self.param_dtype)
        return normed_rotation(x, scale, rotations, self.epsilon)


class Attention(Heads):
    """Let tokens attend to themselves or to a context (Vaswani et al. 2017, section 3.2.2).

    The collection "intermediates" receives `weights` `[batch heads queries keys]` if it is mutable.

    Attributes (besides those of `Heads`):
        norm: applied to `x` first; nothing if None.
        causal: whether a token attends to no later one.
        out_init: initializer of the layer `projection`.
    """

    norm: Norm = None
    causal: bool = False
    out_init: Callable = xavier

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        shift: Float[Array, "*vectors features"] | None = None,
        scale: Float[Array, "*vectors features"] | None = None,
        gate: Float[Array, "*gates features"] | None = None,
        *,
        context: Float[Array, "batch context_length context_features"] | None = None,
        rotations: Float[Array, "queries pairs 2"] | None = None,
        mask: Bool[Array, "#batch 1 #queries keys"] | Segments | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "batch queries features"], Cache | None]:
        """Return the tokens after this half-block, and the cache with their keys and values.

        Args:
            shift, scale, gate: of the modulation; for their shapes see `modulation.per_token`.
            context: the tokens to attend to, for cross-attention.
            rotations: `rotary.rotary_positions` of the tokens, for self-attention.
            mask: True where a query may attend. With a cache there are `capacity` keys. `Segments`
                only where there is neither a cache nor `causal`.
            cache: of earlier tokens, for self-attention.
        """
        h = _modulated(x, self.norm, shift, scale)
        query, key, value = super().__call__(h, context, rotations)
        query, key = query.astype(value.dtype), key.astype(value.dtype)
        if cache is None:
            out = self._attend(query, key, value, self._visible(mask, x.shape[1], key.shape[1]))
        else:
            cache = cache.append(key, value)
            out = self._attend_filled(query, cache, mask)
            cache = cache.next_layer()
        out = out.reshape(x.shape)
        out = _dense(self, x.shape[-1], name="projection", init=self.out_init)(out)
        return _residual(x, out, gate), cache

    def _attend(self, query: Array, key: Array, value: Array, mask: Mask) -> Array:
        if self.is_mutable_collection("intermediates"):
            keys_of_heads = jnp.repeat(key, self.num_heads // key.shape[2], axis=2)
            self.sow("intermediates", "weights", attention_weights(query, keys_of_heads, mask))
        return _grouped_attention(query, key, value, mask)

    def _attend_filled(self, query: Array, cache: Cache, mask: Array | None) -> Array:
        """Attend to the filled places of a cache.

        A CPU reads a first part of the cache that holds them, so a token's cost does not grow with
        the capacity. Accelerators read all of it: for them a choice at run time costs more.
        """

        def over(size: int) -> Array:
            key, value, length = cache.of_layer(size)
            first = None if mask is None else mask[..., :size]
            return self._attend(
                query, key, value, self._visible(first, query.shape[1], size, length)
            )

        if current_platform() != "cpu" or self.is_mutable_collection("intermediates"):
            return over(cache.capacity)
        sizes = [FIRST_PART << i for i in range(32) if FIRST_PART << i < cache.capacity]
        sizes.append(cache.capacity)
        part = jnp.searchsorted(jnp.asarray(sizes), cache.of_layer(1)[2], method="compare_all")
        return jax.lax.switch(part, [functools.partial(over, size) for size in sizes])

    def _visible(
        self,
        mask: Mask,
        queries: int,
        keys: int,
        length: Int[Array, ""] | None = None,
    ) -> Mask:
        """Return `mask` without later keys and without the empty places of a cache.

        The queries are of the last of the `length` tokens that the cache has seen.
        """
        end = keys if length is None else length
        if self.causal:
            visible = jnp.arange(keys) <= end - queries + jnp.arange(queries)[:, None]
        elif length is not None:
            visible = (jnp.arange(keys) < end)[None]
        else:
            return mask
        return visible[None, None] if mask is None else mask & visible


class FeedForward(nn.Module):
    """Apply two linear layers with an activation between, or three with a gate.

    Attributes:
        mlp_features: features between the layers.
        norm: applied to `x` first; nothing if None.
        gated: whether activation(`mlp_gate`)·`mlp_in` replaces activation(`mlp_in`): SwiGLU with
            `nn.silu`, GEGLU with `nn.gelu` (Shazeer 2020, "GLU variants improve transformer").
        out_init: initializer of the last layer, `mlp_out`.
        dtype: type of the matrix products.
    """

    mlp_features: int
    norm: Norm = None
    activation: Callable = nn.gelu
    gated: bool = False
    use_bias: bool = True
    kernel_init: Callable = xavier
    out_init: Callable = xavier
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        shift: Float[Array, "*vectors features"] | None = None,
        scale: Float[Array, "*vectors features"] | None = None,
        gate: Float[Array, "*gates features"] | None = None,
    ) -> Float[Array, "batch length features"]:
        """Return the tokens after this half-block.

        Args:
            shift, scale, gate: of the modulation; for their shapes see `modulation.per_token`.
        """
        layer = functools.partial(_dense, self, self.mlp_features, init=self.kernel_init)
        h = _modulated(x, self.norm, shift, scale)
        if self.gated:
            inner = self.activation(layer(name="mlp_gate")(h)) * layer(name="mlp_in")(h)
        else:
            inner = self.activation(layer(name="mlp_in")(h))
        out = _dense(self, x.shape[-1], name="mlp_out", init=self.out_init)(inner)
        return _residual(x, out, gate)


def _dense(half: nn.Module, features: int, *, name: str, init: Callable) -> Dense:
    types = dict(dtype=half.dtype, param_dtype=half.param_dtype)
    return Dense(features, half.use_bias, kernel_init=init, name=name, **types)


def _modulated(x: Array, norm: Norm, shift: Array | None, scale: Array | None) -> Array:
    h = x if norm is None else norm(x)
    return h if scale is None else shift_and_scale(h, shift, scale)


def _residual(x: Array, out: Array, gate: Array | None) -> Array:
    return constrain_tokens(x + (out if gate is None else per_token(gate) * out))


def _grouped_attention(query: Array, key: Array, value: Array, mask: Mask) -> Array:
    """Compute `attention` where successive heads of the queries share a head of the keys.

    The queries of a group become queries of the one head that they share, so no key is copied.
    """
    groups = query.shape[2] // key.shape[2]
    if groups == 1:
        return attention(query, key, value, mask)
    query = rearrange(query, "b q (k g) f -> b (q g) k f", g=groups)
    of_queries = lambda a: a if a.shape[2] == 1 else jnp.repeat(a, groups, axis=2)
    mask = jax.tree.map(of_queries, mask)
    out = attention(query, key, value, mask)
    return rearrange(out, "b (q g) k f -> b q (k g) f", g=groups)
