"""Decoding token by token: the loop that samples from any autoregressive model.

A model is a function `step(cache, tokens, position) -> (logits, cache)`. It reads the tokens
`[batch]` at one position of the sequence, and returns the logits `[batch vocabulary]` of the next
position. Its cache holds what the model remembers of earlier tokens: keys and values, the state of
a recurrent network, or the picture so far. A cache keeps its shapes, so each token costs the same.

One pass reads the beginning: `prefill` maps a condition, and possibly given tokens, to the logits
of the first new token and the cache. If `prefill` and `decode` are one program, the cache never
moves:

    @jax.jit
    def generate(params, key, labels, temperature):
        logits, cache = network.apply(params, labels, method="prefill")
        step = functools.partial(network.apply, params, method="step")
        keys = sample_keys(key, jnp.arange(len(labels)))
        sampler = functools.partial(sample, temperature=temperature)
        return decode(keys, step, logits, cache, length, sampler)

If each step is a program of its own, donate the cache: `jax.jit(step, donate_argnums=0)`. Then the
program writes in place.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.autoregression.logits import check_keys, sample

Step = Callable[
    [PyTree, Int[Array, " batch"], Int[Array, ""]], tuple[Float[Array, "batch vocabulary"], PyTree]
]
TokenSampler = Callable[
    [Key[Array, " batch"], Float[Array, "batch vocabulary"]], Int[Array, " batch"]
]


def decode(
    keys: Key[Array, " batch"],
    step: Step,
    logits: Float[Array, "batch vocabulary"],
    cache: PyTree,
    length: int,
    sampler: TokenSampler = sample,
    start: int = 0,
) -> Int[Array, "batch {length}"]:
    """Sample `length` tokens, each given all before it, by one `lax.scan`.

    Args:
        keys: one per example, folded with positions. So a sample does not depend on its batch, and
            a token does not depend on the number of later tokens.
        step: reads a token and returns the logits of the next one. It runs `length` − 1 times.
        logits: of the first token.
        cache: after everything before the first token.
        sampler: draws tokens; `sample` with its options.
        start: position of the first token, which is the number of given tokens.

    Raises:
        ValueError: `length` is not positive, keys are not one per example, or logits have other
            axes.
    """
    if logits.ndim != 2:
        raise ValueError(
            f"logits are [batch vocabulary], those of one position; got {logits.shape}: take "
            "the last position's"
        )
    check_keys(keys, len(logits))
    if length < 1:
        raise ValueError(f"length={length} leaves nothing to decode; it is at least 1")

    def draw(logits, position):
        return sampler(jax.vmap(jax.random.fold_in, (0, None))(keys, position), logits)

    def advance(carry, position):
        cache, tokens = carry
        logits, cache = step(cache, tokens, position)
        tokens = draw(logits, position + 1)
        return (cache, tokens), tokens

    first = draw(logits, start)
    positions = start + jnp.arange(length - 1)
    _, others = jax.lax.scan(advance, (cache, first), positions)
    return jnp.concatenate([first[:, None], others.T], axis=1)
