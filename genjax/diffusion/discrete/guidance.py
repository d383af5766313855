"""Guidance and temperature: functions of denoisers that return a denoiser, for any sampler.

    guide(denoiser, labels, null, 2.0)
    temper(denoiser, lambda t: 0.4 + 0.4 * t)  # from 0.8 at noise to 0.4 at data

Scales and temperatures may be traced, so changing them never recompiles.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from genjax.diffusion.discrete.processes import LOG_ZERO, Probabilities
from genjax.diffusion.discrete.targets import Denoiser
from genjax.diffusion.guidance import check_conditioning, predict_jointly
from genjax.diffusion.guidance_rules import classifier_free
from genjax.diffusion.processes import expand

Times = Float[Array, " batch *times"]
Scale = float | Float[Array, " *scale"] | Callable[[Times], Times]


def _at(scale, t, like):
    """Return a scale at times t, expanded to the axes of `like`."""
    return expand(jnp.asarray(scale(t) if callable(scale) else scale, like.dtype), like)


def guide(
    denoiser: Denoiser, conditioning: PyTree, null: PyTree, guidance_scale: Scale
) -> Denoiser:
    """Make the guided denoiser of a conditional one, with one network call for both answers.

    It is p(x | x_t, c)^s·p(x | x_t)^(1 − s), normalized at each place. The program of Schiff et al.
    2025 does the same for masks. For uniform noise their program guides p(x_s | x_t) instead. A
    token that one of the two answers excludes is impossible, unless the scale takes the other one
    alone.

    Args:
        denoiser: `(x_t, t, conditioning) -> log p(x | x_t)`.
        conditioning: leaves `[batch …]`.
        null: what replaced dropped conditioning in training. Its leaves broadcast against those of
            conditioning.
        guidance_scale: s, where 1 is plain conditional and 0 unconditional sampling: a number, one
            per sample, or a function of the times (`diffusion.interval`).

    Raises:
        ValueError: `null` does not broadcast against `conditioning`, or there is not one
            conditioning per sample.
    """
    check_conditioning(conditioning, null)

    def guided(x_t, t):
        c, u = predict_jointly(denoiser, x_t, t, [conditioning, null])
        scale = _at(guidance_scale, t, c)
        # The difference of `LOG_ZERO` and another logarithm has none of its digits.
        excluded = jnp.minimum(c, u) < LOG_ZERO / 1000
        both = jnp.where(excluded, LOG_ZERO, classifier_free(c, u, scale))
        return jax.nn.log_softmax(jnp.where(scale == 1, c, jnp.where(scale == 0, u, both)))

    return guided


def check_temperature(temperature: Scale) -> None:
    """Raise ValueError if the temperature is a negative number."""
    if isinstance(temperature, int | float) and temperature < 0:
        raise ValueError(
            f"a temperature is at least 0, and 0 takes the most likely tokens; got {temperature}"
        )


def temper(denoiser: Denoiser, temperature: Scale) -> Denoiser:
    """Make the denoiser of p(x | x_t)^(1/temperature), normalized at each place.

    Args:
        temperature: a number, one per sample, or a function of the times. At 0 the most likely
            token is certain.

    Raises:
        ValueError: the temperature is a negative number.
    """
    check_temperature(temperature)
    return lambda x_t, t, *conditioning: tempered(denoiser(x_t, t, *conditioning), temperature, t)


def tempered(log_p: Probabilities, temperature: Scale, t: Times) -> Probabilities:
    """Return the logarithm of p^(1/temperature), normalized at each place, as in `temper`."""
    tau = _at(temperature, t, log_p)
    likeliest = jnp.argmax(log_p, -1)[..., None] == jnp.arange(log_p.shape[-1])
    divided = jax.nn.log_softmax(log_p / jnp.where(tau > 0, tau, 1))
    return jnp.where(tau > 0, divided, jnp.where(likeliest, 0, LOG_ZERO))
