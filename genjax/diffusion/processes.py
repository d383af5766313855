"""Processes: how data becomes noise, x_t = alpha(t)·x + sigma(t)·z.

Time runs over `domain`, from the clean end to the noise end. Methods take scalars or arrays of
times and work elementwise. A config names a process of this module, with its fields as plain,
hashable values.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from genjax.diffusion.preconditioning import (
    EDMPreconditioning,
    Preconditioning,
    ShiftedPreconditioning,
    TablePreconditioning,
    TrigFlowPreconditioning,
    UnitVariance,
)
from genjax.diffusion.trees import leaf_keys, leafwise

Time = Float[Array, " *times"]


def expand(
    t: Shaped[Array, " *leading"], like: Shaped[Array, " *shape"]
) -> Shaped[Array, " *expanded"]:
    """Append axes of size one to `t` until it broadcasts against `like` from the left.

    So times `[batch]` are one per example, and times `[batch frames]` one per frame of `like`.

    Raises:
        ValueError: `t` has more axes than `like`, against which it would broadcast from the right.
    """
    if jnp.ndim(t) > like.ndim:
        raise ValueError(
            f"times of shape {jnp.shape(t)} have more axes than data of shape {like.shape}; give "
            "one time per example [batch], or one per frame [batch frames]"
        )
    return jnp.reshape(t, jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t)))


def across_batch(
    a: Shaped[Array, " *frames"], like: Shaped[Array, " batch *shape"]
) -> Shaped[Array, " ..."]:
    """Expand a number or one value per frame, which all samples share, to the axes of `like`."""
    return expand(a[None], like) if a.ndim else a


def _check_rates(process) -> None:
    """Raise ValueError unless beta_min is at least 0, and beta_max above 0."""
    if not (process.beta_min >= 0 and process.beta_max > 0):
        raise ValueError(
            f"rates go from beta_min, at least 0, to beta_max, above 0; got beta_min="
            f"{process.beta_min} and beta_max={process.beta_max}"
        )


def _slope(function: Callable[[Time], Time], t: Time) -> Time:
    """Return the derivative at time t, also where t is a whole number."""
    t = jnp.asarray(t, jnp.result_type(t, float))
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def shift_time(
    t: Float[Array, " *shape"], shift: float | Float[Array, ""]
) -> Float[Array, " *shape"]:
    """Return shift·t / (1 + (shift − 1)·t), nearer to noise for shift > 1.

    This is equation 23 of Esser et al. 2024. For rectified flow it lowers the log-SNR by
    2·log(shift) at every t. Neighbouring pixels correlate more at higher resolutions, which
    therefore need larger shifts: shift = √(pixels / pixels at shift 1).

    Raises:
        ValueError: the shift is not positive. A traced shift has no value to check.
    """
    if not isinstance(shift, jax.core.Tracer) and not np.all(np.asarray(shift) > 0):
        raise ValueError(f"a shift is positive, and 1 means no shift; got {shift}")
    # This form keeps the ends at exactly 0 and 1.
    return t / (t + (1 - t) / shift)


def sample_keys(key: Key[Array, ""], indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """Return one key per sample, by its index among all samples.

    So a sample does not depend on its batch.
    """
    indices = jnp.asarray(indices)
    if indices.ndim != 1:
        raise ValueError(
            f"indices are one per sample, such as jnp.arange(4); got shape {indices.shape}"
        )
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def check_keys(keys: Key[Array, " batch"]) -> None:
    """Raise ValueError if a single key is given where each sample has its own."""
    if jnp.ndim(keys) == 0:
        raise ValueError(
            "keys are one per sample, and this is one key: give sample_keys(key, jnp.arange(count))"
        )


@dataclass(frozen=True, kw_only=True)
class Process:
    """The pair (alpha, sigma). A new process needs these two methods; the rest follows from them.

    Attributes:
        domain: the range of times on which a network is trained and evaluated.
        preconditioning: how that network is fed, and the deviation of its data.
    """

    domain: Sequence[float] = (0.0, 1.0)
    preconditioning: Preconditioning = Preconditioning()

    def __post_init__(self):
        """Raise ValueError unless the domain is (start, end) with start < end."""
        # A config file gives the list [start, end], which is not hashable.
        object.__setattr__(self, "domain", tuple(self.domain))
        if len(self.domain) != 2 or not self.domain[0] < self.domain[1]:
            raise ValueError(f"a domain is two times (start, end), start < end; got {self.domain}")

    @property
    def clean_end(self) -> float:
        """Return the time at which sampling ends. A network need not know this time."""
        return self.domain[0]

    def alpha(self, t: Time) -> Time:
        """Return the factor of the data at time t."""
        raise NotImplementedError(f"{type(self).__name__} defines no alpha(t)")

    def sigma(self, t: Time) -> Time:
        """Return the deviation of the noise at time t."""
        raise NotImplementedError(f"{type(self).__name__} defines no sigma(t)")

    def alpha_prime(self, t: Time) -> Time:
        """Return the derivative of alpha at time t."""
        return _slope(self.alpha, t)

    def sigma_prime(self, t: Time) -> Time:
        """Return the derivative of sigma at time t."""
        return _slope(self.sigma, t)

    def log_snr(self, t: Time) -> Time:
        """Return log(alpha²/sigma²).

        It falls from +∞ (or a large value) at the clean end to −∞ (or a small value) at the noise
        end.
        """
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time_at(self, log_snr: Time) -> Time:
        """Return the time of a log-SNR: the inverse of `log_snr`, infinite ends included."""
        return self.time_of(
            jnp.exp(jnp.minimum(log_snr, 0) / 2), jnp.exp(jnp.minimum(-log_snr, 0) / 2)
        )

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        """Return the time at which the process' alpha and sigma have the ratio of those given.

        Bisection between the clean end and the noise end of the domain finds the time, which never
        lies outside. Processes with a closed form override this method. The derivative is that of
        the implicit function.
        """

        def bisect(excess, bracket):
            def halve(_, bracket):
                low, high = bracket
                middle = low + (high - low) / 2
                root_is_later = excess(middle) > 0
                return jnp.where(root_is_later, middle, low), jnp.where(root_is_later, high, middle)

            # Use twice the type's digits, so that times very near the clean end are precise too.
            low, high = jax.lax.fori_loop(
                0, 2 * jnp.finfo(bracket.dtype).nmant, halve, tuple(bracket)
            )
            return jnp.where(excess(high) >= 0, high, low)

        excess = lambda t: self.alpha(t) * sigma - self.sigma(t) * alpha  # falls with t
        ends = jnp.full_like(alpha, self.clean_end), jnp.full_like(alpha, self.domain[1])
        return jax.lax.custom_root(
            excess,
            ends[0],
            lambda excess, _: bisect(excess, jnp.stack(ends)),
            lambda slope, change: change / slope(jnp.ones_like(change)),
        )

    def at_level_of(self, other: "Process", t: Time) -> tuple[Time, Time]:
        """Return this process' time with the noise level of another's time t, and a factor.

        The factor turns the other's x_t into this process' x_t of the same data and noise.
        """
        alpha, sigma = other.alpha(t), other.sigma(t)
        time = self.time_of(alpha, sigma)
        norm = jnp.sqrt(self.alpha(time) ** 2 + self.sigma(time) ** 2)
        return time, norm * jax.lax.rsqrt(alpha**2 + sigma**2)

    def corrupt(
        self,
        x: Float[Array, " batch *shape"],
        z: Float[Array, " batch *shape"],
        t: Float[Array, " batch *times"],
    ) -> Float[Array, " batch *shape"]:
        """Return x_t of data `x` and noise `z`.

        Args:
            x, z: `[batch …]`.
            t: `[batch]`, or `[batch frames]` for one time per frame.
        """
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * z

    def prior(
        self,
        keys: Key[Array, " batch"],
        shape: tuple[int, ...],
        t: Float[Array, " *frames"] | None = None,
    ) -> Float[Array, " batch *shape"]:
        """Draw the noise from which sampling starts: N(0, sigma²) at time t.

        This is the exact marginal only where alpha reaches zero. Elsewhere it neglects the data
        that the marginal still contains.

        Args:
            keys: `[batch]`.
            shape: of one sample.
            t: one time, or one per frame. None takes the noise end.
        """
        check_keys(keys)
        z = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return across_batch(self.sigma(jnp.asarray(self.domain[1] if t is None else t)), z) * z


@leafwise
def corrupt(
    process: Process,
    x: Float[Array, " batch *shape"],
    z: Float[Array, " batch *shape"],
    t: Float[Array, " batch *times"],
) -> Float[Array, " batch *shape"]:
    """Return x_t of an array or a tree, each leaf by its own process and times."""
    return process.corrupt(x, z, t)


def prior(
    keys: Key[Array, " batch"],
    process: PyTree[Process],
    like: PyTree[Shaped[Array, " batch ..."] | jax.ShapeDtypeStruct],
    t: PyTree[Float[Array, " ..."]] | None = None,
) -> PyTree[Float[Array, " batch ..."]]:
    """Draw the noise from which sampling of a tree starts.

    Each leaf is `Process.prior` with its own key of `leaf_keys`.

    Args:
        keys: one per sample.
        like: leaves of the samples' shapes, `[batch …]`.
        t: as for `Process.prior`, one value or a tree.
    """
    draw = lambda like, process, keys, t: process.prior(keys, like.shape[1:], t)
    return leafwise(draw)(like, process, leaf_keys(keys, like), t)


def check_process(process: Process) -> None:
    """Raise ValueError for a class of processes, in place of an object, and for anything else."""
    if isinstance(process, type):
        raise ValueError(f"a process is an object, and this is a class: {process.__name__}()")
    if missing := [name for name in ("alpha", "sigma", "domain") if not hasattr(process, name)]:
        raise ValueError(
            f"process is {process!r}, which has no {missing[0]}; expected an object such as "
            "RectifiedFlow(): look at the order of the arguments"
        )


def to_domain(process: Process, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Stretch t in [0, 1] over the process' domain."""
    check_process(process)
    start, end = process.domain
    return start + (end - start) * t


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Process):
    """Straight lines from data to noise, x_t = (1 − t)·x + t·z (Liu et al. 2023).

    The velocity is z − x.
    """

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def sigma(self, t: Time) -> Time:
        return t

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return sigma / (alpha + sigma)


@dataclass(frozen=True, kw_only=True)
class VariancePreservingCosine(Process):
    """alpha = cos(πt/2) and sigma = sin(πt/2).

    Nichol & Dhariwal 2021, without their offset; Salimans & Ho 2022.
    """

    def alpha(self, t: Time) -> Time:
        return jnp.sin(jnp.pi / 2 * (1 - t))  # the cosine, exactly zero at t = 1

    def sigma(self, t: Time) -> Time:
        return jnp.sin(jnp.pi / 2 * t)

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return 2 / jnp.pi * jnp.arctan2(sigma, alpha)


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(Process):
    """Base of the processes with alpha² + sigma² = 1 and alpha² = exp(−decay).

    A child defines `decay`, the integral of its rates beta(t).
    """

    def decay(self, t: Time) -> Time:
        """Return ∫ beta from the clean end to t."""
        raise NotImplementedError

    def time_of_decay(self, decay: Time) -> Time:
        """Return the time of a decay: the inverse of `decay`."""
        raise NotImplementedError

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-self.decay(t) / 2)

    def sigma(self, t: Time) -> Time:
        return jnp.sqrt(-jnp.expm1(-self.decay(t)))  # precise near t = 0

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return self._time_of_any(jnp.log1p((sigma / alpha) ** 2))

    def _time_of_any(self, decay: Time) -> Time:
        """Return `time_of_decay`, and ∞ where the decay is infinite: alpha is 0 only there."""
        finite = jnp.isfinite(decay)
        return jnp.where(finite, self.time_of_decay(jnp.where(finite, decay, 1)), decay)


@dataclass(frozen=True, kw_only=True)
class VariancePreservingLinear(VariancePreserving):
    """beta(t) = beta_min + (beta_max − beta_min)·t: DDPM in continuous time.

    Song et al. 2021, equation 32.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        """Raise ValueError unless beta_min is at least 0, and beta_max above 0."""
        _check_rates(self)
        super().__post_init__()

    def decay(self, t: Time) -> Time:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def time_of_decay(self, decay: Time) -> Time:
        slope = self.beta_max - self.beta_min
        divisor = self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * decay)
        return 2 * decay / jnp.where(divisor == 0, 1, divisor)  # 0 where beta_min and decay are 0


@dataclass(frozen=True, kw_only=True)
class VariancePreservingScaledLinear(VariancePreserving):
    """√beta is linear in t: the 1000 rates of Stable Diffusion in continuous time.

    Rombach et al. 2022, as released.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self):
        """Raise ValueError unless beta_min is at least 0, and beta_max above 0."""
        _check_rates(self)
        super().__post_init__()

    def decay(self, t: Time) -> Time:
        first, slope = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        return t * (self.beta_min + t * (first * slope + t * slope**2 / 3))

    def time_of_decay(self, decay: Time) -> Time:
        first, slope = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        root = jnp.cbrt(3 * slope * decay + first**3)  # √beta at that time
        divisor = root**2 + root * first + first**2
        return 3 * decay / jnp.where(divisor == 0, 1, divisor)  # 0 where beta_min and decay are 0


@dataclass(frozen=True, kw_only=True)
class SubVariancePreserving(VariancePreservingLinear):
    """The alpha of `VariancePreservingLinear`, and the square of its sigma.

    Song et al. 2021, equation 29.
    """

    def sigma(self, t: Time) -> Time:
        return -jnp.expm1(-self.decay(t))

    def log_snr(self, t: Time) -> Time:
        return -2 * jnp.log(2 * jnp.sinh(self.decay(t) / 2))

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return self._time_of_any(2 * jnp.arcsinh(sigma / alpha / 2))


def linear_betas(
    num_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02
) -> tuple[float, ...]:
    """Return betas that rise linearly from `beta_min` to `beta_max` (Ho et al. 2020, section 4)."""
    return tuple(np.linspace(beta_min, beta_max, num_steps).tolist())


def scaled_linear_betas(
    num_steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012
) -> tuple[float, ...]:
    """Return betas whose square roots rise linearly.

    Rombach et al. 2022, as released as Stable Diffusion.
    """
    return tuple((np.linspace(beta_min**0.5, beta_max**0.5, num_steps) ** 2).tolist())


def cosine_betas(
    num_steps: int = 1000, offset: float = 0.008, largest: float = 0.999
) -> tuple[float, ...]:
    """Return the betas of alpha² ∝ cos²(π/2·(t + offset)/(1 + offset)), none above `largest`.

    Nichol & Dhariwal 2021, section 3.2.
    """
    squares = (
        np.cos(np.pi / 2 * (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)) ** 2
    )
    return tuple(np.minimum(1 - squares[1:] / squares[:-1], largest).tolist())


def zero_terminal_snr(betas: Sequence[float]) -> tuple[float, ...]:
    """Return `betas` changed so that alpha reaches 0 in the last step (Lin et al. 2024).

    alpha is shifted and scaled. The first step keeps its beta.
    """
    alpha = np.sqrt(np.cumprod(1 - np.asarray(betas)))
    # The first beta fixes the scale.
    alpha = alpha - alpha[-1]
    return (betas[0], *(1 - (alpha[1:] / alpha[:-1]) ** 2).tolist())


@dataclass(frozen=True, kw_only=True)
class VariancePreservingTable(VariancePreserving):
    """The N = len(betas) steps of DDPM (Ho et al. 2020).

    At t = (i + 1)/N, alpha² is the product of 1 − beta_j up to j = i. Between these times
    log(alpha²) is linear in t, and it starts from alpha = 1 at the clean end t = 0. There is one
    exception: if the last beta is 1 (`zero_terminal_snr`), alpha itself is linear in the last step.

    The network time is i/N, and the networks here multiply it by 1000. So for N = 1000 they see the
    i of published networks, up to rounding.
    """

    domain: Sequence[float] | None = None  # None: (1/N, 1)
    preconditioning: Preconditioning = TablePreconditioning()
    betas: Sequence[float] = linear_betas()

    def __post_init__(self):
        """Raise ValueError if a beta is outside (0, 1). The last beta may be 1."""
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        if (
            not self.betas
            or not all(0 < beta < 1 for beta in self.betas[:-1])
            or not 0 < self.betas[-1] <= 1
        ):
            raise ValueError(
                f"betas are above 0 and below 1, and the last may be 1; got {self.betas}"
            )
        object.__setattr__(self, "domain", self.domain or (1 / len(self.betas), 1.0))
        super().__post_init__()

    @property
    def clean_end(self) -> float:
        return 0.0

    @functools.cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Return times, and the fall of log(alpha²) up to them, as far as it is finite."""
        finite = np.asarray([beta for beta in self.betas if beta < 1])
        decays = np.append(0, np.cumsum(-np.log1p(-finite)))
        return np.arange(len(decays)) / len(self.betas), decays

    def _last(self, t: Time) -> Time:
        """Return the completed part of a last step to alpha = 0."""
        if self.betas[-1] != 1:
            return 0 * t
        return jnp.maximum(len(self.betas) * t - (len(self.betas) - 1), 0)

    def _decay(self, t: Time) -> Time:
        """Return the decay of the table, without a last step to alpha = 0."""
        right = None if self.betas[-1] == 1 else "extrapolate"
        dtype = jnp.result_type(t, float)  # whole times would round the decays
        times, decays = (jnp.asarray(knots, dtype) for knots in self._knots)
        return jnp.interp(t, times, decays, left="extrapolate", right=right)

    def decay(self, t: Time) -> Time:
        return self._decay(t) - 2 * jnp.log1p(-self._last(t))

    def time_of_decay(self, decay: Time) -> Time:
        times, decays = (jnp.asarray(knots, decay.dtype) for knots in self._knots)
        t = jnp.interp(decay, decays, times, right="extrapolate")
        if self.betas[-1] < 1:
            return t
        last = -jnp.expm1(-jnp.maximum(decay - decays[-1], 0) / 2)
        return jnp.minimum(t, times[-1]) + last / len(self.betas)

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        if self.betas[-1] < 1:
            return super().time_of(alpha, sigma)
        # alpha is linear in the last step. This form keeps the derivative finite where it is 0.
        left = alpha * jax.lax.rsqrt(alpha**2 + sigma**2) * math.exp(self._knots[1][-1] / 2)
        is_last = left < 1
        before = super().time_of(jnp.where(is_last, 1, alpha), sigma)
        return jnp.where(is_last, 1 - left / len(self.betas), before)

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-self._decay(t) / 2) * (1 - self._last(t))

    def sigma(self, t: Time) -> Time:
        # This form keeps derivatives finite where alpha is 0.
        last = self._last(t)
        return jnp.sqrt(last * (2 - last) - jnp.expm1(-self._decay(t)) * (1 - last) ** 2)


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Process):
    """alpha = 1, and sigma is geometric from `sigma_min` to `sigma_max`.

    Song et al. 2021, equation 30.

    The preconditioning assumes data of deviation 1, for which the network's input has unit
    variance. The target `edm` and the weighting `edm` assume the same deviation.
    """

    preconditioning: Preconditioning = UnitVariance(data_deviation=1.0)
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        """Raise ValueError unless 0 < sigma_min < sigma_max."""
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma rises from sigma_min, above 0, to sigma_max; got sigma_min="
                f"{self.sigma_min} and sigma_max={self.sigma_max}"
            )
        super().__post_init__()

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return jnp.log(sigma / alpha / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class EDM(Process):
    """alpha = 1 and sigma = t (Karras et al. 2022, table 1).

    The network time is log(t)/4. Sampling ends at t = 0, where a network is never evaluated. For
    data of deviation 2 take `EDM(preconditioning=EDMPreconditioning(data_deviation=2.0))`. The
    target `edm` and the weighting `edm` follow. `EDMPreconditioning` has an example, and says why
    the target should be `edm`, not `clean`.
    """

    domain: Sequence[float] = (0.002, 80.0)
    preconditioning: Preconditioning = EDMPreconditioning()

    @property
    def clean_end(self) -> float:
        return 0.0

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return t

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return sigma / alpha


@dataclass(frozen=True, kw_only=True)
class TrigFlow(Process):
    """alpha = cos(t) and sigma = s·sin(t), with t from 0 to π/2 (Lu & Song 2025).

    s is the data's deviation, from the preconditioning.
    """

    domain: Sequence[float] = (0.0, math.pi / 2)
    preconditioning: Preconditioning = TrigFlowPreconditioning()

    def alpha(self, t: Time) -> Time:
        return jnp.sin(math.pi / 2 - t)  # the cosine, exactly zero at t = π/2

    def sigma(self, t: Time) -> Time:
        return self.preconditioning.data_deviation * jnp.sin(t)

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return jnp.arctan2(sigma, self.preconditioning.data_deviation * alpha)


@dataclass(frozen=True, kw_only=True)
class Shifted(Process):
    """`base` at later times, where its log-SNR is lower by 2·log(shift) (Hoogeboom et al. 2023).

    With shift = resolution / (resolution at shift 1), images have the same noise after averaging
    down to the resolution of shift 1. For rectified flow this is `shift_time` (Esser et al. 2024,
    equation 23). The network's inputs are those of the base, so networks trained on either process
    serve the other.
    """

    domain: Sequence[float] | None = None  # None: that of base
    preconditioning: Preconditioning | None = None  # None: the network sees what that of base sees
    base: Process
    shift: float

    def __post_init__(self):
        """Raise ValueError if the shift is not positive."""
        if not self.shift > 0:
            raise ValueError(f"a shift is positive, and 1 means no shift; got {self.shift}")
        object.__setattr__(self, "domain", self.domain or self.base.domain)
        # dataclasses.replace may have brought the preconditioning of another base.
        if isinstance(self.preconditioning, ShiftedPreconditioning | None):
            base_preconditioning = ShiftedPreconditioning(
                data_deviation=self.base.preconditioning.data_deviation
            )
            object.__setattr__(self, "preconditioning", base_preconditioning)
        super().__post_init__()

    @property
    def clean_end(self) -> float:
        return self.base.clean_end

    def base_time(self, t: Time) -> Time:
        """Return the time at which `base` has the alpha and sigma of this process at time t."""
        return self.base.time_of(self.base.alpha(t), self.shift * self.base.sigma(t))

    def alpha(self, t: Time) -> Time:
        return self.base.alpha(self.base_time(t))

    def sigma(self, t: Time) -> Time:
        return self.base.sigma(self.base_time(t))

    def log_snr(self, t: Time) -> Time:
        return self.base.log_snr(t) - 2 * math.log(self.shift)

    def time_of(self, alpha: Time, sigma: Time) -> Time:
        return self.base.time_of(alpha, sigma / self.shift)
