import csv
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from genjax.data import Batches, InMemory, images, load_dataset, load_folder
from genjax.data.dataset import OnDisk
from genjax.data.images import decode


def picture(seed, height=12, width=16):
    """A colourful gradient that JPEG preserves."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [x * 255 // width, y * 255 // height, np.full_like(x, seed * 37 % 256)], -1
    ).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    for i in range(20):
        save(tmp_path / "cat" / f"{i}.png", picture(i))
    for i in range(10):
        save(tmp_path / "dog/brown" / f"{i}.bmp", picture(100 + i))
    return tmp_path


def test_folders_are_classes(classes):
    train, test = (load_dataset("folder", split, classes) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog") and train.num_classes == 2
    assert np.bincount(train.source.arrays["label"]).tolist() == [18, 9]
    assert np.bincount(test.source.arrays["label"]).tolist() == [2, 1]
    assert train.image_shape == (12, 16, 3) and not train.skipped and not train.conversions
    seen = np.concatenate([split.source.arrays["image"] for split in (train, test)])
    expected = [picture(i) for i in (*range(20), *range(100, 110))]
    assert sorted(image.tobytes() for image in seen) == sorted(
        image.tobytes() for image in expected
    )
    for image, label in zip(
        train.source.arrays["image"], train.source.arrays["label"], strict=True
    ):
        assert any((image == picture(i + 100 * int(label))).all() for i in range(20))


def test_a_folder_that_is_too_small_to_hold_images_out_says_so(tmp_path):
    for i in range(4):
        save(tmp_path / "cat" / f"{i}.png", picture(i))
    assert len(load_folder("train+test", tmp_path).source) == 4
    with pytest.raises(ValueError, match="^of 4 images, none is held out as 'test', .* add some"):
        load_folder("test", tmp_path)


def test_hidden_files_and_folders_are_left_out(classes):
    """Editors, caches, and archives that a Mac has made leave them behind."""
    for name in (".cache/x.png", "__MACOSX/cat/x.png", "cat/.thumbnails/x.png", "cat/._x.png"):
        save(classes / name, picture(0))
    train = load_folder("train", classes)
    assert train.class_names == ("cat", "dog") and len(train.source) == 27 and not train.skipped


def test_adding_images_leaves_the_splits_as_they_are(classes):
    paths = lambda: {
        image.tobytes() for image in load_dataset("folder", "test", classes).source[:]["image"]
    }
    before = paths()
    save(classes / "cat/more.png", picture(50))
    assert len(before - paths()) <= 1


def test_subfolders_may_be_the_splits(tmp_path):
    for split, names in (("train", "ab"), ("test", "bc"), ("validation", "a")):
        for name in names:
            save(tmp_path / split / name / "x.png", picture(ord(name)))
    for split, labels in (
        ("train", [0, 1]),
        ("test", [1, 2]),
        ("validation", [0]),
        ("test+train[:1]", [1, 2, 0]),
    ):
        dataset = load_dataset("folder", split, tmp_path)
        assert dataset.source.arrays["label"].tolist() == labels and dataset.class_names == (
            "a",
            "b",
            "c",
        )
    with pytest.raises(ValueError, match="expected one of .'test', 'train', 'validation'"):
        load_dataset("folder", "valid", tmp_path)
    # Now the sub-folders are vehicles, not splits: bus, test, train, validation.
    save(tmp_path / "bus/x.png", picture(0))
    assert load_dataset("folder", "train", tmp_path).class_names == (
        "bus",
        "test",
        "train",
        "validation",
    )


def test_images_in_no_folder_have_no_class(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", picture(i))
    dataset = load_dataset("folder", "train", tmp_path)
    assert (
        set(dataset.source[0]) == {"image"}
        and dataset.num_classes is None
        and len(dataset.source) == 4
    )
    save(tmp_path / "class/x.png", picture(9))
    dataset = load_dataset("folder", "train", tmp_path)
    assert dataset.skipped == {
        f"{i}.png": "lies beside the folders of splits or classes" for i in range(4)
    }


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("place", ["", "train"])
def test_captions(tmp_path, form, place):
    texts = {"x.png": "a red, round\nthing", "deep/y.png": "ein Süßes", "gone.png": "nothing"}
    for i, name in enumerate(["x.png", "deep/y.png", "unnamed.png"]):
        save(tmp_path / place / name, picture(i))
    with open(tmp_path / place / form, "w", encoding="utf-8", newline="") as file:
        rows = [{"file_name": name, "text": text} for name, text in texts.items()]
        if form.endswith("csv"):
            writer = csv.DictWriter(file, ["text", "file_name"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    dataset = load_dataset("folder", "train", tmp_path)
    assert (
        dataset.captions == [("ein Süßes",), ("a red, round\nthing",)]
        and dataset.num_classes is None
    )
    np.testing.assert_array_equal(dataset.source.arrays["image"], [picture(1), picture(0)])
    assert dataset.skipped == {
        os.path.join(place, "gone.png"): "No such file or directory",
        os.path.join(place, "unnamed.png"): "no captions file names it",
    }
    assert set(Batches(dataset, 2, seed=0)[0]) == {"image", "index"}


def test_captions_may_be_several(tmp_path):
    save(tmp_path / "x.png", picture(0))
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "x.png", "text": ["name", "synonym"]}\n\n'
    )
    assert load_dataset("folder", "train", tmp_path).captions == [("name", "synonym")]


def test_captions_of_one_image_may_be_in_several_rows(tmp_path):
    save(tmp_path / "x.png", picture(0))
    (tmp_path / "metadata.csv").write_text(
        "file_name,text\nx.png,name\nx.png,synonym\nx.png,name\n"
    )
    assert load_dataset("folder", "train", tmp_path).captions == [("name", "synonym")]


def test_captions_in_text_files_beside_the_images(tmp_path):
    """The texts are those that were written, whatever folders the images lie in."""
    texts = {"a.png": "ein Süßes", "deep/b.v2.jpg": "name\n\n  synonym \n", "deep/c.webp": "third"}
    for i, (name, text) in enumerate(texts.items()):
        save(tmp_path / name, picture(i))
        (tmp_path / name).with_suffix(".TXT" if i == 2 else ".txt").write_text(
            text, encoding="utf-8-sig" if i else "utf-8"
        )
    (tmp_path / "notes.txt").write_text("beside no image")
    dataset = load_dataset("folder", "train", tmp_path)
    assert dataset.captions == [("ein Süßes",), ("name", "synonym"), ("third",)]
    assert dataset.num_classes is None and not dataset.skipped
    np.testing.assert_array_equal(dataset.source[0]["image"], picture(0))
    assert set(Batches(dataset, 2, seed=0, image_shape=(12, 16, 3))[0]) == {"image", "index"}


def test_text_files_in_the_folders_of_splits(tmp_path):
    for i, name in enumerate(["train/a.png", "train/b.png", "test/a.png"]):
        save(tmp_path / name, picture(i))
        (tmp_path / name).with_suffix(".txt").write_text(f"caption {i}")
    assert load_dataset("folder", "train", tmp_path).captions == [("caption 0",), ("caption 1",)]
    assert load_dataset("folder", "test", tmp_path).captions == [("caption 2",)]


def test_captions_of_some_images_or_in_both_forms_are_errors(tmp_path):
    for i, name in enumerate(["cat/a.png", "cat/b.png", "dog/c.png"]):
        save(tmp_path / name, picture(i))
        (tmp_path / name).with_suffix(".txt").write_text(f"caption {i}")
    (tmp_path / "dog/c.txt").write_text(" \n")
    message = r"2 of 3 files have a caption in a text file, such as cat/a.txt, and dog/c.png has no"
    with pytest.raises(ValueError, match=message):
        load_dataset("folder", "train", tmp_path)
    (tmp_path / "dog/c.txt").write_bytes("süß".encode("latin-1"))
    with pytest.raises(ValueError, match="dog/c.txt is not UTF-8: save the caption as UTF-8"):
        load_dataset("folder", "train", tmp_path)
    (tmp_path / "dog/c.txt").write_text("a dog")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat/a.png", "text": "a cat"}')
    message = "captions twice, in a metadata file and in text files such as cat/a.txt: remove one"
    with pytest.raises(ValueError, match=message):
        load_dataset("folder", "train", tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("metadata.jsonl", '{"file_name": "x.png", "text": "good"}\n{"file_name": "x.png"}'),
        ("metadata.jsonl", '{"file_name": "x.png", "text": "good"}\n{"file_name": '),
        (
            "metadata.jsonl",
            '{"file_name": "x.png", "text": "good"}\n{"file_name": "x.png", "text": null}',
        ),
        *(
            ("metadata.jsonl", '{"file_name": "x.png", "text": "good"}\n' + row)
            for row in (
                '{"file_name": "x.png", "text": []}',
                '{"file_name": "x.png", "text": ["a", null]}',
                '{"file_name": "x.png", "text": {"en": "a"}}',
            )
        ),
        ("metadata.csv", "file_name,text\nx.png,good\nx.png\n"),
        ("metadata.csv", "file,text\nx.png,good\nx.png,good\n"),
    ],
)
def test_malformed_captions(tmp_path, name, content):
    save(tmp_path / "x.png", picture(0))
    (tmp_path / name).write_text(content)
    row = 1 if content.startswith("file,") else 2
    with pytest.raises(
        ValueError, match=f"row {row} of .*{name}: expected a file_name and a text, got"
    ):
        load_dataset("folder", "train", tmp_path)


def damaged(folder):
    save(folder / "good.png", picture(0))
    save(folder / "whole.jpg", picture(1, 64, 64))
    data = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[:-200])  # within the compressed pixels
    data = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "header.png").write_bytes(data[:20])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("not meant to be one")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "floats.tif")


def test_files_that_cannot_be_read_are_named(tmp_path, caplog):
    damaged(tmp_path / "train")
    dataset = load_dataset("folder", "train", tmp_path)
    assert len(dataset.source) == 2
    reasons = {
        "truncated.jpg": "image file is truncated",
        "truncated.png": "image file is truncated",
        "header.png": "Truncated File Read",
        "zero.png": "cannot identify image file",
        "text.png": "cannot identify image file",
        "dangling.png": "No such file or directory",
        "floats.tif": "the range of its pixels (Pillow mode F) is unknown",
    }
    assert set(dataset.skipped) == {os.path.join("train", name) for name in reasons}
    assert all(reason and str(tmp_path) not in reason for reason in dataset.skipped.values())
    assert all(
        reasons[os.path.basename(path)] in reason for path, reason in dataset.skipped.items()
    )
    assert "folder (train): skipped 7 of 9 files: " in caplog.text and "; …" in caplog.text


def test_a_folder_of_nothing_but_damage(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match="none of 1 files in .* can be read: x.png .cannot identify"
    ):
        load_dataset("folder", "train", tmp_path)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_found_does_not_depend_on_threads(classes, threads, monkeypatch):
    damaged(classes / "cat")
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    dataset = load_dataset("folder", "train", classes)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    other = load_dataset("folder", "train", classes)
    assert list(dataset.skipped.items()) == list(other.skipped.items()) and len(dataset.skipped) > 3
    assert dataset.conversions == other.conversions and dataset.image_shape == other.image_shape
    for index in range(len(dataset.source)):
        for name, value in dataset.source[index].items():
            np.testing.assert_array_equal(value, other.source[index][name])


def test_a_failing_disk_is_not_a_damaged_file(classes, monkeypatch):
    def fail(path, channels):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(images, "decode", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_dataset("folder", "train", classes)


def test_a_file_that_is_damaged_later_is_named(classes):
    dataset = load_folder("train", classes, preload_bytes=0)
    assert isinstance(dataset.source, OnDisk)
    for path in classes.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        RuntimeError, match=r"cat/\d+.png could be read when the dataset was opened"
    ):
        dataset.source[:]


def test_images_of_different_sizes(tmp_path):
    for i in range(3):
        save(tmp_path / f"train/{i}.png", picture(i, 10, 10 + i))
    dataset = load_dataset("folder", "train", tmp_path)
    assert dataset.image_shape == (10, None, 3) and isinstance(dataset.source, OnDisk)
    with pytest.raises(ValueError, match="vary in size: give a transform"):
        Batches(dataset, 2, seed=0)


def test_large_folders_stay_on_disk(classes):
    size = 27 * 12 * 16 * 3
    assert isinstance(load_folder("train", classes, preload_bytes=size).source, InMemory)
    assert isinstance(load_folder("train", classes, preload_bytes=size - 1).source, OnDisk)


def test_many_files_are_checked_only_once(classes, tmp_path_factory, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(images, "REMEMBER_FROM", 27)
    monkeypatch.setattr(images, "PROGRESS_SECONDS", 0.0)
    decoded = []
    monkeypatch.setattr(
        images, "decode", lambda path, channels: decoded.append(path) or decode(path, channels)
    )
    first = load_folder("train", classes, preload_bytes=0)
    assert len(decoded) == 27 and "folder (train): 27 of 27 files checked" in caplog.text
    again = load_folder("train", classes, preload_bytes=0)
    assert len(decoded) == 27 and again.image_shape == first.image_shape
    changed = first.source.records.entries[4].path
    save(changed, picture(0, 5, 5))
    assert load_folder("train", classes, preload_bytes=0).image_shape == (None, None, 3)
    assert decoded[27:] == [changed]
    load_folder("train", classes, channels=1, preload_bytes=0)
    assert len(decoded) == 27 + 1 + 27
    monkeypatch.setattr(images, "PIXEL_LIMIT", 2**20)
    load_folder("train", classes, preload_bytes=0)
    # Under the new limit they may be too large, so all are read again.
    assert len(decoded) == 27 + 1 + 27 + 27


GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
COLOUR = np.stack([GREY, 250 - GREY, GREY // 2], -1)
ALPHA = np.array([[0, 51, 102, 153, 204, 255]] * 4, np.uint8)[..., None]
DEEP = Image.fromarray(GREY.astype(np.uint16) * 256 + 200)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2

repeated = lambda grey: np.repeat(grey[..., None], 3, -1)
over_white = lambda pixels: pixels * (ALPHA / 255) + 255 - ALPHA


def palette():
    image = Image.frombytes("P", (6, 4), (GREY // 10).tobytes())
    image.putpalette(COLOUR.reshape(-1, 3).tobytes())
    return image


def turned_clockwise():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def deep_colours():
    """A PNG of 16 bits, which Pillow does not write (W3C, Portable Network Graphics, section 5)."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    values = (COLOUR.astype(np.uint16) * 256 + 200).astype(">u2").reshape(4, -1)
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


RGB, RGBA = Image.fromarray(COLOUR), Image.fromarray(np.concatenate([COLOUR, ALPHA], -1))
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 0])])
CMYK = Image.frombytes("CMYK", (6, 4), np.concatenate([255 - COLOUR, 0 * ALPHA], -1).tobytes())
WHITE, UPPER = "transparency over white", "upper 8 of 16 bits"
CASES = {  # name: (image or file, save options, expected RGB, colours before, other conversions)
    "rgb.png": (RGB, {}, COLOUR, "RGB"),
    "grey.png": (Image.fromarray(GREY), {}, repeated(GREY), "L"),
    "bits.png": (Image.fromarray(GREY > 100), {}, repeated(255 * (GREY > 100)), "1"),
    "palette.png": (palette(), {}, COLOUR, "P"),
    "palette_alpha.png": (
        palette(),
        {"transparency": ALPHA.tobytes()},
        over_white(COLOUR),
        "P",
        WHITE,
    ),
    "rgba.png": (RGBA, {}, over_white(COLOUR), "RGB", WHITE),
    "grey_alpha.png": (LA, {}, over_white(repeated(GREY)), "L", WHITE),
    "deep.png": (DEEP, {}, repeated(GREY), "L", UPPER),
    "deep.tif": (DEEP, {}, repeated(GREY), "L", UPPER),
    "deep_rgb.png": (deep_colours(), {}, COLOUR, "RGB", UPPER),
    "cmyk.tif": (CMYK, {}, COLOUR, "CMYK"),
    "turned.png": (
        RGB,
        {"exif": turned_clockwise()},
        np.rot90(COLOUR, -1),
        "RGB",
        "turned as EXIF says",
    ),
    "frames.png": (
        RGB,
        {"save_all": True, "append_images": [CMYK.convert("RGB").rotate(180)]},
        COLOUR,
        "RGB",
    )
    + ("first of several frames",),
}


@pytest.mark.parametrize("name", CASES)
def test_conversions_are_defined_and_counted(tmp_path, name):
    image, options, rgb, mode, *others = CASES[name]
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    else:
        image.save(tmp_path / name, **options)
    for channels, wanted in ((3, "RGB"), (1, "L")):
        pixels, kinds = decode(tmp_path / name, channels)
        assert kinds == (*others, *([] if mode == wanted else [f"{mode} to {wanted}"]))
        assert pixels.dtype == np.uint8
        expected = rgb if channels == 3 else (rgb @ LUMA)[..., None]
        # One level, because values are rounded once or twice.
        np.testing.assert_allclose(pixels, expected, atol=1.01)
        dataset = load_folder("train", tmp_path, channels=channels)
        assert dataset.conversions == dict.fromkeys(kinds, 1)
        np.testing.assert_array_equal(dataset.source[0]["image"], pixels)


def test_cmyk_of_a_jpeg(tmp_path):
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    flat.save(tmp_path / "x.jpg", quality=95)
    pixels, kinds = decode(tmp_path / "x.jpg")
    np.testing.assert_allclose(pixels, np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=3)
    assert kinds == ("CMYK to RGB",)


def test_a_pgm_of_16_bits_keeps_the_upper_8(tmp_path):
    levels = np.array([0x0000, 0x12FF, 0x8000, 0xFFFF], ">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 4 1 65535\n" + levels.tobytes())
    pixels, kinds = decode(tmp_path / "x.pgm", 1)
    assert pixels.ravel().tolist() == [0, 0x12, 0x80, 0xFF] and kinds == ("upper 8 of 16 bits",)


def test_a_transparent_level_of_16_bits_is_white(tmp_path):
    DEEP.save(tmp_path / "x.png", transparency=int(np.asarray(DEEP)[0, 0]))
    pixels, kinds = decode(tmp_path / "x.png", 1)
    expected = np.where(np.asarray(DEEP) == np.asarray(DEEP)[0, 0], 255, GREY)
    np.testing.assert_array_equal(pixels[..., 0], expected)
    assert kinds == (UPPER, WHITE)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="needs a data_dir"):
        load_dataset("folder")
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent"):
        load_dataset("folder", data_dir=tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no images: expected files called .*\*\.png"):
        load_dataset("folder", data_dir=tmp_path)
    with pytest.raises(ValueError, match="3 channels, or 1 for grey levels; got channels=4"):
        load_folder("train", tmp_path, channels=4)


def test_pipes_are_not_waited_for(classes):
    os.mkfifo(classes / "cat/pipe.png")
    os.mkfifo(classes / "cat/pipe")
    dataset = load_dataset("folder", "train+test", classes)
    assert dataset.skipped == {"cat/pipe.png": "no regular file"} and len(dataset.source) == 30


def test_links_neither_hang_nor_multiply(classes, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "more/x.png", picture(200))
    (elsewhere / "up").symlink_to(classes)
    for name, target in (
        ("cat/loop", classes),
        ("cat/self", "self"),
        ("ant", "dog"),
        ("far", elsewhere),
    ):
        (classes / name).symlink_to(target)
    (classes / "cat/round.png").symlink_to("round.png")
    dataset = load_dataset("folder", "train+test", classes)
    assert dataset.class_names == ("cat", "dog", "far")
    assert np.bincount(dataset.source.arrays["label"]).tolist() == [20, 10, 1]
    already = "links to a folder that is read already"
    assert dataset.skipped == {
        **{"ant": already, "cat/loop": already, "far/up": already},
        "cat/round.png": "Too many levels of symbolic links",
    }


def test_a_folder_that_cannot_be_read_is_named(classes, monkeypatch, caplog):
    """The permission error is simulated, because the tests may run as root."""
    scandir, closed = os.scandir, {"cat", "brown"}

    def refuse(folder):
        if os.path.basename(folder) in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    save(classes / "emu/x.png", picture(1))
    monkeypatch.setattr(os, "scandir", refuse)
    dataset = load_dataset("folder", "train+test", classes)
    assert dataset.class_names == ("dog", "emu") and dataset.source.arrays["label"].tolist() == [1]
    reason = "the folder cannot be read: Permission denied"
    assert dataset.skipped == dict.fromkeys(("cat", "dog/brown"), reason)
    assert f"cat ({reason})" in caplog.text
    for split in ("train", "test"):
        save(classes / "splits" / split / "ox/x.png", picture(1))
    closed.add("train")
    with pytest.raises(ValueError, match=f"none of 1 files in .* can be read: train .{reason}"):
        load_dataset("folder", "train", classes / "splits")


def test_names_that_are_not_utf8_can_be_reported(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    save(folder / "x.png", picture(0))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    dataset = load_dataset("folder", "train+test", tmp_path)
    assert dataset.class_names == ("caf?",) and list(dataset.skipped) == ["caf?/?.png"]
    str(dataset).encode()
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": f"{folder.name}/x.png", "text": "\udcff"})
    )
    assert load_dataset("folder", "train+test", tmp_path).captions == [("?",)]


def test_more_pixels_than_memory_are_named_and_not_decoded(tmp_path):
    """The file has only a header for these 67 million pixels."""
    save(tmp_path / "x.png", picture(0))
    chunk = struct.pack(">IIBBBBB", 8192, 8193, 8, 2, 0, 0, 0)
    header = (
        struct.pack(">I", 13) + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk))
    )
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    dataset = load_dataset("folder", "train+test", tmp_path)
    assert dataset.skipped == {"large.png": "8192x8193 pixels, more than 67108864; make it smaller"}


def test_a_damaged_memory_is_forgotten(classes, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(images, "REMEMBER_FROM", 27)
    load_folder("train", classes, preload_bytes=0)
    store = images._results_path(classes, f"3 {images.PIXEL_LIMIT}")
    store.write_text(store.read_text()[:-10])
    load_folder("train", classes, preload_bytes=0)
    assert len(json.loads(store.read_text())) == 27
