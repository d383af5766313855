"""Samplers that follow the reversed process, or any flow with its marginals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.discrete.processes import DiscreteProcess, Probabilities, Tokens
from genjax.diffusion.discrete.samplers.steps import sampler

Time = Float[Array, ""]


def _stay(process, x_t):
    """Return the probabilities of the law that gives x_t for certain, `[batch … states]`."""
    return jax.nn.one_hot(x_t, process.num_states)


@sampler
def ancestral(
    process: DiscreteProcess, log_p: Probabilities, x_t: Tokens, t: Time, s: Time
) -> Probabilities:
    """Draw x_s from p(x_s | x_t), the mean of q(x_s | x_t, x) over p(x | x_t).

    Austin et al. 2021, D3PM, equation 4; for `Masked` Sahoo et al. 2024, MDLM, equation 7.
    """
    return process.posterior(log_p, x_t, t, s)


@sampler
def tau_leaping(
    process: DiscreteProcess, log_p: Probabilities, x_t: Tokens, t: Time, s: Time
) -> Probabilities:
    """Jump at most once at each place, at the rates of time t (Campbell et al. 2022, section 4.3).

    The probability of a jump is that of rates that stay the same from t to s, 1 − exp(−(t − s)·Σ).
    To first order in the step this is the Euler step of SEDD (Lou et al. 2024, equation 17). The
    step to the clean end is `ancestral`, because rates that stay finite would leave noise behind.
    """
    rates = process.reverse_rates(log_p, x_t, t)
    total = jnp.sum(rates, -1, keepdims=True)
    jumps = -jnp.expm1(-(t - s) * total)
    leap = (1 - jumps) * _stay(process, x_t) + jumps * rates / jnp.where(total > 0, total, 1)
    return jnp.where(process.sigma(s) > 0, leap, process.posterior(log_p, x_t, t, s))


@sampler
def flow(
    process: DiscreteProcess,
    log_p: Probabilities,
    x_t: Tokens,
    t: Time,
    s: Time,
    eta: float | Float[Array, ""] = 0.0,
) -> Probabilities:
    """Replace tokens by draws from p(x | x_t) at the rate of discrete flow matching's velocity.

    The velocity is −sigma'/sigma·(p(x | x_t) − [x_t]), the same for every noise (Gat et al. 2024,
    equation 14). Unlike the reversed process it never moves from one token of noise to another. A
    step solves the equation exactly for p(x | x_t) that stays the same.

    Args:
        eta: the stochasticity of Campbell et al. 2024, section 4.2. Tokens are replaced by noise
            too, at the rate eta·sigma', and more often by data, so that the marginals stay the
            same. In the words of Gat et al. 2024, equation 20, this is a corrector.
    """
    # Both rates integrate to (1 + eta)·log(sigma_t/sigma_s), of which eta·(sigma_t − sigma_s) is
    # noise.
    kept = (process.sigma(s) / process.sigma(t)) ** (1 + eta)
    noise = eta * (process.sigma(t) - process.sigma(s)) / -jnp.log(kept)
    more_states = [(0, 0)] * x_t.ndim + [(0, process.num_states - process.vocabulary_size)]
    data = jnp.pad(jnp.exp(log_p), more_states)
    replaced = (1 - noise) * data + noise * process.noise_law
    return kept * _stay(process, x_t) + (1 - kept) * replaced
