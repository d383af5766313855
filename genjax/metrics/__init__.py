"""Measure generated samples and reconstructed images.

Measures of samples take features or logits, `[examples features]`, and return a float. Measures of
reconstructed images return a number for each image. Everything takes NumPy or JAX arrays.
Everything runs in float64 NumPy on the host, except for `LPIPS`, a Flax module, and the distances
of sound, functions of `jax.numpy`. These two kinds are also training losses.
"""

from genjax.metrics.accuracy import class_accuracy
from genjax.metrics.audio import (
    log_spectral_distance,
    mel_distance,
    multi_resolution_stft_distance,
    si_sdr,
)
from genjax.metrics.density_coverage import density_coverage
from genjax.metrics.extrapolation import (
    Extrapolation,
    extrapolated_frechet_distance,
    extrapolated_frechet_distance_from_moments,
)
from genjax.metrics.frechet import feature_moments, frechet_distance, frechet_distance_from_moments
from genjax.metrics.frequency import high_frequency_energy
from genjax.metrics.inception_score import inception_score
from genjax.metrics.intervals import bootstrap_interval, seed_interval
from genjax.metrics.kernel_distance import kernel_distance
from genjax.metrics.latents import active_units, channel_statistics
from genjax.metrics.lpips import LPIPS
from genjax.metrics.motion import frame_differences, kolmogorov_smirnov, warping_error
from genjax.metrics.neighbours import Memorization, memorization
from genjax.metrics.precision_recall import precision_recall
from genjax.metrics.reconstruction import psnr, ssim
from genjax.metrics.retrieval import retrieval_accuracy, ridge_scorer
from genjax.metrics.spatial import spatial_features
from genjax.metrics.synchrony import (
    Synchrony,
    chance_synchrony,
    detect_onsets,
    match_events,
    onset_pitch,
    synchrony,
)

__all__ = [
    "LPIPS",
    "Extrapolation",
    "Memorization",
    "Synchrony",
    "active_units",
    "bootstrap_interval",
    "chance_synchrony",
    "channel_statistics",
    "class_accuracy",
    "density_coverage",
    "detect_onsets",
    "extrapolated_frechet_distance",
    "extrapolated_frechet_distance_from_moments",
    "feature_moments",
    "frame_differences",
    "frechet_distance",
    "frechet_distance_from_moments",
    "high_frequency_energy",
    "inception_score",
    "kernel_distance",
    "kolmogorov_smirnov",
    "log_spectral_distance",
    "match_events",
    "mel_distance",
    "memorization",
    "multi_resolution_stft_distance",
    "onset_pitch",
    "precision_recall",
    "psnr",
    "retrieval_accuracy",
    "ridge_scorer",
    "seed_interval",
    "si_sdr",
    "spatial_features",
    "ssim",
    "synchrony",
    "warping_error",
]
