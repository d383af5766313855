"""Losses of diffusion and flow matching: the simple loss and the hybrid loss of learned variances.

Data, process, target, distribution and weighting may be trees (`trees`). The network is called once
on the whole tree, and every leaf has its own loss and times. `total_loss` adds the leaves up.
`sums_by_time` shows how a loss depends on time.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Bool, Float, Key, PyTree

from genjax.diffusion.processes import Process, corrupt, expand
from genjax.diffusion.targets import (
    Target,
    check_functions,
    check_output,
    combine,
    network_inputs,
    split_variance,
)
from genjax.diffusion.times import TimeDistribution, independent
from genjax.diffusion.trees import Tree, leaf_keys, leafwise

Weighting = Callable[
    [Process, Target, Float[Array, " batch *times"]], Float[Array, " batch *times"]
]


def _variates(key, x, variates, time_axes):
    """Draw u with each function of `variates`. The leaves of x below a function share its draw."""

    def draw(variates, key, x, axes):
        leaves = zip(jax.tree.leaves(x), jax.tree.leaves(axes), strict=True)
        shapes = {leaf.shape[:count] for leaf, count in leaves}
        if len(shapes) > 1:
            raise ValueError(
                f"leaves that share variates need times of one shape, got {sorted(shapes)}; "
                "give `variates` as a tree, one function for each of these leaves"
            )
        return variates(key, *shapes)

    return jax.tree.map(
        draw, variates, leaf_keys(key, variates), x, jax.tree.broadcast(time_axes, x)
    )


@leafwise
def data_and_noise(
    key: Key[Array, ""] | None,
    x: Float[Array, " batch *shape"],
    z: Float[Array, " batch *shape"] | None,
) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]]:
    """Return the data, and the noise z, drawn from N(0, I) if None, for arrays or trees.

    Args:
        key: for each array its own, of a tree `leaf_keys(key, x)`.

    Raises:
        ValueError: x is not of floats, or z has not the shape of x.
    """
    x = jnp.asarray(x)  # float64 of NumPy is float32 in JAX
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"data are floats; got {x.dtype}: convert them (data.to_float)")
    z = jax.random.normal(key, x.shape, x.dtype) if z is None else jnp.asarray(z)
    if z.shape != x.shape:  # they would broadcast
        raise ValueError(f"the noise has shape {z.shape}; it needs that of x, {x.shape}")
    return x, z


@leafwise
def _times(x, distribution, process, u):
    """Return the times of a leaf, and dt/du of their distribution."""
    return jax.jvp(lambda u: distribution(process, u), (u,), (jnp.ones_like(u),))


def _evaluate(key, apply, x, conditioning, process, target, times, variates, time_axes, z=None):
    """Return the network's output at random times, the target y, the times, and their dt/du."""
    check_functions(target=target, times=times, variates=variates)
    time_key, noise_key = jax.random.split(key)
    x, z = data_and_noise(leaf_keys(noise_key, x), x, z)
    t, inverse_density = _times(x, times, process, _variates(time_key, x, variates, time_axes))
    x_t = corrupt(process, x, z, t)
    output = apply(*network_inputs(process, x_t, t), *conditioning)
    wanted, given = jax.tree.structure(x), jax.tree.structure(output)
    if given != wanted:  # each part of a pair would have a loss of its own
        raise ValueError(f"the network returns {given}; it must return one like x, {wanted}")
    output = jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), output)
    return output, combine(process, target, x, z, t), t, inverse_density


def _mean(a, like):
    """Return the means over the axes that `like` does not have."""
    return jnp.mean(a, axis=range(like.ndim, a.ndim))


def _direction(a, b, like):
    """Return 1 − cosine of the angle between channels, averaged over places."""
    # A network whose output starts at 0 would have an infinite gradient without the constant.
    unit = lambda a: a * jax.lax.rsqrt(jnp.sum(jnp.square(a), axis=-1, keepdims=True) + 1e-4)
    return _mean(1 - jnp.sum(unit(a) * unit(b), axis=-1), like)


def at_counted_times(function: Callable, ignored: Bool[Array, " batch *times"]) -> Callable:
    """Make a target or a weighting that takes the middle of the domain where a loss is ignored.

    A given part has the time of the clean end, where targets and weightings may be infinite. A loss
    that is masked afterwards would then have the gradient 0·∞.
    """

    def counted(process: Process, *arguments):
        *others, t = arguments
        return function(process, *others, jnp.where(ignored, sum(process.domain) / 2, t))

    return counted


def simple_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Tree,
    *conditioning,
    process: PyTree[Process],
    target: PyTree[Target],
    times: PyTree[TimeDistribution],
    variates: PyTree[Callable] = independent,
    weighting: PyTree[Weighting] | None = None,
    importance_corrected: bool = False,
    direction_weight: float = 0.0,
    time_axes: PyTree[int] = 1,
    noise: Tree | None = None,
) -> tuple[Tree, Tree]:
    """Return w(t)·‖f(x_t, t) − y‖² at random t (Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 9).

    Args:
        apply: the network with its parameters bound, called as in `targets.predict`.
        x: data `[batch …]`, or a tree of such arrays.
        times: the distribution of the times (`times.uniform`, …).
        variates: draws the uniform variates (`times.independent` or `times.stratified`), once for
            all leaves of x. In a tree of functions, each draws for the leaves below it.
        weighting: w(process, target, t), from `weightings`. None means 1.
        importance_corrected: divide by the distribution's density. The expected loss is then the
            integral over t for every distribution, and the distribution changes only the variance.
        direction_weight: weight of 1 − cos(f, y) over channels, averaged over places, which is
            added to the squared error (Yao & Wang 2025, "LightningDiT": the velocity's direction).
        time_axes: the number of leading axes of x that have times of their own: 1 for one time per
            example, 2 for one per frame or token (Chen et al. 2024, Diffusion Forcing).
        noise: z, like x. None draws from N(0, I). It may be the noise of a coupling (minibatch
            optimal transport), the noise from which a model made x (reflow, Liu et al. 2023), or
            other data (a bridge from data to data).

    Returns:
        The loss at each time, `[batch]` or `[batch frames]`, and the times. The squared error is
        averaged over the other axes of x. Both results are trees like x.

    Raises:
        ValueError: leaves of x share a function of `variates`, but the shapes of their times
            differ; x is not of floats; the noise has not x's shape; the network's output has not
            x's shape and structure; or target, times, variates or weighting is no function.
    """

    @leafwise
    def loss(output, y, t, inverse_density, process, target, weighting):
        check_output(output, y)
        loss = _mean(jnp.square(output - y), t)
        if direction_weight:
            loss += direction_weight * _direction(output, y, t)
        if weighting is not None:
            loss = weighting(process, target, t) * loss
        return inverse_density * loss if importance_corrected else loss

    check_functions(weighting=weighting)
    output, y, t, inverse_density = _evaluate(
        key, apply, x, conditioning, process, target, times, variates, time_axes, noise
    )
    return loss(output, y, t, inverse_density, process, target, weighting), t


def total_loss(
    losses: Tree, weights: PyTree[float | Float[Array, ""]] = 1.0
) -> Float[Array, " batch"]:
    """Compute Σ weight·loss over the leaves, each loss averaged over an example's times.

    Every leaf's loss is a mean over its dimensions. So the number of dimensions does not matter,
    only the weight does.

    Args:
        losses: those of `simple_loss` or `hybrid_loss`, `[batch]` or `[batch frames]`.
        weights: one per leaf, or one for all.
    """
    weighted = leafwise(lambda loss, weight: weight * jnp.mean(loss, axis=range(1, loss.ndim)))
    return jax.tree.reduce(jnp.add, weighted(losses, weights))


def step_variances(
    process: Process, t: Float[Array, " *times"], s: Float[Array, " *times"]
) -> tuple[Float[Array, " *times"], Float[Array, " *times"]]:
    """Return the least and the largest variance that p(x_s | x_t) can have, s < t.

    The least is exact for data at a point, the largest for data N(0, I). They are β̃ and β where
    alpha² + sigma² = 1 (Ho et al. 2020, section 3.2). The variance of a network that learns it lies
    between them (`targets.Prediction`).
    """
    new = -jnp.expm1(process.log_snr(t) - process.log_snr(s))
    before, after = (process.alpha(time) ** 2 + process.sigma(time) ** 2 for time in (s, t))
    return process.sigma(s) ** 2 * new, process.sigma(t) ** 2 * new * before / after


def step_divergence(
    process: Process,
    t: Float[Array, " batch *times"],
    s: Float[Array, " batch *times"],
    error: Float[Array, " batch *shape"],
    fraction: Float[Array, " batch *shape"],
) -> Float[Array, " batch *shape"]:
    """Return KL(q(x_s | x_t, x) ‖ p(x_s | x_t)) in nats, elementwise.

    The means of the two Gaussians differ by √(least·(SNR_s − SNR_t))·error.

    Args:
        error: x̂ − x.
        fraction: `Prediction.fraction`.
    """
    least, largest = step_variances(process, t, s)
    snr = jnp.exp(process.log_snr(s))
    gained = -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * snr  # SNR_s − SNR_t
    # The log of the ratio of p's variance to q's.
    larger = fraction * expand(jnp.log(largest / least), error)
    return (
        larger + jnp.expm1(-larger) + jnp.exp(-larger) * expand(gained, error) * jnp.square(error)
    ) / 2


def discretized_nll(
    x: Float[Array, " *shape"], mean: Float[Array, " *shape"], deviation: Float[Array, " *shape"]
) -> Float[Array, " *shape"]:
    """Return −log of the mass of N(mean, deviation²) around each x, in nats.

    x is one of 256 levels in [−1, 1]. The outermost levels include the tails (Ho et al. 2020,
    equation 13).
    """
    centred, half = x - mean, 1 / 255
    # The distribution is symmetric. The absolute value moves the interval to where log Φ is
    # precise.
    distance = jnp.abs(centred)
    above, below = (half - distance) / deviation, (-half - distance) / deviation
    inside = log_ndtr(above) + jnp.log(-jnp.expm1(log_ndtr(below) - log_ndtr(above)))
    tail = log_ndtr((half - jnp.sign(x) * centred) / deviation)
    return -jnp.where(jnp.abs(x) > 0.999, tail, inside)


def bound_step(
    process: Process,
    x: Float[Array, " batch *shape"],
    t: Float[Array, " batch *times"],
    error: Float[Array, " batch *shape"],
    fraction: Float[Array, " batch *shape"],
    num_steps: int = 1000,
) -> Float[Array, " batch *times"]:
    """Return the variational bound's term for the step from t, in bits per dimension.

    The step has the length 1/num_steps of all times, and its term is the divergence (Nichol &
    Dhariwal 2021, section 3.1). Where the step would end within half a step of the clean end, the
    term is the likelihood of x in 256 levels. The least variance would be 0 there, so that of the
    step before is used.

    Args:
        error, fraction: as in `step_divergence`.
    """
    step = (process.domain[1] - process.clean_end) / num_steps
    last = t < process.clean_end + 1.5 * step
    # Start one step earlier where t is last, so that both branches and their gradients are finite.
    start, end = jnp.where(last, t + step, t), jnp.where(last, t, t - step)
    divergence = step_divergence(process, start, end, error, fraction)
    least, _ = step_variances(process, start, end)
    _, largest = step_variances(process, t, jnp.full_like(t, process.clean_end))
    least, largest = expand(jnp.log(least), x), expand(jnp.log(largest), x)
    nll = discretized_nll(x, x + error, jnp.exp((least + fraction * (largest - least)) / 2))
    return _mean(jnp.where(expand(last, x), nll, divergence), t) / math.log(2)


def hybrid_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Tree,
    *conditioning,
    process: PyTree[Process],
    target: PyTree[Target],
    times: PyTree[TimeDistribution],
    variates: PyTree[Callable] = independent,
    weighting: PyTree[Weighting] | None = None,
    bound_weight: float = 0.001,
    num_steps: int = 1000,
    time_axes: PyTree[int] = 1,
) -> tuple[Tree, Tree]:
    """Compute `simple_loss` + bound_weight·L_vlb for a network with learned variance.

    Nichol & Dhariwal 2021, equation 16. L_vlb, in bits per dimension, is estimated by num_steps
    times its term at t (`bound_step`). It trains the variance only: no gradient reaches the
    prediction through it. The network's output is that of `targets.split_variance`.

    Args, returned values and errors are those of `simple_loss`.
    """

    @leafwise
    def loss(x, output, y, t, process, target, weighting):
        if output.shape != (*x.shape[:-1], 2 * x.shape[-1]):
            raise ValueError(
                f"the network returns shape {output.shape}; with learned variance it must return "
                f"twice the channels of x, {x.shape}"
            )
        prediction, fraction = split_variance(output)
        loss = _mean(jnp.square(prediction - y), t)
        if weighting is not None:
            loss = weighting(process, target, t) * loss
        c, d = target(process, t)
        # x̂ − x is this factor times f − y.
        to_clean = process.sigma(t) / (c * process.sigma(t) - d * process.alpha(t))
        error = jax.lax.stop_gradient(expand(to_clean, x) * (prediction - y))
        return loss + bound_weight * num_steps * bound_step(
            process, x, t, error, fraction, num_steps
        )

    output, y, t, _ = _evaluate(
        key, apply, x, conditioning, process, target, times, variates, time_axes
    )
    return loss(x, output, y, t, process, target, weighting), t


@leafwise
def sums_by_time(
    process: Process,
    losses: Float[Array, " batch *times"],
    t: Float[Array, " batch *times"],
    num_bins: int,
) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """Return sums of losses and their counts, `[bins]`, in equal parts of the domain of t.

    A tree of losses gives trees of sums and counts.
    """
    start, end = process.domain
    place = jnp.clip(num_bins * (t - start) / (end - start), 0, num_bins - 1).astype(int)
    in_bin = jax.nn.one_hot(place, num_bins)
    each = range(losses.ndim)
    # An infinite loss is one of its own bin only, and infinity times 0 is not 0.
    in_each = jnp.where(in_bin > 0, losses[..., None], 0)
    return jnp.sum(in_each, axis=each), jnp.sum(in_bin, axis=each)
