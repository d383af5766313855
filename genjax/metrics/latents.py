"""Statistics of an autoencoder's latents: moments of channels, and the number of active units."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix
from genjax.metrics.frechet import feature_moments


class ChannelStatistics(NamedTuple):
    """Moments of each channel over examples and positions.

    The mean and the deviation are an autoencoder's `latent_mean` and `latent_deviation`.
    """

    mean: Float[np.ndarray, " channels"]
    deviation: Float[np.ndarray, " channels"]
    correlation: Float[np.ndarray, "channels channels"]


def channel_statistics(batches: Iterable[Float[ArrayLike, "... channels"]]) -> ChannelStatistics:
    """Return means, standard deviations and correlations of the channels of latents in batches.

    Every position of every example counts equally. The correlations of a constant channel are 0 or
    rounding errors, and mean nothing.

    Raises:
        ValueError: batches are not finite, differ in channels, or hold fewer than 2 positions in
            all.
    """
    flat = (np.reshape(batch, (-1, np.shape(batch)[-1])) for batch in batches)
    mean, covariance = feature_moments(flat)
    deviation = np.sqrt(np.diagonal(covariance))
    scale = np.outer(deviation, deviation)
    return ChannelStatistics(
        mean, deviation, np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    )


def active_units(
    posterior_means: Float[ArrayLike, "examples units"], threshold: float = 0.01
) -> int:
    """Return how many units of a variational autoencoder depend on the data.

    A unit is active if its posterior mean varies: Var_x(E_{q(u|x)} u) > threshold. The paper found
    that this threshold separates collapsed units clearly from others. In maps of latents each
    position and channel is a unit: pass `means.reshape(len(means), -1)`.

    Raises:
        ValueError: the means are not finite `[examples units]` with at least 2 examples.

    Source: Burda et al. 2016, section 5.1 and appendix C.
    """
    means = as_matrix(posterior_means, "posterior_means", at_least=2)
    return int(np.sum(means.var(axis=0, ddof=1) > threshold))
