"""Draw families.png, the picture of the README, from finished runs.

    python docs/pictures/families.py runs/{digits_flow,fashion_unet,digits_gan,digits_vae}

The last two rows are cut from the sheets in notebooks/pictures.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from genjax.pipelines import Run

HERE = Path(__file__).parent
STORED = HERE.parents[1] / "notebooks/pictures"
LABELS = (
    "rectified flow, transformer",
    "rectified flow, U-Net",
    "GAN",
    "variational autoencoder",
    "flow on latents",
    "text to image",
)


def enlarged(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((64, 64), Image.Resampling.NEAREST)


def sampled(run: str) -> list[Image.Image]:
    """Return ten samples of a run, one of each class if it has classes."""
    images = Run(run).sample(np.arange(10), seed=0)
    return [enlarged(Image.fromarray(image.squeeze(-1))) for image in images]


def cut(sheet: str, columns: int) -> list[Image.Image]:
    """Return one sample of each of ten rows of a sheet, the i-th from column i."""
    picture = Image.open(STORED / sheet)
    side = picture.width // columns
    corners = [(side * (i % columns) + 1, side * i + 1) for i in range(10)]
    boxes = ((x, y, x + side - 2, y + side - 2) for x, y in corners)
    return [enlarged(picture.crop(box)) for box in boxes]


def main(*runs: str) -> None:
    rows = [sampled(run) for run in runs]
    rows += [cut("emoji_latent_flow.png", 10), cut("emoji_text.png", 8)]
    figure = Figure(figsize=(9.0, 4.2))
    axes = figure.subplots(len(rows), 1)
    for ax, label, row in zip(axes, LABELS, rows, strict=True):
        strip = Image.new("RGB", (10 * 68 - 4, 64), "white")
        for i, cell in enumerate(row):
            strip.paste(cell, (68 * i, 0))
        ax.imshow(strip)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
        for spine in ax.spines.values():
            spine.set_visible(False)
    figure.subplots_adjust(left=0.23, right=0.995, top=0.995, bottom=0.005, hspace=0.06)
    figure.savefig(HERE / "families.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
