"""One table of all families: runs on the same data with the same evaluation, and their pictures."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from experiments.pages.report import RunRecord, duration, read_run
from experiments.pages.tables import markdown, number, origin, reference
from genjax import metrics
from genjax.training.pictures import rendered, save_picture

# Columns of quality, each with the figure of a report that it shows.
FIGURES = {
    "class accuracy ↑": "class_accuracy",
    "caption accuracy ↑": "training_accuracy",
    "held-out captions ↑": "held_out_accuracy",
    "Fréchet distance ↓": "frechet_distance",
    "FD-VGG16 ↓": "fd_vgg16",
    "precision ↑": "precision",
    "recall ↑": "recall",
    "density → 1": "density",
    "coverage ↑": "coverage",
    "nearest neighbour ratio → 1": "nearest_neighbour_ratio",
    "memorized share ↓": "memorized_share",
    "bits per dimension ↓": "bits_per_dimension",
}
COSTS = ("parameters", "training", "evaluations", "ms per sample", "exact density", "latent code")
TITLES = {"fashion_mnist": "Fashion-MNIST", "emoji": "Captioned emoji"}
ACRONYMS = {"gan": "GAN", "unet": "U-Net", "vae": "VAE"}
BUDGETS = {"10 minutes": 600.0, "1 hour": 3600.0}  # seconds of training
MARKERS = dict(zip(BUDGETS, "os", strict=True))
CONDITIONS = {"Prompts": "caption", "Classes": "class", "Unconditional": "none"}
DENSITIES = {
    "Autoregression": "yes",
    "VariationalAutoencoder": "a bound",
    "DiscreteDiffusion": "a bound",
    "Diffusion": "by an ODE",
}
BELOW = ("teacher", "space.run")  # fields of the runs that a run stands on
OF_SEED = ("seed", "space.directory", *BELOW)  # fields in which runs of several seeds may differ
WITH_LATENTS = ("GAN", "VariationalAutoencoder")
NO_RUNS = "No run is on record yet.\n"
BEGIN, END = "<!-- begin: generated -->", "<!-- end: generated -->"
WIDTH, COLUMNS, TITLE, GAP = 400, 4, 28, 12  # of the sheet: pixels, pictures, pixels, pixels
MILLISECONDS = "milliseconds_per_sample"
PANELS = {
    "frechet_distance": "Fréchet distance of pixels",
    "fd_vgg16": "Fréchet distance of VGG16's features",
}


class Row(NamedTuple):
    """Runs that differ in their seed alone, and the runs that they stand on.

    Costs are those of the first run, since the others may have shared the machine.

    Attributes:
        below: the frozen teacher and the frozen autoencoder, if their records are there.
    """

    runs: tuple[RunRecord, ...]
    below: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def name(self) -> str:
        return self.first.report["experiment"]

    @property
    def family(self) -> str:
        """The config's choice in words: "latent flow" of fashion_families_latent_flow."""
        choice = self.name.rpartition("_families_")[2]
        return ACRONYMS.get(choice, choice.replace("_", " "))

    @property
    def budget(self) -> str:
        """The budget that is nearest to the run's seconds, by their ratio."""
        seconds = self.first.report["seconds"]
        return min(BUDGETS, key=lambda name: abs(math.log(BUDGETS[name] / seconds)))


def read_rows(folders: Sequence[str | Path]) -> dict[str, list[Row]]:
    """Return rows by the name of their data set, those of `TITLES` first, by order of the folders.

    Autoencoders have no row of their own. Runs of one experiment and length are one row if their
    configs differ in the seed alone, and in the runs and the latents that they stand on.

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
            others = (each for each in run.config.items() if each[0] not in OF_SEED)
            grouped.setdefault((*key, repr(sorted(others))), []).append(run)
    by_name = {run.folder.name: run for run in runs}
    tables: dict[str, list[Row]] = {}
    for (data, *_), members in grouped.items():
        config = members[0].config
        names = [Path(config.get(field) or "").name for field in BELOW]
        below = tuple(by_name[name] for name in names if name in by_name)
        tables.setdefault(data, []).append(Row(tuple(members), below))
    return {data: tables[data] for data in dict.fromkeys((*TITLES, *tables)) if data in tables}


def by_budget(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each training budget that has some, the smallest budget first."""
    groups = {budget: [row for row in rows if row.budget == budget] for budget in BUDGETS}
    return {budget: group for budget, group in groups.items() if group}


def families(tables: Mapping[str, Sequence[Row]], pictures: str | None = None) -> str:
    """Return tables for each data set and budget: figures, costs, and how they came about.

    Args:
        pictures: the folder of what `draw` has drawn, from the page. None shows no pictures.
    """
    text = []
    for data, rows in tables.items():
        title = TITLES.get(data, data)
        text.append(f"## {title}")
        if pictures and _timed(rows):
            caption = f"{title}: quality of each family against milliseconds of a sample"
            text.append(f"![{caption}]({pictures}/{data}_cost.png)")
        for budget, group in by_budget(rows).items():
            text += [f"### {title}, {budget} of training", *_tables(group)]
            if pictures and _sheets(group):
                link = f"{pictures}/{data}_{budget.replace(' ', '_')}.png"
                text.append(f"![{title}: samples of each family after {budget}]({link})")
    return "\n\n".join(text) + "\n" * bool(text)


def _tables(rows: Sequence[Row]) -> list[str]:
    """Return tables of quality, of costs, and of how the rows came about."""
    shown = {
        column: name
        for column, name in FIGURES.items()
        if any(name in run.report for row in rows for run in row.runs)
    }
    condition = lambda row: CONDITIONS.get(row.first.config.get("condition.name"), "")
    quality = [
        [row.family, condition(row), *(_figure(row, name) for name in shown.values())]
        for row in rows
    ]
    quality.append(["real images", "", *(_of_real_images(rows, name) for name in shown.values())])
    costs = [[row.family, *_costs(row)] for row in rows]
    origins = [[row.family, f"`{row.name}`", *origin(row.first)] for row in rows]
    return [
        markdown(["family", "condition", *shown], quality),
        markdown(["family", *COSTS], costs),
        markdown(["family", "run", "steps, time", "device", "commit", "sampling"], origins),
    ]


def _figure(row: Row, name: str) -> str:
    """Return a figure of one run, or the mean of several seeds with its interval of 95 %."""
    values = [run.report[name] for run in row.runs if name in run.report]
    if len(values) < 2:
        return number(name, values[0]) if values else ""
    low, high = metrics.seed_interval(values)
    return f"{number(name, statistics.mean(values))} ± {number(name, (high - low) / 2)}"


def _of_real_images(rows: Sequence[Row], name: str) -> str:
    """Return the same figure of real images, from the first run that has it."""
    found = (reference(run, name) for row in rows for run in row.runs)
    value = next((each for each in found if each is not None), None)
    return "" if value is None else number(name, value)


def _costs(row: Row) -> list[str]:
    """Return the cells of what the first run and a sample cost, and what the family is."""
    report, config = row.first.report, row.first.config
    parameters = _count(report, "parameters")
    if report.get("decoder_parameters"):
        parameters += f" + {report['decoder_parameters']:,}"
    below = (run.report["seconds"] for run in row.below)
    trained = " + ".join(map(duration, (report["seconds"], *below)))
    milliseconds = number(MILLISECONDS, report[MILLISECONDS]) if _timed([row]) else ""
    on_codes = config.get("space.name") in ("Latents", "Tokens")
    density = "no" if on_codes else DENSITIES.get(config["task"], "no")
    code = "yes" if on_codes or config["task"] in WITH_LATENTS else "no"
    return [parameters, trained, _count(report, "evaluations"), milliseconds, density, code]


def _point(row: Row, name: str) -> tuple[float, float]:
    """Return the milliseconds of a sample of the first run, and the mean of a figure."""
    values = [run.report[name] for run in row.runs if name in run.report]
    return row.first.report[MILLISECONDS], statistics.mean(values)


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


def draw(tables: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Write DATA_cost.png for each data set, and DATA_BUDGET.png with samples for each budget."""
    folder.mkdir(parents=True, exist_ok=True)
    for data, rows in tables.items():
        if _timed(rows):
            save_picture(folder / f"{data}_cost.png", cost_figure(rows))
        for budget, group in by_budget(rows).items():
            if _sheets(group):
                save_picture(folder / f"{data}_{budget.replace(' ', '_')}.png", sheet(group))


def _sheets(rows: Sequence[Row]) -> dict[str, Path]:
    """Return the sheets of samples that are there, by family."""
    paths = {row.family: row.first.folder / "samples.png" for row in rows}
    return {family: path for family, path in paths.items() if path.exists()}


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw the runs' last sheets of samples side by side, each below its family.

    Rows without a samples.png in their folder are left out.
    """
    small = []
    for family, path in _sheets(rows).items():
        picture = Image.open(path).convert("RGB")
        size = WIDTH, round(picture.height * WIDTH / picture.width)
        small.append((family, picture.resize(size, Image.Resampling.LANCZOS)))
    height = TITLE + max(picture.height for _, picture in small) + GAP
    count = -(-len(small) // COLUMNS)
    width = (WIDTH + GAP) * min(COLUMNS, len(small)) - GAP
    whole = Image.new("RGB", (width, height * count - GAP), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(18)
    for place, (family, picture) in enumerate(small):
        left, top = (WIDTH + GAP) * (place % COLUMNS), height * (place // COLUMNS)
        pen.text((left + 2, top + 4), family, "black", font)
        whole.paste(picture, (left, top + TITLE))
    return whole


def _timed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose first run has timed its samples."""
    return [row for row in rows if MILLISECONDS in row.first.report]


def cost_figure(rows: Sequence[Row]) -> Image.Image:
    """Draw Fréchet distances over the milliseconds of a sample, a point for each row.

    Pixels and VGG16's features have a panel each. A line leads from a family's point of a smaller
    budget to that of a larger one.
    """
    from matplotlib.figure import Figure  # slow to import

    timed = _timed(rows)
    panels = [name for name in PANELS if any(name in row.first.report for row in timed)]
    figure = Figure(figsize=(1 + 5.5 * len(panels), 5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_costs(axes, name, timed)
    points = [
        figure.axes[0].scatter([], [], 25, "black", marker=MARKERS[budget], label=budget)
        for budget in by_budget([row for row in timed if row.first.report.keys() & PANELS])
    ]
    if points:
        figure.legend(handles=points, title="training", loc="outside upper center", ncols=2)
    for axes in figure.axes:
        _spread(axes)
    return rendered(figure)


def _draw_costs(axes: Any, name: str, rows: Sequence[Row]) -> None:
    """Draw a panel of `cost_figure`."""
    from matplotlib import colormaps  # slow to import

    budgets = by_budget([row for row in rows if name in row.first.report])
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in itertools.chain.from_iterable(budgets.values()):
        lines.setdefault(row.family, []).append(_point(row, name))
    shades = colormaps["tab20"].colors  # pairs of a strong and a light one
    colours = dict(zip(sorted(lines), itertools.cycle(shades[::2] + shades[1::2]), strict=False))
    for family, points in lines.items():
        axes.plot(*zip(*points, strict=True), linewidth=1, color=colours[family])
        offset = dict(xytext=(6, -3), textcoords="offset points", fontsize=9)
        axes.annotate(family, points[-1], **offset)
    for budget, group in budgets.items():
        x, y = zip(*(_point(row, name) for row in group), strict=True)
        shown = [colours[row.family] for row in group]
        axes.scatter(x, y, 25, shown, marker=MARKERS[budget], zorder=2)
    axes.set(xscale="log", yscale="log", xlabel="ms per sample", ylabel=PANELS[name])
    left, right = axes.get_xlim()
    axes.set_xlim(left, 10 * right)  # room for the last label
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _spread(axes: Any) -> None:
    """Move the labels of points up until none covers another."""
    axes.figure.draw_without_rendering()  # sets the places that texts are drawn at
    placed = []
    for label in sorted(axes.texts, key=lambda label: label.get_window_extent().y0):
        while any(label.get_window_extent().overlaps(each) for each in placed):
            x, y = label.get_position()
            label.set_position((x, y + 1))
        placed.append(label.get_window_extent())
