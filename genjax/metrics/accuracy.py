"""Accuracy of a classifier: of real images, or of samples with the classes they should show."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from genjax.metrics.border import as_matrix


def class_accuracy(
    logits: Float[ArrayLike, "examples classes"], labels: Integer[ArrayLike, " examples"]
) -> float:
    """Return the share of examples whose largest logit is their label's, in [0, 1].

    Raises:
        ValueError: logits are not a finite `[examples classes]` matrix, or labels are not one
            integer per example between 0 and classes − 1.
    """
    logits, labels = as_matrix(logits, "logits"), np.asarray(labels)
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels have shape {labels.shape}; expected {logits.shape[:1]}: pass one per row of "
            "logits"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; expected integers: pass numbers of classes")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels go from {labels.min()} to {labels.max()}; expected 0 to "
            f"{logits.shape[1] - 1}, for {logits.shape[1]} columns of logits: number the classes "
            "from 0"
        )
    return float((logits.argmax(axis=1) == labels).mean())
