"""Guidance: functions of denoisers that return a denoiser, for any sampler, process and target.

`guide` calls a conditional denoiser once, with conditioning and without. A rule (`guidance_rules`)
makes one prediction of the two answers, and a scale says how far to go. The parts combine freely:

    rule = functools.partial(target_rule, process)
    guide(denoiser, labels, null, 4.0)                                 # classifier-free
    guide(denoiser, labels, null, interval(4.0, 0.2, 0.8))             # in the middle of time only
    guide(denoiser, labels, null, 4.0, rule(velocity, zero_star))      # CFG-Zero*
    guide(denoiser, labels, null, 4.0, rule(velocity, functools.partial(rescaled, phi=0.7)))
    guide(denoiser, labels, null, 4.0, rule(clean, adaptive_projected, momentum=-0.5))
    guide(denoiser, labels, null, 0.6, plus_plus)                      # CFG++, with ddim
    guide(denoiser, labels, null, 4.0, rule(clean, tangential))
    blend([conditional, unconditional, disturbed], [1 - 4.0, -3.0])    # layers left out
    with_clean(guide(…), process, dynamic_threshold)

Scales, phi, intervals, … may be traced, so changing them never recompiles. All channels are guided.

A denoiser with momentum remembers the previous evaluation. It is called as `(x_t, t, memory) ->
(Prediction, memory)`, and the sampler is given the first memory:

    ddim(guided, process, noise, times, memory=jnp.zeros_like(noise))

If x_t is a tree of arrays (`trees`), rules act on each leaf separately, and scales, processes and
targets may be trees. If times are `[batch frames]`, a scale that is a function of the times has a
value for each frame.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from genjax.diffusion.guidance_rules import classifier_free
from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import (
    Prediction,
    Target,
    check_prediction,
    combine,
    recover,
    velocity,
)
from genjax.diffusion.trees import Tree, leaf_keys, leafwise

Data = Float[Array, " batch *shape"]
Times = Float[Array, " batch *times"]
Scale = float | Float[Array, " *scale"] | Callable[[Times], Times]


def drop_conditioning(
    key: Key[Array, ""],
    conditioning: PyTree,
    null: PyTree,
    rate: PyTree[float | Float[Array, ""]],
) -> PyTree:
    """Replace the conditions of whole examples by `null`, each with probability `rate`.

    Args:
        conditioning: leaves `[batch …]`.
        null: leaves that broadcast against those of conditioning.
        rate: one number, with which all leaves of an example are dropped together. Or a tree of
            numbers, such as `{"text": 0.1, "pose": 0.5}`: the leaves below each number are dropped
            together, and independently of the others.

    Raises:
        ValueError: a rate is not between 0 and 1.
    """
    batch = jax.tree.leaves(conditioning)[0].shape[0]

    def drop(rate, key, conditioning, null):
        if not isinstance(rate, jax.core.Tracer) and not 0 <= float(rate) <= 1:
            raise ValueError(f"a rate is a share of the examples, from 0 to 1; got {rate}")
        dropped = jax.random.bernoulli(key, jnp.asarray(rate, float), (batch,))
        return jax.tree.map(lambda c, n: jnp.where(expand(dropped, c), n, c), conditioning, null)

    return jax.tree.map(drop, rate, leaf_keys(key, rate), conditioning, null)


# Scales.


def scale_of_weight(
    guidance_weight: float | Float[Array, " *scale"],
) -> float | Float[Array, " *scale"]:
    """Return the guidance scale s = 1 + w for the guidance weight w.

    Some papers write (1 + w)·ĉ − w·û (Ho & Salimans 2022).
    """
    return 1 + guidance_weight


def interval(
    guidance_scale: float | Float[Array, " *scale"],
    low: float | Float[Array, ""],
    high: float | Float[Array, ""],
) -> Callable[[Times], Times]:
    """Make a scale that is `guidance_scale` for low < t ≤ high and 1 elsewhere.

    Kynkäänniemi et al. 2024. Their interval is one of noise levels sigma/alpha: `process.time_at(-2
    * jnp.log(level))` is the time of a level.

    Raises:
        ValueError: low is not below high. Traced ends have no values to check.
    """
    traced = any(isinstance(end, jax.core.Tracer) for end in (low, high))
    if not traced and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(
            f"an interval of guidance is two times, low < high; got low={low}, high={high}"
        )

    def scale_at(t):
        t, scale = jnp.asarray(t), jnp.asarray(guidance_scale)
        scale = expand(scale, t) if t.ndim else scale  # one per sample, not per frame
        return jnp.where((low < t) & (t <= high), scale, 1.0)

    return scale_at


@leafwise
def _scale_at(guidance_scale: Scale, t: Times, like: Data) -> Array:
    """Return the guidance scale at times t, expanded to the axes of `like`."""
    scale = jnp.asarray(
        guidance_scale(t) if callable(guidance_scale) else guidance_scale, like.dtype
    )
    return expand(scale, like)


# Rules for predictions: `(conditional, unconditional, scale, x_t, t) -> Prediction`.


def extrapolate(c: Prediction, u: Prediction, s: PyTree, x_t: Tree, t: Tree) -> Prediction:
    """Apply `classifier_free` to both halves.

    The rule is linear, so the result is the same for every target.
    """
    return Prediction(classifier_free(c.clean, u.clean, s), classifier_free(c.noise, u.noise, s))


def plus_plus(c: Prediction, u: Prediction, s: PyTree, x_t: Tree, t: Tree) -> Prediction:
    """Return guided x̂, with a scale in [0, 1], and unconditional ẑ: CFG++.

    Chung et al. 2025, algorithm 2.

    It is made for samplers of the form x_s = alpha_s·x̂ + sigma_s·ẑ, such as `ddim`: alpha·x̂ +
    sigma·ẑ is no longer x_t.
    """
    return Prediction(classifier_free(c.clean, u.clean, s), u.noise)


@leafwise
def _singular(process, target, x_t, t):
    """Return where x_t and the quantity `target` do not determine both halves."""
    weight_clean, weight_noise = target(process, t)
    return expand(weight_noise * process.alpha(t) == weight_clean * process.sigma(t), x_t)


def _select(where: PyTree, first: Prediction, second: Prediction) -> Prediction:
    """Return the halves of `first` where `where` is true, and those of `second` elsewhere."""
    halves = (
        jax.tree.map(jnp.where, where, *pair) for pair in zip(first[:2], second[:2], strict=True)
    )
    return Prediction(*halves, first.fraction)


def target_rule(
    process: PyTree[Process],
    target: PyTree[Target],
    rule: Callable,
    momentum: float | Float[Array, ""] | None = None,
) -> Callable:
    """Make a rule for predictions from a rule for the quantity `target` (clean, velocity, …).

    The rule's result and x_t give both halves of the prediction. Where they do not (see the table
    in `targets`), the halves are extrapolated.

    Args:
        rule: `(c, u, scale) -> y`, such as those of `guidance_rules`.
        momentum: beta in c − u ← (c − u) + beta·(the value at the previous evaluation). Sadat et
            al. 2025 take it negative. The denoiser takes and returns that value as its memory,
            which starts as zeros like x_t.

    Raises:
        ValueError: while sampling, if there is momentum but no memory.
    """

    def rule_for_predictions(conditional, unconditional, scale, x_t, t, memory=None):
        if momentum is not None and memory is None:
            raise ValueError(
                "guidance with momentum was called without a memory: give the sampler "
                "memory=jnp.zeros_like(noise), or take momentum=None for `adaptive` and "
                "`log_likelihood`, which solve an ODE without memory"
            )
        c, u = (combine(process, target, p.clean, p.noise, t) for p in (conditional, unconditional))
        if momentum is not None:
            memory = jax.tree.map(lambda c, u, memory: c - u + momentum * memory, c, u, memory)
            u = jax.tree.map(lambda c, memory: c - memory, c, memory)
        recovered = recover(process, target, x_t, rule(c, u, scale), t)
        singular = _singular(process, target, x_t, t)
        extrapolated = extrapolate(conditional, unconditional, scale, x_t, t)
        prediction = _select(singular, extrapolated, recovered)
        return prediction if momentum is None else (prediction, memory)

    return rule_for_predictions


# Denoisers of denoisers.


def check_conditioning(conditioning: PyTree, null: PyTree) -> None:
    """Raise ValueError unless `null` has the structure of `conditioning` and broadcasts to it.

    A null of floats does not fit a conditioning of integers, to which it would be truncated.
    """
    if jax.tree.structure(conditioning) != jax.tree.structure(null):
        raise ValueError(
            "null has the tree structure of conditioning, "
            f"{jax.tree.structure(conditioning)}; got {jax.tree.structure(null)}"
        )
    for (path, c), n in zip(
        jax.tree.leaves_with_path(conditioning), jax.tree.leaves(null), strict=True
    ):
        shape, null_shape = jnp.shape(c), jnp.shape(n)
        fits = len(null_shape) <= len(shape) and all(
            null_size in (1, size)
            for null_size, size in zip(null_shape[::-1], shape[::-1], strict=False)
        )
        if not shape or not fits:
            raise ValueError(
                f"conditioning{jax.tree_util.keystr(path)} is [batch …], and null broadcasts "
                f"against it; got shapes {shape} and {null_shape}"
            )
        types = jnp.result_type(c), jnp.result_type(n)
        if jnp.issubdtype(types[0], jnp.integer) and jnp.issubdtype(types[1], jnp.floating):
            raise ValueError(
                f"conditioning{jax.tree_util.keystr(path)} is {types[0]}, and null is {types[1]}: "
                "give a null of whole numbers"
            )


def _check_batch(conditioning: Array, x_t: PyTree) -> None:
    """Raise ValueError unless there is one conditioning per sample."""
    batch = jax.tree.leaves(x_t)[0].shape[0]
    if conditioning.shape[0] != batch:
        raise ValueError(
            f"one conditioning per sample: got {conditioning.shape[0]} for {batch} samples"
        )


def predict_jointly(
    denoiser: Callable, x_t: PyTree, t: Tree, conditionings: Sequence[PyTree]
) -> list[PyTree]:
    """Return the answers for several conditionings, in one call on that many times the batch.

    Args:
        x_t, t: as for the denoiser.
        conditionings: trees of leaves `[batch …]`. The leaves of all but the first may broadcast.

    Raises:
        ValueError: the first conditioning does not have one entry per sample.
    """
    count = len(conditionings)

    # The copies are interleaved, so a batch sharded over devices needs no communication.
    def stack(first, *others):
        first = jnp.asarray(first)  # int64 of NumPy is int32 in JAX
        _check_batch(first, x_t)
        same = [jnp.broadcast_to(other, first.shape).astype(first.dtype) for other in others]
        return jnp.stack([first, *same], axis=1).reshape(len(first) * count, *first.shape[1:])

    answer = denoiser(
        *(jax.tree.map(stack, *several) for several in ([x_t] * count, [t] * count, conditionings))
    )
    split = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]), answer)
    return [jax.tree.map(lambda a: a[:, i], split) for i in range(count)]  # noqa: B023


def _lengths_differ(conditioning: PyTree, null: PyTree) -> bool:
    """Return whether a leaf of null differs in length from its conditioning.

    The leaf is [batch length features] or [1 length …]. A leaf [batch features] with other features
    is a mistake, not another length.
    """
    if jax.tree.structure(conditioning) != jax.tree.structure(null):
        return False
    pairs = zip(jax.tree.leaves(conditioning), jax.tree.leaves(null), strict=True)
    return any(
        jnp.ndim(c) == jnp.ndim(n) > 2
        and n.shape[0] in (1, c.shape[0])
        and n.shape[2:] == c.shape[2:]
        and n.shape[1] not in (1, c.shape[1])
        for c, n in pairs
    )


def predict_separately(
    denoiser: Callable, x_t: Tree, t: Tree, conditioning: PyTree, null: PyTree
) -> list[Prediction]:
    """Return the predictions with conditioning and with a null of another length, in two calls.

    Raises:
        ValueError: the conditioning does not have one entry per sample.
    """

    def for_batch(c, n):
        _check_batch(c, x_t)
        shape = (len(c), *n.shape[1:]) if jnp.ndim(n) == c.ndim else c.shape
        return jnp.broadcast_to(n, shape).astype(c.dtype)

    return [
        denoiser(x_t, t, each)
        for each in (conditioning, jax.tree.map(for_batch, conditioning, null))
    ]


def _apply_rule(both: Callable, guidance_scale: PyTree[Scale], rule: Callable) -> Callable:
    """Return the denoiser that applies `rule` to the two predictions `both(x_t, t)`.

    The denoiser passes its memory to the rule.
    """

    def guided(x_t, t, *memory):
        conditional, unconditional = both(x_t, t)
        check_prediction(conditional)
        check_prediction(unconditional)
        scale = _scale_at(guidance_scale, t, conditional.clean)
        if jax.tree.structure(scale) != jax.tree.structure(conditional.clean):
            raise ValueError(
                f"a guidance scale is a number, an array or a tree like x_t; got {guidance_scale}: "
                "give several numbers as an array"
            )
        answer = rule(conditional, unconditional, scale, x_t, t, *memory)
        prediction, *rest = answer if memory else (answer,)
        prediction = prediction._replace(fraction=conditional.fraction)
        return (prediction, *rest) if memory else prediction

    return guided


def guide(
    denoiser: Callable[..., Prediction],
    conditioning: PyTree,
    null: PyTree,
    guidance_scale: PyTree[Scale],
    rule: Callable = extrapolate,
) -> Callable[..., Any]:
    """Make the guided denoiser of a conditional one, with one network call for both answers.

    The default rule is û + s·(ĉ − û), classifier-free guidance (Ho & Salimans 2022). A learned
    variance is the conditional one.

    Args:
        denoiser: `(x_t, t, conditioning) -> Prediction`.
        conditioning: leaves `[batch …]`.
        null: what replaced dropped conditioning in training, or a negative prompt. Its leaves
            broadcast against those of conditioning. A null of another length, [batch length
            features …] or [1 length features …], takes a second call.
        guidance_scale: s, where 1 is plain conditional and 0 unconditional sampling: a number, one
            per sample, a function of the times (`interval`), or an array that broadcasts against
            x_t. So `[1 1 1 channels]` gives each channel its own scale. For a tree x_t it may be a
            tree of these. For papers with a weight w see `scale_of_weight`.
        rule: `extrapolate`, `plus_plus`, or what `target_rule` returns.

    Raises:
        ValueError: `null` does not broadcast against `conditioning`, there is not one conditioning
            per sample, or the scale is a list.
    """
    if _lengths_differ(conditioning, null):
        both = lambda x_t, t: predict_separately(denoiser, x_t, t, conditioning, null)
        return _apply_rule(both, guidance_scale, rule)
    check_conditioning(conditioning, null)
    both = lambda x_t, t: predict_jointly(denoiser, x_t, t, [conditioning, null])
    return _apply_rule(both, guidance_scale, rule)


def autoguide(
    denoiser: Callable[..., Prediction],
    weaker: Callable[..., Prediction],
    guidance_scale: PyTree[Scale],
    rule: Callable = extrapolate,
) -> Callable[..., Any]:
    """Guide away from a worse model of the same data (Karras et al. 2024, autoguidance).

    The worse model replaces the unconditional denoiser of `guide`. Both denoisers are `(x_t, t) ->
    Prediction` with the same conditioning. They are two networks, so there are two calls.
    """
    return _apply_rule(lambda x_t, t: (denoiser(x_t, t), weaker(x_t, t)), guidance_scale, rule)


def blend(
    denoisers: Sequence[Callable[..., Prediction]], weights: Sequence[PyTree[Scale]]
) -> Callable[..., Prediction]:
    """Return the denoiser Σᵢ wᵢ·Dᵢ(x_t, t), with one weight for each denoiser except the first.

    The weights add up to 1, which sets the first weight. So alpha·x̂ + sigma·ẑ stays x_t, and the
    sum is D₀ + Σᵢ wᵢ·(Dᵢ − D₀). Each denoiser is called once. Let s and p be guidance scales, and
    c, u, d and w the conditional, unconditional, disturbed and weaker denoiser:

        blend([c, w], [1 - s])           # autoguidance (Karras et al. 2024)
        blend([c, u, d], [1 - s, -p])    # classifier-free, and away from the disturbed denoiser
        blend([u, c1, c2], [s1, s2])     # conditions that all hold (`compose`: in one call)

    A disturbed denoiser has identity for attention (Ahn et al. 2024, perturbed attention guidance),
    or leaves out some layers (Hyung et al. 2025, spatio-temporal skip guidance).

    Args:
        denoisers: two or more functions `(x_t, t) -> Prediction`. A learned variance is that of the
            first.
        weights: each as `guidance_scale` of `guide`; may be traced.

    Raises:
        ValueError: there is not one weight for each denoiser except the first.
    """
    if len(denoisers) != len(weights) + 1 or not weights:
        raise ValueError(
            "blend takes one weight for each denoiser except the first, because weights add up to "
            f"1; got {len(weights)} for {len(denoisers)} denoisers"
        )

    def blended(x_t: Tree, t: Tree) -> Prediction:
        first, *others = (denoiser(x_t, t) for denoiser in denoisers)
        return _add_differences(first, others, weights, x_t, t)._replace(fraction=first.fraction)

    return blended


def _add_differences(
    first: Prediction, others: Sequence[Prediction], weights: Sequence, x_t: Tree, t: Tree
) -> Prediction:
    """Return first + Σ weight·(other − first) for both halves."""
    for each in (first, *others):
        check_prediction(each)
    weights = [_scale_at(weight, t, x_t) for weight in weights]

    def total(first, *terms):
        pairs = zip(terms[: len(weights)], terms[len(weights) :], strict=True)
        return first + sum(weight * (other - first) for weight, other in pairs)

    clean = jax.tree.map(total, first.clean, *weights, *(other.clean for other in others))
    noise = jax.tree.map(total, first.noise, *weights, *(other.noise for other in others))
    return Prediction(clean, noise)


def compose(
    denoiser: Callable[..., Prediction],
    conditionings: Sequence[PyTree],
    null: PyTree,
    guidance_scales: Sequence[PyTree[Scale]],
) -> Callable[..., Prediction]:
    """Return the denoiser û + Σᵢ sᵢ·(ĉᵢ − û) of conditions that all hold, in one call.

    Liu et al. 2022.

    A negative scale moves away from its condition. A learned variance is that of the first
    condition. Arguments are as for `guide`, with as many scales as conditionings.

    Raises:
        ValueError: there are no conditionings or not as many scales, or `null` does not fit one of
            them.
    """
    if len(conditionings) != len(guidance_scales) or not conditionings:
        raise ValueError(
            "compose takes one guidance scale for each conditioning, at least one; got "
            f"{len(guidance_scales)} for {len(conditionings)}"
        )
    for conditioning in conditionings:
        check_conditioning(conditioning, null)

    def composed(x_t: Tree, t: Tree) -> Prediction:
        *conditional, unconditional = predict_jointly(denoiser, x_t, t, [*conditionings, null])
        prediction = _add_differences(unconditional, conditional, guidance_scales, x_t, t)
        return prediction._replace(fraction=conditional[0].fraction)

    return composed


def _map_prediction(denoiser: Callable, change: Callable) -> Callable:
    """Return the denoiser of `change(x_t, t, prediction)`, which passes a memory to `denoiser`."""

    def changed(x_t, t, *memory):
        answer = denoiser(x_t, t, *memory)
        prediction, *rest = answer if memory else (answer,)
        check_prediction(prediction)
        prediction = change(x_t, t, prediction)
        return (prediction, *rest) if memory else prediction

    return changed


def classifier_guide(
    denoiser: Callable[..., Any],
    process: PyTree[Process],
    log_likelihood: Callable[[Tree, Tree], Float[Array, " batch"]],
    guidance_scale: PyTree[Scale],
) -> Callable[..., Any]:
    """Add s·∇ log p(y | x_t) to the score (Dhariwal & Nichol 2021, algorithm 2).

    The new halves are ẑ − s·sigma·∇ log p(y | x_t) and x̂ + s·sigma²/alpha·∇ log p(y | x_t). At
    alpha = 0, x_t contains nothing of y, so the gradient is zero and x̂ does not change.

    Args:
        denoiser: `(x_t, t) -> Prediction`, with or without a memory.
        log_likelihood: `(x_t, t) -> log p(y | x_t)`, `[batch]`. Each value depends on its own
            sample only.
        guidance_scale: s, as for `guide`.
    """

    def change(x_t, t, prediction):
        gradient = jax.grad(lambda x: jnp.sum(log_likelihood(x, t)))(x_t)
        return _add_gradient(process, guidance_scale, x_t, t, gradient, prediction)

    return _map_prediction(denoiser, change)


def posterior_guide(
    denoiser: Callable[..., Prediction],
    process: PyTree[Process],
    log_likelihood: Callable[[Tree, Tree], Float[Array, " batch"]],
    guidance_scale: PyTree[Scale] = 1.0,
) -> Callable[..., Prediction]:
    """Add s·∇ log p(y | x̂(x_t)) to the score, for inverse problems (Chung et al. 2023, DPS).

    The gradient goes through the denoiser, in one call. For measurements y = A(x) + N(0, r²) use
    log_likelihood = −‖y − A(x̂)‖²/(2r²) (equation 16). The authors' direction without r is −‖y −
    A(x̂)‖. ΠGDM (Song et al. 2023) adds A's image of the covariance of x given x_t to r². That
    version is exact for Gaussian data and linear A.

    Args:
        denoiser: `(x_t, t) -> Prediction`, without a memory.
        log_likelihood: `(x̂, t) -> log p(y | x̂)`, `[batch]`. Each value depends on its own sample
            only.
        guidance_scale: s, as for `guide`.
    """

    def guided(x_t, t):
        def summed_log_likelihood(x_t):
            prediction = denoiser(x_t, t)
            check_prediction(prediction)
            return jnp.sum(log_likelihood(prediction.clean, t)), prediction

        gradient, prediction = jax.grad(summed_log_likelihood, has_aux=True)(x_t)
        return _add_gradient(process, guidance_scale, x_t, t, gradient, prediction)

    return guided


def _add_gradient(process, guidance_scale, x_t, t, gradient, prediction):
    """Return the prediction with scale·gradient added to its score.

    x̂ does not change at alpha = 0.
    """

    @leafwise
    def move(process, guidance_scale, x_t, t, gradient, clean, noise):
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        step = _scale_at(guidance_scale, t, x_t) * sigma * gradient
        shift = sigma * step / jnp.where(alpha == 0, jnp.inf, alpha)
        return clean + shift, noise - step

    clean, noise = move(
        process, guidance_scale, x_t, t, gradient, prediction.clean, prediction.noise
    )
    return prediction._replace(clean=clean, noise=noise)


def with_clean(
    denoiser: Callable[..., Any], process: PyTree[Process], change: Callable[[Tree], Tree]
) -> Callable[..., Any]:
    """Make the denoiser with x̂ replaced by change(x̂), and ẑ by (x_t − alpha·x̂)/sigma.

    At sigma = 0, ẑ does not change.
    """

    @leafwise
    def remaining_noise(process, x_t, t, clean, noise):
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        rest = (x_t - alpha * clean) / jnp.where(sigma == 0, 1, sigma)
        return jnp.where(sigma == 0, noise, rest)

    def consistent(x_t, t, prediction):
        clean = change(prediction.clean)
        return prediction._replace(
            clean=clean, noise=remaining_noise(process, x_t, t, clean, prediction.noise)
        )

    return _map_prediction(denoiser, consistent)


@leafwise
def static_threshold(clean: Data, bound: float | Float[Array, ""] = 1.0) -> Data:
    """Clip x̂ to [−bound, bound]. For `with_clean`."""
    return jnp.clip(clean, -bound, bound)


@leafwise
def dynamic_threshold(
    clean: Data, quantile: float | Float[Array, ""] = 0.995, bound: float | Float[Array, ""] = 1.0
) -> Data:
    """Clip x̂ to [−s, s] and scale it by bound/s. For `with_clean`.

    s is a quantile of an example's |x̂|, and at least `bound` (Saharia et al. 2022).
    """
    magnitudes = jnp.abs(clean).reshape(len(clean), -1)
    s = expand(jnp.maximum(jnp.quantile(magnitudes, quantile, axis=1), bound), clean)
    return jnp.clip(clean, -s, s) * (bound / s)


def zero_init(
    denoiser: Callable[..., Any], process: PyTree[Process], after: float | Float[Array, ""]
) -> Callable[..., Any]:
    """Make the denoiser whose velocity is zero at times t > `after`.

    These are the first steps of CFG-Zero* (Fan et al. 2025). The authors' repository advises 4 %
    of the steps: for a uniform grid of rectified flow, `after=0.96`. Its default is one step.
    """

    def change(x_t, t, prediction):
        still = recover(process, velocity, x_t, jax.tree.map(jnp.zeros_like, x_t), t)
        keep = leafwise(lambda t, x_t: expand(t <= after, x_t))(t, x_t)
        return _select(keep, prediction, still)

    return _map_prediction(denoiser, change)
