"""Samplers with one evaluation per step and no memory: Euler's method in two variables.

The variables are t and (x/alpha, sigma/alpha).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import quotient, root
from genjax.diffusion.samplers.tables import Table, sampler


@sampler
def euler(process: Process, times: Float[Array, " times"]) -> Table:
    """Take Euler steps in t on the probability-flow ODE: x_s = x_t + (s − t)·velocity(x_t, t)."""
    t, s = times[:-1], times[1:]
    return Table(
        t,
        state=jnp.ones_like(t),
        clean=((s - t) * process.alpha_prime(t))[:, None],
        noise=((s - t) * process.sigma_prime(t))[:, None],
    )


@sampler
def ddim(
    process: Process, times: Float[Array, " times"], eta: float | Float[Array, ""] = 0.0
) -> Table:
    """Take DDIM steps x_s = alpha_s·x̂ + √(sigma_s² − fresh²)·ẑ + fresh·ξ.

    Song et al. 2021, DDIM, equations 12 and 16, for any process. The deviation fresh is
    eta·sigma_s·√(1 − e^{−2h}), where the step adds 2h to the log-SNR. Without fresh noise this is
    Euler's method in (x/alpha, sigma/alpha). With eta = 0 it equals `euler` for rectified flow,
    with eta = 1 it is `ddpm`. It is exact at both ends of any process.
    """
    if isinstance(eta, int | float) and not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must be from 0 (no noise) to 1 (ddpm)")
    return ddim_step(process, times[:-1], times[1:], eta)


def ddim_step(
    process: Process,
    t: Float[Array, " steps"],
    s: Float[Array, " steps"],
    eta: float | Float[Array, ""],
) -> Table:
    """Return the table of `ddim` for any steps from t to s, which need not follow one another."""
    sigma, clean = process.sigma(s), process.alpha(s)[:, None]
    if isinstance(eta, int | float) and eta == 0:
        return Table(t, clean=clean, noise=sigma[:, None])
    kept = noise_kept(process, t, s)
    noise = sigma * root((1 - eta) * (1 + eta) + (eta * kept) ** 2)
    return Table(
        t, clean=clean, noise=noise[:, None], fresh=eta * sigma * root((1 - kept) * (1 + kept))
    )


def noise_kept(
    process: Process, t: Float[Array, " steps"], s: Float[Array, " steps"]
) -> Float[Array, " steps"]:
    """Return e^{−h} = (sigma_s/alpha_s)/(sigma_t/alpha_t), or 0 where a log-SNR is infinite."""
    return quotient(process.alpha(t), process.alpha(s)) * quotient(
        process.sigma(s), process.sigma(t)
    )
