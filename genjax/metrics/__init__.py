"""Measure generated samples and reconstructed images.

Measures of samples take features or logits, `[examples features]`, and return a float. Measures of
reconstructed images return a number for each image. Everything takes NumPy or JAX arrays.
Everything runs in float64 NumPy on the host, except for `LPIPS`, a Flax module, and the distances
of sound, functions of `jax.numpy`. These two kinds are also training losses.
"""

from genjax.metrics.accuracy import class_accuracy as class_accuracy
from genjax.metrics.audio import log_spectral_distance as log_spectral_distance
from genjax.metrics.audio import mel_distance as mel_distance
from genjax.metrics.audio import multi_resolution_stft_distance as multi_resolution_stft_distance
from genjax.metrics.audio import si_sdr as si_sdr
from genjax.metrics.density_coverage import density_coverage as density_coverage
from genjax.metrics.extrapolation import Extrapolation as Extrapolation
from genjax.metrics.extrapolation import (
    extrapolated_frechet_distance as extrapolated_frechet_distance,
)
from genjax.metrics.extrapolation import (
    extrapolated_frechet_distance_from_moments as extrapolated_frechet_distance_from_moments,
)
from genjax.metrics.frechet import feature_moments as feature_moments
from genjax.metrics.frechet import frechet_distance as frechet_distance
from genjax.metrics.frechet import frechet_distance_from_moments as frechet_distance_from_moments
from genjax.metrics.frequency import high_frequency_energy as high_frequency_energy
from genjax.metrics.inception_score import inception_score as inception_score
from genjax.metrics.intervals import bootstrap_interval as bootstrap_interval
from genjax.metrics.intervals import seed_interval as seed_interval
from genjax.metrics.kernel_distance import kernel_distance as kernel_distance
from genjax.metrics.latents import active_units as active_units
from genjax.metrics.latents import channel_statistics as channel_statistics
from genjax.metrics.lpips import LPIPS as LPIPS
from genjax.metrics.motion import frame_differences as frame_differences
from genjax.metrics.motion import kolmogorov_smirnov as kolmogorov_smirnov
from genjax.metrics.motion import warping_error as warping_error
from genjax.metrics.neighbours import Memorization as Memorization
from genjax.metrics.neighbours import memorization as memorization
from genjax.metrics.precision_recall import precision_recall as precision_recall
from genjax.metrics.reconstruction import psnr as psnr
from genjax.metrics.reconstruction import ssim as ssim
from genjax.metrics.retrieval import retrieval_accuracy as retrieval_accuracy
from genjax.metrics.retrieval import ridge_scorer as ridge_scorer
from genjax.metrics.spatial import spatial_features as spatial_features
from genjax.metrics.synchrony import Synchrony as Synchrony
from genjax.metrics.synchrony import chance_synchrony as chance_synchrony
from genjax.metrics.synchrony import detect_onsets as detect_onsets
from genjax.metrics.synchrony import match_events as match_events
from genjax.metrics.synchrony import onset_pitch as onset_pitch
from genjax.metrics.synchrony import synchrony as synchrony
