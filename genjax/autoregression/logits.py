"""From logits to tokens: guidance, temperature, and filters of unlikely tokens.

Filters return logits with −inf in place of excluded tokens, so they combine in any order. `sample`
applies them in the order of the published samplers: temperature, top-k, top-p, min-p.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.diffusion.guidance import check_conditioning
from genjax.diffusion.guidance_rules import classifier_free

Logits = Float[Array, " batch *shape vocabulary"]
Number = float | Float[Array, " *batch"]
Scale = Number | Callable[[Int[Array, ""]], Number]


# Guidance: one call of the network on twice the batch.


def pair(conditional: PyTree, null: PyTree) -> PyTree:
    """Return conditions for `guided`: the condition of each example, then its null condition.

    Pairs are neighbours, so a batch that is split over devices stays where it is.

    Args:
        conditional: leaves `[batch …]`.
        null: leaves that broadcast against those of `conditional`.

    Raises:
        ValueError: `null` does not broadcast against `conditional`, or would be truncated to it.
    """
    check_conditioning(conditional, null)

    def interleave(c, n):
        c = jnp.asarray(c)
        n = jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape)
        return jnp.stack([c, n], axis=1).reshape(-1, *c.shape[1:])

    return jax.tree.map(interleave, conditional, null)


def guided(
    logits: Float[Array, " twice_batch *shape"], guidance_scale: Number
) -> Float[Array, " batch *shape"]:
    """Return u + s·(c − u) of the logits of `pair`s (Ho & Salimans 2022, equation 6).

    Args:
        guidance_scale: s, where 1 is conditional and 0 unconditional sampling: a number, or one
            per example.
    """
    pairs = logits.reshape(-1, 2, *logits.shape[1:])
    scale = jnp.asarray(guidance_scale, logits.dtype)
    scale = scale.reshape(*scale.shape, *[1] * (logits.ndim - scale.ndim))
    return classifier_free(pairs[:, 0], pairs[:, 1], scale)


def guide(step: Callable, guidance_scale: Scale) -> Callable:
    """Make a guided `step` for `decode` from a step whose cache is of `pair`s.

        logits, cache = prefill(pair(labels, null_label))
        decode(keys, guide(step, 4.0), guided(logits, 4.0), cache, length)

    Args:
        guidance_scale: as of `guided`, or a function of the position, for example
            `lambda position: jnp.where(position < 64, 4.0, 1.0)`.
    """

    def guided_step(cache, tokens, position):
        twice = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), tokens)
        logits, cache = step(cache, twice, position)
        scale = guidance_scale(position) if callable(guidance_scale) else guidance_scale
        return guided(logits, scale), cache

    return guided_step


def linear_guidance_scale(
    guidance_scale: float | Float[Array, " *#batch"], share: float | Float[Array, " *#batch"]
) -> Float[Array, "..."]:
    """Return the guidance scale of a step, which grows from 1 with the share of drawn tokens.

    A scale below 1 stays the same in every step. So 0 is unconditional sampling from the first
    token on.
    """
    return jnp.where(guidance_scale < 1, guidance_scale, 1 + (guidance_scale - 1) * share)


# Filters.


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Exclude all but the `k` most likely tokens, and those as likely as the last of these.

    Fan et al. 2018, "Hierarchical neural story generation", section 5.4.

    Raises:
        ValueError: `k` is no whole number from 1 to the size of the vocabulary.
    """
    check_sampling(logits.shape[-1], top_k=k)
    values, indices = jax.lax.top_k(logits, k)
    return _kept(logits, indices, True, values[..., -1:])


def keep_top_p(logits: Logits, p: float | Float[Array, ""]) -> Logits:
    """Keep the fewest most likely tokens that together have probability `p` or more.

    If only some of several equally likely tokens are needed, the first of them are kept. Holtzman
    et al. 2020, "The curious case of neural text degeneration", section 3.1.

    Raises:
        ValueError: `p` is not above 0 and at most 1.
    """
    check_sampling(logits.shape[-1], top_p=p)
    indices = jnp.argsort(logits, axis=-1, descending=True)
    ordered = jnp.take_along_axis(logits, indices, axis=-1)
    probabilities = jax.nn.softmax(ordered)
    kept = jnp.cumsum(probabilities, axis=-1) - probabilities < p
    return _kept(logits, indices, kept, jnp.asarray(jnp.inf))


def _kept(logits: Logits, indices: Array, kept: Array | bool, least: Array) -> Logits:
    """Exclude tokens below `least` that are not kept by their indices.

    XLA may compute logits twice with different rounding, once for `least` and once to compare with
    it. Without the indices, the token at the threshold would then be excluded.
    """
    nothing = jnp.zeros(logits.shape, bool)
    chosen = jnp.put_along_axis(nothing, indices, kept, axis=-1, inplace=False)
    return jnp.where(chosen | (logits >= least), logits, -jnp.inf)


def keep_min_p(logits: Logits, p: float | Float[Array, ""]) -> Logits:
    """Exclude tokens less than `p` times as likely as the most likely one (Nguyen et al. 2025)."""
    most, index = jax.lax.top_k(logits, 1)
    return _kept(logits, index, True, most + jnp.log(p))


# Draws.


def check_sampling(
    vocabulary: int,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    min_p: float | Float[Array, ""] | None = None,
) -> None:
    """Raise ValueError for options that `sample` does not allow; traced values pass unread."""

    def concrete(value) -> bool:
        return value is not None and not isinstance(value, jax.core.Tracer)

    if concrete(temperature) and not np.all(np.asarray(temperature) >= 0):
        raise ValueError(f"temperature is at least 0, and 0 is greedy; got {temperature}")
    whole = isinstance(top_k, int | np.integer)
    if top_k is not None and not (whole and 1 <= top_k <= vocabulary):
        raise ValueError(f"top_k is from 1 to the vocabulary's {vocabulary} tokens; got {top_k}")
    for name, p in dict(top_p=top_p, min_p=min_p).items():
        if concrete(p) and not 0 < p <= 1:
            raise ValueError(f"{name} is above 0 and at most 1; got {p}. None turns it off")


def check_keys(keys: Key[Array, " batch"], batch: int) -> None:
    """Raise ValueError unless there is one key per example; a single one would serve all."""
    if hasattr(keys, "dtype") and not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError("keys are of jax.random.key; these are numbers, as of jax.random.PRNGKey")
    if jnp.shape(keys) != (batch,):
        raise ValueError(
            f"keys are one per example, ({batch},); got {jnp.shape(keys)}: give "
            f"jax.random.split(key, {batch})"
        )


def filtered(
    logits: Logits,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    min_p: float | Float[Array, ""] | None = None,
) -> Logits:
    """Return the logits that `sample` draws from at a temperature above 0, in float32.

    Raises:
        ValueError: as `check_sampling`.
    """
    check_sampling(logits.shape[-1], temperature, top_k, top_p, min_p)
    logits = logits.astype(jnp.float32)
    temperature = _expanded(temperature, logits)
    logits = logits / jnp.where(temperature > 0, temperature, 1)  # at 0 the order stays the same
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    return logits


def sample(
    keys: Key[Array, " batch"],
    logits: Logits,
    temperature: Number = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    min_p: float | Float[Array, ""] | None = None,
) -> Int[Array, " batch *shape"]:
    """Draw a token from each softmax(logits/temperature), without the excluded tokens.

    Only `top_k` is static; no other option recompiles.

    Args:
        keys: one per example, so that a sample does not depend on its batch.
        temperature: a number, or one per example. 0 takes the most likely token.
        top_k, top_p, min_p: of the filters; None for no filter.

    Raises:
        ValueError: as `check_sampling`, or keys are not one per example.
    """
    check_keys(keys, len(logits))
    logits = filtered(logits, temperature, top_k, top_p, min_p)
    draw = lambda key: jax.random.gumbel(key, logits.shape[1:], logits.dtype)
    noise = jnp.where(_expanded(temperature, logits) > 0, jax.vmap(draw)(keys), 0)
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def _expanded(temperature: Number, logits: Logits) -> Array:
    temperature = jnp.asarray(temperature, logits.dtype)
    return temperature.reshape(*temperature.shape, *[1] * (logits.ndim - temperature.ndim))
