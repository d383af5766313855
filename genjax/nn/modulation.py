"""Conditioning by vectors: embedded to one, and turned into scale, shift and gate (adaLN)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from genjax.nn.dense import Dense
from genjax.nn.sharding import constrain

Dtype = Any
zeros = nn.initializers.zeros


def per_token(vectors: Float[Array, "*batch features"]) -> Float[Array, "*tokens features"]:
    """Return vectors that broadcast against tokens `[batch length features]`.

    Args:
        vectors: one for all tokens `[features]`, one per example `[batch features]` or one per
            token `[batch length features]`.
    """
    return vectors[:, None] if vectors.ndim == 2 else vectors


def per_frame(
    vectors: Float[Array, "batch frames features"], length: int
) -> Float[Array, "batch one_or_length features"]:
    """Return each frame's vector for each of its tokens, or the one vector of all tokens.

    Args:
        vectors: one for each frame, or one for all.
        length: number of tokens, frame by frame.
    """
    frames = vectors.shape[1]
    return vectors if frames == 1 else jnp.repeat(vectors, length // frames, axis=1)


def shift_and_scale(
    x: Float[Array, "batch length features"],
    shift: Float[Array, "*batch features"],
    scale: Float[Array, "*batch features"],
) -> Float[Array, "batch length features"]:
    """Return x·(1 + scale) + shift; for the shapes of shift and scale see `per_token`."""
    return x * (1 + per_token(scale)) + per_token(shift)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def standardize(
    epsilon: float, x: Float[Array, "*batch features"]
) -> Float[Array, "*batch features"]:
    """Return (x − mean)/√(variance + ε) over the features, in float32.

    Its derivative is that of Ba et al. 2016 ("Layer normalization") in as few sums as there can be,
    two for each token. Rematerialisation may keep mean and deviation as "statistics".
    """
    return _standardize(epsilon, x)[0]


def _standardize(epsilon, x):
    """Return x standardized, and one divided by the deviation."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0)
    mean, scale = checkpoint_name((mean, jax.lax.rsqrt(variance + epsilon)), "statistics")
    return (x - mean) * scale, scale


@standardize.defjvp
def _standardize_jvp(epsilon, primals, tangents):
    (output, scale), (tangent,) = _standardize(epsilon, *primals), tangents
    along = (tangent * output).mean(-1, keepdims=True)
    return output, scale * (tangent - tangent.mean(-1, keepdims=True) - output * along)


def layer_norm(epsilon: float = 1e-6) -> Callable[[Array], Array]:
    """Return a LayerNorm without parameters, in float32."""
    return functools.partial(standardize, epsilon)


def modulate(
    x: Float[Array, "batch length features"],
    shift: Float[Array, "*batch features"],
    scale: Float[Array, "*batch features"],
) -> Float[Array, "batch length features"]:
    """Return LayerNorm(x)·(1 + scale) + shift in float32; the norm has no parameters."""
    return shift_and_scale(layer_norm()(x), shift, scale)


class Modulation(nn.Module):
    """`parts` vectors of shift, scale or gate per example or group; zero at initialisation."""

    parts: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, conditioning: Float[Array, "batch *groups features"]
    ) -> list[Float[Array, "batch *groups features"]]:
        features = conditioning.shape[-1]
        dense = Dense(
            self.parts * features,
            kernel_init=zeros,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            name="dense",
        )
        parts = constrain(dense(nn.silu(conditioning)), ("data", "fsdp"))
        return jnp.split(parts, self.parts, axis=-1)


class VectorEmbedding(nn.Module):
    """Two layers with SiLU between, from sinusoids or pooled text to conditioning; float32."""

    features: int
    param_dtype: Dtype = jnp.float32
    kernel_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        types = dict(
            kernel_init=self.kernel_init,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
        )
        h = nn.silu(Dense(self.features, name="linear_in", **types)(x))
        return Dense(self.features, name="linear_out", **types)(h)
