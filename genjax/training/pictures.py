"""Pictures of a run: grids of samples, animations, curves."""

import io
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from einops import rearrange
from PIL import Image

from genjax.training.log import read_metrics

ANIMATED_SIDE = 2**14  # a GIF's sides are numbers of 16 bits


def image_grid(
    images: np.ndarray, columns: int, padding: int = 1, min_side: int = 32
) -> Image.Image:
    """uint8 images `[count height width channels]`, row by row, small ones enlarged to `min_side` pixels."""
    zoom = max(1, -(-min_side // images.shape[1]))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    images = np.pad(
        images,
        ((0, -len(images) % columns), *[(padding, padding)] * 2, (0, 0)),
        constant_values=128,
    )
    grid = rearrange(images, "(r c) h w k -> (r h) (c w) k", c=columns)
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)


def save_grid(path: str | os.PathLike, images: np.ndarray, columns: int) -> None:
    """Writes `image_grid` as a PNG."""
    image_grid(images, columns).save(path)


def save_animation(
    path: str | os.PathLike,
    pictures: Sequence[Image.Image],
    milliseconds: int = 60,
    hold: int = 1500,
) -> None:
    """Writes pictures of equal size as an endless GIF that rests on its last; sides of more than `ANIMATED_SIDE` pixels are
    reduced by a whole number."""
    factor = -(-max(pictures[0].size) // ANIMATED_SIDE)
    frames = [picture.reduce(factor).convert("P") for picture in pictures]
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _draw(size: tuple[float, float], plot: Callable) -> Image.Image:
    """What `plot(axes)` draws, as a picture."""
    from matplotlib.figure import Figure  # here, since no other part of training needs it

    figure = Figure(figsize=size, layout="constrained")
    plot(figure.add_subplot())
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=110, format="png")
        return Image.open(buffer).convert("RGB")


def scatter(points: np.ndarray, reach: float = 5.0) -> Image.Image:
    """Points in the plane, `[count 2]`, within ±`reach`."""

    def plot(axes):
        axes.scatter(*points.T, s=2, alpha=0.5)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")

    return _draw((3.0, 3.0), plot)


def waveforms(sounds: np.ndarray, columns: int) -> Image.Image:
    """Draw int16 sounds `[count length channels]`, so many in a row, over one another's channels."""
    from matplotlib.figure import Figure  # here, since no other part of training needs it

    rows = -(-len(sounds) // columns)
    figure = Figure(figsize=(2.0 * columns, 0.8 * rows), layout="constrained")
    for axes, sound in zip(
        figure.subplots(rows, columns, squeeze=False).flat, sounds, strict=False
    ):
        axes.plot(sound / 2**15, linewidth=0.5)
        axes.set(ylim=(-1, 1), xticks=(), yticks=())
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=110, format="png")
        return Image.open(buffer).convert("RGB")


def histograms(shares: Mapping[str, np.ndarray], edges: np.ndarray) -> Image.Image:
    """Histograms over each other, by the share that each has between two edges."""

    def plot(axes):
        for name, each in shares.items():
            axes.stairs(each, edges, fill=True, alpha=0.4, label=name)
        axes.legend(fontsize="x-small")
        axes.set_ylabel("share")
        axes.grid(alpha=0.3)

    return _draw((5.0, 2.6), plot)


HIDDEN = {"step", "seconds", "step_seconds", "compile_seconds"}  # what a run logs that is no curve


def save_curves(path: str | os.PathLike, metrics_path: str | os.PathLike) -> None:
    """Draws every metric of a `metrics.jsonl` over the steps, in panels: "norm/update/head" is one line of the
    panel "norm/update"."""
    from matplotlib.figure import Figure  # here, since no other part of training needs it

    rows = read_metrics(metrics_path)
    names = list(dict.fromkeys(name for row in rows for name in row if name not in HIDDEN))
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(name.rpartition("/")[0] or name, []).append(name)
    num_rows = -(-len(panels) // 2)
    height = 2.6 * num_rows
    figure = Figure(figsize=(10, height))
    # A constrained layout would draw everything twice.
    inches = dict(bottom=0.5 / height, top=1 - 0.35 / height, hspace=0.5, wspace=0.16)
    figure.subplots_adjust(left=0.07, right=0.98, **inches)
    for position, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(num_rows, 2, position)
        for name in lines:
            points = [(row["step"], row[name]) for row in rows if name in row]
            label = name.rpartition("/")[2].replace("_", " ")
            axes.plot(
                *zip(*points, strict=True), marker="." if len(points) < 20 else None, label=label
            )
        axes.set_title(title.replace("_", " "))
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="xx-small", ncols=2)
    figure.savefig(path, dpi=110)
