"""Measures of sound: Fréchet distances of samples, and distances of reconstructions."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16

from experiments.evaluation.autoencoders import latent_moments
from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.videos import frechet_distances, real_videos, sample_videos
from genjax import metrics
from genjax.data import sound_to_float
from genjax.data.lossy_codecs import compress
from genjax.models.encoders.vggish import SAMPLE_RATE, vggish_features, vggish_patches
from genjax.pretrained import vggish
from genjax.pretrained.variables import parameters_digest

Sounds = Int16[np.ndarray, "sounds samples channels"]
BATCH = 8  # sounds that are measured at once


def check_prompted_sounds(name: str, context: Context) -> None:
    """Raise ValueError if the data are no sounds, or the network takes no prompts."""
    context.check_feature(name, "audio", "sound")
    if not hasattr(context.condition, "prompts"):
        raise ValueError(
            f"config.evaluation.measures has {name}, which needs a network of prompts: set "
            "config.condition.name=Prompts, or leave the measure out"
        )


def prompted_sounds(context: Context, model: Model) -> tuple[tuple[str, ...], dict[str, Sounds]]:
    """Return held-out captions, and sounds by the ends of their figures' names.

    "" stands for samples of these captions, and "_real" for the recordings. "_reconstructed" stands
    for the recordings after the space of the network and back, if the network has such a space.
    """
    real = real_videos(context.data, context.num_samples)
    sounds = {"": sample_videos(context, model), "_real": real.held_out}
    if reconstruct := model.functions.get("reconstruct"):
        sounds["_reconstructed"] = in_batches(reconstruct, real.held_out, size=BATCH)
    return real.captions, sounds


@functools.partial(jax.jit, static_argnums=1)
def mel_statistics(
    sounds: Int16[Array, "batch samples channels"], sample_rate: int
) -> Float[Array, "batch patches 128"]:
    """Return means and deviations of log-mel bands over each patch of 0.96 s.

    Patches and their 64 bands from 125 to 7,500 Hz are those of `vggish_patches`.
    """
    patches = vggish_patches(sound_to_float(sounds), sample_rate)
    return jnp.concatenate([patches.mean(2), patches.std(2)], axis=-1)


@functools.partial(jax.jit, static_argnums=2)
def _embeddings(
    variables: Any, sounds: Int16[Array, "batch samples channels"], sample_rate: int
) -> Float[Array, "batch patches features"]:
    return vggish_features(variables, sound_to_float(sounds), sample_rate)


@dataclass(frozen=True)
class SoundDistance:
    """Measure Fréchet distances of samples and of training sounds to held-out sounds.

    `fd_mel` compares statistics of log-mel spectrograms: means and deviations of 64 bands over
    0.96 s. No network takes part. It is a substitute for the Fréchet audio distance, and not
    comparable with it. `fad` is the Fréchet audio distance itself, of VGGish's embeddings of 0.96 s
    each (`vggish_features`), and needs weights. `…_train` is the same distance of as many training
    sounds. Sounds shorter than 0.975 s are followed by silence.

    Attributes:
        vggish: weights of VGGish, which `genjax.pretrained.vggish.load` reads; None leaves `fad`
            out.
    """

    context: Context
    vggish: str | None = None
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2  # of a covariance

    def __post_init__(self):
        """Check data and weights before any training.

        Raises:
            ValueError, FileNotFoundError: the data are no sounds, or as of `vggish.load`.
        """
        self.context.check_feature("SoundDistance", "audio", "sound")
        if self.vggish:
            vggish.load(self.vggish)

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        how: dict[str, Any] = dict(rounding="int16")
        if self.context.space.sample_rate != SAMPLE_RATE:
            how |= dict(resizing=f"resampled to {SAMPLE_RATE} Hz", antialiasing=True)
        described = "none; means and deviations of 64 log-mel bands over 0.96 s"
        protocols = {"mel": FeatureProtocol(described, **how)}
        if self.vggish:
            digest = parameters_digest(vggish.load(self.vggish)[1])
            described = "VGGish, embeddings of 0.96 s without overlap, loudness as it is"
            protocols["vggish"] = FeatureProtocol(described, digest, **how)
        return protocols

    def __call__(self, model: Model) -> dict[str, Any]:
        samples = sample_videos(self.context, model)
        return frechet_distances(self.context, model, samples, self._features)

    def _features(self, sounds: Sounds) -> dict[str, Float[np.ndarray, "patches features"]]:
        """Return features by the name of their distance."""
        rate = self.context.space.sample_rate
        extract = {"fd_mel": lambda x: mel_statistics(x, rate)}
        if self.vggish:
            _, variables = vggish.load(self.vggish)
            extract["fad"] = lambda x: _embeddings(variables, x, rate)
        return {
            name: np.concatenate(in_batches(function, sounds, size=BATCH))
            for name, function in extract.items()
        }


@functools.partial(jax.jit, static_argnums=2)
def _distances(
    sounds: Int16[Array, "batch samples channels"],
    originals: Int16[Array, "batch samples channels"],
    sample_rate: int,
) -> dict[str, Float[Array, " batch"]]:
    pair = sound_to_float(sounds), sound_to_float(originals)
    return {
        "log_spectral_distance": metrics.log_spectral_distance(*pair),
        "stft_distance": sum(metrics.multi_resolution_stft_distance(*pair)),
        "mel_distance": metrics.mel_distance(*pair, sample_rate),
        "si_sdr": metrics.si_sdr(*pair),
    }


def distances(sounds: Sounds, originals: Sounds, sample_rate: int) -> dict[str, float]:
    """Return how far sounds are from their originals: see `SoundReconstruction`."""
    measure = lambda *pair: _distances(*pair, sample_rate)
    measured = in_batches(measure, sounds, originals, size=BATCH)
    found = {name: float(values.mean()) for name, values in measured.items()}
    return found | {"si_sdr": float(np.median(measured["si_sdr"]))}


@dataclass(frozen=True)
class SoundReconstruction:
    """Measure how close an autoencoder's reconstructions of held-out sounds are.

    `log_spectral_distance` is in dB, `mel_distance` in nepers, and `stft_distance` the sum of
    spectral convergence and log magnitude over three resolutions. They are means over sounds.
    `si_sdr` is in dB, and the median over sounds, since a silent sound has −∞. `latent_mean` and
    `latent_deviation` are those of each channel of an autoencoder's latents, for networks on them.

    `bitrate` is that of the autoencoder's codes, all of equal length, in bits per second. Figures
    that end in `_opus_6000` are those of Opus at 6,000 bits per second, and `bitrate_opus_6000` is
    what it really took (`genjax.data.lossy_codecs`).

    Attributes:
        codecs: "opus", "mp3", to which the autoencoder is compared.
        bitrates: of each codec, in bits per second.
    """

    context: Context
    codecs: tuple[str, ...] = ()
    bitrates: tuple[int, ...] = (6000, 16_000)
    needs: ClassVar[tuple[str, ...]] = ("reconstruct",)

    def __post_init__(self):
        """Check data and codecs before any training.

        Raises:
            ValueError, ImportError: the data are no sounds, or as of `compress`.
        """
        self.context.check_feature("SoundReconstruction", "audio", "sound")
        for codec in self.codecs:
            compress(np.zeros((1, 1), np.int16), 8000, codec, self.bitrates[0])

    def __call__(self, model: Model) -> dict[str, Any]:
        originals = real_videos(self.context.data, self.context.num_samples).held_out
        rate = self.context.space.sample_rate
        alone = lambda x: (model.functions["reconstruct"](x), None, None)
        autoencode = model.functions.get("autoencode", alone)
        sounds, latents, codes = in_batches(autoencode, originals, size=BATCH)
        report = distances(sounds, originals, rate)
        if latents is not None:
            report |= latent_moments(latents)
        if codes is not None:
            bits = codes[0].size * math.log2(model.functions["num_codes"])
            report["bitrate"] = bits * rate / originals.shape[1]
        for codec, bitrate in itertools.product(self.codecs, self.bitrates):
            compressed = [compress(each, rate, codec, bitrate) for each in originals]
            found = distances(np.stack([each.samples for each in compressed]), originals, rate)
            found["bitrate"] = float(np.mean([each.bitrate for each in compressed]))
            report |= {f"{name}_{codec}_{bitrate}": value for name, value in found.items()}
        return report | {"num_samples": len(originals), **model.how}
