"""Encoded text as networks are given it."""

from flax import struct
from jaxtyping import Array, Bool, Float


@struct.dataclass
class Text:
    """Prompts after their encoders.

    Attributes:
        tokens: a state per token.
        pooled: a vector per prompt, for networks that take one.
        mask: True at tokens of the prompt, False at padding, which a network then does not look at; with None it looks
            at padding too, as the published systems do.
    """

    tokens: Float[Array, "batch length features"]
    pooled: Float[Array, "batch pooled_features"] | None = None
    mask: Bool[Array, "batch length"] | None = None
