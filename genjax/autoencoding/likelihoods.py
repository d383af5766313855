"""Likelihoods log p(x | z) of what a decoder predicts: the first half of the ELBO.

A `Likelihood` reads a decoder's outputs, `parameters` of them for each channel of x: first the
means, then the logarithms of scales. Images are in [−1, 1].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.logistic import log_mass

Images = Float[Array, " batch *shape channels"]
Outputs = Float[Array, " batch *shape outputs"]

LEAST_LOG_SCALE = -80.0  # of a logistic: the inverse of a narrower scale overflows float32


class Likelihood(NamedTuple):
    """The distribution of x given the decoder's outputs.

    Attributes:
        parameters: outputs per channel of x.
        log_probability: `(outputs, x) -> [batch]`, in nats, summed over all values of an example.
        mean: `outputs -> x`, the image to show.
        levels: how many values a pixel can take. None for densities and for drawn black and white
            images.
    """

    parameters: int
    log_probability: Callable[[Outputs, Images], Float[Array, " batch"]]
    mean: Callable[[Outputs], Images]
    levels: int | None = None


def _check(outputs: Outputs, x: Images, parameters: int) -> None:
    """Raise ValueError for images of bytes, and for outputs that do not belong to the images."""
    expected = (*x.shape[:-1], parameters * x.shape[-1])
    if not jnp.issubdtype(x.dtype, jnp.floating) or outputs.shape != expected:
        raise ValueError(
            f"x is {x.dtype} of shape {x.shape} and the decoder's outputs have shape "
            f"{outputs.shape}; expected floats in [−1, 1] (genjax.data.to_float) and outputs of "
            f"shape {expected}"
        )


def _sum(a: Float[Array, " batch *shape"]) -> Float[Array, " batch"]:
    """Return the sum over all axes except the batch."""
    return jnp.sum(a, axis=range(1, a.ndim))


def bernoulli() -> Likelihood:
    """Make the likelihood in which each value is +1 with probability σ(output), otherwise −1.

    A value x between −1 and 1, such as grey, stands for random draws of +1 with probability (x +
    1)/2. Its log-likelihood is the expectation over such draws, and a lower bound on the likelihood
    of the drawn images.
    """

    def log_probability(logits, x):
        _check(logits, x, 1)
        share = (x + 1) / 2
        return -_sum(share * jax.nn.softplus(-logits) + (1 - share) * jax.nn.softplus(logits))

    return Likelihood(1, log_probability, lambda logits: 2 * jax.nn.sigmoid(logits) - 1)


def gaussian(deviation: float | None = None) -> Likelihood:
    """Make the likelihood N(mean, deviation²) of each value.

    It is a density, so its value in bits depends on the unit of x.

    Args:
        deviation: fixed. None takes the decoder's deviations, whose logarithms follow the means.
    """

    def log_probability(outputs, x):
        _check(outputs, x, 2 if deviation is None else 1)
        mean, log_deviation = (
            _split(outputs) if deviation is None else (outputs, math.log(deviation))
        )
        error = (x - mean) * jnp.exp(-log_deviation)
        return _sum(-jnp.square(error) / 2 - log_deviation - math.log(2 * math.pi) / 2)

    if deviation is None:
        return Likelihood(2, log_probability, lambda outputs: _split(outputs)[0])
    return Likelihood(1, log_probability, lambda mean: mean)


def discretized_logistic(levels: int = 256) -> Likelihood:
    """Make the likelihood of stored images: the mass of a logistic within half a level of x.

    Kingma et al. 2016, "IAF", section 5.1; Salimans et al. 2017, "PixelCNN++", equation 2. It is a
    probability. The lowest and the highest level take all the mass beyond them, so the levels'
    probabilities sum to 1. A value of x counts as its nearest level, because stored bytes are
    rounded levels.

    Args:
        levels: the number of values that x can have, evenly from −1 to 1.
    """
    half = 1 / (levels - 1)

    def log_probability(outputs, x):
        _check(outputs, x, 2)
        mean, log_scale = _split(outputs)
        x = jnp.round((x + 1) / (2 * half)) * (2 * half) - 1
        return _sum(log_mass(x, mean, jnp.maximum(log_scale, LEAST_LOG_SCALE), levels))

    return Likelihood(
        2, log_probability, lambda outputs: jnp.clip(_split(outputs)[0], -1, 1), levels
    )


def _split(outputs: Outputs) -> list[Array]:
    """Return the means and the logarithms of scales."""
    return jnp.split(outputs, 2, axis=-1)
