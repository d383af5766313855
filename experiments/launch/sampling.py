"""Files of samples and of real examples: sheets, the names of their rows, films and sounds."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from PIL import Image

from genjax.pipelines.media import CODECS, join_sounds, write_clip, write_wav
from genjax.training.pictures import image_grid, label_rows, save_animation, save_picture
from genjax.training.task import Space

SHOWN_ROWS = 32
SUFFIXES = (".png", ".npz", ".wav", *CODECS)  # of files of samples


def shown_labels(num_rows: int) -> np.ndarray:
    """Return all labels, or at most `SHOWN_ROWS` of them at equal distances."""
    return np.arange(num_rows)[:: -(-num_rows // SHOWN_ROWS)]


def sheet_labels(num_rows: int, per_row: int) -> np.ndarray:
    """Return the labels of a sheet with a row for each of the `shown_labels`."""
    return np.repeat(shown_labels(num_rows), per_row)


def draw_sheet(
    space: Space,
    examples: PyTree[np.ndarray],
    labels: np.ndarray,
    per_row: int,
    names: Sequence[str],
) -> Image.Image:
    """Draw examples of the data's type, each row with the name of its label.

    Args:
        labels: of each example, equal along a row.
        names: by label; empty where rows mean nothing.
    """
    picture = space.picture(examples, per_row)
    # Points in the plane share one picture.
    in_rows = names and min(each.ndim for each in jax.tree.leaves(examples)) > 2
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
    examples: PyTree[np.ndarray],
    labels: np.ndarray,
    per_row: int,
    names: Sequence[str],
) -> Image.Image:
    """Write the sheet that `draw_sheet` draws as a PNG, and return it.

    Clips are strips of frames in the sheet. Their film is written beside it, as GIF and WebP.
    Sounds are spectrograms in the sheet. They are written beside it one after another, as a WAV.
    Clips with sound have both files.
    """
    sheet = draw_sheet(space, examples, labels, per_row, names)
    save_picture(path, sheet)
    for each in jax.tree.leaves(examples):
        if each.ndim == 5:
            film = draw_film(each, labels, per_row, names)
            save_animation(path.with_suffix(".gif"), film, milliseconds=100, hold=700)
        if is_sound(each):
            save_sound(path.with_suffix(".wav"), space, each)
    return sheet


def save_samples(
    path: Path,
    space: Space,
    samples: PyTree[np.ndarray],
    labels: np.ndarray,
    per_row: int,
    names: Sequence[str],
) -> None:
    """Write samples to a file as its suffix says; raise ValueError if they are of another kind."""
    if path.suffix == ".npz":
        arrays = samples if isinstance(samples, dict) else {"images": samples}
        np.savez_compressed(path, **arrays, labels=labels)
    elif isinstance(samples, dict) and path.suffix in CODECS:
        save_clips_with_sound(path, space, samples)
    elif path.suffix == ".wav":
        save_sound(path, space, samples)
    elif path.suffix in CODECS:
        save_film(path, samples, labels, per_row, names)
    else:
        save_sheet(path, space, samples, labels, per_row, names)


def is_sound(examples: np.ndarray) -> bool:
    """Return whether examples are sounds, `[count samples channels]` in int16."""
    return examples.ndim == 3 and examples.dtype == np.int16


def save_sound(path: Path, space: Space, sounds: np.ndarray) -> None:
    """Write sounds one after another as a WAV, at the sample rate of their space.

    Raises:
        ValueError: the samples are no sounds.
    """
    if not is_sound(sounds):
        raise ValueError(f"{path.name}: these samples are no sounds; write them to a .png or .npz")
    write_wav(path, join_sounds(sounds, space.sample_rate), space.sample_rate)


def save_clips_with_sound(path: Path, space: Space, clips: dict[str, np.ndarray]) -> None:
    """Write clips one after another, with their sounds, as MP4 or WebM.

    Each sound is cut, or filled with silence, to the length of its clip.

    Raises:
        ImportError: PyAV is not installed.
    """
    video, sounds = clips["video"], clips["sound"]
    length = round(video.shape[1] / space.frame_rate * space.sample_rate)
    sounds = np.pad(sounds[:, :length], ((0, 0), (0, max(0, length - sounds.shape[1])), (0, 0)))
    joined = video.reshape(-1, *video.shape[2:]), sounds.reshape(-1, sounds.shape[-1])
    write_clip(path, joined[0], space.frame_rate, joined[1], space.sample_rate)


def save_film(
    path: Path, clips: np.ndarray, labels: np.ndarray, per_row: int, names: Sequence[str]
) -> None:
    """Write the film that `draw_film` draws as MP4 or WebM, 10 frames a second.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: the samples are no clips.
    """
    if clips.ndim != 5:
        raise ValueError(f"{path.name}: these samples are no clips; write them to a .png or .npz")
    film = draw_film(clips, labels, per_row, names)
    write_clip(path, np.stack([np.asarray(each.convert("RGB")) for each in film]), 10.0)
