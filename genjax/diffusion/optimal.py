"""Optimal prediction: what a perfect network would answer, E[x | x_t] and E[z | x_t], in closed form.

For data that are a finite set of points or a mixture of Gaussians, under any process; `combine(process, target,
prediction.clean, prediction.noise, t)` of `targets` turns the answer into that for any target, for all are linear.
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
CHUNK = 256  # points compared with a batch at once


def finite_data(
    process: Process, points: Float[Array, " points *shape"]
) -> Callable[..., Prediction]:
    """The best denoiser for data that are exactly `points`, equally likely (Karras et al. 2022, appendix B.3).

    x̂ averages the points by softmax_i(−‖x_t − alpha·x_i‖²/(2·sigma²)). Trained to the end, a network
    would do this, and generate nothing but its training set. Give one class's points for conditional prediction.

    At alpha = 0 x̂ is the points' mean; at sigma = 0, where nothing is seen of z, x̂ is the nearest point and ẑ = E[z] = 0.
    Memory is that of [points batch] weights, and of 256 points at a time subtracted from the batch.
    """

    def denoiser(x_t: Samples, t: Times) -> Prediction:
        alpha, sigma = process.alpha(t), process.sigma(t)
        tail = expand(alpha, x_t)

        def distance(
            point,
        ):  # by differences: |a|² − 2ab + |b|² would lose all digits at small sigma
            return jnp.sum(jnp.square(x_t - tail * point), axis=range(1, x_t.ndim))

        distances = jax.lax.map(distance, points, batch_size=min(CHUNK, len(points)))
        # At sigma = 0 the nearest remains. A compiler may round a distance in two ways, so that its difference is not 0.
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
    """Covariances U·diag(s²)·Uᵀ of the components of a mixture, made by `principal_axes`."""

    deviations: Float[Array, " components axes"]
    axes: Float[Array, " components dimensions axes"]


def principal_axes(covariances: Float[Array, " components *squared"]) -> PrincipalAxes:
    """Return the principal axes of covariances, and the deviations along them.

    Args:
        covariances: one [*shape *shape] per component, symmetric; it may be singular.

    Raises:
        ValueError: they have another shape.
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
    """log p(component, x_t) as [batch components], and of each its x̂, ẑ and −score, [batch components *shape].

    Raises:
        ValueError: weights, means and deviations disagree about the components.
    """
    deviations, axes = deviations if isinstance(deviations, PrincipalAxes) else (deviations, None)
    if not len(weights) == len(means) == len(deviations):
        raise ValueError(
            "a mixture has one weight, one mean and one deviation for each component; "
            f"got {len(weights)} weights, {len(means)} means and {len(deviations)} deviations"
        )
    if axes is None and deviations.ndim > means.ndim:
        raise ValueError(
            f"deviations of means {means.shape} are one per component, or per component and dimension; "
            f"got shape {deviations.shape}. Of covariances give principal_axes(covariances)"
        )
    residual = x_t[:, None] - expand(process.alpha(t), means[None]) * means
    rotated, rotate_back = residual, lambda a: a
    if axes is not None:  # in its own axes a component's dimensions are independent
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        rotated = product("bki,kij->bkj", residual.reshape(*residual.shape[:2], -1), axes)
        rotate_back = lambda a: product("bkj,kij->bki", a, axes).reshape(residual.shape)
    alpha, sigma = expand(process.alpha(t), rotated), expand(process.sigma(t), rotated)
    deviations = expand(deviations, rotated[0])
    variance = alpha**2 * deviations**2 + sigma**2
    # A singular covariance has no density at sigma = 0. A tiny variance stands for its limit there.
    tiny = jnp.sqrt(jnp.finfo(variance.dtype).tiny)
    spread = jnp.where(variance == 0, tiny, variance)
    log_densities = -(rotated**2 / spread + jnp.log(2 * jnp.pi * spread)) / 2
    log_joint = jnp.log(weights / jnp.sum(weights)) + jnp.sum(
        log_densities, axis=range(2, rotated.ndim)
    )
    # sigma is in no denominator, so that both ends are finite
    pull = rotated / jnp.where(variance == 0, 1, variance)
    return (
        log_joint,
        means + rotate_back(alpha * deviations**2 * pull),
        rotate_back(sigma * pull),
        rotate_back(pull),
    )


def _average(log_joint, values):
    return jnp.sum(expand(jax.nn.softmax(log_joint, axis=1), values) * values, axis=1)


def gaussian_mixture(
    process: Process,
    weights: Float[Array, " weights"],
    means: Float[Array, " components *shape"],
    deviations: Float[Array, " deviations ..."] | PrincipalAxes,
) -> Callable[..., Prediction]:
    """The best denoiser for data from Σ_k weights[k]·N(means[k], deviations[k]²).

    Each component answers x̂ = m + alpha·s²·(x_t − alpha·m)/v and ẑ = sigma·(x_t − alpha·m)/v with
    v = alpha²·s² + sigma²; they are averaged by how likely each is given x_t. Finite at both ends of any process.

    Args:
        deviations: one per component, or one per component and dimension; above zero (else see
            `finite_data`). For full covariances `principal_axes(covariances)`, made once for all
            steps.

    Raises:
        ValueError: weights, means and deviations disagree about the components, or covariances are
            given without their axes.
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
    """log p_t(x_t) in nats of the mixture noised to time t; at sigma = 0, alpha = 1 the data's own."""
    return logsumexp(_components(process, weights, means, deviations, x_t, t)[0], axis=1)


def gaussian_mixture_score(
    process: Process,
    weights: Float[Array, " weights"],
    means: Float[Array, " components *shape"],
    deviations: Float[Array, " deviations ..."] | PrincipalAxes,
    x_t: Samples,
    t: Times,
) -> Samples:
    """∇ log p_t(x_t) of the noised mixture, −ẑ/sigma of its denoiser, finite at sigma = 0."""
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
    """‖y − ŷ(x_t)‖² per dimension of data `x`, noised once each, for a denoiser at chosen times.

    Averaged over data, for the best denoiser, it estimates E Var[y | x_t], the least loss that any network can have
    there. For velocity it is the noise's variance at the clean end, the data's at the noise end, and largest
    between, where x_t tells neither.
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
    """E Var[y | x_t] per dimension for data N(m, deviation²): (d·alpha − c·sigma)²·s²/(alpha²·s² + sigma²)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    variance = alpha**2 * deviation**2 + sigma**2
    return (d * alpha - c * sigma) ** 2 * deviation**2 / variance
