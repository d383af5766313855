"""The likelihood of data under a diffusion model: exact by its ODE, or bounded by weighted errors.

Everything is in nats per sample, and `bits_per_dimension` converts. Data are one array, with one
time per sample.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.tables import check_grid
from genjax.diffusion.targets import Prediction, check_prediction
from genjax.diffusion.times import TimeDistribution, uniform_log_snr

Samples = Float[Array, " batch *shape"]
Nats = Float[Array, " batch"]
Levels = Float[Array, " levels"]


def _checked(x):
    """Return x as an array of float32 at least; raise ValueError if it is a tree of arrays."""
    if jax.tree.structure(x) != jax.tree.structure(0):
        raise ValueError(
            f"likelihoods take one array [batch …], not a tree; got {jax.tree.structure(x)}"
        )
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _prediction(denoiser, x_t, t):
    prediction = denoiser(x_t, t)
    check_prediction(prediction)
    return prediction


def log_likelihood(
    denoiser: Callable[..., Prediction],
    process: Process,
    x: Samples,
    keys: Key[Array, " batch"] | None = None,
    *,
    probe: Callable = jax.random.rademacher,
    num_probes: int = 1,
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    max_steps: int = 4096,
) -> tuple[Nats, Samples]:
    """Compute log p(x) = log N(x_1; 0, sigma(1)²) + ∫ tr(∂v/∂x_t) dt along dx_t/dt = v.

    Song et al. 2021, equation 39. The state at the domain's clean end is x, so the density is that
    of data with the noise of this time. If the velocity is infinite there (variance preserving,
    linear), let the domain start later, at 1e-5. The exact trace takes as many forward derivatives
    of the denoiser at once as x has dimensions.

    Args:
        denoiser: a function of x_t and t only, so no guidance with momentum.
        x: `[batch …]`.
        keys: None for the exact trace. One per sample for Hutchinson's unbiased estimate
            εᵀ(∂v/∂x_t)ε (Grathwohl et al. 2019), whose probes ε stay the same for the whole
            integration.
        probe: draws the probes, `(key, shape, dtype)`: `jax.random.rademacher` (least variance) or
            `jax.random.normal`.
        num_probes: the number of probes over which the estimate is averaged.
        rtol: relative tolerance, which every sample and dimension keeps in each step
            (Dormand–Prince 8).
        atol: absolute tolerance. In float32, tolerances below 1e-6 may never be reached.
        max_steps: more steps are an error. A `VariancePreservingTable`, whose velocity jumps at
            each of its 1,000 times, takes several thousand steps at tight tolerances.

    Returns:
        log p(x) in nats, `[batch]`, and the latents x_1, `[batch …]`.

    Raises:
        ValueError: x is a tree.
        RuntimeError: at run time, if `max_steps` do not suffice for the tolerances, or the velocity
            is not finite.
    """
    import diffrax  # slow to import

    x = _checked(x)
    probes = _probes(x, keys, probe, num_probes)
    start, end = (jnp.asarray(t, x.dtype) for t in process.domain)

    field = diffrax.ODETerm(_field(denoiser, process, probes))
    state = x, jnp.zeros(len(x), x.dtype)
    steps = diffrax.PIDController(rtol, atol, norm=_largest)
    options = dict(stepsize_controller=steps, max_steps=max_steps)
    solution = diffrax.diffeqsolve(field, diffrax.Dopri8(), start, end, None, state, **options)
    latents, integral = (leaf[-1] for leaf in solution.ys)
    log_prior = jnp.sum(norm.logpdf(latents, scale=process.sigma(end)), axis=range(1, x.ndim))
    return log_prior + integral, latents


def _field(denoiser, process, probes):
    """Return the field of the state x_t and of the integral of the trace."""

    def field(t, state, _):
        x_t, _ = state
        times = jnp.full(len(x_t), t, x_t.dtype)
        velocity = lambda x_t: _prediction(denoiser, x_t, times).velocity(process, times)
        return _velocity_and_trace(velocity, x_t, probes)

    return field


def _probes(x, keys, probe, num_probes):
    """Return probes ε, [probes *x.shape], with E[Σ εεᵀ] = I, so that E[Σ εᵀAε] = tr A.

    Without keys they are the unit vectors, and the trace is exact.
    """
    _, *shape = x.shape
    if keys is None:
        dimensions = math.prod(shape)
        probes = jnp.eye(dimensions, dtype=x.dtype).reshape(dimensions, 1, *shape)
        return jnp.broadcast_to(probes, (dimensions, *x.shape))
    draw = jax.vmap(lambda key: probe(key, (num_probes, *shape), x.dtype), out_axes=1)
    return draw(keys) / math.sqrt(num_probes)


def _velocity_and_trace(velocity, x_t, probes):
    """Return v(x_t), and Σ εᵀ(∂v/∂x_t)ε of each sample."""
    directional_derivative = lambda tangent: jax.jvp(velocity, (x_t,), (tangent,))
    v, derivatives = jax.vmap(directional_derivative, out_axes=(None, 0))(probes)
    return v, jnp.einsum("pb...,pb...->b", probes, derivatives, precision=jax.lax.Precision.HIGHEST)


def _largest(error):
    """Return the largest error. With a mean, a sample's error would depend on its batch."""
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda a: jnp.max(jnp.abs(a)), error))


class Bound(NamedTuple):
    """The terms of the variational bound on −log p(x), in nats per sample, `[batch]` each.

    Attributes:
        prior: what the state at the noise end still contains of x.
        diffusion: the cost of denoising.
        reconstruction: the cost of x given the state at the clean end.
    """

    prior: Nats
    diffusion: Nats
    reconstruction: Nats

    @property
    def log_likelihood(self) -> Nats:
        """Return minus the sum of the terms: in expectation over the noise at most log p(x)."""
        return -(self.prior + self.diffusion + self.reconstruction)


def _snr(process, t):
    return jnp.square(process.alpha(t) / process.sigma(t))


def _squared(a):
    return jnp.sum(jnp.square(a), axis=range(1, a.ndim))


def _ends(key, process, x, first, last, levels):
    """Return the prior and the reconstruction term for a process from `first` to `last`.

    Raises:
        ValueError: sigma is 0 at `last`, if that is not traced.
    """
    if not isinstance(last, jax.core.Tracer) and process.sigma(last) <= 0:
        raise ValueError(
            f"times end at {float(last):g}, where sigma = 0 and the bound is infinite; stop them "
            f"earlier, as in {type(process).__name__}(domain=(1e-3, …))"
        )
    # KL(N(alpha·x, sigma²) ‖ N(0, sigma²)), exactly.
    prior = _snr(process, first) / 2 * _squared(x)
    ratio = process.alpha(last) / process.sigma(last)
    if levels is None:
        each = jnp.full_like(x, jnp.log(2 * jnp.pi) / 2 - jnp.log(ratio) + 1 / 2)
    else:
        z = jax.random.normal(key, x.shape, x.dtype)
        # (x_t − alpha·level)/sigma, without a difference of near numbers. It is z at x's own level.
        standardized = z[..., None] + ratio * (x[..., None] - levels)
        each = logsumexp(-jnp.square(standardized) / 2, axis=-1) + jnp.square(z) / 2
    return prior, jnp.sum(each, axis=range(1, x.ndim))


def discrete_bound(
    key: Key[Array, ""],
    denoiser: Callable[..., Prediction],
    process: Process,
    x: Samples,
    times: Float[Array, " times"],
    levels: Levels | None = None,
) -> Bound:
    """Compute the bound of a sampler with these steps, Σ (SNR(s) − SNR(t))/2·‖x − x̂(x_t)‖².

    The sum is over steps t → s, with SNR = alpha²/sigma²; prior and reconstruction are added at
    both ends. It is equation 5 of Ho et al. 2020, written as equation 13 of Kingma et al. 2021.
    Data and noise are drawn once for each step. The prior term is exact, and without levels the
    reconstruction term is too. The prior is N(0, sigma²) at the first time.

    Args:
        times: a grid, noise end first, that stops before sigma is 0.
        levels: the values that x can take (256 in [−1, 1]), for a bound on a probability. The
            decoder is a softmax over levels of N(x_t/alpha; level, (sigma/alpha)²). None bounds a
            density: x is decoded as N(x_t/alpha, (sigma/alpha)²).

    Raises:
        ValueError: x is a tree, or the grid leaves the process' domain or ends at sigma = 0.
    """
    x = _checked(x)
    check_grid(process, times)
    times = times.astype(x.dtype)
    diffusion_key, end_key = jax.random.split(key)

    def add(total, step):
        index, t, s = step
        z = jax.random.normal(jax.random.fold_in(diffusion_key, index), x.shape, x.dtype)
        each_t = jnp.full(len(x), t, x.dtype)
        error = _squared(x - _prediction(denoiser, process.corrupt(x, z, each_t), each_t).clean)
        return total + (_snr(process, s) - _snr(process, t)) / 2 * error, None

    prior, reconstruction = _ends(end_key, process, x, times[0], times[-1], levels)
    steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    diffusion, _ = jax.lax.scan(add, jnp.zeros(len(x), x.dtype), steps)
    return Bound(prior, diffusion, reconstruction)


def continuous_bound(
    key: Key[Array, ""],
    denoiser: Callable[..., Prediction],
    process: Process,
    x: Samples,
    times: TimeDistribution = uniform_log_snr,
    num_times: int = 1,
    levels: Levels | None = None,
) -> Bound:
    """Compute the bound of infinitely many steps, ½∫ −λ'(t)·‖z − ẑ(x_t)‖² dt with λ the log-SNR.

    Kingma et al. 2021, equation 17. The other two terms are those of `discrete_bound`. If a
    denoiser knows time by its log-SNR, the value depends only on the log-SNR at the ends of the
    process.

    Args:
        times: the distribution of the times; its values at 0 and 1 are the ends of the integral.
            The expectation is the integral for every distribution, but the variance differs. The
            default weighs all errors equally. For data N(0, 0.36) and 16 times, the standard
            deviation is 3.4 nats for rectified flow from t = 0.001 (`times.uniform`: 12) and 2.7
            nats for `EDM` (`times.uniform`: 34 to 73).
        num_times: the number of times per sample, one in each of as many equally likely parts.
        levels: as for `discrete_bound`.

    Raises:
        ValueError: x is a tree, sigma is 0 at the distribution's first time, or the default
            distribution meets sigma = 0 in the domain.
    """
    x = _checked(x)
    diffusion_key, end_key = jax.random.split(key)
    last, first = times(process, jnp.array([0.0, 1.0], x.dtype))

    def add(total, part):
        noise_key, time_key = jax.random.split(jax.random.fold_in(diffusion_key, part))
        u = (part + jax.random.uniform(time_key, x.shape[:1], x.dtype)) / num_times
        # u may be rounded to an end, where the distribution has no slope.
        u = jnp.clip(u, 2.0**-24, 1 - 2.0**-24)
        _, slope = jax.jvp(lambda u: process.log_snr(times(process, u)), (u,), (jnp.ones_like(u),))
        z, t = jax.random.normal(noise_key, x.shape, x.dtype), times(process, u)
        error = _squared(z - _prediction(denoiser, process.corrupt(x, z, t), t).noise)
        return total - slope / (2 * num_times) * error, None

    prior, reconstruction = _ends(end_key, process, x, first, last, levels)
    diffusion, _ = jax.lax.scan(add, jnp.zeros(len(x), x.dtype), jnp.arange(num_times))
    return Bound(prior, diffusion, reconstruction)


def bits_per_dimension(log_likelihood: Nats, num_dimensions: int, bin_width: float = 1.0) -> Nats:
    """Return −log₂ of a sample's probability, per dimension (Theis et al. 2016, section 3.1).

    Args:
        log_likelihood: in nats per sample, `[batch]`, as returned by the functions above.
        num_dimensions: of a sample, channels included.
        bin_width: the distance of neighbouring levels, 2/(K − 1) for K levels from −1 to 1, if the
            likelihood is a density of data made continuous by `dequantize`. A bin then has a
            probability of at least exp(E log p)·width per dimension. The default 1 takes the
            log-likelihoods as those of probabilities.
    """
    return -(log_likelihood / num_dimensions + math.log(bin_width)) / math.log(2)


def dequantize(key: Key[Array, ""], x: Samples, bin_width: float) -> Samples:
    """Spread every value uniformly over the bin of `bin_width` around it (Uria et al. 2013)."""
    return x + bin_width * (jax.random.uniform(key, x.shape, x.dtype) - 0.5)
