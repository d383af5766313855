"""The page of a run: its figures, curves, samples and config in one HTML file that needs nothing else."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.pages.html import Html, chart, element, facts, page, picture, section, table
from genjax.training.json_files import read_json
from genjax.training.log import read_metrics
from genjax.training.pictures import HIDDEN
from genjax.training.workdir import flatten, read_record

# What is measured, and where its best is. Whatever else a report holds says how it was measured.
BETTER = {
    "class_accuracy": "higher",
    "training_accuracy": "higher",
    "held_out_accuracy": "higher",
    "frechet_distance": "lower",
    "kernel_distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "1",
    "coverage": "higher",
    "nearest_neighbour_ratio": "1",
    "high_quality": "higher",
    "modes_covered": "higher",
    "divergence_of_modes": "lower",
    "duplicate_rate": "lower",
    "elbo": "higher",
    "importance_weighted_bound": "higher",
    "bits_per_dimension": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "lpips": "lower",
    "fd_vgg16": "lower",
    "fid": "lower",
    "kid": "lower",
    "inception_score": "higher",
    "inception_precision": "higher",
    "inception_recall": "higher",
    "fd_dinov2": "lower",
    "kd_dinov2": "lower",
    "dinov2_precision": "higher",
    "dinov2_recall": "higher",
    "clip_score": "higher",
    "detail_kept": "1",
    "steps_per_second": "higher",
    "goodput": "higher",
}
PICTURES_OVER_TIME = 12


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What the folder of a run says.

    Attributes:
        config: by name with points, `optimizer.learning_rate`.
        environment: likewise: device, versions of the libraries, git commit.
        report: empty until the run is evaluated.
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


def read_run(workdir: str | Path) -> RunRecord:
    """The run in `workdir`, however far it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file of the run is damaged.
    """
    folder = Path(workdir)
    try:
        record = read_record(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{workdir} holds no run (no config.json); give the --workdir of a training, or start one there"
        ) from None
    report = folder / "report.json"
    rows = read_metrics(folder / "metrics.jsonl")
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    return RunRecord(
        folder=folder.resolve(),
        config=dict(flatten(record.pop("config"))),
        environment=dict(flatten(record)),
        report=read_json(report) if report.exists() else {},
        curves={name: [(row["step"], row[name]) for row in rows if name in row] for name in names},
        step=max((row["step"] for row in rows), default=0),
        seconds=max((row["seconds"] for row in rows), default=0.0),
    )


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{int(seconds // 60)} min {int(seconds % 60)} s"
    )


def heading(name: str) -> Html:
    """A figure's name and what is better of it, as the first cell of its row."""
    better = {"higher": "↑ higher is better", "lower": "↓ lower is better", "1": "→ 1 is best"}[
        BETTER[name]
    ]
    return element("th", words(name), element("span", better, class_="unit"), scope="row")


def words(name: str) -> str:
    return name.replace("_", " ")


def grids(run: RunRecord) -> list[Path]:
    """Pictures of samples in the order of their steps."""
    return sorted((run.folder / "samples").glob("step_*.png"))


def grid_step(path: Path) -> str:
    return f"step {int(path.stem.removeprefix('step_')):,}"


def _figures(report: dict[str, Any]) -> Html:
    """A table of what was measured, one of how, and one of each dictionary in the report."""
    others = {
        "class_accuracy": "classifier_accuracy",
        **{name: f"{name}_real" for name in ("training_accuracy", "held_out_accuracy")},
    }
    reference = lambda name: others.get(name, f"{name}_train")
    measured = [name for name in BETTER if name in report]
    figures = [(heading(name), report[name], report.get(reference(name), "")) for name in measured]
    apart = {"alarms", *measured, *map(reference, measured)}
    rest = {name: report[name] for name in report if name not in apart}
    nested = {name: value for name, value in rest.items() if isinstance(value, dict)}
    return element(
        "div",
        table("What was measured", ("", "samples", "real images"), figures, class_="figures"),
        table("How", (), [(words(name), rest[name]) for name in rest if name not in nested]),
        *(table(words(name).capitalize(), (), value.items()) for name, value in nested.items()),
        class_="tables",
    )


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` into the folder of a run, finished or not, and returns its path.

    Raises:
        FileNotFoundError: there is no run.
    """
    run = read_run(workdir)
    name = run.config["experiment"]
    header = [
        element("h1", name),
        element("p", f"A run of genjax in {run.folder.name}", class_="lead"),
        facts(
            {
                "steps": run.progress,
                "time": duration(run.seconds),
                "device": run.environment["device"],
                "seed": run.config["seed"],
            }
        ),
    ]
    body = [*_state(run), *_samples(run)]
    if run.report:
        body.append(section("Figures", _figures(run.report)))
    body += [*_logits(run), *_curves(run), *_samples_over_time(run)]
    fields = (
        table("All fields", (), run.config.items()),
        table("Where it ran", (), run.environment.items()),
    )
    body.append(section("Config and environment", element("div", *fields, class_="tables")))
    path = Path(workdir) / "report.html"
    path.write_text(page(f"{name} · {run.folder.name}", header, body), encoding="utf-8")
    return path


def _state(run: RunRecord) -> list[Html]:
    """Say that a run is not evaluated yet, and what goes wrong in it."""
    sections = []
    if not run.report:
        text = (
            f"Not evaluated yet: training has logged {run.progress} steps. It is going on, or it was interrupted, "
            "and the same command goes on with it."
        )
        sections.append(element("p", text, class_="note"))
    if alarms := run.report.get("alarms"):
        sections.append(
            section("Alarms", *(element("p", sentence, class_="note") for sentence in alarms))
        )
    return sections


def _samples(run: RunRecord) -> list[Html]:
    """Show the last samples, and the animation that ends in them."""
    final = picture(
        run.folder / "samples.png", "After training", "Grid of samples of the trained model"
    )
    animation = picture(
        run.folder / "noise_to_data.gif",
        "From noise to data",
        "Animation of noise turning into these samples",
    ) or picture(
        run.folder / "latent_walk.gif",
        "A walk between latents",
        "Animation of samples turning into these samples",
    )
    return (
        [section("Samples", element("div", final, animation, class_="row"))]
        if final or animation
        else []
    )


def _logits(run: RunRecord) -> list[Html]:
    """Show the last histograms of a discriminator's logits."""
    if not (logits := sorted((run.folder / "logits").glob("step_*.png"))):
        return []
    caption = f"Logits of training, held-out and generated images, {grid_step(logits[-1])}"
    return [
        section("What the discriminator says", picture(logits[-1], caption, "Histograms of logits"))
    ]


def _curves(run: RunRecord) -> list[Html]:
    charts = [
        chart(metric, {run.config["experiment"]: points}) for metric, points in run.curves.items()
    ]
    return (
        [section("Curves over the steps", element("div", *charts, class_="row"))] if charts else []
    )


def _samples_over_time(run: RunRecord) -> list[Html]:
    """Show at most `PICTURES_OVER_TIME` sheets of samples, the last among them."""
    over_time = grids(run)
    every = -(-len(over_time) // PICTURES_OVER_TIME) if over_time else 1
    chosen = over_time[::-1][::every][::-1]
    if not chosen:
        return []
    strip = [
        picture(path, grid_step(path), f"Grid of samples at {grid_step(path)}") for path in chosen
    ]
    left_out = f"{len(chosen)} of {len(over_time)} pictures" if every > 1 else ""
    lead = [element("p", left_out, class_="lead")] if left_out else []
    return [section("Samples over time", *lead, element("div", *strip, class_="row strip"))]
