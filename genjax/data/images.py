"""Read image files: check and convert them to one number of channels, alike in every run."""

import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from genjax.data.dataset import PRELOAD_BYTES, Dataset, OnDisk, num_threads, preload
from genjax.folders import cache_folder
from genjax.unfinished import unfinished

SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
# Checking this many files takes seconds to minutes, so the results are stored.
REMEMBER_FROM = 10_000
PROGRESS_SECONDS = 10.0  # between two messages on progress
# A decoder needs up to 13 bytes a pixel, so an image takes at most 0.9 GB.
PIXEL_LIMIT = 2**26
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file that should be an image.

    Attributes:
        label: None for a set without classes.
        captions: None for a set without captions.
        flaw: why the file cannot be used, if the reason is known without opening the file.
    """

    path: Path
    label: int | None = None
    captions: tuple[str, ...] | None = None
    flaw: str | None = None


def decode(path: str | os.PathLike, channels: int = 3) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an image file as bytes `[height width channels]`, and the kinds of conversion applied.

    Transparent images are laid over white. 16-bit images keep their upper 8 bits. Other colours
    become RGB, or grey levels by ITU-R 601-2, as Pillow converts them; colour profiles are ignored.
    A file of several frames gives its first frame. The EXIF orientation is applied.

    Args:
        channels: 3 for RGB, 1 for grey levels.

    Raises:
        ValueError: pixels have 32 bits or are floats, so that their range is unknown, or the image
            has more than `PIXEL_LIMIT` pixels.
        Exception: whatever Pillow raises for a damaged file, usually OSError.
    """
    from PIL import Image, ImageOps

    kinds = []
    with Image.open(path) as image:
        if image.width * image.height > PIXEL_LIMIT:
            raise ValueError(
                f"{image.width}x{image.height} pixels, more than {PIXEL_LIMIT}; make it smaller"
            )
        if getattr(image, "n_frames", 1) > 1:
            kinds.append("first of several frames")
        scaled = (image.format, image.mode) == ("PPM", "I")  # grey of 16 bits, for Pillow of 32
        deep = scaled or any(";16" in str(tile) for tile in image.tile)
        image.load()
        if image.getexif().get(0x0112, 1) != 1:
            image = ImageOps.exif_transpose(image)
            kinds.append("turned as EXIF says")
        if deep:
            kinds.append("upper 8 of 16 bits")
        if scaled or image.mode.startswith("I;16"):
            values, level = np.asarray(image), image.info.get("transparency")
            upper = (values >> 8).astype(np.uint8)
            if level is not None:  # which has 16 bits, too
                upper[values == level] = 255
                kinds.append("transparency over white")
            image = Image.fromarray(upper)
        if image.mode in ("I", "F"):
            raise ValueError(f"the range of its pixels (Pillow mode {image.mode}) is unknown")
        mode = {"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            kinds.append("transparency over white")
        wanted = {1: "L", 3: "RGB"}[channels]
        if mode != wanted:
            kinds.append(f"{mode} to {wanted}")
        pixels = np.asarray(image.convert(wanted))
    return pixels.reshape(*pixels.shape[:2], channels), tuple(kinds)


@dataclasses.dataclass(frozen=True)
class Form:
    """How files are read: `decode(path)` returns an example and the kinds of conversion applied.

    Attributes:
        dtypes: by the name of each feature of an example. The first is the set's picture, whose
            shape is its `image_shape`.
        description: all that the results depend on besides the files, for stored results.
    """

    dtypes: Mapping[str, np.dtype]
    description: str
    decode: Callable[[Path], tuple[Mapping[str, np.ndarray], tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class _Records:
    """Files that can be read.

    Attributes:
        shapes: of each file's features, by their names.
    """

    entries: Sequence[Entry]
    form: Form
    shapes: Sequence[Mapping[str, Sequence[int]]]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        try:
            return {**self.form.decode(entry.path)[0], "label": entry.label}
        except Exception as error:
            raise RuntimeError(
                f"{entry.path} could be read when the dataset was opened, and cannot now: {error}"
            ) from error


def read_images(
    name: str,
    split: str,
    entries: Sequence[Entry],
    root: Path,
    class_names: tuple[str, ...] | None,
    *,
    channels: int = 3,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return a dataset of the image files that can be read, as `read_files` does."""

    def example(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        image, kinds = decode(path, channels)
        return {"image": image}, kinds

    form = Form({"image": np.dtype(np.uint8)}, f"{channels} {PIXEL_LIMIT}", example)
    return read_files(name, split, entries, root, class_names, form, preload_bytes=preload_bytes)


def read_files(
    name: str,
    split: str,
    entries: Sequence[Entry],
    root: Path,
    class_names: tuple[str, ...] | None,
    form: Form,
    *,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return a dataset of the files that can be read.

    `Dataset.skipped` names the other files, relative to `root`. All files are decoded once, in
    threads, before the first batch. So the examples, and with them every batch, are fixed from then
    on. Results for `REMEMBER_FROM` files or more are stored in the user's cache folder. Later runs
    read a file again only if its size or modification time has changed.

    Raises:
        ValueError: no file can be read.
        OSError: the disk fails.
    """
    found = list(zip(entries, _inspect(entries, root, form, f"{name} ({split})"), strict=True))
    skipped = {
        printable(os.path.relpath(e.path, root)): printable(result)
        for e, result in found
        if isinstance(result, str)
    }
    kept = [entry for entry, result in found if not isinstance(result, str)]
    examples = [f"{path} ({reason})" for path, reason in list(skipped.items())[:3]]
    if not kept:
        raise ValueError(
            f"{name} ({split}): none of {len(entries)} files in {root} can be read: "
            f"{'; '.join(examples)}"
        )
    if skipped:
        logging.getLogger(__name__).warning(
            "%s (%s): skipped %d of %d files: %s%s",
            *(name, split, len(skipped), len(entries), "; ".join(examples)),
            "; …" if len(skipped) > 3 else "",
        )
    sizes, kinds = zip(*(result for _, result in found if not isinstance(result, str)), strict=True)
    shapes = {name: _common([each[name] for each in sizes]) for name in form.dtypes}
    labels = {"label": np.dtype(np.int32)} if class_names else {}
    source = OnDisk(_Records(kept, form, sizes), {**form.dtypes, **labels})
    if _fits(preload_bytes, len(kept), shapes, form):
        source = preload(source, shapes | dict.fromkeys(labels, ()))
    return Dataset(
        name=name,
        split=split,
        source=source,
        image_shape=next(iter(shapes.values())),
        num_classes=len(class_names) if class_names else None,
        class_names=class_names and tuple(map(printable, class_names)),
        captions=None
        if kept[0].captions is None
        else [tuple(map(printable, e.captions)) for e in kept],
        skipped=skipped,
        conversions=dict(Counter(itertools.chain(*kinds))),
    )


def _common(shapes: Sequence[Sequence[int]]) -> tuple[int | None, ...]:
    """Return the shape of all examples, with None where sizes vary."""
    return tuple(sides[0] if len(set(sides)) == 1 else None for sides in zip(*shapes, strict=True))


def _fits(
    num_bytes: int, count: int, shapes: Mapping[str, tuple[int | None, ...]], form: Form
) -> bool:
    """Return whether so many examples have the same shapes and take at most `num_bytes`."""
    if any(None in shape for shape in shapes.values()):
        return False
    size = sum(form.dtypes[name].itemsize * math.prod(shape) for name, shape in shapes.items())
    return count * size <= num_bytes


def printable(text: str) -> str:
    """Return a text with every character that UTF-8 cannot encode replaced by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _inspect(
    entries: Sequence[Entry], root: Path, form: Form, title: str
) -> list[tuple[dict[str, Sequence[int]], tuple[str, ...]] | str]:
    """Return for each entry its shapes and conversions, or why the entry cannot be read."""
    many = len(entries) >= REMEMBER_FROM
    store = _results_path(root, form.description)
    known = _read_results(store) if many else {}
    new = {}

    def inspect(entry: Entry) -> tuple[dict[str, Sequence[int]], tuple[str, ...]] | str:
        if entry.flaw:
            return entry.flaw
        try:
            status = entry.path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
                return "no regular file"
            key = f"{entry.path} {status.st_size} {status.st_mtime_ns}"
            if key not in known:
                example, kinds = form.decode(entry.path)
                new[key] = {name: array.shape for name, array in example.items()}, kinds
                return new[key]
            shapes, kinds = known[key]
            return shapes, tuple(kinds)
        except Exception as error:  # a damaged file can make Pillow raise almost anything
            if isinstance(error, OSError) and error.errno and not is_absent(error):
                raise  # the disk fails, so another process may still see the file
            return getattr(error, "strerror", None) or reason(error, entry.path)

    with ThreadPoolExecutor(num_threads()) as pool:
        results = pool.map(inspect, entries)
        found = list(with_messages(results, len(entries), title, "files checked"))
    if many and new:
        with unfinished(store) as part:
            part.write_text(json.dumps(known | new))
    return found


def with_messages(results: Iterable[Any], count: int, title: str, what: str) -> Iterator[Any]:
    """Yield results, and warn every `PROGRESS_SECONDS` how many of `count` there are by then."""
    last_message = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if time.monotonic() - last_message > PROGRESS_SECONDS:
            last_message = time.monotonic()
            logging.getLogger(__name__).warning("%s: %d of %d %s", title, done, count, what)


def is_absent(error: OSError) -> bool:
    """Return whether an error concerns one file's path and not the disk."""
    return isinstance(error, ABSENT) or error.errno in (errno.ELOOP, errno.ENAMETOOLONG)


def _read_results(store: Path) -> dict[str, Any]:
    """Return the stored results of earlier checks; empty if the store is absent or damaged."""
    try:
        return dict(json.loads(store.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def reason(error: Exception, path: Path) -> str:
    """Return why a file cannot be used, in one line that does not repeat the file's path."""
    return str(error).replace(f" {str(path)!r}", "") or type(error).__name__


def _results_path(root: Path, description: str) -> Path:
    """Return the path that stores what the files of `root` decode to."""
    what = f"{root.resolve()} {description} shapes by feature"
    digest = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / f"images-{digest[:16]}.json"
