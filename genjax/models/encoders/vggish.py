"""VGGish, the network of the Fréchet audio distance: a VGG over patches of log-mel spectrograms.

Hershey et al. 2017, "CNN architectures for large-scale audio classification". The layers and their
names are those of the published TensorFlow model (AudioSet's VGGish).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.audio import HTK, hann_window, resample, stft

Dtype = Any
SAMPLE_RATE = 16_000  # Hz
WINDOW, HOP, N_FFT = 400, 160, 512  # samples: 25 ms and 10 ms
NUM_MELS, LOW, HIGH = 64, 125, 7500  # bands, from and to Hz
OFFSET = 0.01  # added to a band before its logarithm
FRAMES = 96  # of a patch
LEAST_SAMPLES = WINDOW + (FRAMES - 1) * HOP  # of a patch: 0.975 s
# Convolutions between poolings, by name; and fully connected layers.
BLOCKS = (
    {"conv1": 64},
    {"conv2": 128},
    {"conv3_1": 256, "conv3_2": 256},
    {"conv4_1": 512, "conv4_2": 512},
)
LAYERS = {"fc1_1": 4096, "fc1_2": 4096, "fc2": 128}


class VGGish(nn.Module):
    """Patches of log-mel spectrograms to embeddings.

    The last layer has no rectifier, as in the published model; torchvggish adds one.

    Attributes:
        dtype: type of everything except the results.
    """

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: Float[Array, "batch 96 64"]) -> Float[Array, "batch 128"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = patches[..., None].astype(self.dtype)
        for block in BLOCKS:
            for name, features in block.items():
                x = nn.relu(nn.Conv(features, (3, 3), name=name, **types)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for name, features in LAYERS.items():
            # The first rectifier changes nothing: its input is of rectified maps.
            x = nn.Dense(features, name=name, **types)(nn.relu(x))
        return x.astype(jnp.float32)


def mel_matrix() -> Float[np.ndarray, "257 64"]:
    """Return the filters of the front end: triangles in mel, where `genjax.audio`'s are in Hz."""
    mel = HTK.from_hertz(np.arange(N_FFT // 2 + 1)[:, None] * (SAMPLE_RATE / N_FFT))
    edges = np.linspace(*HTK.from_hertz(np.array([LOW, HIGH])), NUM_MELS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clip(0)
    filters[0] = 0  # the mean of a frame
    return filters


def vggish_patches(
    waveforms: Float[Array, "batch samples channels"], sample_rate: int
) -> Float[Array, "batch patches 96 64"]:
    """Return the log-mel spectrograms that `VGGish` takes, in patches of 96 frames (0.96 s).

    Channels become their mean. Frames after the last whole patch are left out. Sounds shorter than
    0.975 s are followed by silence. `genjax.audio.resample` resamples, where the published front
    end takes resampy.

    Args:
        waveforms: in [−1, 1].
        sample_rate: of the waveforms, in Hz.
    """
    mono = resample(waveforms.mean(-1, keepdims=True), sample_rate, SAMPLE_RATE)
    missing = max(LEAST_SAMPLES - mono.shape[1], 0)
    mono = jnp.pad(mono, ((0, 0), (0, missing), (0, 0)))
    # The published frames hold the window alone, and zeros up to `N_FFT`.
    padding, window = (N_FFT - WINDOW) // 2, hann_window(WINDOW)
    spectra = stft(mono, N_FFT, HOP, window=window, padding=padding, pad_mode="constant")
    magnitudes, filters = jnp.abs(spectra[..., 0]), jnp.asarray(mel_matrix(), jnp.float32)
    logs = jnp.log(jnp.matmul(magnitudes, filters, precision="highest") + OFFSET)
    count = logs.shape[1] // FRAMES
    return logs[:, : count * FRAMES].reshape(len(logs), count, FRAMES, NUM_MELS)


def vggish_features(
    variables: Any, waveforms: Float[Array, "batch samples channels"], sample_rate: int
) -> Float[Array, "batch patches 128"]:
    """Compute the features of the Fréchet audio distance, of waveforms in [−1, 1].

    Every patch of 0.96 s has its features: the embeddings, neither rectified, whitened nor
    quantized. Patches do not overlap, and sounds keep their loudness, as in the package
    frechet_audio_distance. The authors' own program takes a second of sound every 0.5 s, and first
    divides each sound by its largest sample (or by 0.1, if that is larger).

    Args:
        variables: the weights (`genjax.pretrained.vggish.load`).
        sample_rate: of the waveforms, in Hz.

    Source: Kilgour et al. 2019, "Fréchet audio distance", section 3.
    """
    patches = vggish_patches(waveforms, sample_rate)
    # Full precision, so that a distance does not depend on the device.
    with jax.default_matmul_precision("highest"):
        features = VGGish().apply(variables, patches.reshape(-1, FRAMES, NUM_MELS))
    return features.reshape(*patches.shape[:2], -1)
