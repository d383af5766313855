"""Remasking: tokens that were unmasked are masked again, so that mistakes can be corrected."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.discrete.processes import Masked, Probabilities, Tokens
from genjax.diffusion.discrete.samplers.steps import sampler

Time = Float[Array, ""]
Scalar = float | Float[Array, ""]


def largest_rate(process: Masked, t: Time, s: Time) -> Time:
    """Return the largest probability of masking again that keeps the marginals.

    Wang et al. 2025, ReMDM: min(1, sigma_s/alpha_t).
    """
    return jnp.minimum(1, process.sigma(s) / process.alpha(t))


def capped(process: Masked, t: Time, s: Time, cap: Scalar = 0.02) -> Time:
    """Return the largest rate, but at most `cap` (Wang et al. 2025).

    Raises:
        ValueError: `cap` is a number outside [0, 1].
    """
    _check_share("cap", cap)
    return jnp.minimum(cap, largest_rate(process, t, s))


def rescaled(process: Masked, t: Time, s: Time, eta: Scalar = 0.1) -> Time:
    """Return eta times the largest rate, eta in [0, 1] (Wang et al. 2025).

    Raises:
        ValueError: `eta` is a number outside [0, 1].
    """
    _check_share("eta", eta)
    return eta * largest_rate(process, t, s)


def _check_share(name: str, value: Scalar) -> None:
    """Raise ValueError if a rate of this share would be no probability."""
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"the {name} of remasking is in [0, 1]; got {value}")


@sampler
def remasking(
    process: Masked,
    log_p: Probabilities,
    x_t: Tokens,
    t: Time,
    s: Time,
    rate: Callable[[Masked, Time, Time], Time] = capped,
) -> Probabilities:
    """Mask tokens again with probability `rate`, and unmask as many more (ReMDM).

    Wang et al. 2025. Its marginals are those of `ancestral`, which is a rate of 0.

    Args:
        rate: σ(process, t, s), such as `capped` or `rescaled` with their options bound.
    """
    again = rate(process, t, s)
    own = jax.nn.one_hot(x_t, process.num_states)
    mask = process.noise_distribution
    # 1 − masked would be rounded above 1, and then the clean end would keep masks.
    masked = jnp.maximum(process.sigma(s) - again * process.alpha(t), 0) / process.sigma(t)
    data = jnp.pad(jnp.exp(log_p), [(0, 0)] * x_t.ndim + [(0, 1)])
    return jnp.where(
        x_t[..., None] == process.mask,
        (1 - masked) * data + masked * mask,
        (1 - again) * own + again * mask,
    )
