"""Samplers that follow the reversed process, or any flow with its marginals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.discrete.processes import DiscreteProcess, Probabilities, Tokens
from genjax.diffusion.discrete.samplers.steps import sampler

Time = Float[Array, ""]


def _stay(process, x_t):
    """Return the probabilities of a distribution that is x_t for certain, `[batch … states]`."""
    return jax.nn.one_hot(x_t, process.num_states)


@sampler
def ancestral(
    process: DiscreteProcess, log_p: Probabilities, x_t: Tokens, t: Time, s: Time
) -> Probabilities:
    """Draw x_s from p(x_s | x_t), the mean of q(x_s | x_t, x) over p(x | x_t).

    Austin et al. 2021, D3PM, equation 4; for `Masked` Sahoo et al. 2024, MDLM. The authors'
    programs take the most likely tokens in the last step. Here tokens are drawn in every step.
    """
    return process.posterior(log_p, x_t, t, s)


@sampler
def tau_leaping(
    process: DiscreteProcess, log_p: Probabilities, x_t: Tokens, t: Time, s: Time
) -> Probabilities:
    """Jump at most once at each place, at the rates of time t (Campbell et al. 2022).

    The probability of a jump is that of rates that stay the same from t to s, 1 − exp(−(t − s)·Σ).
    To first order in the step this is the Euler step of SEDD (Lou et al. 2024). The
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
    """Replace tokens by draws from p(x | x_t), the velocity of discrete flow matching.

    For a path with weights κ_j of components w_j, x_s is x_t with probability k, and else from w_j
    with weights κ_j(s) − k·κ_j(t). So the marginals are exact for every step. The largest possible
    k = min κ_j(s)/κ_j(t) is the paper's velocity, for short steps (Gat et al. 2024). For
    one noise it is −sigma'/sigma·(p(x | x_t) − [x_t]). Unlike the reversed process, it never moves
    from one token of noise to another.

    Args:
        eta: the stochasticity: k is raised to the power 1 + eta. Tokens are replaced by noise too,
            at the rate eta·sigma', and more often by data (Campbell et al. 2024; the
            corrector of Gat et al. 2024).

    Raises:
        ValueError: eta is a negative number.
    """
    if isinstance(eta, int | float) and eta < 0:
        raise ValueError(f"eta, the stochasticity of flow, is at least 0; got {eta}")
    before, after = (jnp.stack(process.weights(u)) for u in (t, s))
    ratios = jnp.where(before > 0, after / before, jnp.inf)
    kept = jnp.min(ratios) * jnp.min(ratios) ** eta
    # Exactly 0 for a noise that only decays, where after − kept·before would be rounding.
    weights = jnp.where(before > 0, before * (ratios - kept), after)
    distribution = weights[1:] @ process.noise_distributions
    more_states = [(0, 0)] * x_t.ndim + [(0, process.num_states - process.vocabulary_size)]
    return (
        kept * _stay(process, x_t)
        + weights[0] * jnp.pad(jnp.exp(log_p), more_states)
        + distribution
    )
