"""One table of all families: runs on the same data with the same evaluation, and their pictures."""

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from experiments.pages.report import RunRecord, duration, read_run
from experiments.pages.tables import cell, markdown, number, origin

# Columns of quality. A cell shows the first of these names that a report has.
FIGURES = {
    "accuracy ↑": ("class_accuracy", "training_accuracy"),
    "Fréchet distance ↓": ("frechet_distance",),
    "FD-VGG16 ↓": ("fd_vgg16",),
    "precision ↑": ("precision",),
    "recall ↑": ("recall",),
    "density → 1": ("density",),
    "coverage ↑": ("coverage",),
    "nearest neighbour ratio → 1": ("nearest_neighbour_ratio",),
    "bits per dimension ↓": ("bits_per_dimension",),
}
DENSITIES = {
    "Autoregression": "yes",
    "VariationalAutoencoder": "a bound",
    "DiscreteDiffusion": "a bound",
    "Diffusion": "by an ODE",
}
WITH_LATENTS = ("GAN", "VariationalAutoencoder")
NO_RUNS = "No run is on record yet.\n"
BEGIN, END = "<!-- begin: generated -->", "<!-- end: generated -->"
WIDTH, COLUMNS, TITLE = 400, 4, 28  # of the sheet: pixels, pictures, pixels


class Row(NamedTuple):
    """Runs that differ in their seed alone, and the run that they stand on.

    Attributes:
        below: the frozen autoencoder or teacher, if its record is there.
    """

    runs: tuple[RunRecord, ...]
    below: RunRecord | None

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def name(self) -> str:
        return self.first.report["experiment"]


def read_rows(folders: Sequence[str | Path]) -> dict[str, list[Row]]:
    """Return rows by the name of their data set, in the order of the folders.

    Autoencoders have no row of their own. Runs of one experiment and length are one row.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a run has no report yet.
    """
    runs = [read_run(folder) for folder in folders]
    if missing := [run.folder for run in runs if not run.report]:
        raise ValueError(f"{missing[0]} has no report.json: train to the end, or run evaluate")
    grouped: dict[tuple, list[RunRecord]] = {}
    for run in runs:
        if not run.reconstructs:
            key = run.config["data.name"], run.report["experiment"], run.report["steps"]
            grouped.setdefault(key, []).append(run)
    by_name = {run.folder.name: run for run in runs}
    tables: dict[str, list[Row]] = {}
    for (data, *_), members in grouped.items():
        config = members[0].config
        stands_on = config.get("space.run") or config.get("teacher") or ""
        row = Row(tuple(members), by_name.get(Path(stands_on).name))
        tables.setdefault(data, []).append(row)
    return tables


def families(tables: Mapping[str, Sequence[Row]]) -> str:
    """Return two tables for each data set: figures and costs, and how they came about."""
    text = []
    for data, rows in tables.items():
        names = [f"`{row.name}`" for row in rows]
        header = ["run", *FIGURES, "parameters", "training", "evaluations", "ms per sample"]
        header += ["exact density", "latent code"]
        figures = [
            [name, *_figures(row), *_costs(row)] for name, row in zip(names, rows, strict=True)
        ]
        origins = [[name, *origin(row.first)] for name, row in zip(names, rows, strict=True)]
        how = markdown(["run", "steps, time", "device", "commit", "sampling"], origins)
        text.append(f"## {data}\n\n{markdown(header, figures)}\n\n{how}\n")
    return "\n".join(text)


def _figures(row: Row) -> list[str]:
    """Return the cells of quality: of one run with that of real images, or of several seeds."""
    cells = []
    for names in FIGURES.values():
        name = next((name for name in names if name in row.first.report), names[0])
        values = [run.report[name] for run in row.runs if name in run.report]
        if len(values) < 2:
            cells.append(cell(row.first, name))
        else:
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            cells.append(f"{number(name, mean)} ± {number(name, deviation)}")
    return cells


def _costs(row: Row) -> list[str]:
    """Return the cells of what a run and a sample cost, and what the family is."""
    report, config = row.first.report, row.first.config
    parameters, trained = _count(report, "parameters"), duration(_mean(row, "seconds"))
    if report.get("decoder_parameters"):
        parameters += f" + {report['decoder_parameters']:,}"
    if row.below:
        trained += f" + {duration(row.below.report['seconds'])}"
    timed = [run for run in row.runs if "milliseconds_per_sample" in run.report]
    milliseconds = f"{_mean(row, 'milliseconds_per_sample'):.3g}" if timed else ""
    on_codes = config.get("space.name") in ("Latents", "Tokens")
    density = "no" if on_codes else DENSITIES.get(config["task"], "no")
    code = "yes" if on_codes or config["task"] in WITH_LATENTS else "no"
    return [parameters, trained, _count(report, "evaluations"), milliseconds, density, code]


def _mean(row: Row, name: str) -> float:
    return statistics.mean(run.report[name] for run in row.runs if name in run.report)


def _count(report: Mapping[str, Any], name: str) -> str:
    return f"{report[name]:,}" if name in report else ""


def insert(page: str, text: str) -> str:
    """Return a page with the text between its marks of what is generated.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}, between which the table goes")
    return f"{before}{BEGIN}\n\n{text or NO_RUNS}\n{END}{after}"


def sheet(rows: Sequence[Row]) -> Image.Image | None:
    """Draw the runs' last sheets of samples side by side, each below its name.

    Rows without a samples.png in their folder are left out; None if no row has one.
    """
    paths = [(row.name, row.first.folder / "samples.png") for row in rows]
    shown = [(name, Image.open(path).convert("RGB")) for name, path in paths if path.exists()]
    if not shown:
        return None
    small = [
        (name, picture.resize((WIDTH, round(picture.height * WIDTH / picture.width))))
        for name, picture in shown
    ]
    height = TITLE + max(picture.height for _, picture in small)
    count = -(-len(small) // COLUMNS)
    whole = Image.new("RGB", (WIDTH * min(COLUMNS, len(small)), height * count), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    for place, (name, picture) in enumerate(small):
        left, top = WIDTH * (place % COLUMNS), height * (place // COLUMNS)
        draw.text((left + 4, top + 4), name, "black", font)
        whole.paste(picture, (left, top + TITLE))
    return whole


def cost_figure(rows: Sequence[Row]) -> Image.Image | None:
    """Draw the Fréchet distance over the milliseconds of a sample, a point for each row.

    None if no row's samples have been timed.
    """
    names = "milliseconds_per_sample", "frechet_distance"
    timed = [row for row in rows if all(name in row.first.report for name in names)]
    if not timed:
        return None
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for row in timed:
        x, y = (_mean(row, name) for name in names)
        axes.scatter(x, y, s=20)
        axes.annotate(row.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="ms per sample", ylabel="Fréchet distance of pixels"
    )
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=110, format="png")
        return Image.open(buffer).convert("RGB")
