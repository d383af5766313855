"""Measures of generated samples, as functions of features or logits: [examples features] in, a float out.

Everything runs in float64 NumPy on the host and takes NumPy or JAX arrays.
"""

from genjax.metrics.accuracy import class_accuracy
from genjax.metrics.frechet import feature_moments, frechet_distance, frechet_distance_from_moments
from genjax.metrics.neighbours import nearest_neighbour_ratio
from genjax.metrics.precision_recall import precision_recall

__all__ = [
    "class_accuracy",
    "feature_moments",
    "frechet_distance",
    "frechet_distance_from_moments",
    "nearest_neighbour_ratio",
    "precision_recall",
]
