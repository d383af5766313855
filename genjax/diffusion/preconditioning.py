"""Preconditioning: how a network is fed, and the deviation of its data.

Every process has one, `process.preconditioning`. `targets.network_inputs` reads from it the scale
of x_t and the network's time value. The target `edm`, the weighting `edm` and TrigFlow's sigma read
its `data_deviation`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Time = Float[Array, " *times"]


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """Feed x_t and t unchanged.

    Attributes:
        data_deviation: s, the root mean square of the data.
    """

    data_deviation: float = 0.5

    def input_scale(self, process: Any, t: Time) -> Time:
        """Return the factor of x_t at the network's input."""
        return jnp.ones_like(t)

    def network_time(self, process: Any, t: Time) -> Time:
        """Return the network's time input. It lies in [0, 1] unless the paper says otherwise."""
        return t


@dataclass(frozen=True, kw_only=True)
class UnitVariance(Preconditioning):
    """Feed x_t/√(alpha²s² + sigma²), which has unit variance at every t, and t unchanged."""

    def input_scale(self, process: Any, t: Time) -> Time:
        return jax.lax.rsqrt(process.sigma(t) ** 2 + process.alpha(t) ** 2 * self.data_deviation**2)


@dataclass(frozen=True, kw_only=True)
class EDMPreconditioning(UnitVariance):
    """Feed x_t/√(s² + sigma²) and log(sigma)/4 (Karras et al. 2022, table 1)."""

    def network_time(self, process: Any, t: Time) -> Time:
        return jnp.log(process.sigma(t)) / 4


@dataclass(frozen=True, kw_only=True)
class TrigFlowPreconditioning(Preconditioning):
    """Feed x_t/s and t (Lu & Song 2025, equation 5)."""

    def input_scale(self, process: Any, t: Time) -> Time:
        return jnp.full_like(t, 1 / self.data_deviation)


@dataclass(frozen=True, kw_only=True)
class TablePreconditioning(Preconditioning):
    """Feed x_t unchanged, and i/N at step i = 0, 1, … of a table of N betas."""

    def network_time(self, process: Any, t: Time) -> Time:
        return (len(process.betas) * t - 1) / len(process.betas)


@dataclass(frozen=True, kw_only=True)
class ShiftedPreconditioning(Preconditioning):
    """Feed what the base of a `Shifted` process feeds, at the base's time.

    `Shifted` overwrites `data_deviation` with that of the base.
    """

    def input_scale(self, process: Any, t: Time) -> Time:
        return process.base.preconditioning.input_scale(process.base, process.base_time(t))

    def network_time(self, process: Any, t: Time) -> Time:
        return process.base.preconditioning.network_time(process.base, process.base_time(t))
