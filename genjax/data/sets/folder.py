"""A folder of image files, in classes or with captions."""

import collections
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

from genjax.data.dataset import PRELOAD_BYTES, Dataset, held_out, take
from genjax.data.images import SUFFIXES, Entry, read_images

SPLITS = {"train", "validation", "val", "test"}


def load_folder(
    split: str,
    data_dir: str | os.PathLike | None,
    *,
    channels: int = 3,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return a folder of images, in classes or with captions.

    Images lie in `data_dir/CLASS/…/x.png`. Captions come from `metadata.jsonl` or `metadata.csv`,
    or from a text file `x.txt` beside each image `x.png`.

    Splits: if a sub-folder `train` exists, and other sub-folders with images are called
    `validation`, `val` or `test`, these are the splits. Otherwise one image in ten of each class is
    in `test` and the others are in `train`, chosen by the SHA-256 of the path within the folder.

    Captions: a captions file lies in the folder, or in the folder of a split. It names each image
    relative to itself as `file_name`, with a `text`. In JSON the text may be a list: the name, then
    synonyms. A text file holds the same, one caption in each line. Either all images have a text
    file or none. A set with captions has no classes.

    Classes: without captions the folders are the classes, in alphabetical order, the same for all
    splits. A set whose images lie in no sub-folder has no classes.

    Images become RGB as `decode` describes, and `Dataset.conversions` counts the conversions.
    `Dataset.skipped` names images that cannot be read, are not in the captions file, or lie beside
    the class folders. It also names folders that cannot be read or have been read under another
    name. Other files are ignored, and so are hidden ones and hidden folders (`.name`, `__MACOSX`).
    Opening a split decodes all its images once.

    Args:
        data_dir: the folder that holds the images.
        channels: 3 for RGB, 1 for grey levels.
        preload_bytes: sets of at most this size are read into memory.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `data_dir` is missing, the split is unknown, `channels` is neither 3 nor 1, or
            no image can be read; or a captions file is malformed, some images have a text file and
            others not, or captions come in both forms.
    """
    if channels not in (1, 3):
        raise ValueError(f"images have 3 channels, or 1 for grey levels; got channels={channels}")
    root = find_folder("folder", data_dir, "images")
    splits, class_names = read_layout(root, "images", SUFFIXES)
    entries = take_entries(split, splits, "images")
    options = dict(channels=channels, preload_bytes=preload_bytes)
    return read_images("folder", split, entries, root, class_names or None, **options)


def find_folder(name: str, data_dir: str | os.PathLike | None, content: str) -> Path:
    """Return the folder of a data set of files, or raise as `load_folder` says."""
    if not data_dir:
        raise ValueError(
            f"dataset {name!r} needs a data_dir (config.data.directory): the folder that holds the "
            f"{content}"
        )
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root.absolute()}: give as data_dir (config.data.directory) the "
            f"folder that holds the {content}"
        )
    return root


def read_layout(
    root: Path, content: str, suffixes: tuple[str, ...]
) -> tuple[dict[str, list[Entry]], tuple[str, ...]]:
    """Return the entries of each split, and the class names, which are empty with captions.

    `load_folder` describes the layout.

    Args:
        content: what the files hold, for errors: "images".
        suffixes: of the files that are read.

    Raises:
        ValueError: there are no such files, or captions are wrong as `load_folder` describes.
    """
    found, flaws = _find_files(root, (*suffixes, ".txt"))
    media = [path for path in found if path.suffix.lower() != ".txt"]
    texts = {path.with_suffix(".txt"): path for path in found if path.suffix.lower() == ".txt"}
    files = [*media, *flaws]  # so that unreadable folders appear in `Dataset.skipped`
    tops = {
        path.parts[0]
        for path in files
        if len(path.parts) > 1 or path in flaws and path.name in SPLITS
    }
    has_splits = "train" in tops and tops <= SPLITS
    captions = {}
    for folder in [Path(), *map(Path, sorted(tops) if has_splits else ())]:
        captions |= _captions(root, folder)
    captions = _texts_beside(root, media, texts, captions)
    if not files and not captions:
        raise ValueError(
            f"{root} holds no {content}: expected files called "
            f"{', '.join('*' + s for s in suffixes)}"
        )
    inner = {
        path: path.parts[has_splits:] for path in sorted({*files, *captions}, key=Path.as_posix)
    }
    names = () if captions else sorted({parts[0] for parts in inner.values() if len(parts) > 1})
    labels = {name: label for label, name in enumerate(names)}

    def entry(path: Path) -> Entry:
        if path in flaws:
            return Entry(root / path, flaw=flaws[path])
        if captions:
            flaw = None if path in captions else "no captions file names it"
            return Entry(root / path, captions=captions.get(path), flaw=flaw)
        if len(inner[path]) < 1 + bool(labels):
            return Entry(root / path, flaw="lies beside the folders of splits or classes")
        return Entry(root / path, label=labels.get(inner[path][0]))

    splits = {name: [] for name in (sorted(tops) if has_splits else ("train", "test"))}
    entries = {path: entry(path) for path in inner}
    for path, name in _split_names(entries, has_splits).items():
        splits[name].append(entries[path])
    return splits, tuple(names)


def take_entries(split: str, splits: dict[str, list[Entry]], content: str) -> list[Entry]:
    """Return the entries of the parts that a split names, from those of `read_layout`.

    Raises:
        ValueError: as of `take`, or too few files lie in no folders of splits to hold one out.
    """
    if splits.keys() == {"train", "test"} and splits["train"] and not splits["test"]:
        if split.strip() == "test":
            raise ValueError(
                f"of {len(splits['train'])} {content}, none is held out as {split!r}, which takes "
                "one in ten of each class: add some, or make folders train and test"
            )
    members = {name: lambda entries=entries: entries for name, entries in splits.items()}
    return [entry for part in take(split, members) for entry in part]


def _split_names(entries: dict[Path, Entry], has_splits: bool) -> dict[Path, str]:
    """Return the split of each entry, by its folder or by the hash of its path."""
    if has_splits:
        return {path: path.parts[0] if len(path.parts) > 1 else "train" for path in entries}
    names, labels = list(map(Path.as_posix, entries)), [e.label for e in entries.values()]
    test = held_out(names, labels, one_in=10)
    return {path: "test" if held else "train" for path, held in zip(entries, test, strict=True)}


def _find_files(root: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files below a folder, and why some folders are left out, by relative paths.

    Each folder is read once, even if links lead to it. Its own name takes precedence over a link.
    Hidden names are left out: a `.cache` or a Mac's `__MACOSX` would be one class more.
    """
    files, flaws, seen, folders = [], {}, set(), collections.deque([root])
    while folders:
        folder = folders.popleft()
        try:
            status = folder.stat()
            with os.scandir(folder) as found:
                children = sorted(found, key=lambda child: child.name)
        except OSError as error:
            flaws[folder.relative_to(root)] = f"the folder cannot be read: {error.strerror}"
            continue
        if (status.st_dev, status.st_ino) in seen:
            flaws[folder.relative_to(root)] = "links to a folder that is read already"
            continue
        seen.add((status.st_dev, status.st_ino))
        for child in children:
            path = Path(child.path)
            if child.name.startswith(".") or child.name == "__MACOSX":
                continue
            if child.is_symlink() and path.is_dir():
                folders.append(path)
            elif child.is_dir(follow_symlinks=False):
                folders.appendleft(path)
            elif child.name.lower().endswith(suffixes):
                files.append(path.relative_to(root))
    return files, flaws


def _captions(root: Path, folder: Path) -> dict[Path, tuple[str, ...]]:
    """Return the captions in the captions file of one folder, by path relative to `root`."""
    for name in ("metadata.jsonl", "metadata.csv"):
        path = root / folder / name
        if not path.exists():
            continue
        captions = {}
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file) if path.suffix == ".csv" else filter(str.strip, file)
            for number, row in enumerate(rows, 1):
                try:
                    row = row if path.suffix == ".csv" else json.loads(row)
                    texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
                    if not texts or not all(isinstance(text, str) for text in texts):
                        raise TypeError("a text is a string, or a list of one or more")
                    file_name = Path(os.path.normpath(folder / row["file_name"]))
                    others = captions.get(file_name, ())  # a file may have several rows
                    captions[file_name] = tuple(dict.fromkeys((*others, *texts)))
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"row {number} of {path}: expected a file_name and a text, "
                        f"got {row!r} ({error!r})"
                    ) from error
        return captions
    return {}


def _texts_beside(
    root: Path,
    files: Sequence[Path],
    texts: dict[Path, Path],
    captions: dict[Path, tuple[str, ...]],
) -> dict[Path, tuple[str, ...]]:
    """Return by relative path the lines of the text file beside each file.

    If no file has a text beside it, return `captions`.

    Args:
        texts: the text files that there are, by their names with a suffix in small letters.
        captions: those of captions files.

    Raises:
        ValueError: some files have a text beside them and others not, `captions` are not empty
            either, or a text is not UTF-8.
    """
    beside = {path: path.with_suffix(".txt") for path in files}
    found = {path: _lines(root / texts[text]) for path, text in beside.items() if text in texts}
    found = {path: lines for path, lines in found.items() if lines}
    if not found:
        return captions
    text = beside[min(found)]
    if captions:
        raise ValueError(
            f"{root} has captions twice, in a metadata file and in text files such as {text}: "
            "remove one of the two"
        )
    if without := sorted(set(files) - set(found)):
        raise ValueError(
            f"{root}: {len(found)} of {len(files)} files have a caption in a text file, such as "
            f"{text}, and {without[0]} has none in {beside[without[0]].name}: give each file a "
            "caption, or remove the text files"
        )
    return found


def _lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not blank; none of what is no regular file."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""  # a pipe would wait
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: save the caption as UTF-8 ({error})") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
