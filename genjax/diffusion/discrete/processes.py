"""Discrete processes: how tokens become noise, P(x_t = k | x) = alpha(t)·[k = x] + sigma(t)·π_k.

Every token is kept with probability alpha(t) and otherwise replaced by noise of distribution π,
independently of the others. So alpha + sigma = 1. Data are tokens 0, …, V − 1. States are all that
x_t can be: the data, and for `Masked` also the mask V. Last axes of probabilities count tokens or
states.

A schedule is a function t -> (alpha, sigma) from (1, 0) to about (0, 1). Both are given because
1 − alpha is imprecise near the clean end, and 1 − sigma near the noise end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genjax.diffusion.processes import Process, Time, check_keys, expand

Schedule = Callable[[Time], tuple[Time, Time]]
Tokens = Int[Array, " batch *shape"]
Probabilities = Float[Array, " batch *shape _"]

LOG_ZERO = -1e9  # log 0, but finite: the difference of two of them is 0, not NaN


@dataclass(frozen=True)
class Linear:
    """(1 − t, t), MDLM's log-linear schedule (Sahoo et al. 2024).

    The integral of the rates is −log(1 − t). The authors' program keeps off both ends: sigma is
    0.999·t, and times of training are at least 0.001.
    """

    def __call__(self, t: Time) -> tuple[Time, Time]:
        return 1 - t, t


@dataclass(frozen=True)
class Cosine:
    """(1 − sin(πt/2), sin(πt/2)) (Shi et al. 2024, MD4)."""

    def __call__(self, t: Time) -> tuple[Time, Time]:
        return 2 * jnp.sin(jnp.pi / 4 * (1 - t)) ** 2, jnp.sin(jnp.pi / 2 * t)


@dataclass(frozen=True)
class Polynomial:
    """(1 − t^power, t^power) (Shi et al. 2024, MD4)."""

    power: float = 2.0

    def __call__(self, t: Time) -> tuple[Time, Time]:
        return -jnp.expm1(self.power * jnp.log(t)), t**self.power


@dataclass(frozen=True)
class Geometric:
    """(e^−b, 1 − e^−b) with b = sigma_min^(1 − t)·sigma_max^t, and (1, 0) at t = 0.

    Lou et al. 2024, SEDD. The schedule jumps at 0, since b is never 0. So a sampler's last step
    removes all noise, as the authors' does.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __call__(self, t: Time) -> tuple[Time, Time]:
        integral = jnp.where(t > 0, self.sigma_min ** (1 - t) * self.sigma_max**t, 0)
        return jnp.exp(-integral), -jnp.expm1(-integral)


@dataclass(frozen=True)
class Bump:
    """(1 − t, t², t·(1 − t)), of a `Path` whose second noise is there only between the ends."""

    def __call__(self, t: Time) -> tuple[Time, Time, Time]:
        return 1 - t, t**2, t * (1 - t)


@dataclass(frozen=True, kw_only=True)
class DiscreteProcess(Process):
    """A schedule and a distribution of the noise. A child says what its noise is; the rest follows.

    Methods take times `[batch]`, one time for all, or times with more of x_t's leading axes.

    Attributes:
        vocabulary_size: V, the number of tokens that data consist of.
        schedule: `Linear()`, `Cosine()`, `Polynomial(power)`, … or another function of t.
    """

    vocabulary_size: int
    schedule: Schedule = Linear()

    @property
    def clean_end(self) -> float:
        return 0.0

    @property
    def num_states(self) -> int:
        """Return the number of states that x_t can have."""
        raise NotImplementedError

    @property
    def noise_distribution(self) -> Float[Array, " states"]:
        """Return π, the probabilities of the states under noise."""
        raise NotImplementedError

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, " *shape"]:
        """Draw independent states of distribution π."""
        raise NotImplementedError

    @property
    def noise_distributions(self) -> Float[Array, " noises states"]:
        """Return the distributions of all noises; only a `Path` has several."""
        return self.noise_distribution[None]

    def weights(self, t: Time) -> tuple[Time, ...]:
        """Return the probabilities of data and of each noise at time t."""
        return self.schedule(t)

    def alpha(self, t: Time) -> Time:
        """Return the probability that a token is kept until time t, at least 1e-20.

        So a token that is given, and not masked at the noise end, is unlikely but not impossible.
        """
        return jnp.maximum(self.schedule(t)[0], 1e-20)

    def sigma(self, t: Time) -> Time:
        """Return the probability that a token is replaced by noise until time t."""
        return self.schedule(t)[1]

    def sigma_prime(self, t: Time) -> Time:
        """Return the derivative of sigma at time t, as −alpha' where alpha is the smaller one."""
        # JAX rounds the slope of 1 − exp(−b) to 0 for b > 17.3: the last 1.2 % of `Geometric`.
        alpha, slope = jax.jvp(lambda t: self.schedule(t)[0], (t,), (jnp.ones_like(t),))
        return jnp.where(alpha < 0.5, -slope, super().sigma_prime(t))

    def corrupt(self, key: Key[Array, ""], x: Tokens, t: Float[Array, " *times"]) -> Tokens:
        """Draw x_t of data `x`."""
        replace_key, noise_key = jax.random.split(key)
        replaced = jax.random.uniform(replace_key, x.shape) < expand(self.sigma(t), x)
        return jnp.where(replaced, self.draw_noise(noise_key, x.shape), x)

    def prior(
        self,
        keys: Key[Array, " batch"],
        shape: tuple[int, ...],
        t: Float[Array, ""] | None = None,
    ) -> Tokens:
        """Draw the noise from which sampling starts: π at each place, whatever the time."""
        check_keys(keys)
        return jax.vmap(lambda key: self.draw_noise(key, shape))(keys)

    def likelihood(self, x_t: Tokens, t: Float[Array, " *times"]) -> Probabilities:
        """Return q(x_t | x) for every token x, `[batch … V]`."""
        own = x_t[..., None] == jnp.arange(self.vocabulary_size)
        replaced = expand(self.sigma(t), x_t) * self.noise_distribution[x_t]
        return expand(self.alpha(t), own) * own + replaced[..., None]

    def marginal(self, x: Tokens, t: Float[Array, " *times"]) -> Probabilities:
        """Return q(x_t | x) for every state x_t, `[batch … states]`."""
        own = jax.nn.one_hot(x, self.num_states)
        alpha, sigma = (expand(each, own) for each in self.schedule(t))
        return alpha * own + sigma * self.noise_distribution

    def log_certain(self, x: Tokens) -> Probabilities:
        """Return log-probabilities of the distribution that gives x for certain, `[batch … V]`."""
        own = x[..., None] == jnp.arange(self.vocabulary_size)
        return jnp.where(own, 0.0, LOG_ZERO)

    def _ratios(self, log_p, x_t, t):
        """Return w_k = p(x = k | x_t)/q(x_t | x = k), 0 for the mask, and its sum over tokens k."""
        likelihood = self.likelihood(x_t, t)
        possible = likelihood > 0
        ratios = jnp.where(possible, jnp.exp(log_p) / jnp.where(possible, likelihood, 1), 0)
        more_states = [(0, 0)] * x_t.ndim + [(0, self.num_states - self.vocabulary_size)]
        return jnp.pad(ratios, more_states), jnp.sum(ratios, -1, keepdims=True)

    def posterior(
        self,
        log_p: Probabilities,
        x_t: Tokens,
        t: Float[Array, " *times"],
        s: Float[Array, " *times"],
    ) -> Probabilities:
        """Return p(x_s | x_t) = Σ_x q(x_s | x_t, x)·p(x | x_t), `[batch … states]`, s ≤ t.

        Austin et al. 2021, D3PM, equations 3 and 4. With a = alpha_t/alpha_s and w as above, it is
        (a·[x_t = k] + (1 − a)·π(x_t))·(alpha_s·w_k + sigma_s·π_k·Σw).

        Args:
            log_p: log p(x | x_t). That of data at a single x gives the exact posterior q(x_s | x_t,
                x).
        """
        ratios, total = self._ratios(log_p, x_t, t)
        own = jax.nn.one_hot(x_t, self.num_states)
        alpha_s, sigma_s = expand(self.alpha(s), own), expand(self.sigma(s), own)
        stay = expand(self.alpha(t), own) / alpha_s
        leave = (
            (expand(self.sigma(t), own) - sigma_s)
            / alpha_s
            * self.noise_distribution[x_t][..., None]
        )
        return (stay * own + leave) * (alpha_s * ratios + sigma_s * self.noise_distribution * total)

    def scores(
        self, log_p: Probabilities, x_t: Tokens, t: Float[Array, " *times"]
    ) -> Probabilities:
        """Return p_t(x_t with k at this place)/p_t(x_t) for each state k, `[batch … states]`.

        This is the concrete score of Lou et al. 2024, SEDD. It follows from log_p = log p(x | x_t).
        """
        ratios, total = self._ratios(log_p, x_t, t)
        alpha, sigma = expand(self.alpha(t), ratios), expand(self.sigma(t), ratios)
        return alpha * ratios + sigma * self.noise_distribution * total

    def noise_rate(self, t: Time) -> Time:
        """Return −alpha'/alpha, the rate at which a token is replaced as time rises."""
        return self.sigma_prime(t) / self.alpha(t)

    def reverse_rates(
        self, log_p: Probabilities, x_t: Tokens, t: Float[Array, " *times"]
    ) -> Probabilities:
        """Return the rates at which x_t jumps to each state as time falls, 0 to itself.

        Campbell et al. 2022, proposition 1: the rate from k to x_t as time rises, times the score.
        """
        from_others = expand(self.noise_rate(t), x_t) * self.noise_distribution[x_t]
        other = jnp.arange(self.num_states) != x_t[..., None]
        return jnp.where(other, from_others[..., None] * self.scores(log_p, x_t, t), 0)

    def divergence_rate(
        self, x: Tokens, x_t: Tokens, log_p: Probabilities, t: Float[Array, " *times"]
    ) -> Float[Array, " batch *shape"]:
        """Return the bound's integrand over t in nats for each token, the score entropy.

        It compares the rates of p(x | x_t) with those of data at x, and is −d/dt of their
        divergence (Campbell et al. 2022, proposition 2; Lou et al. 2024, SEDD).
        """
        true, scores = (self.scores(each, x_t, t) for each in (self.log_certain(x), log_p))
        rate = expand(self.noise_rate(t), x_t) * self.noise_distribution[x_t]
        return rate * score_entropy(jnp.log(scores), true, x_t)


def score_entropy(
    log_scores: Probabilities, true: Probabilities, x_t: Tokens
) -> Float[Array, " batch *shape"]:
    """Return Σ_k s_k − true_k·log s_k + true_k·(log true_k − 1) over the states k ≠ x_t.

    Lou et al. 2024, SEDD. It is 0 for the true scores.
    """
    possible = true > 0
    excess = log_scores - jnp.log(jnp.where(possible, true, 1))
    # Written so that near scores lose no digits: their entropy is quadratic in the excess.
    terms = jnp.where(possible, true * (jnp.expm1(excess) - excess), jnp.exp(log_scores))
    other = jnp.arange(terms.shape[-1]) != x_t[..., None]
    return jnp.sum(jnp.where(other, terms, 0), -1)


@dataclass(frozen=True, kw_only=True)
class Masked(DiscreteProcess):
    """Tokens are replaced by a mask, state V, which is also their noise ("absorbing")."""

    @property
    def mask(self) -> int:
        return self.vocabulary_size

    @property
    def num_states(self) -> int:
        return self.vocabulary_size + 1

    @property
    def noise_distribution(self) -> Float[Array, " states"]:
        return jax.nn.one_hot(self.mask, self.num_states)

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, " *shape"]:
        return jnp.full(shape, self.mask)

    def divergence_rate(
        self, x: Tokens, x_t: Tokens, log_p: Probabilities, t: Float[Array, " *times"]
    ) -> Float[Array, " batch *shape"]:
        """Return sigma'/sigma·(−log p(x | x_t)) at masks, and 0 elsewhere.

        Sahoo et al. 2024, MDLM, equation 10; Shi et al. 2024, MD4.
        """
        rate = jnp.where(x_t == self.mask, expand(self.sigma_prime(t) / self.sigma(t), x_t), 0)
        return -rate * jnp.take_along_axis(log_p, x[..., None], -1)[..., 0]


@dataclass(frozen=True, kw_only=True)
class Uniform(DiscreteProcess):
    """Tokens are replaced by tokens that are all equally likely."""

    @property
    def num_states(self) -> int:
        return self.vocabulary_size

    @property
    def noise_distribution(self) -> Float[Array, " states"]:
        return jnp.full(self.num_states, 1 / self.num_states)

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, " *shape"]:
        return jax.random.randint(key, shape, 0, self.num_states)


@dataclass(frozen=True, kw_only=True)
class Path(DiscreteProcess):
    """Data and several noises, each with its own weight: discrete flow matching's general path.

    P(x_t = k | x) = Σ_j κ_j(t)·w_j(k), where w_0 is x and the others are the distributions of
    `noises` (Gat et al. 2024). Masks with some uniform tokens between data and masks are
    `Path(vocabulary_size=V, noises=(Masked(vocabulary_size=V), Uniform(vocabulary_size=V)),
    schedule=Bump())`. It trains by `losses.simple_loss` and samples by `samplers.flow`. It is no
    Markov chain with one noise, so it has no `noise_distribution`, posterior or bound.

    Attributes:
        noises: processes that draw the noises.
        schedule: t -> (alpha, κ_1, κ_2, …), with the sum 1, as many as there are noises.
    """

    noises: tuple[DiscreteProcess, ...]

    def __post_init__(self):
        """Raise ValueError if a noise has other tokens, or the schedule other weights."""
        super().__post_init__()
        sizes = [noise.vocabulary_size for noise in self.noises]
        if set(sizes) != {self.vocabulary_size}:
            raise ValueError(
                f"a Path of {self.vocabulary_size} tokens has noises of {sizes}; give all noises "
                "its vocabulary_size"
            )
        weights = jax.eval_shape(self.schedule, jax.ShapeDtypeStruct((), jnp.float32))
        if len(weights) != len(sizes) + 1:
            raise ValueError(
                f"a Path of {len(sizes)} noises has a schedule of {len(weights)} weights; take one "
                f"of {len(sizes) + 1}, such as Bump for two noises"
            )

    @property
    def noise_distribution(self) -> Float[Array, " states"]:
        raise ValueError(
            "a Path has several noises, and so no posterior, score or bound; take the loss "
            "simple_loss and the sampler flow"
        )

    @property
    def num_states(self) -> int:
        return max(noise.num_states for noise in self.noises)

    @property
    def noise_distributions(self) -> Float[Array, " noises states"]:
        pad = lambda distribution: jnp.pad(distribution, (0, self.num_states - len(distribution)))
        return jnp.stack([pad(noise.noise_distribution) for noise in self.noises])

    def draw_noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, " *shape"]:
        """Draw from the noises as they are mixed at the noise end."""
        return self._mix(key, shape, jnp.asarray(self.domain[1]))

    def _mix(self, key, shape, t):
        """Draw from the noises, mixed as at time t."""
        part_key, *keys = jax.random.split(key, len(self.noises) + 1)
        drawn = [n.draw_noise(k, shape) for n, k in zip(self.noises, keys, strict=True)]
        log_weights = jnp.log(jnp.stack(self.weights(t)[1:], -1))
        axes = (1,) * (len(shape) - jnp.ndim(t))
        part = jax.random.categorical(part_key, log_weights.reshape(*t.shape, *axes, -1), -1, shape)
        return jnp.select([part == j for j in range(len(drawn))], drawn)

    def sigma(self, t: Time) -> Time:
        return sum(self.weights(t)[1:])

    def corrupt(self, key: Key[Array, ""], x: Tokens, t: Float[Array, " *times"]) -> Tokens:
        replace_key, noise_key = jax.random.split(key)
        replaced = jax.random.uniform(replace_key, x.shape) < expand(self.sigma(t), x)
        return jnp.where(replaced, self._mix(noise_key, x.shape, t), x)

    def likelihood(self, x_t: Tokens, t: Float[Array, " *times"]) -> Probabilities:
        own = x_t[..., None] == jnp.arange(self.vocabulary_size)
        noises = zip(self.weights(t)[1:], self.noise_distributions, strict=True)
        replaced = sum(expand(weight, x_t) * distribution[x_t] for weight, distribution in noises)
        return expand(self.alpha(t), own) * own + replaced[..., None]

    def marginal(self, x: Tokens, t: Float[Array, " *times"]) -> Probabilities:
        own = jax.nn.one_hot(x, self.num_states)
        data, *noises = (expand(weight, own) for weight in self.weights(t))
        return data * own + sum(
            w * distribution
            for w, distribution in zip(noises, self.noise_distributions, strict=True)
        )
