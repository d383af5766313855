"""The Inception score (Salimans et al. 2016).

It is high if a classifier is certain of each sample, and if the samples show many classes.
"""

import numpy as np
import scipy  # which loads its parts when they are used: `scipy.special` is slow to import
from jax.typing import ArrayLike
from jaxtyping import Float

from genjax.metrics.border import as_matrix


def inception_score(
    logits: Float[ArrayLike, "examples classes"], splits: int = 10
) -> tuple[float, float]:
    """Return the mean Inception score of `splits` parts of the examples, and its deviation.

    The score of a part is exp of the mean of KL(p(class | x) ‖ p(class)), in [1, classes].

    Parts are consecutive rows, so shuffle the rows, because a part that lacks some classes scores
    less. The score uses no real images. Its bias is upward, and larger for parts of fewer examples.
    Published scores are of 50,000 examples in 10 parts, with logits by
    `genjax.models.encoders.inception.inception_features`.

    Raises:
        ValueError: logits are not finite `[examples classes]`, or `splits` is below 1 or above the
            number of examples.

    Source: Salimans et al. 2016, section 4. As in the authors' code, the deviation over parts is
    not corrected for the number of parts.
    """
    if splits < 1:
        raise ValueError(f"splits is {splits}; expected 1 or more: published scores have 10")
    logits = as_matrix(logits, "logits", at_least=splits)
    bounds = np.arange(splits + 1) * len(logits) // splits
    scores = [
        _score(scipy.special.log_softmax(logits[start:stop], axis=1))
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _score(log_p: np.ndarray) -> float:
    total = scipy.special.logsumexp(log_p, axis=0)  # finite where all p underflow
    log_marginal = total - np.log(len(log_p))
    return np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(axis=1).mean())
