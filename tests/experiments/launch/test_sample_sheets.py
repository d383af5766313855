"""The sheets of samples and of real examples: their labels, examples and names."""

import wave
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from experiments.inputs import conditions
from experiments.inputs.conditions import Classes, Frames, Prompts, Unconditional
from experiments.inputs.datasets import Data
from experiments.inputs.spaces import Pixels, Points, Waveforms
from experiments.launch import sampling
from experiments.launch.sampling import (
    draw_sheet,
    save_real,
    save_samples,
    save_sheet,
    sheet_labels,
    without_repetitions,
)
from genjax.data import Dataset, InMemory
from genjax.data.sounds import read
from genjax.training.pictures import read_rows

av = pytest.importorskip("av")

LABELS = np.array([0, 3, 1, 1, 0, 1, 3])


def load_shades(split, data_dir):
    """Images of one shade, of four classes, one of them without an example.

    Shades of the split "train" begin at 100, and there are none of class 3.
    """
    labels = LABELS if split == "test" else LABELS[LABELS != 3]
    shades = np.arange(len(labels), dtype=np.uint8) + (0 if split == "test" else 100)
    arrays = {"image": np.tile(shades[:, None, None, None], (1, 8, 8, 1)), "label": labels}
    return Dataset("shades", split, InMemory(arrays), num_classes=4)


def load_clips(split, data_dir):
    clips = np.arange(5, dtype=np.uint8)[:, None, None, None, None]
    return Dataset("clips", split, InMemory({"video": clips * np.ones((1, 3, 8, 8, 1), np.uint8)}))


def data(load=load_shades, **fields):
    name = f"{__name__}.{load.__name__}"
    return Data(name, "train", "test", None, **{"image_shape": (8, 8, 1)} | fields)


def test_real_examples_of_classes_stand_in_their_rows():
    """Three columns: training images follow where the held-out set has too few of a class."""
    labels = sheet_labels(4, per_row=3)
    real = Classes(4).real_examples(data(), labels, ("cat", "dog", "elk", "fox"))
    shades = real.examples[:, 0, 0, 0].reshape(4, 3)
    assert real.examples.dtype == np.uint8
    assert set(shades[0, :2]) == {0, 4} and shades[0, 2] in (100, 103)
    assert set(shades[1]) == {2, 3, 5}
    assert set(shades[2]) == {128} and set(shades[3, :2]) == {1, 6} and shades[3, 2] == 128
    assert list(real.names) == ["cat (1 from training)", "dog", "elk", "fox"]
    missing = np.zeros((4, 3), bool)
    missing[2], missing[3, 2] = True, True
    np.testing.assert_array_equal(real.present.reshape(4, 3), ~missing)


def test_the_training_set_is_read_only_if_the_held_out_set_is_too_small(monkeypatch):
    splits = []

    def load(self, split):
        splits.append(split)
        return load_shades(split, None)

    labels = sheet_labels(2, per_row=2)
    with mock.patch.object(Data, "load", load):
        real = Classes(4).real_examples(data(), labels, ("cat", "dog"))
        # Of a larger set, nobody knows how many of a class the rest of it has.
        monkeypatch.setattr(conditions, "SEARCHED", len(LABELS) - 1)
        Classes(4).real_examples(data(), sheet_labels(2, per_row=9), ("cat", "dog"))
    assert splits == ["test"] * 2 and list(real.names) == ["cat", "dog"] and real.present.all()


def shades_of(sheet, columns):
    """Return the shade in the middle of each cell of a sheet, without the names of its rows."""
    pixels = np.asarray(sheet)
    return pixels[33::66, pixels.shape[1] - 66 * columns + 33 :: 66]


def test_a_sheet_of_real_examples_has_the_columns_that_the_data_fill(tmp_path):
    """Six of ten columns: both splits together have four images of class 0 and six of class 1."""
    labels, space = sheet_labels(2, per_row=10), Pixels((8, 8, 1))
    real = Classes(2).real_examples(data(), labels, ("cat", "dog"))
    shades = shades_of(save_real(tmp_path / "real.png", space, real, labels, 10), 6)
    assert shades.shape == (2, 6)
    assert set(shades[0, :4]) == {0, 4, 100, 103} and set(shades[0, 4:]) == {128}
    assert set(shades[1]) == {2, 3, 5, 101, 102, 104}
    with Image.open(tmp_path / "real.png") as sheet:
        assert read_rows(sheet) == ["cat (2 from training)", "dog (3 from training)"]


@pytest.mark.parametrize("condition", [Classes(1), Unconditional(4)])
def test_real_examples_without_classes_are_the_first_in_turn(condition):
    """They are the originals of an autoencoder's reconstructions, in the same places."""
    shown = data()
    real = condition.real_examples(shown, np.zeros(9, int), condition.row_names(("cat",)))
    assert real.names == () and list(real.present) == [True] * 7 + [False] * 2
    np.testing.assert_array_equal(real.examples, shown.shown[[0, 1, 2, 3, 4, 5, 6, 0, 1]])


@pytest.mark.parametrize(("per_row", "shown"), [(3, [[0, 1, 2], [3, 4, 5]]), (9, [range(7)])])
def test_no_original_is_shown_twice(tmp_path, per_row, shown):
    """Seven held-out images are two rows of three or one of seven, and so are samples."""
    labels, space, shades = np.arange(4).repeat(per_row), Pixels((8, 8, 1)), data()
    real = Unconditional(4).real_examples(shades, labels, ())
    sheet = save_real(tmp_path / "real.png", space, real, labels, per_row)
    np.testing.assert_array_equal(shades_of(sheet, len(shown[0])), np.array([*map(list, shown)]))
    autoencoder = SimpleNamespace(num_originals=7)
    kept, columns = without_repetitions(autoencoder, labels, per_row)
    assert (len(kept), columns) == (len(shown) * len(shown[0]), len(shown[0]))
    np.testing.assert_array_equal(kept, labels[: len(kept)])
    for task in (SimpleNamespace(num_originals=100), SimpleNamespace()):
        assert without_repetitions(task, labels, per_row) == (labels, per_row)


def test_a_label_is_shown_as_often_as_it_has_originals():
    task, labels = SimpleNamespace(originals_per_label=3, num_originals=12), np.repeat([1, 3], 5)
    kept, per_row = without_repetitions(task, labels, 5)
    assert kept.tolist() == [1, 1, 1, 3, 3, 3] and per_row == 3
    assert without_repetitions(task, labels, 3) == (labels, 3)


def test_real_clips_are_those_that_samples_continue():
    clips = data(load_clips, image_shape=(3, 8, 8, 1), feature="video")
    frames = Frames(clips, num_rows=2)
    real = frames.real_examples(clips, np.array([0, 0, 1, 1]), frames.row_names(None))
    assert real.names == ("clip 0", "clip 1") and real.present is None
    np.testing.assert_array_equal(real.examples[:, 0, 0, 0, 0], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("name", "feature", "with_sound", "words"),
    [
        ("a.wav", "video", False, "a.wav: these samples are no sounds; write them to a .png"),
        ("a.webm", "audio", False, "a.webm: these samples are no clips; write them to a .png"),
        ("a.mp4", "image", False, "a.mp4: these samples are no clips; write them to a .png"),
        ("a.mp4", "video", True, "a.mp4 is written with PyAV: pip install av"),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_sampling(
    name, feature, with_sound, words, monkeypatch
):
    monkeypatch.setattr(sampling.importlib.util, "find_spec", lambda package: None)
    with pytest.raises((ImportError, ValueError), match=words):
        sampling.check_file(Path(name), feature, with_sound)
    for written, of in (("a.npz", "image"), ("a.png", "audio"), ("a.wav", "audio")):
        sampling.check_file(Path(written), of, with_sound=False)
    sampling.check_file(Path("a.wav"), "video", with_sound=True)


def test_frames_need_a_held_out_clip_for_each_row():
    """JAX would take the frames of the last clip for a row without one."""
    frames = Frames(data(load_clips, image_shape=(3, 8, 8, 1), feature="video"), num_rows=99)
    for use in (lambda: frames.transform(None), frames.frozen):
        with pytest.raises(ValueError, match="condition.num_rows is 99, and .* clips: set fewer"):
            use()


def test_rows_of_a_sheet_have_the_names_of_their_labels():
    space, examples = Pixels((8, 8, 1)), np.zeros((6, 8, 8, 1), np.uint8)
    names = Classes(40).row_names(None)
    sheet = draw_sheet(space, examples, sheet_labels(40, 2)[:6], 2, names)
    assert sheet.info["rows"] == ["class 0", "class 2", "class 4"] and sheet.height == 3 * 66
    assert Classes(2).row_names(["cat", "dog"]) == ("cat", "dog")
    prompts = Prompts("minilm", 16, 384, 384, 0.5, ("a red apple", "a green apple"))
    assert prompts.row_names(None) == ("a red apple", "a green apple")
    assert not draw_sheet(space, examples, np.zeros(6, int), 2, ()).info.get("rows")
    points = draw_sheet(Points((2,)), np.zeros((6, 2)), np.arange(6) // 2, 2, ("a", "b", "c"))
    assert not points.info.get("rows")  # one picture, so no rows


def test_clips_are_strips_of_frames_and_a_film_beside_them(tmp_path):
    """Two clips a row: picture t of the film has frame t of all clips, in their named rows."""
    shades = np.arange(4 * 3, dtype=np.uint8).reshape(4, 3, 1, 1, 1) * 20
    clips = np.broadcast_to(shades, (4, 3, 64, 64, 1))
    space, labels = Pixels((3, 64, 64, 1), "video"), np.array([0, 0, 1, 1])
    sheet = save_sheet(tmp_path / "sheet.png", space, clips, labels, 2, ("left", "right"))
    assert sheet.info["rows"] == ["left", "right"]
    strips = np.asarray(sheet)[:, -3 * 66 :]  # without names; a border of one pixel everywhere
    assert strips.shape[0] == 4 * 66
    np.testing.assert_array_equal(strips[33::66, 33::66], shades.reshape(4, 3))
    with Image.open(tmp_path / "sheet.webp") as film:
        assert film.n_frames == 3
        for t in range(3):
            film.seek(t)
            frame = np.asarray(film.convert("L"))[:, -2 * 66 :]
            assert frame.shape[0] == 2 * 66
            seen = frame[33::66, 33::66].astype(int)
            np.testing.assert_allclose(seen, shades[:, t].reshape(2, 2), atol=1)  # of RGB
    images = np.zeros((2, 8, 8, 1), np.uint8)
    save_sheet(tmp_path / "images.png", Pixels((8, 8, 1)), images, np.arange(2), 1, ())
    assert not (tmp_path / "images.webp").exists()


def test_sounds_are_spectrograms_and_a_wav_beside_them(tmp_path):
    """Sines of 500 and 3500 Hz at 8 kHz: low and high in the picture, then silence between."""
    time = np.arange(4000)[:, None] / 8000
    sounds = np.stack([2**14 * np.sin(2 * np.pi * hertz * time) for hertz in (500, 3500)])
    space, sounds = Waveforms((4000, 1), sample_rate=8000), sounds.astype(np.int16)
    path, labels = tmp_path / "sheet.png", np.arange(2)
    sheet = save_sheet(path, space, sounds, labels, 1, ("low", "high"))
    assert sheet.info["rows"] == ["low", "high"]
    bright = np.asarray(sheet).sum(-1)[:, -162:][:, 81]  # in the middle of the sounds
    assert abs(bright[1:65].argmax() - 64 * 7 / 8) <= 2  # 0 Hz is at the bottom, 4 kHz at the top
    assert abs(bright[67:131].argmax() - 64 * 1 / 8) <= 2
    with wave.open(str(tmp_path / "sheet.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        played = np.frombuffer(file.readframes(99_999), "<i2")
    silence = np.zeros(2000)
    expected = np.concatenate([sounds[0, :, 0], silence, sounds[1, :, 0], silence])
    np.testing.assert_array_equal(played, expected)


def test_the_suffix_of_a_file_of_samples_says_its_form(tmp_path):
    clips, sounds = np.zeros((2, 3, 8, 8, 1), np.uint8), np.zeros((2, 100, 1), np.int16)
    spaces, labels = (Pixels((3, 8, 8, 1), "video"), Waveforms((100, 1))), np.zeros(2, int)
    for name, space, samples in (
        ("a.npz", spaces[0], clips),
        ("a.mp4", spaces[0], clips),
        ("a.wav", spaces[1], sounds),
        ("b.png", spaces[1], sounds),
    ):
        save_samples(tmp_path / name, space, samples, labels, 2, ())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.npz", "a.mp4", "a.wav", "b.png", "b.wav"}
    with pytest.raises(ValueError, match="c.wav: these samples are no sounds"):
        save_samples(tmp_path / "c.wav", spaces[0], clips, labels, 2, ())
    with pytest.raises(ValueError, match="c.webm: these samples are no clips"):
        save_samples(tmp_path / "c.webm", spaces[1], sounds, labels, 2, ())


class ClipsWithSound:
    """The part of a space of clips with sound that files of samples read."""

    sound = Waveforms((2000, 1), sample_rate=8000)

    @staticmethod
    def picture(clips, columns):
        return Pixels((2, 8, 8, 1), "video").picture(clips["video"], columns)


@pytest.mark.parametrize("suffix", [".png", ".webm", ".wav", ".npz"])
def test_clips_with_sound_play_one_after_another(tmp_path, suffix):
    """Two clips of two frames and 0.25 s: the second is bright, and has a tone in it."""
    video = np.zeros((2, 2, 8, 8, 1), np.uint8)
    sound, video[1] = np.zeros((2, 2000, 1), np.int16), 200
    sound[1, :, 0] = 2**14 * np.sin(np.arange(2000))
    clips, path = {"video": video, "sound": sound}, tmp_path / f"a{suffix}"
    save_samples(path, ClipsWithSound(), clips, np.arange(2), 1, ("left", "right"))
    if suffix == ".npz":
        assert set(np.load(path)) == {"video", "sound", "labels"}
    elif suffix == ".wav":
        with wave.open(str(path)) as file:
            assert file.getnframes() == 2 * 4000  # with 0.25 s of silence after each
    else:
        with av.open(str(path.with_suffix(".mp4") if suffix == ".png" else path)) as container:
            frames = list(container.decode(video=0))
        assert [frame.time for frame in frames] == [0, 0.125, 0.25, 0.375]
        shades = [int(frame.to_ndarray(format="rgb24")[9, 9, 0]) for frame in frames]
        np.testing.assert_allclose(shades, [0, 0, 200, 200], atol=4)
        heard = read(path.with_suffix(".mp4") if suffix == ".png" else path)
        loud = np.abs(heard.samples[:, 0]) > 0.2
        assert abs(heard.start + loud.argmax() / heard.rate - 0.25) < 0.01
