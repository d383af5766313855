"""Measures of generated samples, as functions of features or logits: [examples features] in, a float out.

Everything runs in float64 NumPy on the host and takes NumPy or JAX arrays.
"""

from genjax.metrics.accuracy import class_accuracy
from genjax.metrics.density_coverage import density_coverage
from genjax.metrics.frechet import feature_moments, frechet_distance, frechet_distance_from_moments
from genjax.metrics.kernel_distance import kernel_distance
from genjax.metrics.neighbours import nearest_neighbour_ratio
from genjax.metrics.precision_recall import precision_recall
from genjax.metrics.spatial import spatial_features

__all__ = [
    "class_accuracy",
    "density_coverage",
    "feature_moments",
    "frechet_distance",
    "frechet_distance_from_moments",
    "kernel_distance",
    "nearest_neighbour_ratio",
    "precision_recall",
    "spatial_features",
]
