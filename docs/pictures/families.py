"""Draw families.png, the picture of the README, from the sample sheets of finished runs.

    python docs/pictures/families.py runs/digits_flow runs/fashion_unet runs/digits_gan runs/digits_vae

The last two rows are cut from the sheets in notebooks/pictures.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

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


def cells(sheet: Path, columns: int, row_of: list[int]) -> list[Image.Image]:
    """Return one sample of each of these rows of a sheet, the i-th from column i."""
    picture = Image.open(sheet).convert("RGB")
    side = picture.width // columns
    box = lambda row, column: (column * side, row * side, (column + 1) * side, (row + 1) * side)
    chosen = (box(row, i % columns) for i, row in enumerate(row_of))
    crop = lambda box: picture.crop((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1))
    return [crop(each).resize((64, 64), Image.Resampling.NEAREST) for each in chosen]


def main(*runs: str) -> None:
    sheets = [Path(run) / "samples.png" for run in runs]
    rows = [cells(sheet, 10, list(range(10))) for sheet in sheets]
    rows.append(cells(STORED / "emoji_latent_flow.png", 10, list(range(10))))
    rows.append(cells(STORED / "emoji_text.png", 8, list(range(10))))
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
