"""Samplers that draw noise as they go: ancestral ones, churn, and the reverse SDE with any diffusion coefficient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.one_step import ddim, noise_kept
from genjax.diffusion.samplers.tables import Table, sampler


@sampler
def ddpm(process: Process, times: Float[Array, " times"]) -> Table:
    """Draws x_s from q(x_s | x_t, x = x̂), `ddim` with eta = 1 (Ho et al. 2020, algorithm 2), for any process.

    The variance is the least one, exact for data at a single point: β̃ = sigma_s²·(1 − e^{−2h}). A learned variance v
    in [0, 1] moves it log-linearly (Nichol & Dhariwal 2021, equation 15) up to the one exact for data N(0, I),
    β = sigma_t²·(1 − e^{−2h})·(alpha_s² + sigma_s²)/(alpha_t² + sigma_t²). A step to sigma_s = 0 draws nothing.
    """
    alpha, sigma = process.alpha(times), process.sigma(times)
    kept = noise_kept(process, times[:-1], times[1:])
    total = jnp.sqrt(alpha**2 + sigma**2)
    largest = sigma[:-1] * jnp.sqrt((1 - kept) * (1 + kept)) * total[1:] / total[:-1]
    return ddim.table(process, times, eta=1.0)._replace(largest=jnp.where(sigma[1:] > 0, largest, 0))


@sampler
def euler_ancestral(
    process: Process, times: Float[Array, " times"], eta: float | Float[Array, ""] = 1.0
) -> Table:
    """Euler in (x/alpha, sigma/alpha) to below the next noise level, and noise up to it: another name for `ddim`.

    With rho = sigma/alpha, the step goes down to √(rho_s² − up²), where up = eta·rho_s·√(1 − rho_s²/rho_t²)
    (Crowson 2022, k-diffusion): just what `ddim` does with the same eta.
    """
    return ddim.table(process, times, eta=eta)
