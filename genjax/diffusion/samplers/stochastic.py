"""Samplers that draw noise at every step: ancestral sampling, churn, and the reverse SDE."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import noise_ratio, quotient, root
from genjax.diffusion.samplers.one_step import ddim_step, noise_kept
from genjax.diffusion.samplers.runge_kutta import heun_in_rho, two_rows, without_last_row
from genjax.diffusion.samplers.tables import Table, sampler

Scalar = float | Float[Array, ""]


@sampler
def ddpm(process: Process, times: Float[Array, " times"]) -> Table:
    """Draw x_s from q(x_s | x_t, x = x̂): `ddim` with eta = 1 (Ho et al. 2020, algorithm 2).

    It works for any process. The variance is the least one, β̃ = sigma_s²·(1 − e^{−2h}), exact for
    data at a single point. The largest variance is exact for data N(0, I): β = sigma_t²·(1 −
    e^{−2h})·(alpha_s² + sigma_s²)/(alpha_t² + sigma_t²). A learned variance v in [0, 1] moves
    log-linearly from the least to the largest (Nichol & Dhariwal 2021, equation 15). A step to
    sigma_s = 0 draws nothing.
    """
    alpha, sigma = process.alpha(times), process.sigma(times)
    kept = noise_kept(process, times[:-1], times[1:])
    total = jnp.sqrt(alpha**2 + sigma**2)
    largest = sigma[:-1] * root((1 - kept) * (1 + kept)) * total[1:] / total[:-1]
    return ddim_step(process, times[:-1], times[1:], 1.0)._replace(largest=largest)


@sampler
def euler_ancestral(process: Process, times: Float[Array, " times"], eta: Scalar = 1.0) -> Table:
    """Take an Euler step to below the next noise level and add noise up to it.

    This is another name for `ddim`.

    Crowson 2022, k-diffusion. With rho = sigma/alpha, the Euler step in (x/alpha, rho) goes down to
    √(rho_s² − up²), where up = eta·rho_s·√(1 − rho_s²/rho_t²). This equals `ddim` with the same
    eta.
    """
    return ddim_step(process, times[:-1], times[1:], eta)


@sampler
def dpm2_ancestral(process: Process, times: Float[Array, " times"], eta: Scalar = 1.0) -> Table:
    """Take a midpoint step in log rho to below the next noise level, and add noise up to it.

    Crowson 2022, k-diffusion. Each step has two evaluations, the second at √(rho_t·rho_down), with
    rho = sigma/alpha and levels as in `euler_ancestral`. The last step, and a step from infinite
    rho, are those of `euler_ancestral`. So there are 2N − 1 evaluations. With eta = 0 this is DPM2.
    """
    once = ddim_step(process, times[:-1], times[1:], eta)
    alpha = process.alpha(times)
    rho, down = noise_ratio(process, times[:-1]), quotient(once.noise[:, 0], alpha[1:])
    halved = jnp.isfinite(rho) & (down > 0) & (jnp.arange(len(rho)) < len(rho) - 1)
    rho, down = jnp.where(halved, rho, 1), jnp.where(halved, down, 1)
    middle = jnp.where(halved, process.time_at(-jnp.log(rho * down)), times[1:])
    change = alpha[1:] * jnp.where(halved, down - rho, 0)
    zeros = jnp.zeros_like(change)
    noise = jnp.stack(
        [two_rows(process.sigma(middle), change), two_rows(zeros, once.noise[:, 0] - change)], 1
    )
    table = Table(
        two_rows(times[:-1], middle),
        clean=jnp.stack([two_rows(process.alpha(middle), zeros), two_rows(zeros, alpha[1:])], 1),
        noise=noise.at[-2, 0].set(once.noise[-1, 0]),
        fresh=None
        if once.fresh is None
        else two_rows(zeros, once.fresh).at[-2].set(once.fresh[-1]),
        step=np.arange(len(noise)) // 2,
    )
    return without_last_row(table)


@sampler
def edm_stochastic(
    process: Process,
    times: Float[Array, " times"],
    s_churn: Scalar = 40.0,
    s_min: Scalar = 0.05,
    s_max: Scalar = 50.0,
    s_noise: Scalar = 1.003,
) -> Table:
    """Add noise up from rho to (1 + gamma)·rho, then take a Heun step down from there.

    Karras et al. 2022, algorithm 2, for any process. gamma = min(s_churn/N, √2 − 1) while rho =
    sigma/alpha is in [s_min, s_max]. `s_noise` multiplies the deviation of the added noise. The
    defaults are those of table 5 for ImageNet-64, and s_churn = 0 is `edm_heun`.

    The last step is Euler's, so there are 2N − 1 evaluations. A step from infinite rho is Euler's
    too, and adds no noise. No noise is added beyond the process' noise end.
    """
    t, s = times[:-1], times[1:]
    if isinstance(s_churn, int | float) and s_churn == 0:
        return without_last_row(heun_in_rho(process, t, s))
    rho = noise_ratio(process, t)
    end = jnp.asarray(process.domain[1], times.dtype)
    gamma = jnp.where(
        (s_min <= rho) & (rho <= s_max), jnp.minimum(s_churn / len(t), jnp.sqrt(2.0) - 1), 0
    )
    raised = jnp.minimum((1 + gamma) * rho, process.sigma(end) / process.alpha(end))
    churned = raised > rho  # false at infinite rho
    rho, raised = jnp.where(churned, rho, 1), jnp.where(churned, raised, 1)
    start = jnp.where(churned, process.time_at(-2 * jnp.log(raised)), t)
    added = s_noise * process.alpha(start) * root((raised - rho) * (raised + rho))
    scale = jnp.where(churned, process.alpha(start) / jnp.where(churned, process.alpha(t), 1), 1)
    zeros = jnp.zeros_like(start)
    table = heun_in_rho(process, start, s)
    churn = dict(churn=two_rows(added, zeros), churn_state=two_rows(scale, zeros + 1))
    return without_last_row(table._replace(**churn))


def noise_growth(process: Process, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
    """Return sigma·sigma', half the rate at which the variance of the noise grows.

    It is sigma for rectified flow, as the paper's w (Ma et al. 2024, SiT). The authors' program
    draws √(2·diffusion), so its form "sigma" is twice this w.
    """
    return process.sigma(t) * process.sigma_prime(t)


def process_diffusion(process: Process, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
    """Return g² = 2·sigma·sigma' − 2·(alpha'/alpha)·sigma².

    g is the diffusion coefficient of the SDE from data to noise that has the process' marginals. It
    is infinite where alpha is zero (Song et al. 2021; Kingma et al. 2021, equation 36).
    """
    sigma = process.sigma(t)
    return 2 * sigma * (process.sigma_prime(t) - process.alpha_prime(t) / process.alpha(t) * sigma)


@sampler
def euler_maruyama(
    process: Process,
    times: Float[Array, " times"],
    diffusion: Callable[[Process, Float[Array, " steps"]], Float[Array, " steps"]] = noise_growth,
) -> Table:
    """Take Euler–Maruyama steps x_s = x_t + (s − t)·(velocity − w/2·score) + √(w·(t − s))·ξ.

    Song et al. 2021, appendix D; Ma et al. 2024, SiT. The steps go from noise to data, with score =
    −ẑ/sigma. The diffusion coefficient w = diffusion(process, t) is free, because the marginals are
    always those of the probability-flow ODE. w = 0 is `euler`. A step to sigma_s = 0 is Euler's
    too, because its noise would stay in the sample. So is a step where w is infinite.
    """
    t, s = times[:-1], times[1:]
    drawn = jnp.isfinite(diffusion(process, t)) & (process.sigma(s) > 0)
    w = diffusion(process, jnp.where(drawn, t, sum(process.domain) / 2))
    w = jnp.where(drawn, jnp.maximum(w, 0), 0)  # rounding may take it below 0
    return Table(
        t,
        state=jnp.ones_like(t),
        clean=((s - t) * process.alpha_prime(t))[:, None],
        noise=((s - t) * (process.sigma_prime(t) + quotient(w, 2 * process.sigma(t))))[:, None],
        fresh=root(w * (t - s)),
    )


@sampler
def reverse_diffusion(process: Process, times: Float[Array, " times"]) -> Table:
    """Take steps x_s = (2 − a)·x_t + b²·score + b·ξ (Song et al. 2021, equation 46).

    Here score = −ẑ/sigma_t, a = alpha_t/alpha_s and b² = sigma_t²·(1 − e^{−2h}). To first order in
    the step, they reverse x_t = a·x_s + b·ξ. A step from or to infinite log-SNR is `ddim`'s.
    """
    alpha, sigma = process.alpha(times), process.sigma(times)
    kept = noise_kept(process, times[:-1], times[1:])
    b = sigma[:-1] * root((1 - kept) * (1 + kept))
    finite = kept > 0
    return Table(
        times[:-1],
        state=jnp.where(finite, 2 - quotient(alpha[:-1], alpha[1:]), 0),
        clean=jnp.where(finite, 0, alpha[1:])[:, None],
        noise=jnp.where(finite, quotient(-(b**2), sigma[:-1]), sigma[1:])[:, None],
        fresh=jnp.where(finite, b, 0),
    )


@sampler
def predictor_corrector(
    process: Process,
    times: Float[Array, " times"],
    predictor: Callable = reverse_diffusion,
    corrector_steps: int = 1,
    snr: Scalar = 0.16,
) -> Table:
    """Take Langevin steps at each time, then the predictor's step to the next time.

    Song et al. 2021, appendix G. A corrector's step is x + epsilon·score + √(2·epsilon)·ξ with
    epsilon = 2·(a·snr·sigma_t)² (algorithms 4 and 5). The paper's alpha_i is a² =
    alpha_t²/alpha_s². As in the authors' program, correctors come first, and there are none at the
    clean end.

    The authors' epsilon has ‖ξ‖/‖score‖ in place of sigma_t. For score = −z/sigma_t, that ratio is
    sigma_t in many dimensions. In few dimensions the ratio scatters and tilts the distribution;
    sigma_t does not. The Kolmogorov–Smirnov distance is .006, .003 and .004 in 2, 16 and 128
    dimensions (critical value .0096). It was measured on a mixture of two Gaussians with the
    variance exploding process, 500 even steps and 20,000 samples.

    Args:
        predictor: a sampler with one evaluation per step and no memory.
        corrector_steps: evaluations at each time before that of the predictor.
        snr: r, the ratio of the noise in a corrector's step to its drift.

    Raises:
        ValueError: the predictor has several evaluations per step or a memory.
    """
    table, t = predictor.table(process, times), times[:-1]
    if table.clean.shape != (len(t), 1) or not (table.stage_state is table.churn is None):
        raise ValueError(
            f"predictor={predictor.__name__} has several evaluations per step or a memory; take "
            "reverse_diffusion, ddpm, ddim, euler or euler_maruyama"
        )

    def rows(corrector, predictor):
        return jnp.stack([corrector] * corrector_steps + [predictor], 1).reshape(-1)

    alpha, sigma, zeros = process.alpha(times), process.sigma(t), jnp.zeros_like(t)
    q = quotient(snr * alpha[:-1], alpha[1:])
    return Table(
        rows(t, t),
        state=rows(zeros + 1, zeros if table.state is None else table.state),
        clean=rows(zeros, table.clean[:, 0])[:, None],
        noise=rows(-2 * q**2 * sigma, table.noise[:, 0])[:, None],
        fresh=rows(2 * q * sigma, zeros if table.fresh is None else table.fresh),
        step=np.arange(len(t) * (corrector_steps + 1)) // (corrector_steps + 1),
    )
