"""Frozen text encoders, by name in `config.condition.encoder`."""

from collections.abc import Callable

import jax

from genjax.models.encoders.bert import sentence_embedding
from genjax.nn import Text
from genjax.pretrained.minilm import load_minilm


def minilm(length: int) -> Callable[[list[str]], Text]:
    """Return MiniLM as a function of prompts; `pooled` is the sentence's embedding.

    Raises:
        ImportError: its weights or its tokenizer are not installed.
    """
    module, variables, tokenizer = load_minilm()

    @jax.jit
    def encode(variables, ids, mask):
        text = module.apply(variables, ids, mask)
        return text.replace(pooled=sentence_embedding(text))

    variables = jax.device_put(variables)
    return lambda prompts: encode(variables, *tokenizer.encode(prompts, length))
