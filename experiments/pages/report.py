"""The page of a run: its samples, figures, curves and config in one HTML file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.evaluation.few_examples import FEW, compared_examples, describe_few
from experiments.evaluation.figures import BETTER, QUALITY, SPEED
from experiments.evaluation.protocol import PROTOCOL
from experiments.pages.html import (
    PLAYED,
    Html,
    box,
    breakable,
    chart,
    element,
    facts,
    fold,
    legend,
    page,
    picture,
    picture_rows,
    player,
    section,
    table,
)
from genjax.training.json_files import read_json
from genjax.training.log import read_metrics
from genjax.training.pictures import HIDDEN, line_label, panels
from genjax.training.task import FROM_TRAINING
from genjax.training.workdir import flatten, read_record

GUIDANCE = {"guidance_scale", "guidance_interval"}
RECONSTRUCTION = "reconstruction of held-out examples"  # a report's sampler
FILMS = {
    "noise_to_data": ("From noise to data", "Film of noise turning into these samples"),
    "latent_walk": ("A walk between latents", "Film of samples turning into one another"),
    "decoding": ("Pixel by pixel", "Film of these samples, drawn one pixel after another"),
    "translation": (
        "Moved inputs",
        "Film of samples whose input moves on a circle of two pixels' radius",
    ),
    "rotation": ("Turned inputs", "Film of samples whose input turns once"),
    "samples": ("Clips", "Film of sampled clips"),
    "real": ("Real clips", "Film of held-out clips"),
    "reconstruction": ("Clips and their reconstructions", "Film of clips beside reconstructions"),
}
MEASURED_PICTURES = {
    "few_steps": (
        "Few steps",
        "Samples by the number of steps that make them; a column has one label and one noise",
    ),
    "reconstructions": (
        "Originals and reconstructions",
        "Held-out examples, each above its reconstruction",
    ),
    "inversions": (
        "Back to the latents",
        "Held-out examples, each above what the generator makes of the latents found for it",
    ),
    "completions": (
        "Surprise and completions",
        "Held-out pictures, the bits of their pixels (white is the most), and the first half of "
        "their rows, completed",
    ),
    "held_out_prompts": (
        "Held-out prompts",
        "Held-out pictures, each above a sample of its name, which training has not seen",
    ),
    "logits": (
        "The discriminator's logits",
        "Histograms of the logits of training, held-out and generated images",
    ),
}
PICTURES_OVER_TIME = 12
REFERENCES = {"class_accuracy": ("classifier_accuracy",)}  # names of figures of real examples


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The contents of a run's folder.

    Attributes:
        config: values by dotted names, `optimizer.learning_rate`.
        environment: device, versions of the libraries and git commit, by dotted names.
        report: empty until the run is evaluated; without guidance if the run is unconditional.
        curves: by name, points (step, value).
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    report: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    step: int
    seconds: float

    @property
    def progress(self) -> str:
        return f"{self.step:,} of {self.config['num_steps']:,}"

    @property
    def reconstructs(self) -> bool:
        """Whether the run's samples are reconstructions of held-out examples."""
        return "reconstruction.name" in self.config or self.report.get("sampler") == RECONSTRUCTION


def read_run(workdir: str | Path) -> RunRecord:
    """Read the run in `workdir`, which may be unfinished.

    Raises:
        FileNotFoundError: `workdir` holds no run.
        ValueError: a file of the run is damaged.
    """
    folder = Path(workdir)
    try:
        record = read_record(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{workdir} holds no run (no config.json); give the --workdir of a training, "
            "or start one there"
        ) from None
    report = folder / "report.json"
    rows = read_metrics(folder / "metrics.jsonl")
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    record.pop("class_names", None)  # the labels of sample sheets show them
    config = dict(flatten(record.pop("config")))
    return RunRecord(
        folder=folder.resolve(),
        config=config,
        environment=dict(flatten(record)),
        report=_without_unused(read_json(report), config) if report.exists() else {},
        curves={name: [(row["step"], row[name]) for row in rows if name in row] for name in names},
        step=max((row["step"] for row in rows), default=0),
        seconds=max((row["seconds"] for row in rows), default=0.0),
    )


def _without_unused(report: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return a report without its guidance if the network has no condition to be guided by."""
    if config.get("condition.name") != "Unconditional":
        return report
    return {name: value for name, value in report.items() if name not in GUIDANCE}


def duration(seconds: float) -> str:
    seconds = round(seconds, 1)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def heading(name: str) -> Html:
    """Return a figure's name and where its best is, as the first cell of its row."""
    better = {"higher": "↑ higher is better", "lower": "↓ lower is better", "1": "→ 1 is best"}[
        BETTER[name]
    ]
    return element("th", words(name), element("span", better, class_="unit"), scope="row")


def words(name: str) -> str:
    return name.replace("_", " ").replace("frechet", "Fréchet")


def data_options(run: RunRecord) -> list[str]:
    """Return the arguments of what loads a run's data, such as the game of Atari."""
    options = (item for item in run.config.items() if item[0].startswith("data.options."))
    return [f"{name}={value}" for name, value in sorted(options)]


def steps_of(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of their steps."""
    return sorted(folder.glob("step_*.png"), key=_step_number)


def _step_number(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def picture_step(path: Path) -> str:
    return f"step {_step_number(path):,}"


def newest_sheet(run: RunRecord) -> tuple[Path, str]:
    """Return the last sheet of samples and when it was drawn; the file need not exist."""
    path = run.folder / "samples.png"
    sheets = steps_of(run.folder / "samples")
    if path.exists() or not sheets:
        return path, "after training"
    return sheets[-1], picture_step(sheets[-1])


def real_sheet(run: RunRecord) -> Html:
    """Show the real examples that the sheets of samples are compared with."""
    caption = "Originals" if run.reconstructs else "Real examples"
    path, detail = run.folder / "real.png", "held out"
    if any(name.endswith(FROM_TRAINING) for name in picture_rows(path)):
        detail = "held out, and training examples where a row says so"
    return picture(path, caption, "Grid of real examples", detail)


def write_report(workdir: str | Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not; return its path.

    Raises:
        FileNotFoundError: `workdir` holds no run.
    """
    run = read_run(workdir)
    name = run.folder.name
    where = dict(device=run.environment["device"], seed=run.config["seed"])
    header = [
        element("h1", breakable(name)),
        element("p", breakable(_origin(run)), class_="lead"),
        facts(dict(steps=run.progress, time=duration(run.seconds), **where)),
    ]
    body = [*_state(run), _samples(run)]
    body += [_measured_picture(run, name) for name in MEASURED_PICTURES if name != "logits"]
    figures = few_examples(run), _figures(run)
    body += [section("Figures", *figures), _measured_picture(run, "logits")]
    body += [_curves(run), _samples_over_time(run)]
    fields = (
        table("All fields", (), run.config.items()),
        table("Where it ran", (), run.environment.items()),
    )
    body.append(section("Config and environment", box("tables", *fields)))
    path = Path(workdir) / "report.html"
    title = " · ".join(dict.fromkeys((name, run.config["experiment"])))
    path.write_text(page(title, header, body), encoding="utf-8")
    return path


def _origin(run: RunRecord) -> str:
    """Return the run's config, its data set, and the weights that training started from."""
    parts = [f"Config {run.config['experiment']}"]
    if data := run.config.get("data.name"):
        folder = run.config.get("data.directory")
        parts.append(f"data set {data} ({folder})" if folder else f"data set {data}")
    if source := run.environment.get("init_from") or run.config.get("adapters.source"):
        parts.append(f"started from {source}")
    return ", ".join(parts)


def _state(run: RunRecord) -> list[Html]:
    """Say that a run is not evaluated yet, and what goes wrong in it."""
    sections = []
    if not run.report:
        text = (
            f"Not evaluated yet: training has logged {run.progress} steps. If training was "
            "interrupted, the same command resumes it."
        )
        sections.append(element("p", text, class_="note"))
    alarms = (element("p", text, class_="note") for text in run.report.get("alarms", ()))
    return [*sections, section("Alarms", *alarms)]


def _samples(run: RunRecord) -> Html:
    """Show the last samples beside real examples, and the film that ends in them."""
    path, step = newest_sheet(run)
    name = "Reconstructions" if run.reconstructs else "Samples"
    samples = picture(path, name, f"Grid of {name.lower()}, {step}", step)
    films = sorted(run.folder.glob("*.webp")) or sorted(run.folder.glob("*.gif"))
    shown = [picture(film, *FILMS.get(film.stem, (words(film.stem),) * 2)) for film in films]
    if path.parent != run.folder:  # a run of clips that has not ended
        shown.append(picture(path.with_suffix(".webp"), *FILMS["samples"], step))
    shown += _players(run, path, name, step)
    return section(name, box("row pair", samples, real_sheet(run), *shown))


def _players(run: RunRecord, sheet: Path, name: str, step: str) -> list[Html]:
    """Return the sounds and the clips with sound of the last samples and of held-out examples."""
    files = (sheet, name, step), (run.folder / "real.png", "Held-out examples", "")
    return [
        player(path.with_suffix(suffix), caption, detail)
        for path, caption, detail in files
        for suffix in PLAYED
    ]


def _measured_picture(run: RunRecord, name: str) -> Html:
    """Show the last picture that a measure has drawn."""
    title, caption = MEASURED_PICTURES[name]
    drawn = steps_of(run.folder / name)[-1:]
    return section(title, *(picture(path, caption, caption, picture_step(path)) for path in drawn))


def few_examples(run: RunRecord) -> Html:
    """Say how uncertain the figures of a run are, if few held-out examples made them."""
    count = compared_examples(run.report)
    if count is None or count >= FEW:
        return Html()
    title = f"{run.config.get('data.name')} ({run.config.get('data.held_out_split')})"
    text = describe_few(title, count)
    return element("p", f"{text[0].upper()}{text[1:]}.", class_="note")


def _figures(run: RunRecord) -> Html:
    """Return tables of the figures, of how they were measured, and of the report's dictionaries."""
    report = run.report
    measured = {name: reference_name(report, name) for name in QUALITY if name in report}
    header = ("", "reconstructions" if run.reconstructs else "samples", "real examples")
    header = header if any(measured.values()) else header[:2]
    figures = [
        (heading(name), report[name], report.get(reference, ""))[: len(header)]
        for name, reference in measured.items()
    ]
    speed = [(heading(name), report[name]) for name in SPEED if name in report]
    shown = {"alarms", *SPEED, *measured, *measured.values()}
    protocols = {name: value for name, value in report.items() if name.startswith(PROTOCOL)}
    rest = {name: report[name] for name in report if name not in shown | protocols.keys()}
    nested = {name: value for name, value in rest.items() if isinstance(value, dict)}
    protocol = lambda name: table(words(name.removeprefix(PROTOCOL)), (), flatten(report[name]))
    return box(
        "tables",
        table("Quality", header, figures, class_="figures"),
        table("Speed", (), speed, class_="figures"),
        table("How", (), [(words(name), rest[name]) for name in rest if name not in nested]),
        *(_nested_table(words(name).capitalize(), value) for name, value in nested.items()),
        fold("Protocol of each measure", *map(protocol, protocols)),
    )


def reference_name(report: Mapping[str, Any], name: str) -> str | None:
    """Return the name of the same figure of real examples, or None if a report has none."""
    names = REFERENCES.get(name, (f"{name}_train", f"{name}_real"))
    return next((each for each in names if each in report), None)


def _nested_table(caption: str, value: dict[str, Any]) -> Html:
    """Return a dictionary of the report as a table; one of dictionaries has a row for each."""
    if not all(isinstance(each, dict) for each in value.values()):
        return table(caption, (), value.items())
    columns = list(dict.fromkeys(column for each in value.values() for column in each))
    rows = [(name, *(each.get(column, "") for column in columns)) for name, each in value.items()]
    return table(caption, ("", *map(words, columns)), rows, class_="figures")


def _curves(run: RunRecord) -> Html:
    """Draw the metrics over the steps, related ones in one panel; norms are folded away."""
    charts, norms = [], []
    for title, names in panels(run.curves).items():
        lines = {line_label(name): run.curves[name] for name in names}
        if len(lines) == 1:
            lines = {title: run.curves[names[0]]}
        key = legend(lines, "key") if len(lines) > 1 else Html()
        group = norms if names[0].startswith("norm/") else charts
        group.append(element("div", chart(title, lines), key))
    folded = fold("Norms of gradients, parameters and updates", box("row", *norms))
    return section("Curves over the steps", box("row", *charts), folded)


def _samples_over_time(run: RunRecord) -> Html:
    """Show at most `PICTURES_OVER_TIME` sheets of samples, the last among them."""
    over_time = steps_of(run.folder / "samples")
    every = -(-len(over_time) // PICTURES_OVER_TIME) if over_time else 1
    strip = [
        picture(path, picture_step(path), f"Grid of samples at {picture_step(path)}")
        for path in over_time[::-1][::every][::-1]
    ]
    text = f"{len(strip)} of {len(over_time)} pictures"
    lead = element("p", text, class_="lead") if every > 1 else Html()
    return section("Samples over time", lead, box("row strip", *strip))
