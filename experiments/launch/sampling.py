"""Files of samples and of real examples: sheets, the names of their rows, films and sounds."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from genjax.pipelines.media import CODECS, join_sounds, write_clip, write_wav
from genjax.training.pictures import image_grid, label_rows, save_animation, save_picture
from genjax.training.task import RealExamples, Space

# Images, clips, points or sounds; or clips with sound, by "video" and "sound".
Examples = np.ndarray | dict[str, np.ndarray]
SHOWN_ROWS = 32
SUFFIXES = (".png", ".npz", ".wav", *CODECS)  # of files of samples


def shown_labels(num_rows: int) -> np.ndarray:
    """Return all labels, or at most `SHOWN_ROWS` of them at equal distances."""
    return np.arange(num_rows)[:: -(-num_rows // SHOWN_ROWS)]


def sheet_labels(num_rows: int, per_row: int) -> np.ndarray:
    """Return the labels of a sheet with a row for each of the `shown_labels`."""
    return np.repeat(shown_labels(num_rows), per_row)


def whole_rows(count: int, per_row: int) -> tuple[int, int]:
    """Return how many of `count` pictures fill whole rows of a sheet, and the length of a row."""
    per_row = min(count, per_row)
    return count // per_row * per_row, per_row


def without_repetitions(task: Any, labels: np.ndarray, per_row: int) -> tuple[np.ndarray, int]:
    """Return the labels of a sheet that shows each original once, and the length of its rows.

    The labels of tasks that do not reconstruct are returned as they are. A task may have originals
    of each label of its own (`originals_per_label`).
    """
    per_label = getattr(task, "originals_per_label", per_row)
    if per_label < per_row:
        return labels.reshape(-1, per_row)[:, :per_label].ravel(), per_label
    originals = getattr(task, "num_originals", len(labels))
    if originals >= len(labels):
        return labels, per_row
    count, per_row = whole_rows(originals, per_row)
    return labels[:count], per_row


def draw_sheet(
    space: Space, examples: Examples, labels: np.ndarray, per_row: int, names: Sequence[str]
) -> Image.Image:
    """Draw examples of the data's type, each row with the name of its label.

    Args:
        labels: of each example, equal along a row.
        names: by label; empty where rows mean nothing.
    """
    picture = space.picture(examples, per_row)
    is_points = isinstance(examples, np.ndarray) and examples.ndim == 2
    in_rows = names and not is_points  # points in the plane share one picture
    return label_rows(picture, [names[label] for label in labels[::per_row]] if in_rows else ())


def draw_film(
    clips: np.ndarray, labels: np.ndarray, per_row: int, names: Sequence[str]
) -> list[Image.Image]:
    """Draw clips `[clips time height width channels]` side by side: a picture for each frame.

    Rows and the other arguments are those of `draw_sheet`.
    """
    rows = [names[label] for label in labels[::per_row]] if names else ()
    return [label_rows(image_grid(frames, per_row), rows) for frames in np.moveaxis(clips, 1, 0)]


def save_sheet(
    path: Path,
    space: Space,
    examples: Examples,
    labels: np.ndarray,
    per_row: int,
    names: Sequence[str],
) -> Image.Image:
    """Write the sheet that `draw_sheet` draws as a PNG, and return it.

    Clips are strips of frames in the sheet. Their film is written beside it, as GIF and WebP.
    Sounds are spectrograms in the sheet. They are written beside it one after another, as a WAV.
    So are clips with sound, as MP4 if PyAV is installed. Latents are drawn only.
    """
    sheet = draw_sheet(space, examples, labels, per_row, names)
    save_picture(path, sheet)
    if isinstance(examples, dict) and is_sound(examples["sound"]):
        played = ".mp4" if importlib.util.find_spec("av") else ".wav"
        save_sound(path.with_suffix(played), space, examples)
    elif not isinstance(examples, dict) and examples.ndim == 5:
        film = draw_film(examples, labels, per_row, names)
        save_animation(path.with_suffix(".gif"), film, milliseconds=100, hold=700)
    elif is_sound(examples):
        save_sound(path.with_suffix(".wav"), space, examples)
    return sheet


def save_real(
    path: Path, space: Space, real: RealExamples, labels: np.ndarray, per_row: int
) -> Image.Image:
    """Write the sheet of real examples to see beside a sheet of samples, and return it.

    The sheet leaves out places for which the data have no further example. In a sheet of classes
    these are the columns that no row fills, and in other sheets they are rows.
    """
    present = np.ones(len(labels), bool) if real.present is None else real.present
    if real.names:  # each row is filled from its left
        columns = max(1, int(present.reshape(-1, per_row).sum(axis=1).max()))
        kept = np.arange(len(labels)) % per_row < columns
    else:
        count, columns = whole_rows(int(present.sum()), per_row)
        kept = np.arange(len(labels)) < count
    examples = jax.tree.map(lambda a: a[kept], real.examples)
    return save_sheet(path, space, examples, labels[kept], columns, real.names)


def check_file(path: Path, feature: str, with_sound: bool) -> None:
    """Check before sampling that `save_samples` will be able to write the samples.

    Args:
        feature: of the data, `config.data.feature`.
        with_sound: whether the samples are clips with their sound.

    Raises:
        ImportError, ValueError: as of `save_samples`.
    """
    if path.suffix == ".wav" and feature != "audio" and not with_sound:
        raise _not_written(path, "sounds")
    if path.suffix in CODECS and feature != "video":
        raise _not_written(path, "clips")
    if path.suffix in CODECS and not importlib.util.find_spec("av"):
        raise ImportError(f"{path.name} is written with PyAV: pip install av, or write a .npz")


def _not_written(path: Path, kind: str) -> ValueError:
    return ValueError(f"{path.name}: these samples are no {kind}; write them to a .png or .npz")


def save_samples(
    path: Path,
    space: Space,
    samples: Examples,
    labels: np.ndarray,
    per_row: int,
    names: Sequence[str],
) -> None:
    """Write samples to a file as its suffix says.

    Raises:
        ImportError: clips are written with PyAV, which is not installed.
        ValueError: the samples are of another kind than the file.
    """
    if path.suffix == ".npz":
        arrays = samples if isinstance(samples, dict) else {"images": samples}
        np.savez_compressed(path, **arrays, labels=labels)
    elif path.suffix == ".wav" or isinstance(samples, dict) and path.suffix in CODECS:
        save_sound(path, space, samples)
    elif path.suffix in CODECS:
        save_film(path, samples, labels, per_row, names)
    else:
        save_sheet(path, space, samples, labels, per_row, names)


def is_sound(examples: Examples) -> bool:
    """Return whether examples are sounds, `[count samples channels]` in int16."""
    return isinstance(examples, np.ndarray) and examples.ndim == 3 and examples.dtype == np.int16


def save_sound(path: Path, space: Space, examples: Examples) -> None:
    """Write sounds, or clips with their sound, one after another: as WAV, or clips as MP4 or WebM.

    Args:
        space: of sound; or of clips with sound, whose `sound` is such a space.

    Raises:
        ImportError: clips are written with PyAV, which is not installed.
        ValueError: the examples are no sounds.
    """
    sounds, part = examples, space
    if isinstance(examples, dict):
        sounds, part = examples["sound"], space.sound
    if not is_sound(sounds):
        raise _not_written(path, "sounds")
    if path.suffix == ".wav":
        write_wav(path, join_sounds(sounds, part.sample_rate), part.sample_rate)
        return
    frames = np.concatenate(list(examples["video"]))
    seconds = sounds.shape[0] * sounds.shape[1] / part.sample_rate
    joined = join_sounds(sounds, part.sample_rate, pause=0.0)
    write_clip(path, frames, len(frames) / seconds, joined, part.sample_rate)


def save_film(
    path: Path, clips: np.ndarray, labels: np.ndarray, per_row: int, names: Sequence[str]
) -> None:
    """Write the film that `draw_film` draws as MP4 or WebM, 10 frames a second.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: the samples are no clips.
    """
    if clips.ndim != 5:
        raise _not_written(path, "clips")
    film = draw_film(clips, labels, per_row, names)
    write_clip(path, np.stack([np.asarray(each.convert("RGB")) for each in film]), 10.0)
