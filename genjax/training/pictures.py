"""Pictures of a run: grids of samples, animations, curves."""

import os

import numpy as np
from einops import rearrange
from PIL import Image

from genjax.training.log import read_metrics


def image_grid(images: np.ndarray, columns: int, padding: int = 1, min_side: int = 32) -> Image.Image:
    """uint8 images `[count height width channels]`, row by row, small ones enlarged to `min_side` pixels."""
    zoom = max(1, -(-min_side // images.shape[1]))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    images = np.pad(
        images, ((0, -len(images) % columns), *[(padding, padding)] * 2, (0, 0)), constant_values=128
    )
    grid = rearrange(images, "(r c) h w k -> (r h) (c w) k", c=columns)
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)


def save_grid(path: str | os.PathLike, images: np.ndarray, columns: int) -> None:
    """Writes `image_grid` as a PNG."""
    image_grid(images, columns).save(path)


def save_animation(
    path: str | os.PathLike, frames: np.ndarray, columns: int, milliseconds: int = 60, hold: int = 1500
) -> None:
    """Writes uint8 frames `[time count height width channels]` as an endless GIF that rests on its last."""
    grids = [image_grid(frame, columns).convert("P") for frame in frames]
    durations = [milliseconds] * (len(grids) - 1) + [hold]
    grids[0].save(path, save_all=True, append_images=grids[1:], duration=durations, loop=0)


def save_curves(path: str | os.PathLike, metrics_path: str | os.PathLike) -> None:
    """Draws every metric of a `metrics.jsonl` over the steps, in panels: "norm/update/head" is one line of the
    panel "norm/update"."""
    from matplotlib.figure import Figure  # here, since no other part of training needs it

    rows = read_metrics(metrics_path)
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "seconds")))
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(name.rpartition("/")[0] or name, []).append(name)
    figure = Figure(figsize=(10, 2.6 * -(-len(panels) // 2)), layout="constrained")
    for position, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, position)
        for name in lines:
            points = [(row["step"], row[name]) for row in rows if name in row]
            label = name.rpartition("/")[2].replace("_", " ")
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None, label=label)
        axes.set_title(title.replace("_", " "))
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="xx-small", ncols=2)
    figure.savefig(path, dpi=110)
