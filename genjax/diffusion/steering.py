"""Particle steering: exact conditional samples from a denoiser trained without the condition.

Several particles of each sample take ancestral steps (`ddpm`). The steps have the least variance; a
learned one is ignored. After each step a particle is kept, copied or dropped by its weight, and one
is chosen in the end. This is a Feynman–Kac model (Del Moral 2004; Trippe et al. 2023; Singhal et
al. 2025). With an exact denoiser, the distribution of the chosen particle converges to the exact
one as particles and steps become many.

The denoiser is `(x_t, t) -> Prediction` on `[batch *shape]`, so conditions need no copies. It is
evaluated steps × particles times for each sample. Data are one array.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.stochastic import ddpm
from genjax.diffusion.targets import Prediction

Data = Float[Array, " batch *shape"]
Particles = Float[Array, " batch particles *shape"]
Weights = Float[Array, " batch particles"]
LEAST_REWARD = -1e30


def steer(
    denoiser: Callable[..., Prediction],
    process: Process,
    noise: Particles,
    times: Float[Array, " times"],
    keys: Key[Array, " batch"],
    log_reward: Callable[[Data, Float[Array, " batch"]], Float[Array, " batch"]],
) -> Data:
    """Sample from p(x)·exp(log_reward(x)), normalized (Singhal et al. 2025, FK steering).

    Every step weighs a particle by exp(reward of the new x̂ − reward of the previous x̂). The
    product of these weights is exp(reward of x).

    Args:
        noise: the noise of all particles, as from `process.prior(keys, (num_particles, *shape))`.
        keys: one per sample, for all draws.
        log_reward: `(x̂, t) -> [batch]`. At the clean end it is the reward of a sample, and −∞
            excludes the sample. Earlier it may be any finite guess of that reward. A better guess
            needs fewer particles for the same distribution. An infinite guess also excludes
            particles that could still become good samples, and so changes the distribution.

    Returns:
        One sample for each key, `[batch *shape]`.
    """

    # The rewards' type. The differences of rewards are log weights, which need float32.
    dtype = jnp.promote_types(noise.dtype, jnp.float32)

    def step(carry, numbered):
        (x, last_reward), (index, row) = carry, numbered
        prediction = _evaluate(denoiser, x, row.times)
        reward = _reward(log_reward, prediction.clean, row.times, dtype)
        chosen = _resample(keys, 2 * index + 1, reward - last_reward)
        clean, noise, reward = (
            _take(a, chosen) for a in (prediction.clean, prediction.noise, reward)
        )
        xi = _normal(keys, 2 * index, x)
        x_s = row.clean[0] * clean + row.noise[0] * noise + row.fresh * xi
        return (x_s.astype(x.dtype), reward), None

    start = noise, jnp.zeros(noise.shape[:2], dtype)
    (x, last_reward), _ = jax.lax.scan(step, start, _rows(process, times, noise.dtype))
    reward = _reward(log_reward, x, times[-1], dtype)
    return _choose(keys, len(times), x, reward - last_reward)


def steer_inpainting(
    denoiser: Callable[..., Prediction],
    process: Process,
    noise: Particles,
    times: Float[Array, " times"],
    keys: Key[Array, " batch"],
    known: Bool[Array, " ..."],
    images: Data,
) -> Data:
    """Sample p(x | x is `images` where `known`) (Trippe et al. 2023, SMCDiff, algorithm 2).

    The known part is noised once for each sample, and all its particles see that path. A step
    weighs a particle by the density of the path's next point under the particle's own step. The
    step to sigma = 0 has no density and weighs all particles equally.

    Args:
        noise: the noise of all particles, as from `process.prior(keys, (num_particles, *shape))`.
        keys: one per sample, for all draws.
        known: True where the data are given; broadcasts against `images`.

    Returns:
        One sample for each image, equal to the image where known.
    """
    known, images = jnp.broadcast_to(known, images.shape)[:, None], images[:, None]
    shared = lambda a: jnp.where(known, a[:, :1], a)  # the known part is that of particle 0

    def step(x, numbered):
        index, row = numbered
        alpha, sigma = process.alpha(row.times), process.sigma(row.times)
        prediction = _evaluate(denoiser, x, row.times)
        clean = jnp.where(known, images, prediction.clean)
        noise = jnp.where(known, (x - alpha * images) / sigma, prediction.noise)
        xi = shared(_normal(keys, 2 * index, x))
        # The step's mean with the known data, minus the particle's own, in deviations of the step.
        per_error = (row.clean[0] - row.noise[0] * alpha / sigma) / jnp.where(
            row.fresh > 0, row.fresh, jnp.inf
        )
        difference = per_error * (clean - prediction.clean)
        log_weight = -jnp.sum(difference * (difference / 2 + xi), axis=range(2, x.ndim))
        x_s = row.clean[0] * clean + row.noise[0] * noise + row.fresh * xi
        return _take(x_s.astype(x.dtype), _resample(keys, 2 * index + 1, log_weight)), None

    alpha = process.alpha(times[0]).astype(noise.dtype)
    start = shared(noise) + jnp.where(known, alpha * images, 0).astype(noise.dtype)
    x, _ = jax.lax.scan(step, start, _rows(process, times, noise.dtype))
    return _choose(keys, len(times), x, jnp.zeros(x.shape[:2], x.dtype))


def _rows(process, times, dtype):
    """Return the rows of `ddpm` with their numbers, for a scan, in the type and at least float32.

    Times of bfloat16 would be rounded to 1 near the noise end.
    """
    table, dtype = ddpm.table(process, times), jnp.promote_types(dtype, jnp.float32)
    return jnp.arange(len(times) - 1), jax.tree.map(lambda column: column.astype(dtype), table)


def _evaluate(denoiser, x, t):
    """Return the predictions for all particles. The denoiser sees `[batch *shape]`."""
    return jax.vmap(denoiser, in_axes=(1, None), out_axes=1)(x, jnp.full(x.shape[:1], t))


def _reward(log_reward, clean, t, dtype):
    """Return the rewards of all particles. They are finite, since −∞ − (−∞) is no weight."""
    reward = jax.vmap(log_reward, in_axes=(1, None), out_axes=1)(
        clean, jnp.full(clean.shape[:1], t, jnp.promote_types(clean.dtype, jnp.float32))
    )
    return jnp.maximum(reward.astype(dtype), LEAST_REWARD)


def _normal(keys, number, like):
    """Return N(0, I), drawn with each sample's key folded by `number`."""
    draw = lambda key: jax.random.normal(
        jax.random.fold_in(key, number), like.shape[1:], like.dtype
    )
    return jax.vmap(draw)(keys)


def _resample(keys, number, log_weights: Weights) -> Int[Array, " batch particles"]:
    """Return the index of the particle that each particle becomes.

    Systematic resampling: equal weights keep all particles.
    """
    count = log_weights.shape[1]

    def resample_one(key, log_weights):
        ends = jnp.cumsum(jax.nn.softmax(log_weights))
        points = (jnp.arange(count) + jax.random.uniform(jax.random.fold_in(key, number))) / count
        return jnp.searchsorted(ends / ends[-1], points)

    return jax.vmap(resample_one)(keys, log_weights)


def _take(a, chosen):
    """Return the chosen particles of each sample."""
    return jax.vmap(lambda a, chosen: a[chosen])(a, chosen)


def _choose(keys, number, x, log_weights):
    """Return one particle of each sample, drawn by its weight."""
    draw = lambda key, log_weights: jax.random.categorical(
        jax.random.fold_in(key, 2 * number), log_weights
    )
    return _take(x, jax.vmap(draw)(keys, log_weights))
