"""The first states of a sequence, which carry the condition: a class or a text."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import Dense, Text

Dtype = Any
small = nn.initializers.normal(0.02)


class ClassPrefix(nn.Module):
    """One state for each class, `[batch 1 width]`.

    Label `num_classes` is the null class of classifier-free guidance.
    """

    num_classes: int = 1000
    length = 1

    @nn.compact
    def __call__(
        self, labels: Int[Array, " batch"], width: int, dtype: Dtype, param_dtype: Dtype
    ) -> tuple[Float[Array, "batch 1 {width}"], None]:
        table = nn.Embed(
            self.num_classes + 1,
            width,
            embedding_init=small,
            param_dtype=param_dtype,
            name="label_embedding",
        )
        return table(labels)[:, None], None


class TextPrefix(nn.Module):
    """The states of a text, `[batch length width]`, by a layer with an activation and another one.

    LlamaGen takes 120 states of Flan-T5-XL, with the padding before the text.
    """

    length: int = 120

    @nn.compact
    def __call__(
        self, text: Text, width: int, dtype: Dtype, param_dtype: Dtype
    ) -> tuple[Float[Array, "batch length {width}"], Bool[Array, "batch length"] | None]:
        """Return the states, and which of them are of the text.

        Raises:
            ValueError: the text has another number of states.
        """
        if text.tokens.shape[1] != self.length:
            raise ValueError(
                f"this network takes {self.length} states of a text; got {text.tokens.shape[1]}: "
                "pad or cut prompts to that length"
            )
        options = dict(use_bias=False, kernel_init=small, dtype=dtype, param_dtype=param_dtype)
        h = nn.gelu(Dense(width, name="text_in", **options)(text.tokens))
        return Dense(width, name="text_out", **options)(h), text.mask
