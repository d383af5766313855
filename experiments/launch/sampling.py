"""Sheets of samples and of real examples: the labels they show and the names of their rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from genjax.training.pictures import image_grid, label_rows, save_animation, save_picture
from genjax.training.task import Space

SHOWN_ROWS = 32


def shown_labels(num_rows: int) -> np.ndarray:
    """Return all labels, or at most `SHOWN_ROWS` of them at equal distances."""
    return np.arange(num_rows)[:: -(-num_rows // SHOWN_ROWS)]


def sheet_labels(num_rows: int, per_row: int) -> np.ndarray:
    """Return the labels of a sheet with a row for each of the `shown_labels`."""
    return np.repeat(shown_labels(num_rows), per_row)


def draw_sheet(
    space: Space, examples: np.ndarray, labels: np.ndarray, per_row: int, names: Sequence[str]
) -> Image.Image:
    """Draw examples of the data's type, each row with the name of its label.

    Args:
        labels: of each example, equal along a row.
        names: by label; empty where rows mean nothing.
    """
    picture = space.picture(examples, per_row)
    in_rows = names and examples.ndim > 2  # points in the plane share one picture
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
    examples: np.ndarray,
    labels: np.ndarray,
    per_row: int,
    names: Sequence[str],
) -> Image.Image:
    """Write the sheet that `draw_sheet` draws as a PNG, and return it.

    Clips are strips of frames in the sheet. Their film is written beside it, as GIF and WebP.
    """
    sheet = draw_sheet(space, examples, labels, per_row, names)
    save_picture(path, sheet)
    if examples.ndim == 5:
        film = draw_film(examples, labels, per_row, names)
        save_animation(path.with_suffix(".gif"), film, milliseconds=100, hold=700)
    return sheet
