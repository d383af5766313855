"""Optimal denoisers: the answer of a perfect network, E[x | x_t] and E[z | x_t], in closed form.

Data are a finite set of points or a mixture of Gaussians, and the process is any. All targets are
linear, so `targets.combine(process, target, prediction.clean, prediction.noise, t)` gives the
optimal answer for any target.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Prediction, Target, combine

Samples = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]
CHUNK = 256  # points whose distances to a batch are computed at once


def finite_data(
    process: Process, points: Float[Array, " points *shape"]
) -> Callable[..., Prediction]:
    """Make the optimal denoiser for data that are exactly `points`, equally likely.

    Karras et al. 2022, appendix B.3. x̂ averages the points with weights softmax_i(−‖x_t −
    alpha·x_i‖²/(2·sigma²)). A network trained to the end would do the same, and would generate only
    its training set. For class-conditional prediction give the points of one class.

    At alpha = 0, x̂ is the mean of the points. At sigma = 0, where x_t contains nothing of z, x̂ is
    the nearest point and ẑ = E[z] = 0. Memory holds [points batch] weights, and the differences of
    256 points at a time to the batch.
    """

    def denoiser(x_t: Samples, t: Times) -> Prediction:
        alpha, sigma = process.alpha(t), process.sigma(t)
        tail = expand(alpha, x_t)
        # Take differences: |a|² − 2ab + |b|² would lose all digits at small sigma.
        distance = lambda point: jnp.sum(jnp.square(x_t - tail * point), range(1, x_t.ndim))
        distances = jax.lax.map(distance, points, batch_size=min(CHUNK, len(points)))
        # At sigma = 0 only the nearest point remains. Its index is needed, because a compiler may
        # round its distance in two ways, with a difference that is not 0.
        nearest = jnp.arange(len(points))[:, None] == jnp.argmin(distances, axis=0)
        excess = jnp.where(nearest, 0, jnp.maximum(distances - jnp.min(distances, axis=0), 0))
        weights = jax.nn.softmax(
            -excess / jnp.maximum(2 * sigma**2, jnp.finfo(x_t.dtype).tiny), axis=0
        )
        x_hat = jnp.einsum("pb,p...->b...", weights, points, precision=jax.lax.Precision.HIGHEST)
        inverse = jnp.where(sigma > 0, 1 / jnp.where(sigma > 0, sigma, 1), 0)
        return Prediction(x_hat, expand(inverse, x_t) * (x_t - tail * x_hat))

    return denoiser


class PrincipalAxes(NamedTuple):
    """The covariances U·diag(s²)·Uᵀ of a mixture's components, made by `principal_axes`."""

    deviations: Float[Array, " components axes"]
    axes: Float[Array, " components dimensions axes"]


def principal_axes(covariances: Float[Array, " components *squared"]) -> PrincipalAxes:
    """Return the principal axes of covariances, and the deviations along them.

    Args:
        covariances: one symmetric [*shape *shape] per component, which may be singular.

    Raises:
        ValueError: the covariances have another shape.
    """
    components, *shape = covariances.shape
    half = len(shape) // 2
    if not shape or shape[:half] != shape[half:]:
        raise ValueError(
            f"covariances are [components *shape *shape]; got shape {covariances.shape}"
        )
    dimensions = math.prod(shape[:half])
    variances, axes = jnp.linalg.eigh(covariances.reshape(components, dimensions, dimensions))
    return PrincipalAxes(jnp.sqrt(jnp.maximum(variances, 0)), axes)


def _components(process, weights, means, deviations, x_t, t):
    """Return log p(component, x_t), [batch components], and each component's x̂, ẑ and −score.

    The last three are [batch components *shape].

    Raises:
        ValueError: weights, means and deviations differ in their number of components.
    """
    deviations, axes = deviations if isinstance(deviations, PrincipalAxes) else (deviations, None)
    if not len(weights) == len(means) == len(deviations):
        raise ValueError(
            "a mixture has one weight, one mean and one deviation for each component; "
            f"got {len(weights)} weights, {len(means)} means and {len(deviations)} deviations"
        )
    if axes is None and deviations.ndim > means.ndim:
        raise ValueError(
            f"deviations of means {means.shape} are one per component, or per component and "
            f"dimension; got shape {deviations.shape}. For covariances give "
            "principal_axes(covariances)"
        )
    residual = x_t[:, None] - expand(process.alpha(t), means[None]) * means
    rotated, rotate_back = residual, lambda a: a
    # The dimensions of a component are independent in its principal axes.
    if axes is not None:
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        rotated = product("bki,kij->bkj", residual.reshape(*residual.shape[:2], -1), axes)
        rotate_back = lambda a: product("bkj,kij->bki", a, axes).reshape(residual.shape)
    alpha, sigma = expand(process.alpha(t), rotated), expand(process.sigma(t), rotated)
    deviations = expand(deviations, rotated[0])
    variance = alpha**2 * deviations**2 + sigma**2
    # A singular covariance has no density at sigma = 0. A tiny variance replaces its limit there.
    tiny = jnp.sqrt(jnp.finfo(variance.dtype).tiny)
    spread = jnp.where(variance == 0, tiny, variance)
    log_densities = -(rotated**2 / spread + jnp.log(2 * jnp.pi * spread)) / 2
    log_joint = jnp.log(weights / jnp.sum(weights)) + jnp.sum(
        log_densities, axis=range(2, rotated.ndim)
    )
    # No denominator contains sigma alone, so both ends are finite.
    pull = rotated / jnp.where(variance == 0, 1, variance)
    return (
        log_joint,
        means + rotate_back(alpha * deviations**2 * pull),
        rotate_back(sigma * pull),
        rotate_back(pull),
    )


def _average(log_joint, values):
    """Return the values averaged over components, weighted by how likely each is."""
    return jnp.sum(expand(jax.nn.softmax(log_joint, axis=1), values) * values, axis=1)


def gaussian_mixture(
    process: Process,
    weights: Float[Array, " weights"],
    means: Float[Array, " components *shape"],
    deviations: Float[Array, " deviations ..."] | PrincipalAxes,
) -> Callable[..., Prediction]:
    """Make the optimal denoiser for data from Σ_k weights[k]·N(means[k], deviations[k]²).

    With v = alpha²·s² + sigma², a component answers x̂ = m + alpha·s²·(x_t − alpha·m)/v and ẑ =
    sigma·(x_t − alpha·m)/v. The answers are averaged with the probabilities of the components given
    x_t. They are finite at both ends of any process.

    Args:
        deviations: one per component, or one per component and dimension, above zero. For
            deviations of zero see `finite_data`. For full covariances give
            `principal_axes(covariances)`, computed once for all steps.

    Raises:
        ValueError: weights, means and deviations differ in their number of components, or
            covariances are given without their axes.
    """

    def denoiser(x_t: Samples, t: Times) -> Prediction:
        log_joint, x_hats, z_hats, _ = _components(process, weights, means, deviations, x_t, t)
        return Prediction(_average(log_joint, x_hats), _average(log_joint, z_hats))

    return denoiser


def gaussian_mixture_log_density(
    process: Process,
    weights: Float[Array, " weights"],
    means: Float[Array, " components *shape"],
    deviations: Float[Array, " deviations ..."] | PrincipalAxes,
    x_t: Samples,
    t: Times,
) -> Float[Array, " batch"]:
    """Return log p_t(x_t) in nats, `[batch]`, for the mixture noised to time t.

    At sigma = 0 and alpha = 1 it is the density of the data. Arguments are as for
    `gaussian_mixture`.
    """
    return logsumexp(_components(process, weights, means, deviations, x_t, t)[0], axis=1)


def gaussian_mixture_score(
    process: Process,
    weights: Float[Array, " weights"],
    means: Float[Array, " components *shape"],
    deviations: Float[Array, " deviations ..."] | PrincipalAxes,
    x_t: Samples,
    t: Times,
) -> Samples:
    """Return ∇ log p_t(x_t) of the noised mixture, `[batch …]`, finite at sigma = 0.

    It is −ẑ/sigma of the optimal denoiser. Arguments are as for `gaussian_mixture`.
    """
    log_joint, _, _, pull = _components(process, weights, means, deviations, x_t, t)
    return -_average(log_joint, pull)


def denoising_loss(
    key: Key[Array, ""],
    denoiser: Callable[..., Prediction],
    process: Process,
    target: Target,
    x: Samples,
    t: Times,
) -> Float[Array, " batch"]:
    """Return ‖y − ŷ(x_t)‖² per dimension, `[batch]`, for data `x` noised once each to times `t`.

    For the optimal denoiser, the average over data estimates E Var[y | x_t], the least loss that
    any network can have at t. For velocity this is the variance of the noise at the clean end and
    that of the data at the noise end. It is largest between the ends, where x_t determines neither
    data nor noise.
    """
    z = jax.random.normal(key, x.shape, x.dtype)
    prediction = denoiser(process.corrupt(x, z, t), t)
    error = combine(process, target, x - prediction.clean, z - prediction.noise, t)
    return jnp.mean(jnp.square(error), axis=range(1, x.ndim))


def gaussian_least_loss(
    process: Process,
    target: Target,
    t: Float[Array, " *times"],
    deviation: float | Float[Array, ""],
) -> Float[Array, " *times"]:
    """Return the least loss E Var[y | x_t] per dimension for data N(m, deviation²).

    It is (d·alpha − c·sigma)²·s²/(alpha²·s² + sigma²), with s the deviation.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    variance = alpha**2 * deviation**2 + sigma**2
    return (d * alpha - c * sigma) ** 2 * deviation**2 / variance
