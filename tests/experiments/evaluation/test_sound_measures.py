"""Evaluators of sound, with samples that are real sounds or wrong in one known way."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation import sounds as module
from experiments.evaluation import videos
from experiments.evaluation.context import Context
from experiments.evaluation.figures import QUALITY
from experiments.evaluation.sounds import SoundDistance, SoundReconstruction, mel_statistics
from experiments.inputs.autoencoders import MOMENTS
from experiments.inputs.datasets import Data
from experiments.inputs.spaces import Waveforms
from genjax import metrics
from genjax.data import Dataset, InMemory
from genjax.pretrained.variables import parameters_digest

RATE, COUNT = 8000, 10
DATA = Data("tones", "train", "test", None, (9000, 1), feature="audio")


def tones(seed):
    """Tones of random pitch and loudness in noise: 9,000 samples, one patch each."""
    generator = np.random.default_rng(seed)
    pitch, amplitude = generator.uniform(200, 2000, COUNT), generator.uniform(0.1, 0.5, COUNT)
    waves = np.sin(2 * np.pi * pitch[:, None] * np.arange(9000) / RATE) * amplitude[:, None]
    waves += 0.01 * generator.normal(size=waves.shape)
    return np.rint(waves * 2**15).astype(np.int16)[..., None]


SPLITS = {"train": tones(0), "test": tones(1)}


@pytest.fixture(autouse=True)
def tone_data(monkeypatch):
    load = lambda data, split: Dataset("tones", split, InMemory({"audio": SPLITS[split]}))
    monkeypatch.setattr(Data, "load", load)
    monkeypatch.setattr(Data, "held_out", lambda data: data.load("test"))
    videos.real_videos.cache_clear()
    yield
    videos.real_videos.cache_clear()


class StandIn:
    """A model whose samples and reconstructions are the held-out sounds after a change."""

    how = {"sampler": "none"}

    def __init__(self, change=lambda sounds: sounds):
        reconstruct = lambda sounds: np.asarray(change(sounds), np.int16)
        self.functions = {"reconstruct": reconstruct}

    def sample(self, labels, prompts=None):
        assert len(labels) == COUNT  # equal numbers are compared
        return self.functions["reconstruct"](SPLITS["test"])


def context():
    return Context(DATA, Waveforms((9000, 1), "audio", RATE), SimpleNamespace(num_classes=0), 100)


def test_sound_distance_of_perfect_and_of_quiet_samples():
    perfect = SoundDistance(context())(StandIn())
    assert perfect["fd_mel"] < 1e-6 and perfect["num_samples"] == COUNT
    assert perfect["sampler"] == "none" and "fad" not in perfect
    held_out, train = (
        np.concatenate(np.asarray(mel_statistics(SPLITS[split], RATE)))
        for split in ("test", "train")
    )
    assert held_out.shape == (COUNT, 128)
    floor = metrics.frechet_distance(train, held_out)
    assert perfect["fd_mel_train"] == pytest.approx(floor, rel=1e-4)
    quiet = SoundDistance(context())(StandIn(lambda sounds: sounds // 4))
    assert quiet["fd_mel"] > 1 and quiet["fd_mel_train"] == perfect["fd_mel_train"]


def test_audio_distance_uses_weights_that_are_given(monkeypatch):
    """Features of two patches a sound, which count as examples of their own."""
    monkeypatch.setattr(module.vggish, "load", lambda path: (None, {"factor": float(path)}))
    halves = lambda variables, x, rate: variables["factor"] * x.reshape(len(x), 2, -1, 30).std(2)
    monkeypatch.setattr(module, "vggish_features", halves)
    report = SoundDistance(context(), vggish="2.0")(StandIn())
    deviations = lambda sounds: 2 * (sounds / 2**15).reshape(2 * COUNT, -1, 30).std(1)
    expected = metrics.frechet_distance(deviations(SPLITS["train"]), deviations(SPLITS["test"]))
    assert report["fad"] < 1e-8 and report["fad_train"] == pytest.approx(expected, rel=1e-4)
    protocols = SoundDistance(context(), vggish="2.0").features()
    assert protocols["vggish"].parameters_sha256 == parameters_digest({"factor": 2.0})
    assert list(SoundDistance(context()).features()) == ["mel"]
    assert protocols["mel"].rounding == "int16" and "16000 Hz" in protocols["mel"].resizing
    own_rate = replace(context(), space=Waveforms((9000, 1), "audio", 16_000))
    protocol = SoundDistance(own_rate).features()["mel"]
    assert (protocol.resizing, protocol.antialiasing) == ("none", None)


def test_reconstruction_at_half_the_amplitude():
    """Half is 6 dB away in spectra and ln 2 in bands; the tone's shape is kept."""
    measure = SoundReconstruction(context())
    report = measure(StandIn(lambda sounds: sounds // 2))
    # Bins below the floors are nearer, and so is rounding to integers.
    assert 4 < report["log_spectral_distance"] < 6.1
    assert 0.6 < report["mel_distance"] < np.log(2)
    assert 1 < report["stft_distance"] < 0.5 + np.log(2) + 0.01
    assert report["si_sdr"] > 60 and report["num_samples"] == COUNT
    perfect = measure(StandIn())
    # Equal but for rounding, as two fused programs may round differently.
    assert max(perfect[f"{name}_distance"] for name in ("log_spectral", "stft", "mel")) < 1e-6
    assert perfect["si_sdr"] > 100
    for name in report.keys() - {"num_samples", "sampler"}:
        assert QUALITY[name] == ("higher" if name == "si_sdr" else "lower")


def test_known_noise_has_its_ratio():
    """Noise at −20 dB of each sound's energy."""

    def add_noise(sounds):
        noise = np.random.default_rng(2).normal(size=sounds.shape)
        energy = lambda x: np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True))
        return np.rint(sounds + 0.1 * noise / energy(noise) * energy(sounds))

    report = SoundReconstruction(context())(StandIn(add_noise))
    assert report["si_sdr"] == pytest.approx(20, abs=0.2)  # noise is not quite at a right angle


def test_the_latents_of_an_autoencoder_have_their_moments():
    """Networks on latents standardize by them (`FrozenAutoencoder.load`)."""
    latents = lambda sounds: np.stack([sounds[:, ::9, 0] / 2.0**15, 3 + 0 * sounds[:, ::9, 0]], -1)
    model = StandIn()
    model.functions["autoencode"] = lambda sounds: (sounds, latents(sounds), None)
    report = SoundReconstruction(context())(model)
    first = latents(SPLITS["test"])[..., 0]
    np.testing.assert_allclose(report["latent_mean"], [first.mean(), 3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(report["latent_deviation"], [first.std(), 0], rtol=1e-4)
    assert set(MOMENTS) <= set(report) and "bitrate" not in report


@pytest.mark.parametrize("evaluator", [SoundDistance, SoundReconstruction])
def test_pictures_are_refused(evaluator):
    pictures = Data("digits", "train", "test", None, (8, 8, 1))
    with pytest.raises(ValueError, match=f"has {evaluator.__name__}, which measures sound"):
        evaluator(Context(pictures, None, SimpleNamespace(num_classes=0), 10))


def test_absent_weights_are_found_before_training(tmp_path):
    with pytest.raises(FileNotFoundError):
        SoundDistance(context(), vggish=str(tmp_path / "none.safetensors"))


def test_opus_and_mp3_stand_beside_the_autoencoder():
    """Its own bitrate is that of its codes: 8 of 6 bits for 9,000 samples at 8 kHz."""
    same = StandIn()
    codes = lambda sounds: (sounds, None, np.zeros((len(sounds), 4, 2), int))
    same.functions |= {"num_codes": 64, "autoencode": codes}
    report = SoundReconstruction(context(), codecs=("opus", "mp3"), bitrates=(8000, 32_000))(same)
    assert report["bitrate"] == pytest.approx(48 * RATE / 9000)
    assert report["si_sdr"] > 100 > report["si_sdr_opus_32000"] > report["si_sdr_opus_8000"]
    assert report["mel_distance_mp3_8000"] > report["mel_distance_mp3_32000"] > 0.01
    for name in ("opus_8000", "opus_32000", "mp3_8000", "mp3_32000"):
        assert report[f"bitrate_{name}"] == pytest.approx(float(name.split("_")[1]), rel=0.06)
    with pytest.raises(ValueError, match="codec 'aac' is unknown: it is one of opus, mp3"):
        SoundReconstruction(context(), codecs=("aac",))
