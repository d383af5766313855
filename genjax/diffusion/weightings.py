"""Weightings w(process, target, t) of the squared error ‖f − y‖² of a target.

A paper weighs the error of one target. The same weighting, written for the error of another target,
follows from

    ‖ẑ − z‖² = (alpha/D)²·‖f − y‖²    ‖x̂ − x‖² = (sigma/D)²·‖f − y‖²    D = d·alpha − c·sigma

where D is the determinant of the target (c, d). So a weighting here is the same loss for every
target. Only `uniform` depends on the target.

A weighting takes times of any shape and returns one weight for each.
"""

import jax.numpy as jnp

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Target, Times


def _squares(process: Process, target: Target, t: Times) -> tuple[Times, Times, Times]:
    """Return alpha², sigma² and D²."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    return alpha**2, sigma**2, (d * alpha - c * sigma) ** 2


def uniform(process: Process, target: Target, t: Times) -> Times:
    """Return 1 for every target: the only weighting that depends on the target."""
    return jnp.ones_like(t)


def min_snr(process: Process, target: Target, t: Times, gamma: float = 5.0) -> Times:
    """Return the weight min(SNR, gamma) of the clean error (Hang et al. 2023).

    It is a weight of 1 on the noise error where SNR ≤ gamma.
    """
    alpha2, sigma2, D2 = _squares(process, target, t)
    return jnp.minimum(alpha2, gamma * sigma2) / D2


def truncated_snr(process: Process, target: Target, t: Times) -> Times:
    """Return max(SNR, 1) of the clean error, the larger of it and the noise error's 1.

    (Salimans & Ho 2022, progressive distillation, section 4.)
    """
    alpha2, sigma2, D2 = _squares(process, target, t)
    return jnp.maximum(alpha2, sigma2) / D2


def edm(process: Process, target: Target, t: Times, data_deviation: float | None = None) -> Times:
    """Return the weight 1/c_out² of the clean error (Karras et al. 2022, table 1).

    It is a weight of 1 on the target `edm`.

    Args:
        data_deviation: s. None takes that of the process' preconditioning.
    """
    s = process.preconditioning.data_deviation if data_deviation is None else data_deviation
    alpha2, sigma2, D2 = _squares(process, target, t)
    return (sigma2 / s**2 + alpha2) / D2


def sigmoid(process: Process, target: Target, t: Times, bias: float = 0.0) -> Times:
    """Return the weight sigmoid(bias − log-SNR) of the noise error.

    The loss of the papers is an integral over the log-SNR (Kingma & Gao 2023; Hoogeboom et al.
    2024). So choose a distribution of times with equally likely log-SNRs (`times.uniform_log_snr`).
    """
    alpha2, sigma2, D2 = _squares(process, target, t)
    return alpha2 * sigma2 / (sigma2 + jnp.exp(-bias) * alpha2) / D2


def p2(process: Process, target: Target, t: Times, k: float = 1.0, gamma: float = 1.0) -> Times:
    """Return the weight 1/(k + SNR)^gamma of the noise error (Choi et al. 2022)."""
    alpha2, sigma2, D2 = _squares(process, target, t)
    return alpha2 * (sigma2 / (k * sigma2 + alpha2)) ** gamma / D2


def bounded_velocity(process: Process, target: Target, t: Times, smallest: float = 0.05) -> Times:
    """Return the weight 1/max(sigma, smallest)² of the clean error (Li & He 2025, JiT).

    For rectified flow it is a weight of 1 on the velocity's error where sigma ≥ smallest.
    """
    _, sigma2, D2 = _squares(process, target, t)
    return sigma2 / jnp.maximum(sigma2, smallest**2) / D2
