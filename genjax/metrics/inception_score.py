"""The Inception score (Salimans et al. 2016): are samples' classes certain one by one, and many together?"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from genjax.metrics.border import as_matrix


def inception_score(
    logits: Float[ArrayLike, "examples classes"], splits: int = 10
) -> tuple[float, float]:
    """exp of the mean of KL(p(class | x) ‖ p(class)), in [1, classes]: its mean over `splits` parts of the
    examples, and the deviation between these.

    The parts are consecutive rows, so these should be in no order: a part in which classes are missing scores
    less. Nothing real enters, and the score is biased upward, the more the fewer examples a part has:
    published are 50,000 in 10 parts, of logits by `genjax.models.encoders.inception.inception_features`.

    Raises:
        ValueError: not [examples classes], not finite, fewer examples than parts, splits < 1.

    Source: Salimans et al. 2016, section 4; the deviation, over parts and not corrected for their number, is
    that of their code.
    """
    if splits < 1:
        raise ValueError(f"splits is {splits}; expected 1 or more: published scores have 10")
    logits = as_matrix(logits, "logits", at_least=splits)
    bounds = np.arange(splits + 1) * len(logits) // splits
    scores = [
        _score(log_softmax(logits[start:stop], axis=1))
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _score(log_p: np.ndarray) -> float:
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))  # finite where all p underflow
    return np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(axis=1).mean())
