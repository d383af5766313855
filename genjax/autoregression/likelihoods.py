"""Likelihoods of a pixel's levels given what a network returns for the pixel.

Pixels are integer levels 0 … K − 1. Each level has a probability given all earlier pixels, which
the network reads, and given the earlier channels of its own pixel. So every likelihood is a
probability of whole pictures, which sums to 1 over all pictures.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.logistic import log_mass

Levels = Int[Array, "*shape channels"]

LEAST_LOG_SCALE = -7.0  # of a logistic: narrower ones differ by rounding alone


class PixelLikelihood(NamedTuple):
    """The distribution of a pixel's levels given a network's outputs.

    Attributes:
        levels: K, how many levels a sub-pixel can take.
        outputs: `channels -> shape` of what the network returns for a pixel.
        log_probability: `(outputs, levels) -> [… channels]`, in nats, of each sub-pixel given those
            before it.
        logits: `(outputs, levels, channel) -> [… K]`, the distribution of one channel. It reads
            `levels` of earlier channels only.
    """

    levels: int
    outputs: Callable[[int], tuple[int, ...]]
    log_probability: Callable[[Array, Levels], Float[Array, "*shape channels"]]
    logits: Callable[[Array, Levels, Int[Array, ""]], Float[Array, "*shape levels"]]


def categorical(levels: int = 256) -> PixelLikelihood:
    """Make the likelihood in which the network returns the logits of every level.

    Outputs are `[… channels levels]`. The network itself reads earlier channels of the pixel. In
    sampling it returns the logits of the next sub-pixel alone, `[… levels]`.
    """

    def log_probability(logits, x):
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        log_probabilities = jax.nn.log_softmax(logits.astype(dtype))
        return jnp.take_along_axis(log_probabilities, x[..., None], -1)[..., 0]

    return PixelLikelihood(
        levels,
        lambda channels: (channels, levels),
        log_probability,
        lambda logits, x, channel: logits,
    )


def mixture_of_logistics(levels: int = 256, components: int = 10) -> PixelLikelihood:
    """Make the discretized mixture of logistics of PixelCNN++ (Salimans et al. 2017, section 2).

    A component gives each level the mass of a logistic within half a level of it. The lowest and
    the highest level take all the mass beyond them, so probabilities sum to 1. A component's mean
    of a channel is linear in the pixel's earlier channels (equation 3). The authors replace masses
    below 1e-5 by an approximation, which is not needed here.

    Outputs are `[… parameters]`: the components' logits; then for each channel the means, the
    logarithms of scales and, with three channels, coefficients before their tanh. With 10
    components these are 100 numbers for three channels and 30 for one.

    Args:
        levels: the number of values of a sub-pixel, evenly from −1 to 1.
        components: of the mixture.
    """

    def shape(channels):
        if channels not in (1, 3):
            raise ValueError(f"mixture_of_logistics has 1 or 3 channels; got {channels}")
        return (components * (1 + channels * (3 if channels == 3 else 2)),)

    def joint(outputs, x):
        """Return log p(component, channels up to each), `[… channels components]`."""
        log_weights, mean, log_scale = _parameters(outputs, _values(x, levels), components)
        masses = log_mass(_values(x, levels)[..., None], mean, log_scale, levels)
        return log_weights[..., None, :] + jnp.cumsum(masses, axis=-2)

    def log_probability(outputs, x):
        upto = jax.nn.logsumexp(joint(outputs, x), axis=-1)
        return jnp.diff(upto, axis=-1, prepend=0)

    def logits(outputs, x, channel):
        log_weights, mean, log_scale = _parameters(outputs, _values(x, levels), components)
        posterior = jnp.concatenate([log_weights[..., None, :], joint(outputs, x)], axis=-2)
        of_channel = lambda a: jax.lax.dynamic_index_in_dim(a, channel, -2)
        candidates = _values(jnp.arange(levels)[:, None], levels)
        masses = log_mass(candidates, of_channel(mean), of_channel(log_scale), levels)
        return jax.nn.log_softmax(jax.nn.logsumexp(of_channel(posterior) + masses, axis=-1))

    return PixelLikelihood(levels, shape, log_probability, logits)


def _values(x: Levels, levels: int) -> Float[Array, "*shape channels"]:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"levels are integers from 0 to {levels - 1}; got {x.dtype}")
    return 2 * x.astype(jnp.float32) / (levels - 1) - 1


def _parameters(
    outputs: Float[Array, "*shape parameters"], x: Float[Array, "*shape channels"], components: int
) -> tuple[Array, Array, Array]:
    """Return log-weights `[… components]`, means and log-scales `[… channels components]`."""
    logits, others = jnp.split(outputs.astype(jnp.float32), [components], axis=-1)
    others = others.reshape(*x.shape, -1, components)
    mean, log_scale = others[..., 0, :], jnp.maximum(others[..., 1, :], LEAST_LOG_SCALE)
    if x.shape[-1] == 3:
        a, b, c = jnp.unstack(jnp.tanh(others[..., 2, :]), axis=-2)
        red, green = x[..., 0, None], x[..., 1, None]
        mean += jnp.stack([jnp.zeros_like(a), a * red, b * red + c * green], axis=-2)
    return jax.nn.log_softmax(logits), mean, log_scale
