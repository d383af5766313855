"""Latents or codes of images in array_record files, written once and read like any other set.

A folder holds
- `origin.json`, which says what the latents were encoded from;
- for each split its parts, `train-00003-of-00012.array_record`, each complete or absent;
- `latents.json`, once all parts exist, with the moments that standardize latents, or with the
  vocabulary of codes;
- for captioned sets `train.captions.jsonl`, one list of texts per line.

A record is a latent's float32 values, or the int32 codes, and the int32 label.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from genjax.data.dataset import Dataset, OnDisk, preload, take
from genjax.folders import located
from genjax.unfinished import unfinished

ORIGIN, SUMMARY = "origin.json", "latents.json"
# Entries of an origin that folders of earlier versions lack: a digest of the parameters that made
# the examples, and the number of examples by split.
PARAMETERS, COUNTS = "parameters", "counts"
PART = 1024  # records


def part_paths(folder: str | os.PathLike, split: str, count: int) -> list[Path]:
    """Return the paths of the parts of a split with `count` records."""
    parts = math.ceil(count / PART)
    return [Path(folder) / f"{split}-{i:05d}-of-{parts:05d}.array_record" for i in range(parts)]


def parts_of(
    folder: str | os.PathLike, split: str, count: int, process: int = 0, processes: int = 1
) -> dict[Path, range]:
    """Return the parts of a split that a process writes, and the records of each."""
    parts = {
        path: range(i * PART, min((i + 1) * PART, count))
        for i, path in enumerate(part_paths(folder, split, count))
    }
    return dict(list(parts.items())[process::processes])


def write_latents(
    parts: Mapping[Path, range],
    encode: Callable[[range], tuple[np.ndarray, Int[np.ndarray, " batch"]]],
) -> Iterator[int]:
    """Write the parts that do not exist yet, and yield the number of records of each.

    Args:
        parts: `parts_of` a split.
        encode: maps a range of records to their latents or codes, `[batch *shape]`, and labels.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    for path, rows in parts.items():
        if path.exists():
            continue
        latents, labels = encode(rows)
        part_file = path.with_suffix(".unfinished")
        writer = ArrayRecordWriter(str(part_file), "group_size:1")
        latents = latents.astype("<i4" if latents.dtype.kind == "i" else "<f4")
        for latent, label in zip(latents, labels.astype("<i4"), strict=True):
            writer.write(latent.tobytes() + label.tobytes())
        writer.close()
        part_file.rename(path)
        yield len(rows)


class LatentRecords:
    """Records of latents: `records[i]` has a standardized latent, `image`, and its `label`.

    Args:
        moments: the mean and the deviation by channel; None for codes, which stay as they are.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shape: Sequence[int],
        moments: tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]] | None,
        rows: Int[np.ndarray, " records"] | None = None,
    ):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._records = ArrayRecordDataSource([str(path) for path in paths])
        self._shape, self._moments = tuple(shape), moments
        self._rows = np.arange(len(self._records)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[int(self._rows[index])]
        dtype = "<i4" if self._moments is None else "<f4"
        latent = np.frombuffer(record, dtype, math.prod(self._shape)).reshape(self._shape)
        label = np.frombuffer(record, "<i4", 1, offset=len(record) - 4)[0]
        if self._moments is not None:
            mean, deviation = self._moments
            latent = (latent - mean) / deviation
        return {"image": latent, "label": label}


def standard_moments(
    mean: Sequence[float], deviation: Sequence[float]
) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    """Return the moments by which latents are standardized, in float32.

    A channel that never changes has a deviation of 0. It is divided by 1, and so it becomes 0.
    """
    deviation = np.asarray(deviation, np.float32)
    return np.asarray(mean, np.float32), np.where(deviation == 0, np.float32(1), deviation)


def check_origin(folder: str | os.PathLike, origin: Mapping[str, Any]) -> None:
    """Raise ValueError if a folder's `origin.json` exists and differs from `origin`.

    `PARAMETERS` and `COUNTS` are compared if both have them.
    """
    path = Path(folder) / ORIGIN
    if not path.exists():
        return
    there = located(json.loads(path.read_text()), folder)
    own = json.loads(json.dumps(origin))
    for name in {PARAMETERS, COUNTS} - (there.keys() & own.keys()):
        for each in (there, own):
            each.pop(name, None)
    if differing := [name for name in there | own if there.get(name) != own.get(name)]:
        theirs, ours = ({name: each.get(name) for name in differing} for each in (there, own))
        raise ValueError(
            f"{folder} was made of {theirs}, not of {ours}: take another folder, or empty it"
        )


def check_parameters(folder: str | os.PathLike, digest: Callable[[], str]) -> None:
    """Raise ValueError if the examples of a folder were made by other parameters.

    Args:
        digest: returns that of the parameters of the config's autoencoder or teacher. It is not
            called for a folder that does not say what made it.
    """
    path = Path(folder) / ORIGIN
    there = json.loads(path.read_text()).get(PARAMETERS) if path.exists() else None
    if there and there != digest():
        raise ValueError(
            f"{folder} was made by other parameters than this config's autoencoder or teacher has: "
            "make it again in an empty folder (python -m experiments.encode), or put back the run "
            "that made it"
        )


def write_origin(folder: str | os.PathLike, origin: Mapping[str, Any]) -> None:
    """Write `origin.json`, what a folder's latents are made of, before the first part.

    Raises:
        ValueError: the folder was made of something else, or holds other files.
    """
    check_origin(folder, origin)
    path = Path(folder) / ORIGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [each for each in path.parent.iterdir() if each.stem != path.stem]
    if path.exists():  # looked for last: another process may write it, and then parts
        return
    if others:
        raise ValueError(
            f"{folder} is the folder for latents or pairs, and it holds other files: take an "
            "empty folder"
        )
    _write_whole(path, json.dumps(origin, indent=2) + "\n")


def read_summary(folder: str | os.PathLike | None) -> dict[str, Any]:
    """Return `latents.json`: shape, splits with their counts, classes, and moments of latents.

    Raises:
        FileNotFoundError: the file does not exist, or not yet.
    """
    path = Path(folder or ".") / SUMMARY
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: set config.space.directory to a folder of latents, and make "
            "or finish it first by python -m experiments.encode with this config"
        )
    return json.loads(path.read_text())


def write_summary(folder: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Write `latents.json`, which `read_summary` reads, as the last step of encoding."""
    _write_whole(Path(folder) / SUMMARY, json.dumps(summary, indent=2) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Write a file that other processes see whole or not at all."""
    with unfinished(path) as part:
        part.write_text(text, encoding="utf-8")


def _captions_path(folder: str | os.PathLike, split: str) -> Path:
    return Path(folder) / f"{split}.captions.jsonl"


def write_captions(
    folder: str | os.PathLike, split: str, captions: Sequence[Sequence[str]]
) -> None:
    """Write the captions of all records of a split, in the order of the records."""
    lines = "".join(json.dumps(list(texts)) + "\n" for texts in captions)
    _write_whole(_captions_path(folder, split), lines)


def _read_captions(
    folder: str | os.PathLike, splits: Sequence[str]
) -> list[tuple[str, ...]] | None:
    paths = [_captions_path(folder, split) for split in splits]
    if not all(path.exists() for path in paths):
        return None
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [tuple(json.loads(line)) for line in lines]


def load_latents(split: str, data_dir: str | os.PathLike | None, *, preload_bytes: int) -> Dataset:
    """Return latents or codes as the `image`.

    Latents are standardized, (latent − mean)/deviation by channel, in float32. Codes are int32.

    Raises:
        FileNotFoundError: the folder holds no finished latents.
        ValueError: the split is unknown.
    """
    summary = read_summary(data_dir)
    members, paths, start = {}, [], 0
    for name, count in summary["splits"].items():
        paths += part_paths(data_dir, name, count)
        members[name] = lambda start=start, count=count: np.arange(start, start + count)
        start += count
    moments = None
    if "mean" in summary:
        moments = standard_moments(summary["mean"], summary["deviation"])
    # A data set may have been encoded in part, under a name such as "train[:80%]".
    rows = members[split]() if split in members else np.concatenate(take(split, members))
    records = LatentRecords(paths, summary["shape"], moments, rows)
    captions = _read_captions(data_dir, list(summary["splits"]))
    dtype = np.dtype(np.float32 if moments else np.int32)
    source = OnDisk(records, {"image": dtype, "label": np.dtype(np.int32)})
    shape = tuple(summary["shape"])
    if 4 * len(rows) * math.prod(shape) <= preload_bytes:
        source = preload(source, {"image": shape, "label": ()})
    return Dataset(
        "latents",
        split,
        source,
        image_shape=shape,
        num_classes=summary["num_classes"],
        class_names=tuple(summary["class_names"]) if summary["class_names"] else None,
        captions=[captions[row] for row in rows] if captions else None,
    )


def raw_latents(
    folder: str | os.PathLike, split: str, count: int, shape: Sequence[int]
) -> Iterator[Float[np.ndarray, " batch *shape"]]:
    """Yield all latents of a finished split as they were written, a part at a time."""
    moments = np.zeros(shape[-1], np.float32), np.ones(shape[-1], np.float32)
    records = LatentRecords(part_paths(folder, split, count), shape, moments)
    for start in range(0, count, PART):
        yield np.stack([records[i]["image"] for i in range(start, min(start + PART, count))])
