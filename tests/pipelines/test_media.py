"""WAV, MP4 and WebM files, read back by other programs' decoders."""

import sys

import numpy as np
import pytest
from scipy.io import wavfile

from genjax.data.sounds import read
from genjax.pipelines.media import join_sounds, write_clip, write_wav

av = pytest.importorskip("av")

SHADES = np.linspace(20, 230, 9).astype(np.uint8)
CLIP = np.broadcast_to(SHADES[:, None, None, None], (9, 15, 20, 1))
RATE = 7680  # of Pong; no codec of these files takes it


def test_a_wav_is_the_sound_to_the_last_bit(tmp_path):
    sound = np.random.default_rng(0).integers(-(2**15), 2**15, (500, 2)).astype(np.int16)
    write_wav(tmp_path / "a.wav", sound, RATE)
    rate, samples = wavfile.read(tmp_path / "a.wav")  # SciPy's reader
    assert rate == RATE
    np.testing.assert_array_equal(samples, sound)
    write_wav(tmp_path / "b.wav", np.array([[0.5], [-1.0], [1.5]], np.float32), 8000)
    np.testing.assert_array_equal(wavfile.read(tmp_path / "b.wav")[1], [2**14, -(2**15), 2**15 - 1])


def test_joined_sounds_have_silence_between_them():
    joined = join_sounds(np.ones((2, 10, 1), np.int16), sample_rate=8, pause=0.5)
    np.testing.assert_array_equal(joined[:, 0], ([1] * 10 + [0] * 4) * 2)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("channels", [1, 2])
def test_clips_have_their_frames_and_their_sound_at_its_times(tmp_path, suffix, channels):
    """A tone of 440 Hz sounds from 0.5 s on; the frames are shown for 1/8 s each."""
    time = np.arange(round(9 / 8 * RATE)) / RATE
    tone = np.where(time >= 0.5, 0.5 * np.sin(2 * np.pi * 440 * time), 0)
    sound = np.repeat(tone[:, None], channels, axis=1)
    write_clip(tmp_path / f"a{suffix}", CLIP, 8.0, sound, RATE)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        frames = list(container.decode(video=0))
    shades = [int(frame.to_ndarray(format="rgb24")[100, 100, 0]) for frame in frames]
    np.testing.assert_allclose(shades, SHADES, atol=4)
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(9) / 8, atol=0.01)
    assert min(frames[0].height, frames[0].width) >= 256
    heard = read(tmp_path / f"a{suffix}")
    assert heard.samples.shape[1] == channels
    envelope = np.abs(heard.samples[:, 0]) > 0.1
    assert abs(heard.start + envelope.argmax() / heard.rate - 0.5) < 0.01
    loud = heard.samples[envelope.argmax() :][: heard.rate // 2, 0]
    spectrum = np.abs(np.fft.rfft(loud))
    assert abs(np.fft.rfftfreq(len(loud), 1 / heard.rate)[spectrum.argmax()] - 440) < 3


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_clip_without_sound_and_of_colours(tmp_path, suffix):
    """The file says its matrix, BT.601, so that no player has to guess. Its sides are even."""
    colours = np.broadcast_to(np.array([200, 40, 90], np.uint8), (3, 301, 299, 3))
    write_clip(tmp_path / f"a{suffix}", colours, 10.0)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        assert not container.streams.audio
        frame = next(container.decode(video=0))
        assert frame.colorspace in (5, 6) and frame.color_range == 1  # of FFmpeg; from 16 to 235
        frame = frame.to_ndarray(format="rgb24")
    assert frame.shape == (302, 300, 3)
    for place in (150, -1):  # the last row and column repeat those before them
        np.testing.assert_allclose(frame[place, place].astype(int), [200, 40, 90], atol=6)


def test_mistakes(tmp_path, monkeypatch, unchecked_annotations):
    with pytest.raises(ValueError, match=r"sound has shape \(9,\); a file takes"):
        write_wav(tmp_path / "a.wav", np.zeros(9, np.float32), 8000)
    with pytest.raises(ValueError, match=r"video has shape \(1, 9, 15, 20, 1\), not"):
        write_clip(tmp_path / "a.mp4", CLIP[None], 8.0)
    with pytest.raises(ValueError, match="ends in .mp4 or .webm, not in '.avi'"):
        write_clip(tmp_path / "a.avi", CLIP, 8.0)
    with pytest.raises(ValueError, match="without a sample_rate"):
        write_clip(tmp_path / "a.mp4", CLIP, 8.0, np.zeros((9, 1), np.float32))
    for shape in ((0, 1), (9, 3)):
        with pytest.raises(ValueError, match="one sample or more of 1 or 2 channels"):
            write_clip(tmp_path / "a.mp4", CLIP, 8.0, np.zeros(shape, np.float32), 8000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        write_clip(tmp_path / "a.mp4", CLIP, 8.0)
