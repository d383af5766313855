"""Weightings w(process, target, t) of the loss on a target, ‖f − y‖².

A paper weighs the error of one target; the same weighting of the same denoiser's error in another follows from

    ‖ẑ − z‖² = (alpha/D)²·‖f − y‖²    ‖x̂ − x‖² = (sigma/D)²·‖f − y‖²    D = d·alpha − c·sigma

the determinant of the target (c, d). So whatever the target, a weighting here is one and the same loss.
"""

import jax.numpy as jnp

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Target, Times


def _squares(process: Process, target: Target, t: Times) -> tuple[Times, Times, Times]:
    """alpha², sigma² and D²."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    return alpha**2, sigma**2, (d * alpha - c * sigma) ** 2


def uniform(process: Process, target: Target, t: Times) -> Times:
    """1, on whatever target: the only weighting that depends on which it is."""
    return jnp.ones_like(t)


def min_snr(process: Process, target: Target, t: Times, gamma: float = 5.0) -> Times:
    """min(SNR, gamma) on the clean error (Hang et al. 2023): 1 on noise where SNR ≤ gamma."""
    alpha2, sigma2, D2 = _squares(process, target, t)
    return jnp.minimum(alpha2, gamma * sigma2) / D2


def truncated_snr(process: Process, target: Target, t: Times) -> Times:
    """Return max(SNR, 1) of the clean error, the larger of it and the noise error's 1.

    (Salimans & Ho 2022, progressive distillation, section 4.)
    """
    alpha2, sigma2, D2 = _squares(process, target, t)
    return jnp.maximum(alpha2, sigma2) / D2


def edm(process: Process, target: Target, t: Times, data_deviation: float | None = None) -> Times:
    """1/c_out² on the clean error, which is 1 on the target `edm` (Karras et al. 2022, table 1).

    Args:
        data_deviation: that of the process' preconditioning if None.
    """
    s = process.preconditioning.data_deviation if data_deviation is None else data_deviation
    alpha2, sigma2, D2 = _squares(process, target, t)
    return (sigma2 / s**2 + alpha2) / D2


def sigmoid(process: Process, target: Target, t: Times, bias: float = 0.0) -> Times:
    """sigmoid(bias − log-SNR) on the noise error (Kingma & Gao 2023; Hoogeboom et al. 2024).

    Their loss is an integral over the log-SNR: choose times among which it is equally likely.
    """
    alpha2, sigma2, D2 = _squares(process, target, t)
    return alpha2 * sigma2 / (sigma2 + jnp.exp(-bias) * alpha2) / D2


def p2(process: Process, target: Target, t: Times, k: float = 1.0, gamma: float = 1.0) -> Times:
    """1/(k + SNR)^gamma on the noise error (Choi et al. 2022)."""
    alpha2, sigma2, D2 = _squares(process, target, t)
    return alpha2 * (sigma2 / (k * sigma2 + alpha2)) ** gamma / D2
