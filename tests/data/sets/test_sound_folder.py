"""Folders of sound, compared with the sines that were written."""

import json
import sys
from contextlib import nullcontext
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from genjax.data import Batches, load_dataset
from genjax.data.dataset import InMemory, OnDisk
from genjax.data.sets.sound_folder import load_sound_folder
from genjax.data.sounds import decode

av = pytest.importorskip("av")

RATE = 24_000


def sine(frequency, seconds, rate=RATE, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path, *channels, rate=RATE, codec=None):
    """Write one or two channels of sound; 16-bit WAV unless the suffix says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codecs = {".flac": "flac", ".mp3": "libmp3lame", ".opus": "libopus", ".ogg": "libopus"}
    layout = "mono" if len(channels) == 1 else "stereo"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or codecs.get(path.suffix, "pcm_s16le"), rate=rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(
            np.stack(channels).astype(np.float32), format="fltp", layout=layout
        )
        frame.sample_rate = rate
        converted = av.AudioResampler(stream.format.name, layout, stream.rate)
        for part in converted.resample(frame) + converted.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode())


def difference(sound, expected):
    """Return the root mean square of an error, relative to that of what is expected."""
    return np.sqrt(np.mean((sound / 2**15 - expected) ** 2) / np.mean(expected**2))


def test_wav_and_flac_are_read_to_the_last_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 3000) / 2**15
    for suffix in (".wav", ".flac"):
        write(tmp_path / f"a{suffix}", samples)
        sound, kinds = decode(tmp_path / f"a{suffix}", RATE)
        np.testing.assert_array_equal(sound[:, 0], samples * 2**15)
        assert kinds == () and sound.dtype == np.int16


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".ogg"])
def test_every_rate_and_format_is_resampled(tmp_path, suffix):
    """A sine of 440 Hz stays one. A delay of one sample at 24 kHz would be an error of 0.12."""
    write(tmp_path / f"a{suffix}", sine(440, 0.5))
    for rate in (8000, 16_000, 44_100):
        sound, kinds = decode(tmp_path / f"a{suffix}", rate, length=round(0.4 * rate))
        assert sound.shape == (round(0.4 * rate), 1) and f"to {rate} Hz" in "".join(kinds)
        middle = slice(rate // 10, 3 * rate // 10)  # codecs and filters blur the ends
        expected = sine(440, 0.4, rate)[middle]
        assert difference(sound[middle, 0], expected) < 0.06


def test_frequencies_that_the_rate_cannot_hold_are_removed(tmp_path):
    """Of 1 and 7 kHz, at 8 kHz only the first stays; without a filter 7 kHz would become 1 kHz."""
    write(tmp_path / "a.wav", sine(1000, 0.5, amplitude=0.4) + sine(7000, 0.5, amplitude=0.4))
    sound, _ = decode(tmp_path / "a.wav", 8000)
    assert difference(sound[400:-400, 0], sine(1000, 0.5, 8000, 0.4)[400:-400]) < 0.01


def test_channels(tmp_path):
    left, right = sine(300, 0.2), sine(500, 0.2, amplitude=0.3)
    write(tmp_path / "two.wav", left, right)
    write(tmp_path / "one.wav", left)
    mean, kinds = decode(tmp_path / "two.wav", RATE, 1)
    np.testing.assert_allclose(mean[:, 0] / 2**15, (left + right) / 2, atol=2**-14)
    assert kinds == ("2 to 1 channels",)
    stereo, kinds = decode(tmp_path / "two.wav", RATE, 2)
    np.testing.assert_allclose(stereo / 2**15, np.stack([left, right], 1), atol=2**-15)
    assert kinds == ()
    write(tmp_path / "opposite.wav", left, -left)
    with pytest.raises(ValueError, match="is silent: its channels cancel each other"):
        decode(tmp_path / "opposite.wav", RATE, 1)
    doubled, kinds = decode(tmp_path / "one.wav", RATE, 2)
    np.testing.assert_array_equal(doubled[:, 0], doubled[:, 1])
    assert kinds == ("1 to 2 channels",)


def test_longer_files_are_cut_and_shorter_padded(tmp_path):
    write(tmp_path / "a.wav", sine(300, 0.5))
    whole, _ = decode(tmp_path / "a.wav", RATE)
    cut, kinds = decode(tmp_path / "a.wav", RATE, length=1000)
    np.testing.assert_array_equal(cut, whole[:1000])
    assert kinds == ("cut",)
    padded, kinds = decode(tmp_path / "a.wav", RATE, length=20_000)
    np.testing.assert_array_equal(padded[:12_000], whole)
    assert not np.any(padded[12_000:]) and kinds == ("padded with silence",)


def test_a_cut_does_not_change_resampled_sound(tmp_path):
    """The filter at the cut sees the sound that follows; silence there would halve the end."""
    write(tmp_path / "a.wav", sine(250, 0.5) + 0.2)
    whole, _ = decode(tmp_path / "a.wav", 16_000)
    cut, _ = decode(tmp_path / "a.wav", 16_000, length=1000)
    np.testing.assert_allclose(cut, whole[:1000], atol=1)


def test_sound_that_begins_before_its_clip_is_read_to_the_clips_end(monkeypatch):
    """A clip from 0 to 1 s, whose sound begins half a second earlier, in frames of 0.1 s."""

    def frame(number):
        samples = np.full((1, RATE // 10), number / 100, np.float32)
        made = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        made.sample_rate, made.time_base = RATE, Fraction(1, RATE)
        made.pts = (number - 5) * RATE // 10
        return made

    container = SimpleNamespace(
        streams=SimpleNamespace(audio=[None]), decode=lambda stream: map(frame, range(30))
    )
    monkeypatch.setattr(av, "open", lambda path: nullcontext(container))
    sound, _ = decode("clip.mp4", RATE, length=RATE, start=0.0)
    expected = np.repeat(np.arange(5, 15) / 100, RATE // 10)
    np.testing.assert_allclose(sound[:, 0] / 2**15, expected, atol=2**-15)


FORM = dict(sample_rate=8000, seconds=1.25)


def test_a_wav_file_of_a_pipe_is_whole(tmp_path):
    """espeak-ng cannot go back to the header, and leaves these sizes in it."""
    write(tmp_path / "x.wav", sine(300, 1.5))
    content = bytearray((tmp_path / "x.wav").read_bytes())
    data = content.index(b"data") + 4
    content[4:8] = (0x7FFFF024).to_bytes(4, "little")
    content[data : data + 4] = (0x7FFFF000).to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(content)
    assert len(decode(tmp_path / "x.wav", RATE)[0]) == pytest.approx(1.5 * RATE, rel=0.01)


@pytest.mark.parametrize("name", ["x.aac", "x.mp3"])
def test_a_duration_that_is_estimated_cuts_nothing_off(tmp_path, name):
    """Its bitrate rises after four quiet seconds. MP3 has no header with its length here."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE)
    sound = np.concatenate([1e-3 * sine(300, 4.0), noise]).astype(np.float32)
    aac = name.endswith("aac")
    options = {"flags": "+qscale", "global_quality": "236"}
    with av.open(str(tmp_path / name), "w", options={} if aac else {"write_xing": "0"}) as file:
        stream = file.add_stream("aac" if aac else "libmp3lame", rate=RATE, options=options)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for part in av.AudioResampler(stream.format.name, "mono", RATE).resample(frame):
            file.mux(stream.encode(part))
        file.mux(stream.encode())
    with av.open(str(tmp_path / name)) as file:
        estimate = file.streams.audio[0].duration * file.streams.audio[0].time_base
    assert estimate > 8.5
    assert len(decode(tmp_path / name, RATE)[0]) == pytest.approx(8 * RATE, rel=0.02)


def test_unusable_files_are_named_and_counted(tmp_path, caplog):
    write(tmp_path / "good.wav", sine(300, 1.5))
    write(tmp_path / "quiet.wav", sine(300, 1.5, amplitude=0.01))  # is not silent
    write(tmp_path / "square.wav", np.sign(sine(300, 1.5)) / 2)  # is not clipped
    write(tmp_path / "silent.wav", np.zeros(36_000))
    write(tmp_path / "clipped.flac", np.clip(sine(300, 1.5, amplitude=1.5), -1, 1))
    for name in ("good.wav", "long.flac", "long.mp3", "long.ogg"):
        if name != "good.wav":
            write(tmp_path / name, sine(300, 2.4))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("no sound at all" * 100)
    dataset = load_sound_folder("train+test", tmp_path, **FORM)
    reasons = {
        "silent.wav": "is silent",
        "clipped.flac": "is clipped",
        "cut-good.wav": "is cut off: has 36",
        "cut-long.flac": "",  # the decoder's own words
        "cut-long.mp3": "is cut off: ends after 1.1",
        "cut-long.ogg": "is cut off: ends after 0.99",
        "empty.wav": "",
        "text.mp3": "",
    }
    assert set(dataset.skipped) == set(reasons)
    for name, reason in reasons.items():
        assert reason in dataset.skipped[name]
    assert len(dataset.source) == 6 and "skipped 8 of 14 files" in caplog.text
    assert dataset.conversions["cut"] == 6


def test_floats_beyond_full_scale_are_clipped_sound(tmp_path):
    """Files of floats may go beyond 1, where 16 bits end. A few samples there do no harm."""
    loud = sine(300, 0.5, amplitude=1.5)
    write(tmp_path / "loud.wav", loud, codec="pcm_f32le")
    with pytest.raises(ValueError, match=r"is clipped: .* or beyond full scale"):
        decode(tmp_path / "loud.wav", RATE)
    rarely = sine(300, 0.5)
    rarely[100:105] = 1.2
    write(tmp_path / "rarely.wav", rarely, codec="pcm_f32le")
    assert decode(tmp_path / "rarely.wav", RATE)[0].max() == 2**15 - 1


def test_folders_are_classes(tmp_path):
    for name in ("bell/0.wav", "bell/1.wav", "drum/0.wav"):
        write(tmp_path / name, sine(300, 1.5))
    dataset = load_dataset("sound_folder", "train", tmp_path, **FORM)
    assert dataset.class_names == ("bell", "drum") and dataset.image_shape == (10_000, 1)
    assert dataset.source[:]["label"].tolist() == [0, 0, 1]
    assert isinstance(dataset.source, InMemory)
    batch = Batches(dataset, 2, seed=0, image_shape=(10_000, 1))[0]
    assert set(batch) == {"audio", "label"} and batch["audio"].dtype == np.int16


def test_captions_from_texts_beside_files_or_a_captions_file(tmp_path):
    for place, name in enumerate("abc"):
        write(tmp_path / f"{name}.wav", sine(300, 0.3 + place / 10))
    (tmp_path / "a.txt").write_text("a bell\ndingdong\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("a drum", encoding="utf-8")
    with pytest.raises(ValueError, match="a.txt, and b.wav has none in b.txt: give each file a ca"):
        load_sound_folder("train+test", tmp_path, **FORM)
    (tmp_path / "b.txt").write_text("a gong", encoding="utf-8")
    dataset = load_sound_folder("train+test", tmp_path, sample_rate=8000, seconds=None)
    assert dataset.captions == [("a bell", "dingdong"), ("a gong",), ("a drum",)]
    assert dataset.image_shape == (None, 1) and isinstance(dataset.source, OnDisk)
    assert [len(dataset.source[i]["audio"]) for i in range(3)] == [2400, 3200, 4000]
    for text in tmp_path.glob("*.txt"):
        text.unlink()
    rows = [{"file_name": f"{name}.wav", "text": name} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_sound_folder("train+test", tmp_path, **FORM)
    assert dataset.captions == [("a",), ("b",)]
    assert dataset.skipped == {"c.wav": "no captions file names it"}


def test_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'sound_folder' needs a data_dir"):
        load_dataset("sound_folder")
    with pytest.raises(ValueError, match=r"holds no sounds: expected files called \*.aac"):
        load_dataset("sound_folder", "train", tmp_path)
    for wrong in ({"channels": 3}, {"sample_rate": 0}, {"seconds": 0.0}):
        with pytest.raises(ValueError, match="have 1 or 2 channels, and a sample_rate and seconds"):
            load_dataset("sound_folder", "train", tmp_path, **wrong)
    with pytest.raises(ValueError, match="'sound_folder' takes no option 'rate'; it takes sample_"):
        load_dataset("sound_folder", "train", tmp_path, rate=8000)
    with pytest.raises(ValueError, match="'digits' takes no option 'rate'; it takes none"):
        load_dataset("digits", rate=8000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        load_dataset("sound_folder", "train", tmp_path)
