"""Spectrograms as a space: bands by hand, sound of bands, and the diffusion task on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration import base, kinds
from experiments.configuration.runs import build
from genjax.audio import mel_filters
from genjax.data import Batches, Dataset, InMemory
from genjax.training.sampling import sample
from genjax.training.workdir import Config

RATE, SAMPLES, N_FFT, HOP, MELS = 8000, 2048, 256, 64, 20
BANDS = dict(name="Spectrograms", n_fft=N_FFT, hop=HOP, num_mels=MELS, mean=-4.0, deviation=2.0)
BANDS["floor"] = 0.01


def space(channels=1, **fields):
    data = dict(feature="audio", image_shape=(SAMPLES, channels), sample_rate=RATE)
    return kinds.SPACE.bind(BANDS | fields, "space", data=Config(data))


def tone(pitch):
    """Return a tone with a swell in int16, `[1 2048 1]`."""
    time = np.arange(SAMPLES) / RATE
    wave = 0.5 * np.sin(2 * np.pi * pitch * time) * np.sin(np.pi * time * RATE / SAMPLES)
    return np.rint(wave * 2**15).astype(np.int16)[None, :, None]


def test_a_frame_has_the_bands_of_its_samples():
    """Frame 10 has the 256 samples around 10.5 hops."""
    sound = np.random.default_rng(0).integers(-9000, 9000, (1, SAMPLES, 1)).astype(np.int16)
    spectrograms = space().encode(jnp.asarray(sound))
    assert spectrograms.shape == (1, *space().shape) == (1, SAMPLES // HOP, MELS)
    start = 10 * HOP + HOP // 2 - N_FFT // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    spectrum = np.abs(np.fft.rfft(sound[0, start : start + N_FFT, 0] / 2**15 * window))
    bands = np.log(spectrum @ mel_filters(RATE, N_FFT, MELS) + 0.01)
    np.testing.assert_allclose(spectrograms[0, 10], (bands + 4) / 2, rtol=1e-4, atol=1e-4)
    silence = space().encode(jnp.zeros_like(sound))
    np.testing.assert_allclose(silence, (np.log(0.01) + 4) / 2, rtol=1e-5)
    assert np.abs(space().decode(silence)).max() < 1e-5


def test_the_way_back_keeps_pitch_loudness_and_channels():
    """Two tones, one in each channel; their pitches by an FFT of the whole sound."""
    pitches = (500.0, 1250.0)
    sounds = jnp.asarray(np.concatenate([tone(each) for each in pitches], axis=-1))
    stereo = space(channels=2)
    encoded = stereo.encode(sounds)
    assert encoded.shape == (1, *stereo.shape) == (1, SAMPLES // HOP, 2 * MELS)
    decoded = np.asarray(stereo.decode(encoded))
    assert decoded.shape == sounds.shape
    for channel, pitch in enumerate(pitches):
        spectrum = np.abs(np.fft.rfft(decoded[0, :, channel]))
        assert abs(spectrum.argmax() * RATE / SAMPLES - pitch) < 60  # Hz; bands are 133 Hz wide
    powers = [np.mean(np.square(x)) for x in (decoded, np.asarray(sounds) / 2**15)]
    assert 0.5 < powers[0] / powers[1] < 2


@pytest.mark.parametrize("frames", [8, 40])
def test_other_numbers_of_frames_become_sound_of_their_length(frames):
    """A roll-out makes more frames than a training sound has."""
    silence = jnp.full((1, frames, MELS), (np.log(0.01) + 4) / 2)
    assert space().decode(silence).shape == (1, frames * HOP, 1)


def test_hops_that_do_not_fit_are_refused():
    for fields in (dict(hop=60), dict(n_fft=255), dict(n_fft=32)):
        with pytest.raises(ValueError, match="a hop that divides the 2048 samples"):
            space(**fields)


def load(split, data_dir):
    sounds = np.concatenate([tone(pitch) for pitch in np.linspace(300, 2000, 8)])
    return Dataset("tones", split, InMemory({"audio": sounds}))


@pytest.mark.slow
def test_diffusion_trains_samples_and_draws():
    shape = (SAMPLES, 1)
    config = base.diffusion("tones", 1, name=f"{__name__}.load", feature="audio", image_shape=shape)
    config.data.sample_rate, config.space = RATE, BANDS
    config.model = dict(name="AudioDiT", patch_size=1, width=16, depth=1, num_heads=2)
    config.batch_size, config.num_steps, config.sampling.num_steps = 4, 10, 2
    task, key = build(config), jax.random.key(0)
    batch = Batches(load("train", None), 4, 0)[0]
    state, update = jax.jit(task.init)(key), jax.jit(task.update)
    losses = []
    for _ in range(3):
        state, metrics = update(state, batch, key)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]  # one key, so one loss, which falls
    sounds = sample(task, state, np.zeros(3, int), config.sampling)
    assert sounds.shape == (3, *shape) and sounds.dtype == np.int16
    labels = jnp.zeros(2, int)
    inputs = task.sampling_inputs(config.sampling)
    film = jax.jit(lambda: task.generate(state, key, labels, labels, *inputs, trajectory=True))()
    assert film.shape == (3, 2, *shape)
    assert task.space.picture(sounds, 3).size[0] > 90
    again = task.functions(state, config.sampling)["reconstruct"](batch["audio"])
    assert again.shape == batch["audio"].shape and again.dtype == np.int16
