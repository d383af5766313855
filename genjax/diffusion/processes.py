"""Processes: how data becomes noise, x_t = alpha(t)·x + sigma(t)·z.

Time runs over `domain`, from the clean end to the noise end. Methods take scalars or arrays of times
and work elementwise.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

Time = Float[Array, " *times"]


def expand(t: Shaped[Array, " *leading"], like: Shaped[Array, " *shape"]) -> Shaped[Array, " *expanded"]:
    """Appends axes of size one to `t` until it broadcasts against `like` from the left."""
    return jnp.reshape(t, jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t)))


def shift_time(t: Float[Array, " *shape"], shift: float | Float[Array, ""]) -> Float[Array, " *shape"]:
    """shift·t / (1 + (shift − 1)·t): towards noise for shift > 1 (Esser et al. 2024, equation 23).

    For rectified flow it lowers the log-SNR by 2·log(shift) at every t. Higher resolutions, whose
    neighbouring pixels correlate more, want larger shifts; shift = √(pixels / pixels at shift 1).
    """
    return t / (t + (1 - t) / shift)  # in this form the ends stay exactly 0 and 1


def sample_keys(key: Key[Array, ""], indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key per sample, by its index among all samples: so a sample does not depend on its batch."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


@dataclass(frozen=True, kw_only=True)
class Process:
    """The pair (alpha, sigma). A new process needs these two methods; the rest follows from them."""

    domain: tuple[float, float] = (0.0, 1.0)

    @property
    def clean_end(self) -> float:
        """The time at which sampling ends; a network need not know it."""
        return self.domain[0]

    def alpha(self, t: Time) -> Time:
        """What is left of the data at time t."""
        raise NotImplementedError

    def sigma(self, t: Time) -> Time:
        """The deviation of the noise at time t."""
        raise NotImplementedError

    def alpha_prime(self, t: Time) -> Time:
        return jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))[1]

    def sigma_prime(self, t: Time) -> Time:
        return jax.jvp(self.sigma, (t,), (jnp.ones_like(t),))[1]

    def log_snr(self, t: Time) -> Time:
        """log(alpha²/sigma²): falls from +∞ (or large) at the clean end to −∞ (or small) at the noise end."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time_at(self, log_snr: Time) -> Time:
        """The inverse of `log_snr`."""
        raise NotImplementedError

    def input_scale(self, t: Time) -> Time:
        """What x_t is multiplied by before a network sees it."""
        return jnp.ones_like(t)

    def network_time(self, t: Time) -> Time:
        """The value in [0, 1] by which a network is told the time."""
        return t

    def corrupt(
        self, x: Float[Array, " batch *shape"], z: Float[Array, " batch *shape"], t: Float[Array, " batch"]
    ) -> Float[Array, " batch *shape"]:
        """x_t of data `x` and noise `z` at one time per example."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * z

    def prior(
        self, keys: Key[Array, " batch"], shape: tuple[int, ...], t: Float[Array, ""] | None = None
    ) -> Float[Array, " batch *shape"]:
        """What sampling starts from: N(0, sigma²) at time t, the noise end if None, one key per sample.

        It is the exact marginal only where alpha reaches zero; elsewhere the data left in it is neglected.
        """
        z = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return self.sigma(jnp.asarray(self.domain[1] if t is None else t)) * z


def to_domain(process: Process, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Stretches t in [0, 1] over the process' domain."""
    start, end = process.domain
    return start + (end - start) * t


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Process):
    """Straight lines from data to noise, x_t = (1 − t)·x + t·z, whose velocity is z − x (Liu et al. 2023)."""

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def sigma(self, t: Time) -> Time:
        return t

    def time_at(self, log_snr: Time) -> Time:
        return jax.nn.sigmoid(-log_snr / 2)


@dataclass(frozen=True, kw_only=True)
class VariancePreservingCosine(Process):
    """alpha = cos(πt/2), sigma = sin(πt/2) (Nichol & Dhariwal 2021, without offset; Salimans & Ho 2022)."""

    def alpha(self, t: Time) -> Time:
        return jnp.sin(jnp.pi / 2 * (1 - t))  # the cosine, and exactly zero at t = 1

    def sigma(self, t: Time) -> Time:
        return jnp.sin(jnp.pi / 2 * t)

    def time_at(self, log_snr: Time) -> Time:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr / 2))


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Process):
    """alpha = 1 and sigma geometric from `sigma_min` to `sigma_max` (Song et al. 2021, equation 30)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time_at(self, log_snr: Time) -> Time:
        return (-log_snr / 2 - jnp.log(self.sigma_min)) / jnp.log(self.sigma_max / self.sigma_min)

    def input_scale(self, t: Time) -> Time:
        return jax.lax.rsqrt(1 + self.sigma(t) ** 2)  # unit variance for data of unit variance


@dataclass(frozen=True, kw_only=True)
class EDM(Process):
    """alpha = 1 and sigma = t, for data of deviation `data_deviation` (Karras et al. 2022, table 1)."""

    domain: tuple[float, float] = (0.002, 80.0)
    data_deviation: float = 0.5

    @property
    def clean_end(self) -> float:
        return 0.0

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return t

    def time_at(self, log_snr: Time) -> Time:
        return jnp.exp(-log_snr / 2)

    def input_scale(self, t: Time) -> Time:
        return jax.lax.rsqrt(t**2 + self.data_deviation**2)

    def network_time(self, t: Time) -> Time:
        return jnp.log(t) / 4
