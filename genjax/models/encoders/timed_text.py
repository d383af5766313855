"""Stable Audio's conditions: a text and the seconds of a sound (Evans et al. 2024, section 3.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genjax.nn import Dense, Text

Dtype = Any
Seconds = Float[Array, " batch"]


class NumberEmbedding(nn.Module):
    """A linear layer of a number x in [0, 1] and of sin(2πfx), cos(2πfx), with trained f."""

    features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        normal = nn.initializers.normal(1.0)
        frequencies = self.param("frequencies", normal, (128,), self.param_dtype)
        angles = 2 * np.pi * x[:, None] * frequencies
        waves = jnp.concatenate([x[:, None], jnp.sin(angles), jnp.cos(angles)], axis=-1)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return Dense(self.features, name="dense", **types)(waves)


class TimedText(nn.Module):
    """Project a text's states, and embed the seconds at which a sound starts and ends.

    Attributes:
        features: of the projected states and of the seconds' embeddings.
        least_seconds, most_seconds: the range of seconds; others count as its ends.
        projects: whether states pass a linear layer. Otherwise they have `features` already.
    """

    features: int
    least_seconds: float = 0.0
    most_seconds: float = 512.0
    projects: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "batch length state_features"],
        start: Seconds,
        end: Seconds,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Text:
        """Return the states, then a token for each second; `pooled` is the two tokens joined.

        Args:
            mask: True at tokens of the text; the states of padding become zeros.
        """
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.projects:
            states = Dense(self.features, name="projection", **types)(states)
        if mask is not None:
            states = states * mask[..., None]
        width = self.most_seconds - self.least_seconds
        seconds = [
            NumberEmbedding(self.features, name=name, **types)(
                (jnp.clip(number, self.least_seconds, self.most_seconds) - self.least_seconds)
                / width
            )
            for name, number in (("start", start), ("end", end))
        ]
        tokens = jnp.concatenate([states, jnp.stack(seconds, axis=1)], axis=1)
        return Text(tokens, jnp.concatenate(seconds, axis=-1))
