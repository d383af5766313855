"""Masked tokens, revealed a few at a time: MaskGIT, and the orders that MAR also uses.

Chang et al. 2022, "MaskGIT: Masked generative image transformer". A network sees tokens, some of
which are masked, and predicts all of them at once. Sampling starts from masks alone. Each step
draws every masked token, and keeps those in which the network is most confident. A schedule gives
the number of tokens that stay masked after each step:

    counts = masked_counts(cosine, length=256, num_steps=8)  # 251, 236, 212, 181, 142, 97, 49, 0
    scale = functools.partial(linear_guidance_scale, 4.0)
    predict = guided_predict(network, labels, null_label, scale)
    tokens = maskgit(keys, predict, masks, vocabulary, counts, choice_temperatures(8, 4.5))
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from genjax.autoregression.logits import Number, check_keys, guided, pair, sample

Schedule = Callable[[np.ndarray], np.ndarray]
Tokens = Int[Array, "batch length"]
Logits = Float[Array, "batch length vocabulary"]
Predict = Callable[[Tokens, Float[Array, " batch"]], Logits]


# Schedules: the share of masked tokens after a share of the steps (section 3.3). MaskGIT's training
# draws the share of steps uniformly.


def cosine(share):
    """Return cos(π/2·share): few tokens first."""
    return np.cos(np.pi / 2 * share)


def linear(share):
    """Return 1 − share: the same number of tokens in each step."""
    return 1 - share


def square(share):
    """Return 1 − share²."""
    return 1 - share**2


def cubic(share):
    """Return 1 − share³."""
    return 1 - share**3


def square_root(share):
    """Return 1 − √share: many tokens first."""
    return 1 - np.sqrt(share)


def masked_counts(
    schedule: Schedule, length: int, num_steps: int
) -> Int[np.ndarray, "num_steps masked"]:
    """Return how many tokens stay masked after each step, for 0, 1, …, `length` masked at first.

    After step k of N, ⌊masked·schedule(k/N)⌋ tokens stay masked. Each step reveals at least one as
    long as any is masked. At least one is left for each following step, and the last step reveals
    all.

    Args:
        schedule: of this module (`masked.cosine`, …), or another function that falls from 1 to 0.

    Raises:
        ValueError: there are no steps, or more than tokens.
    """
    _check_steps(length, num_steps)
    before = np.arange(length + 1)
    rows = []
    for k in range(1, num_steps + 1):
        share = 0.0 if k == num_steps else float(schedule(np.float64(k / num_steps)))
        wanted = np.floor(np.arange(length + 1) * share + 1e-9)  # 24·(1 − 5/6) is 4, not 3.999…
        wanted = np.maximum(wanted, num_steps - k)
        before = np.clip(wanted, 0, np.maximum(before - 1, 0)).astype(np.int32)
        rows.append(before)
    return np.stack(rows)


def choice_temperatures(num_steps: int, first: float) -> Float[np.ndarray, " num_steps"]:
    """Return first·(1 − k/N) for the steps k = 1 … N, the last of which needs no choice.

    `first` is 4.5 in the authors' program.

    Raises:
        ValueError: `first` is negative.
    """
    if not first >= 0:
        raise ValueError(
            f"a choice temperature is at least 0, and 0 keeps the most confident; got {first}"
        )
    return np.float32(first) * (1 - np.arange(1, num_steps + 1, dtype=np.float32) / num_steps)


# Masks in training.


def random_orders(keys: Key[Array, " batch"], length: int) -> Int[Array, "batch {length}"]:
    """Draw for each example a permutation of 0 … length − 1, each equally likely."""
    return jax.vmap(lambda key: jax.random.permutation(key, length))(keys)


def masked_by_order(
    orders: Int[Array, "batch length"], count: int | Int[Array, "*batch"]
) -> Bool[Array, "batch length"]:
    """Return the mask of the last `count` places of each order, which reveals its first places."""
    ranks = jnp.argsort(orders, axis=-1)
    return ranks >= orders.shape[-1] - jnp.asarray(count)[..., None]


def random_masks(
    keys: Key[Array, " batch"],
    length: int,
    share: Callable[[Float[Array, ""]], Float[Array, ""]] = lambda u: jnp.cos(jnp.pi / 2 * u),
) -> Bool[Array, "batch {length}"]:
    """Mask ⌈share(u)·length⌉ places of each example, drawn uniformly, with u uniform in [0, 1).

    Args:
        share: the share of masked places, as a function that `jax` traces; a cosine by default.
    """

    def mask_one(key):
        key_share, key_order = jax.random.split(key)
        count = jnp.ceil(length * share(jax.random.uniform(key_share))).astype(jnp.int32)
        return masked_by_order(random_orders(key_order[None], length), count)[0]

    return jax.vmap(mask_one)(keys)


def masked_loss(
    logits: Logits,
    tokens: Tokens,
    mask: Bool[Array, "batch length"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Return the mean cross-entropy of an example's masked tokens, in nats.

    Equation 1 is the sum over masked tokens, in which an example counts by its number of masks.
    Here every example counts the same.

    Args:
        label_smoothing: the share of the target that is spread equally over all tokens; the authors
            take 0.1.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]
    smooth = log_probabilities.mean(axis=-1)
    losses = -(1 - label_smoothing) * chosen - label_smoothing * smooth
    return jnp.sum(losses * mask, axis=1) / jnp.maximum(mask.sum(axis=1), 1)


# Sampling.


def guided_predict(
    network: Callable[[Tokens, PyTree], Logits],
    conditional: PyTree,
    null: PyTree,
    guidance_scale: Number | Callable[[Float[Array, " batch"]], Number],
) -> Predict:
    """Make the `predict` of `maskgit` with guidance, by one call of the network a step.

    Args:
        network: from tokens and conditions to logits.
        conditional: leaves `[batch …]`.
        null: leaves that broadcast against those of `conditional`.
        guidance_scale: as of `guided`, or a function of the share of tokens that are revealed after
            the step, such as `functools.partial(linear_guidance_scale, 4.0)`.
    """
    conditions = pair(conditional, null)

    def predict(tokens, share):
        logits = network(jnp.repeat(tokens, 2, axis=0), conditions)
        scale = guidance_scale(share) if callable(guidance_scale) else guidance_scale
        return guided(logits, scale)

    return predict


def keep_masked(
    confidence: Float[Array, "batch length"], count: Int[Array, " batch"]
) -> Bool[Array, "batch length"]:
    """Return the mask of the `count` places with the least confidence."""
    ranks = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
    return ranks < count[:, None]


def maskgit(
    keys: Key[Array, " batch"],
    predict: Predict,
    tokens: Tokens,
    mask_token: int,
    counts: Int[Array | np.ndarray, "num_steps masked"],
    temperatures: Float[Array | np.ndarray, " num_steps"],
    sampler: Callable = sample,
    trajectory: bool = False,
) -> Int[Array, "*steps batch length"]:
    """Reveal the masked tokens, in each step those with the highest confidence.

    Confidence is log p(token) + temperature·Gumbel noise (section 3.2). Other temperatures, and
    other schedules with the same number of steps, do not recompile.

    Args:
        keys: one per example.
        predict: from tokens, and the share of all that are revealed after the step, to logits.
        tokens: `mask_token` where tokens are to be drawn. Other tokens are given, and stay.
        counts: `masked_counts`.
        temperatures: of the choice in each step (`choice_temperatures`).
        sampler: draws tokens; `sample` with its options.
        trajectory: return the tokens after every step, `[num_steps batch length]`.

    Raises:
        ValueError: keys are not one per example, or counts are those of another length.
    """
    check_keys(keys, len(tokens))
    length = tokens.shape[1]
    if counts.shape[1] != length + 1:  # JAX would take the last column for all that follow
        raise ValueError(
            f"counts are those of {counts.shape[1] - 1} tokens; examples have {length}: give "
            f"masked_counts(schedule, {length}, num_steps)"
        )
    masked = jnp.sum(tokens == mask_token, axis=1)

    def reveal(tokens, row):
        step, counts, temperature = row
        fold = lambda i: jax.vmap(jax.random.fold_in, (0, None))(keys, 2 * step + i)
        unknown, count = tokens == mask_token, counts[masked]
        logits = predict(tokens, 1 - count / length)
        drawn = jnp.where(unknown, sampler(fold(0), logits), tokens)
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        log_probabilities = jax.nn.log_softmax(logits.astype(dtype))
        confidence = jnp.take_along_axis(log_probabilities, drawn[..., None], axis=-1)[..., 0]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(fold(1))
        confidence = jnp.where(unknown, confidence + temperature * noise, jnp.inf)
        tokens = jnp.where(keep_masked(confidence, count), mask_token, drawn)
        return tokens, tokens if trajectory else None

    rows = jnp.arange(len(counts)), jnp.asarray(counts), jnp.asarray(temperatures)
    tokens, states = jax.lax.scan(reveal, tokens.astype(jnp.int32), rows)
    return states if trajectory else tokens


def _check_steps(length: int, num_steps: int) -> None:
    if not 1 <= num_steps <= length:
        raise ValueError(
            f"{length} tokens are revealed in 1 to {length} steps; got num_steps={num_steps}"
        )


def arccos_counts(length: int, num_steps: int) -> Int[np.ndarray, " num_steps"]:
    """Return how many tokens are known after each step: ⌊(1 − arccos(k/N)·2/π)·length⌋.

    Each step adds at least one (Besnier et al. 2025, equation 8; the authors' program takes 32
    steps).

    Raises:
        ValueError: there are no steps, or more than tokens.
    """
    _check_steps(length, num_steps)
    steps = np.arange(1, num_steps + 1)
    share = 1 - np.arccos(steps / num_steps) / (np.pi / 2)
    counts = np.floor(share * length + 1e-9)  # 1/3 of 576 is 192, not 191.99…
    return np.maximum(steps, counts).astype(np.int32)


def reveal_in_order(
    keys: Key[Array, " batch"],
    predict: Predict,
    tokens: Tokens,
    order: Int[Array | np.ndarray, " length"],
    counts: Int[Array | np.ndarray, " num_steps"],
    sampler: Callable = sample,
    trajectory: bool = False,
) -> Int[Array, "*steps batch length"]:
    """Draw the first places of an order: in each step more places, and the earlier ones again.

    With `orders.halton` and `arccos_counts` this is the Halton scheduler (Besnier et al. 2025,
    "Halton scheduler for masked generative image transformer", algorithm 1), as in the first
    version of the authors' program. Since their commit fcdc837 the earlier places stay. Other
    orders and counts do not recompile.

    Args:
        keys: one per example.
        predict: from tokens, and the share of all that are revealed after the step, to logits.
        tokens: masks.
        order: the place that comes first, second, …
        counts: how many places are known after each step.
        sampler: draws tokens; `sample` with its options.
        trajectory: return the tokens after every step, `[num_steps batch length]`.

    Raises:
        ValueError: keys are not one per example, or the order is not one of the places.
    """
    batch, length = tokens.shape
    check_keys(keys, batch)
    if len(order) != length:
        raise ValueError(f"the order has {len(order)} places; examples have {length}")
    ranks = jnp.argsort(jnp.asarray(order))

    def reveal(tokens, row):
        step, count = row
        logits = predict(tokens, jnp.full(batch, count / length))
        drawn = sampler(jax.vmap(jax.random.fold_in, (0, None))(keys, step), logits)
        tokens = jnp.where(ranks < count, drawn, tokens)
        return tokens, tokens if trajectory else None

    rows = jnp.arange(len(counts)), jnp.asarray(counts)
    tokens, states = jax.lax.scan(reveal, tokens.astype(jnp.int32), rows)
    return states if trajectory else tokens
