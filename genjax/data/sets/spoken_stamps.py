"""Spoken names of Tux Paint's stamps, in thirteen languages, with exact texts and pictures."""

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from genjax.data import sounds
from genjax.data.dataset import PRELOAD_BYTES, Dataset, held_out, take
from genjax.data.images import Entry, Form, decode, read_files
from genjax.data.sets.folder import find_folder

NAME = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<language>[\w@]+))?")  # of a file of speech
TEXT = ".utf8="  # between a language and the name in it, in a line of a stamp's text
ENGLISH = "en"  # the first line of a stamp's text, which names no language


def load_spoken_stamps(
    split: str,
    data_dir: str | os.PathLike | None,
    *,
    language: str | None = None,
    sample_rate: int = 16_000,
    seconds: float | None = 2.0,
    channels: int = 1,
    size: int | None = None,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return `audio`: the spoken names of a folder of stamps, int16 `[samples channels]`.

    With a `size`, `image` is the stamp that is named, uint8 `[size size 3]`.

    `apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb stamps` gives
    a folder (GPL-2). `x_desc_LANG.ogg` speaks the name of the picture `x.png` in a language, and
    `x_desc.ogg` in English. The caption is that name, from `x.txt`. Sounds of things, `x.ogg`, are
    no speech and are left out.

    One stamp in ten is the test split, in all languages. Sounds are converted as `sound_folder`
    does. `Dataset.skipped` names files without a text, or without a picture if pictures are asked
    for, and those that `sound_folder` skips.

    Args:
        data_dir: the folder that holds the stamps.
        language: "en", "fr", … of the names; None for all.
        sample_rate, seconds, channels, preload_bytes: as of `sound_folder`.
        size: the side of pictures, in pixels; None for sounds alone. A picture fits into a square
            whole, over white.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: the folder does not exist.
        ValueError: `data_dir` is missing, the split is unknown, or no file can be read.
    """
    sounds.require_av("spoken_stamps")
    root = find_folder("spoken_stamps", data_dir, "stamps")
    splits = _splits(root, language, pictured=size is not None)
    members = {name: lambda found=found: found for name, found in splits.items()}
    entries = [entry for part in take(split, members) for entry in part]
    options = sample_rate, channels, None if seconds is None else round(seconds * sample_rate)

    def example(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        audio, kinds = sounds.decode(path, *options)
        if size is None:
            return {"audio": audio}, kinds
        pixels, changes = decode(path.with_name(f"{NAME.fullmatch(path.stem)['stamp']}.png"))
        return {"image": _fit(pixels, size), "audio": audio}, (*kinds, *changes)

    dtypes = {"audio": np.dtype(np.int16)}
    dtypes = dtypes if size is None else {"image": np.dtype(np.uint8)} | dtypes
    form = Form(dtypes, f"stamps {options} {size} {sounds.RULES}", example)
    return read_files(
        "spoken_stamps", split, entries, root, None, form, preload_bytes=preload_bytes
    )


def _fit(
    pixels: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Return a picture resized to fit into the middle of a white square."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(pixels)
    return np.asarray(ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, "white"))


def _splits(root: Path, language: str | None, pictured: bool) -> dict[str, list[Entry]]:
    """Return the entries of each split, by path."""
    stamps = defaultdict(list)
    for path in sorted(root.rglob("*.ogg")):
        name = NAME.fullmatch(path.stem)
        if name and language in (None, name["language"] or ENGLISH):
            text = path.with_name(f"{name['stamp']}.txt")
            stamps[text].append(_entry(path, text, name["language"] or ENGLISH, pictured))
    if not stamps:
        raise ValueError(
            f"{root} holds no spoken names: expected files called x_desc.ogg or x_desc_LANG.ogg"
        )
    names = [text.relative_to(root).as_posix() for text in stamps]
    test = held_out(names, [None] * len(names), one_in=10)
    splits = {"train": [], "test": []}
    for entries, held in zip(stamps.values(), test, strict=True):
        splits["test" if held else "train"] += entries
    return splits


def _entry(path: Path, text: Path, language: str, pictured: bool) -> Entry:
    """Return a file with its text in a language, or with what it lacks."""
    picture = text.with_suffix(".png")
    if pictured and not picture.is_file():
        return Entry(path, flaw=f"there is no {picture.name}")
    if not text.is_file():
        return Entry(path, flaw=f"there is no {text.name}")
    english, *lines = text.read_text(encoding="utf-8-sig").splitlines() or [""]
    texts = {ENGLISH: english} | dict(line.split(TEXT, 1) for line in lines if TEXT in line)
    spoken = texts.get(language, "").strip()
    if not spoken:
        return Entry(path, flaw=f"{text.name} has no text in the language {language!r}")
    return Entry(path, captions=(spoken,))
