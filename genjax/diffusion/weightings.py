"""Weightings w(process, target, t) of the squared error ‖f − y‖² of a target.

A paper weighs the error of one target. The same weighting, written for the error of another target,
follows from

    ‖ẑ − z‖² = (alpha/D)²·‖f − y‖²    ‖x̂ − x‖² = (sigma/D)²·‖f − y‖²    D = d·alpha − c·sigma

where D is the determinant of the target (c, d). So a weighting here is the same loss for every
target. Only `uniform` depends on the target.

A weighting takes times of any shape and returns one weight for each.
"""

import jax
import jax.numpy as jnp

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Target, Times


def _errors(process: Process, target: Target, t: Times) -> tuple[Times, Times]:
    """Return (alpha/D)² and (sigma/D)²: the noise error and the clean error for ‖f − y‖² = 1."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    D = d * alpha - c * sigma
    # Targets of noise alone (c = 0) have D = 0 where alpha = 0, those of data where sigma = 0.
    noise_error = jnp.where(c == 0, jnp.reciprocal(d), alpha / D) ** 2
    return noise_error, jnp.where(d == 0, jnp.reciprocal(c), sigma / D) ** 2


def uniform(process: Process, target: Target, t: Times) -> Times:
    """Return 1 for every target: the only weighting that depends on the target."""
    return jnp.ones_like(t)


def min_snr(process: Process, target: Target, t: Times, gamma: float = 5.0) -> Times:
    """Return the weight min(SNR, gamma) of the clean error (Hang et al. 2023).

    It is a weight of 1 on the noise error where SNR ≤ gamma.
    """
    noise_error, clean_error = _errors(process, target, t)
    return jnp.minimum(noise_error, gamma * clean_error)


def truncated_snr(process: Process, target: Target, t: Times) -> Times:
    """Return max(SNR, 1) of the clean error, the larger of it and the noise error's 1.

    (Salimans & Ho 2022, progressive distillation, section 4.)
    """
    return jnp.maximum(*_errors(process, target, t))


def edm(process: Process, target: Target, t: Times, data_deviation: float | None = None) -> Times:
    """Return the weight 1/c_out² of the clean error (Karras et al. 2022, table 1).

    It is a weight of 1 on the target `edm`.

    Args:
        data_deviation: s. None takes that of the process' preconditioning.
    """
    s = process.preconditioning.data_deviation if data_deviation is None else data_deviation
    noise_error, clean_error = _errors(process, target, t)
    return noise_error + clean_error / s**2


def sigmoid(process: Process, target: Target, t: Times, bias: float = 0.0) -> Times:
    """Return the weight sigmoid(bias − log-SNR) of the noise error.

    The loss of the papers is an integral over the log-SNR (Kingma & Gao 2023; Hoogeboom et al.
    2024). So choose a distribution of times with equally likely log-SNRs (`times.uniform_log_snr`).
    """
    noise_error, _ = _errors(process, target, t)
    return noise_error * jax.nn.sigmoid(bias - process.log_snr(t))


def p2(process: Process, target: Target, t: Times, k: float = 1.0, gamma: float = 1.0) -> Times:
    """Return the weight 1/(k + SNR)^gamma of the noise error (Choi et al. 2022)."""
    noise_error, _ = _errors(process, target, t)
    return noise_error / (k + jnp.exp(process.log_snr(t))) ** gamma


def bounded_velocity(process: Process, target: Target, t: Times, smallest: float = 0.05) -> Times:
    """Return the weight 1/max(sigma, smallest)² of the clean error (Li & He 2025, JiT).

    For rectified flow it is a weight of 1 on the velocity's error where sigma ≥ smallest.
    """
    _, clean_error = _errors(process, target, t)
    return clean_error / jnp.maximum(process.sigma(t), smallest) ** 2
