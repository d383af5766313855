"""Spoken names: texts in the language that is spoken, and stamps in one split."""

import numpy as np
import pytest
from PIL import Image

from genjax.data import load_dataset
from tests.data.sets.test_sound_folder import sine, write

RATE = 8000


@pytest.fixture
def stamps(tmp_path):
    """Return a folder of twenty stamps with names in English and French, and one without a text."""
    for i in range(20):
        folder = tmp_path / f"kind{i % 2}"
        for suffix, pitch in (("_desc", 300), ("_desc_fr", 600), ("", 1200)):
            write(folder / f"thing{i}{suffix}.ogg", sine(pitch, 0.5))
        lines = ("A thing.", "", f"fr.utf8= Une chose {i}. ", "de.utf8=Ein Ding.")
        (folder / f"thing{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    write(tmp_path / "kind0/thing0_desc_ro.ogg", sine(500, 0.5))
    write(tmp_path / "kind0/lost_desc.ogg", sine(500, 0.5))
    return tmp_path


def test_names_are_captioned_in_their_language_and_stamps_lie_in_one_split(stamps):
    options = dict(sample_rate=RATE, seconds=0.25)
    train, test = (
        load_dataset("spoken_stamps", split, stamps, **options) for split in ("train", "test")
    )
    assert len(train.source) == 36 and len(test.source) == 4
    skipped = train.skipped | test.skipped
    assert skipped["kind0/thing0_desc_ro.ogg"] == "thing0.txt has no text in the language 'ro'"
    assert skipped["kind0/lost_desc.ogg"] == "there is no lost.txt" and len(skipped) == 2
    assert sorted(text for (text,) in test.captions)[:2] == ["A thing."] * 2
    french = {text for (text,) in train.captions} - {"A thing."}
    held = {text for (text,) in test.captions} - {"A thing."}
    assert french | held == {f"Une chose {i}." for i in range(20)} and not french & held
    for (text,), sound in zip(train.captions, train.source[:]["audio"], strict=True):
        assert sound.shape == (RATE // 4, 1) and sound.dtype == np.int16
        pitch = np.abs(np.fft.rfft(sound[:, 0])).argmax() / 0.25
        assert abs(pitch - (300 if text == "A thing." else 600)) <= 4


def test_names_come_with_their_pictures(stamps):
    """A half transparent red picture of 12×6 pixels, in the middle of a white square."""
    for i in range(19):
        colour = (255, 0, 0, 128) if i else (0, 0, 255, 255)
        Image.new("RGBA", (12, 6), colour).save(stamps / f"kind{i % 2}/thing{i}.png")
    options = dict(sample_rate=RATE, seconds=0.25, language="en", size=8)
    dataset = load_dataset("spoken_stamps", "train+test", stamps, **options)
    assert dataset.image_shape == (8, 8, 3) and len(dataset.source) == 19
    assert dataset.skipped["kind1/thing19_desc.ogg"] == "there is no thing19.png"
    examples = dataset.source[:]
    assert examples["audio"].shape == (19, RATE // 4, 1)
    assert np.all(examples["image"][:, [0, 1, 6, 7]] == 255)
    colours = np.unique(examples["image"][:, 3, 4], axis=0)
    np.testing.assert_array_equal(colours, [[0, 0, 255], [255, 127, 127]])


def test_one_language_alone_and_what_is_missing(stamps, tmp_path):
    french = load_dataset("spoken_stamps", "train+test", stamps, language="fr", seconds=0.25)
    assert len(french.source) == 20 and all("chose" in text for (text,) in french.captions)
    with pytest.raises(ValueError, match="holds no spoken names: expected files called x_desc"):
        load_dataset("spoken_stamps", "train", stamps, language="nl")
    with pytest.raises(ValueError, match="'spoken_stamps' needs a data_dir"):
        load_dataset("spoken_stamps", "train")
