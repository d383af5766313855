"""Autoencoders of sound: small ones on spoken digits or on a folder, and the published sizes.

python -m experiments.train --config=configs/sound_autoencoder.py:codec --workdir=runs/sound_codec

For a folder of your own sounds add --config.data.name=sound_folder --config.data.directory=SOUNDS.
genjax/data/sets/sound_folder.py names free ones. This flag also measures Opus and MP3:
--config.evaluation.measures.reconstructions.codecs="'opus','mp3'"

Small choices, on 0.77 s at 8 kHz:
- oobleck: Gaussian latents of 8 channels at 62.5 Hz, a small Stable Audio autoencoder.
- codec: 4 codes of 8 bits at 62.5 Hz, 2 kb/s, a small DAC.
- mel: Gaussian latents of 8 channels at 62.5 Hz of a log-mel spectrogram, with a vocoder.
- vocoder: log-mel spectrograms of 40 bands at 125 Hz to waveforms, a small Vocos.

Published sizes at 44.1 kHz, which take a folder, for many accelerators:
- stable_audio: Stable Audio Open's Oobleck, stereo. The losses and their weights are those of its
  authors' configuration, without perceptual weighting.
- dac: DAC of 9 codes, with its weights and its discriminators' layers.

Differences from the authors' programs. Learning rates fall as a cosine to 0 at step 400,000. DAC's
falls by 0.999996 per step, and Stable Audio's with 1/√(1 + step/200,000). There is no weight decay,
of which DAC has 0.01 and Stable Audio 0.001. DAC sets its sounds to one loudness, and shifts
their phases. It trains on 0.38 s, and here on 0.37 s.

codec with 12 codes was trained on `spoken_stamps` for 1,439 s on a shared core. At the same 6 kb/s,
Opus has half of its mel distance to the clips: docs/results/autoencoders.md. The other choices have
not been run to the end.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("oobleck", "codec", "mel", "vocoder", "stable_audio", "dac")
SAMPLE_RATE, SAMPLES = 8000, 6144
BANDS = dict(sample_rate=SAMPLE_RATE, n_fft=256, hop=64, num_mels=40)


def get_config(choice: str = "codec") -> ConfigDict:
    check_choice(choice, CHOICES)
    if choice in ("stable_audio", "dac"):
        return _stable_audio() if choice == "stable_audio" else _dac()
    config = _sound(choice, "spoken_digits", SAMPLE_RATE, SAMPLES, channels=1)
    config.num_steps = config.snapshot_every = 800
    config.batch_size = 8
    config.reconstruction = dict(
        name="multi_scale_mel",
        sample_rate=SAMPLE_RATE,
        n_ffts=(64, 256, 1024),
        num_mels=(10, 40, 80),
    )
    config.adversary.network = dict(
        name="SoundDiscriminator",
        periods=(2, 3, 5),
        n_ffts=(512, 128),
        period_widths=(8, 16, 32, 32),
        width=8,
    )
    layers = dict(strides=(2, 4, 4, 4), sample_rate=SAMPLE_RATE)
    if choice == "oobleck":
        widths = dict(width=8, decoder_width=16, multiples=(1, 2, 4, 8), latent_channels=8)
        config.model = dict(name="AutoencoderOobleck", audio_channels=1, **widths, **layers)
        config.weights = dict(divergence=0.1)
    elif choice == "codec":
        codes = dict(num_levels=4, num_codes=256, features=64, width=8, dropout=0.5)
        quantizer = dict(name="FactorizedResidualQuantizer", **codes)
        config.model = dict(name="DAC", quantizer=quantizer, width=8, decoder_width=128, **layers)
        config.weights = dict(commitment=0.25 / 15, codebook=1 / 15)
    elif choice == "mel":
        networks = dict(width=64, depth=2, strides=(2,), vocoder_width=128, vocoder_depth=4)
        config.model = dict(name="MelAutoencoder", latent_channels=8, **networks, **BANDS)
        config.weights = dict(divergence=0.1, mel=1.0)
    else:
        blocks = dict(width=128, mlp_width=384, depth=4, centered=False)
        config.model = dict(name="Vocos", **blocks, **BANDS)
        config.weights = dict()
    return config


def _sound(choice: str, data: str, sample_rate: int, samples: int, channels: int) -> ConfigDict:
    """Return the fields of an autoencoder of sound, whose discriminators have DAC's weights.

    DAC multiplies the mel distance by 15, the adversarial loss by 1 and feature matching by 2. Here
    the distance's weight is 1, and `least_squares` is half of DAC's adversarial loss.
    """
    options: dict[str, Any] = dict(sample_rate=sample_rate, seconds=samples / sample_rate)
    if channels > 1:
        options["channels"] = channels
    config = base.autoencoder(
        f"sound_autoencoder_{choice}",
        name=data,
        feature="audio",
        image_shape=(samples, channels),
        sample_rate=sample_rate,
        options=options,
    )
    config.space.name = "Waveforms"
    config.condition.num_rows = 2
    config.adversary.update(
        weight=2 / 15, adaptive=False, objective="least_squares", feature_matching=1.0
    )
    for player in config.optimizer.values():
        player.update(b1=0.8, b2=0.99)
    config.log_every = 50
    config.sampling.update(per_class=6, batch_size=24)
    # With codecs=("opus", "mp3") the same distances of these codecs are measured too.
    references = dict(codecs=(), bitrates=(6000, 16_000))
    measures = dict(reconstructions=dict(name="SoundReconstruction", **references))
    config.evaluation.update(num_samples=90, measures=measures)
    return config


def _published(choice: str, samples: int, channels: int, batch_size: int) -> ConfigDict:
    """Return the fields that the published sizes share: 44.1 kHz, and the state split (fsdp)."""
    config = _sound(choice, "sound_folder", 44_100, samples, channels)
    config.num_steps = config.snapshot_every = 400_000
    config.batch_size = batch_size
    config.adversary.start_step = 0
    for player in config.optimizer.values():
        player.update(learning_rate=1e-4, warmup=0.0, clip_norm=None)
    config.averages.ema.steps = 7000.0
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.every = 20_000
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 1000
    return config


def _stable_audio() -> ConfigDict:
    """Return Stable Audio Open's autoencoder, with the authors' weights in this project's units.

    A latent frame stands for 4,096 values, and the authors' weight of 1e-4 is for twice the nats of
    a frame. Their adversarial loss is a mean over five parts, and their feature matching, of weight
    5, over the five layers of each part too. Their distance of the sum and the difference of both
    channels is left out. Magnitudes below 1e-5 count as 1e-5, and theirs below 1e-4 as 1e-4.
    """
    config = _published("stable_audio", 65_536, channels=2, batch_size=32)
    config.model = dict(name="AutoencoderOobleck", dtype="bfloat16")
    n_ffts = (2048, 1024, 512, 256, 128, 64, 32)
    config.reconstruction = dict(name="multi_resolution_stft", n_ffts=n_ffts)
    config.weights = dict(divergence=2e-4 * 4096)
    config.adversary.update(weight=0.1 / 5, objective="hinge", feature_matching=10.0)
    config.adversary.network = dict(
        name="SoundDiscriminator", periods=(), n_ffts=n_ffts[:5], width=64, dtype="bfloat16"
    )
    config.optimizer.autoencoder.learning_rate = 1.5e-4
    config.optimizer.discriminator.learning_rate = 3e-4
    return config


def _dac() -> ConfigDict:
    """Return DAC's codec of 7.75 kb/s, whose quantizers' losses have its weights over 15.

    The autoencoder's loss is 1/15 of the authors', and the discriminator's is half. So gradients
    are clipped at 1/15 and half of the authors' norms.
    """
    config = _published("dac", 32 * 512, channels=1, batch_size=72)
    codes = dict(num_levels=9, num_codes=1024, features=1024, width=8, dropout=0.5)
    config.model = dict(
        name="DAC",
        quantizer=dict(name="FactorizedResidualQuantizer", **codes),
        dtype="bfloat16",
    )
    config.reconstruction = dict(name="multi_scale_mel", sample_rate=44_100)
    config.weights = dict(commitment=0.25 / 15, codebook=1 / 15)
    config.optimizer.autoencoder.clip_norm = 1000 / 15
    config.optimizer.discriminator.clip_norm = 10 / 2
    config.adversary.network = dict(
        name="SoundDiscriminator",
        dilations=(1, 1, 1),
        bands=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        slope=0.1,
        dtype="bfloat16",
    )
    return config
