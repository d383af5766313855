"""Pictures of a run: grids of samples with labels, films, histograms, curves."""

import io
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int16
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from genjax.training.log import read_metrics

ANIMATED_SIDE = 2**14 - 1  # WebP stores a side in 14 bits, GIF in 16
LABEL_LINES = 3


def image_grid(images: np.ndarray, columns: int, padding: int = 1) -> Image.Image:
    """Draw uint8 images `[count height width channels]` row by row.

    Small images are enlarged by a whole number, so that each side has at least 64 pixels.
    Pixels are repeated, not blended.
    """
    zoom = max(1, -(-64 // min(images.shape[1:3])))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    ends = ((0, -len(images) % columns), *[(padding, padding)] * 2, (0, 0))
    images = np.pad(images, ends, constant_values=128)
    grid = rearrange(images, "(r c) h w k -> (r h) (c w) k", c=columns)
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)


def label_rows(picture: Image.Image, labels: Sequence[str]) -> Image.Image:
    """Write labels to the left of a picture, one beside each of its equally high rows.

    A long label is broken into at most `LABEL_LINES` lines, and its rest becomes an ellipsis. The
    result keeps the whole labels in `info["rows"]`, and `save_picture` writes them to the file.
    Without labels, the picture is returned as it is.
    """
    if not labels:
        return picture
    row = picture.height / len(labels)
    font = _font(min(max(12, round(0.3 * row)), max(12, picture.width // 16)))
    letters = max(4, int(3 * row / font.getlength("n")))
    texts = [
        "\n".join(textwrap.wrap(label, letters, max_lines=LABEL_LINES, placeholder=" …"))
        for label in labels
    ]
    lines = [line for text in texts for line in text.splitlines()]
    margin = round(font.size / 2)
    left = round(max(map(font.getlength, lines), default=0)) + 2 * margin
    mode = picture.mode if picture.mode in ("L", "RGB") else "RGB"
    sheet = Image.new(mode, (left + picture.width, picture.height), "white")
    sheet.paste(picture, (left, 0))
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(texts):
        place = left - margin, (index + 0.5) * row
        draw.multiline_text(place, text, fill="black", font=font, anchor="rm", align="right")
    sheet.info["rows"] = list(labels)
    return sheet


def paired_grid(pairs: Mapping[str, np.ndarray], columns: int = 10) -> Image.Image:
    """Draw rows of images by turns, so that images of equal place are below each other.

    Args:
        pairs: uint8 images `[count height width channels]`, by the name of their rows. Of more than
            `columns` images, those that fill no whole row are left out.
    """
    columns = min(columns, *map(len, pairs.values()))
    count = min(map(len, pairs.values())) // columns * columns
    rows = np.stack([images[:count] for images in pairs.values()])
    rows = rearrange(rows, "k (r c) h w d -> (r k c) h w d", c=columns)
    return label_rows(image_grid(rows, columns), list(pairs) * (count // columns))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib brings along, which has the letters of many languages."""
    import matplotlib  # here, since training needs it for pictures alone

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def save_picture(path: str | os.PathLike, picture: Image.Image) -> None:
    """Write a picture as a PNG, with the labels of its rows."""
    text = PngInfo()
    if rows := picture.info.get("rows"):
        text.add_itxt("rows", json.dumps(rows))
    picture.save(path, format="PNG", pnginfo=text)


def read_rows(picture: Image.Image) -> list[str]:
    """Return the labels of the rows of a picture that `save_picture` has written."""
    return json.loads(picture.info.get("rows", "[]"))


def save_grid(path: str | os.PathLike, images: np.ndarray, columns: int) -> None:
    """Write the picture that `image_grid` draws as a PNG."""
    save_picture(path, image_grid(images, columns))


def save_animation(
    path: str | os.PathLike,
    pictures: Sequence[Image.Image],
    milliseconds: int = 60,
    hold: int = 1500,
) -> None:
    """Write pictures of equal size as an endless film: a GIF, and beside it a smaller WebP.

    The film rests on its last picture. Pictures with a side of more than `ANIMATED_SIDE` pixels are
    reduced by a whole number.

    Args:
        path: of the GIF; the WebP has the suffix ".webp" in its place.
        milliseconds: for which a picture is shown.
        hold: milliseconds for which the last picture is shown.
    """
    factor = -(-max(pictures[0].size) // ANIMATED_SIDE)
    reduced = [picture.reduce(factor) for picture in pictures]
    film = dict(save_all=True, duration=[milliseconds] * (len(reduced) - 1) + [hold], loop=0)
    frames = [picture.convert("P") for picture in reduced]
    frames[0].save(path, append_images=frames[1:], **film)
    # Large pixels of few colours are smaller without loss, noise and photographs with it.
    middle, ways = reduced[len(reduced) // 2], (dict(lossless=True), dict(quality=75))
    how = min(ways, key=lambda how: len(_webp([middle], **how)))
    Path(path).with_suffix(".webp").write_bytes(_webp(reduced, **film, **how))


def _webp(pictures: Sequence[Image.Image], **options) -> bytes:
    """Return pictures, or a film of them, as WebP."""
    with io.BytesIO() as buffer:
        pictures[0].save(buffer, "WebP", append_images=pictures[1:], method=2, **options)
        return buffer.getvalue()


def rendered(figure) -> Image.Image:
    """Return a figure of matplotlib as a picture."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=110, format="png")
        return Image.open(buffer).convert("RGB")


def _draw(size: tuple[float, float], plot: Callable) -> Image.Image:
    """Return what `plot(axes)` draws, as a picture."""
    from matplotlib.figure import Figure  # here, since training needs it for pictures alone

    figure = Figure(figsize=size, layout="constrained")
    plot(figure.add_subplot())
    return rendered(figure)


def scatter(points: np.ndarray, reach: float = 5.0) -> Image.Image:
    """Draw points in the plane, `[count 2]`, within ±`reach`."""

    def plot(axes):
        axes.scatter(*points.T, s=2, alpha=0.5)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")

    return _draw((3.0, 3.0), plot)


def spectrograms(
    sounds: Int16[np.ndarray, "count samples channels"], columns: int, sample_rate: int
) -> Image.Image:
    """Draw the loudness of sounds over time and frequency, `columns` in a row, low pitches below.

    Channels are averaged. Colours from black to yellow stand for −90 to 0 dB of full scale, in
    windows of 32 ms.
    """
    from matplotlib import colormaps  # here, since training needs it for pictures alone

    drawn = []
    for sound in sounds:
        levels = _levels(sound.mean(axis=-1) / 2**15, max(2, round(0.032 * sample_rate)))
        colours = colormaps["magma"](np.clip(levels.T[::-1] / 90 + 1, 0, 1), bytes=True)[..., :3]
        picture = Image.fromarray(np.ascontiguousarray(colours))
        drawn.append(np.asarray(picture.resize((160, 64), Image.Resampling.BILINEAR)))
    return image_grid(np.stack(drawn), columns)


def _levels(
    sound: Float[np.ndarray, " samples"], window: int
) -> Float[np.ndarray, "frames frequencies"]:
    """Return the amplitudes of the sines of a sound in dB, in windows that overlap by half.

    Frequencies go up to half of the sample rate in equal steps. Before and after the sound is
    silence.
    """
    hann = np.hanning(window + 2)[1:-1]
    padded = np.pad(sound, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 2]
    amplitudes = np.abs(np.fft.rfft(frames * hann)) * 2 / hann.sum()
    return 20 * np.log10(np.maximum(amplitudes, 1e-9))


def histograms(shares: Mapping[str, np.ndarray], edges: np.ndarray) -> Image.Image:
    """Draw histograms over each other, by the share that each has between two edges.

    The axis of shares is logarithmic if the highest peak is over ten times the lowest peak.
    """
    peaks = [float(np.max(each)) for each in shares.values()]

    def plot(axes):
        for name, each in shares.items():
            axes.stairs(each, edges, fill=True, alpha=0.4, label=name)
        axes.legend(fontsize="x-small")
        axes.set(xlabel="logit", ylabel="share", xlim=(edges[0], edges[-1]))
        if max(peaks) > 10 * min(peaks) > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)

    return _draw((5.0, 2.6), plot)


HIDDEN = {"step", "seconds", "step_seconds", "compile_seconds"}  # what a run logs that is no curve


def panels(names: Iterable[str]) -> dict[str, list[str]]:
    """Group metrics into panels, by the panel's title.

    Metrics share a panel if their names differ after the last "/" alone: "norm/update/head" is one
    line of "norm/update". A metric with a name of its own is alone in its panel, so the parts of
    the loss are in another panel than the loss. Panels of losses come first.
    """
    names = list(names)
    grouped: dict[str, list[str]] = {}
    for name in names:
        title = name.rpartition("/")[0] or name
        if title != name and title in names:
            title = f"{title} by time" if "/t_" in name else f"parts of the {title}"
        grouped.setdefault(title, []).append(name)
    return dict(sorted(grouped.items(), key=lambda panel: "loss" not in panel[0]))


def line_label(name: str) -> str:
    """Return how a line of a panel is called: "t 0–0.125" for "loss/t_0_0.125"."""
    last = name.rpartition("/")[2]
    start, _, ends = last.partition("_")
    if start == "t" and ends.count("_") == 1:
        return f"t {ends.replace('_', '–')}"
    return last.replace("_", " ")


def needs_logarithm(values: Sequence[float]) -> bool:
    """Return whether a logarithmic axis shows more of finite values than a linear one.

    On a linear axis half of the values would be in the lowest tenth.
    """
    values = sorted(values)
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    return low > 0 and high > 10 * low and middle - low < 0.1 * (high - low)


def save_curves(path: str | os.PathLike, metrics_path: str | os.PathLike) -> None:
    """Draw the metrics of a `metrics.jsonl` over the steps, in `panels`.

    Norms, of which there are dozens, are left out: the page of a run shows them. Before the first
    metrics are logged there is nothing to draw, and no file is written.
    """
    from matplotlib.figure import Figure  # here, since training needs it for pictures alone

    rows = read_metrics(metrics_path)
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    shown = panels(name for name in names if not name.startswith("norm/"))
    if not shown:
        return
    num_rows = -(-len(shown) // 2)
    height = 2.6 * num_rows
    figure = Figure(figsize=(10, height))
    # A constrained layout would draw everything twice.
    inches = dict(bottom=0.5 / height, top=1 - 0.35 / height, hspace=0.5, wspace=0.16)
    figure.subplots_adjust(left=0.07, right=0.98, **inches)
    for position, (title, lines) in enumerate(shown.items(), 1):
        _panel(figure.add_subplot(num_rows, 2, position), title, lines, rows)
    figure.savefig(path, dpi=110)


def _panel(axes, title: str, lines: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the lines of one panel over the steps."""
    for name in lines:
        points = [(row["step"], row[name]) for row in rows if name in row]
        marker = "." if len(points) < 20 else None
        axes.plot(*zip(*points, strict=True), marker=marker, label=line_label(name))
    values = [row[name] for row in rows for name in lines if name in row]
    finite = [value for value in values if np.isfinite(value)]
    if finite and needs_logarithm(finite):
        axes.set_yscale("log")
    axes.set_title(title.replace("_", " "))
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize="xx-small", ncols=2)
