"""Encoded text, in the form that networks take."""

from typing import Any

from flax import struct


@struct.dataclass
class Text:
    """Prompts after their encoders: a pytree, of arrays as of their shapes or shardings.

    Attributes:
        tokens: a state per token, `[batch length features]`.
        pooled: a vector per prompt, `[batch pooled_features]`, for networks that take one.
        mask: `[batch length]`, True at tokens of the prompt, False at padding, to which a network
            then does not attend. With None it attends to padding too, as the published systems do.
    """

    tokens: Any
    pooled: Any = None
    mask: Any = None
