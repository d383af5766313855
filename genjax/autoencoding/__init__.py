"""Autoencoders: variational bounds, likelihoods, reconstruction distances, tiles and diagnostics.

Everything takes arrays and callables. The networks are in `genjax.models`, quantizers in
`genjax.nn`.
"""

from genjax.autoencoding import diagnostics as diagnostics
from genjax.autoencoding import likelihoods as likelihoods
from genjax.autoencoding import reconstruction as reconstruction
from genjax.autoencoding import spectral as spectral
from genjax.autoencoding.bounds import divergence as divergence
from genjax.autoencoding.bounds import elbo as elbo
from genjax.autoencoding.bounds import free_bits as free_bits
from genjax.autoencoding.bounds import importance_weighted_bound as importance_weighted_bound
from genjax.autoencoding.bounds import log_weights as log_weights
from genjax.autoencoding.bounds import sample_posterior as sample_posterior
from genjax.autoencoding.likelihoods import Likelihood as Likelihood
from genjax.autoencoding.likelihoods import bernoulli as bernoulli
from genjax.autoencoding.likelihoods import discretized_logistic as discretized_logistic
from genjax.autoencoding.likelihoods import gaussian as gaussian
from genjax.autoencoding.reconstruction import adaptive_weight as adaptive_weight
from genjax.autoencoding.reconstruction import charbonnier as charbonnier
from genjax.autoencoding.reconstruction import l1 as l1
from genjax.autoencoding.reconstruction import l2 as l2
from genjax.autoencoding.spectral import multi_resolution_stft as multi_resolution_stft
from genjax.autoencoding.spectral import multi_scale_mel as multi_scale_mel
from genjax.autoencoding.tiling import Tiling as Tiling
from genjax.autoencoding.tiling import chunks_of_frames as chunks_of_frames
from genjax.autoencoding.tiling import decode_tiled as decode_tiled
from genjax.autoencoding.tiling import encode_tiled as encode_tiled
from genjax.autoencoding.tiling import stream as stream
