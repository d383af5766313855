"""Tables of finished runs in Markdown: figures, and how they came about, by family."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.evaluation.figures import BETTER, FEW_STEPS, SPEED
from experiments.pages.report import (
    RunRecord,
    data_options,
    duration,
    read_run,
    reference_name,
    words,
)

HEADER = """\
# Runs on record

Each row is read from the `report.json` of one run. Figures in parentheses are those of real images.
This command writes the page:

```sh
python -m experiments.table docs/results/records/* --out=docs/results/runs.md
```

"""

ARROWS = {"higher": " ↑", "lower": " ↓", "1": " → 1"}


def tables(folders: Sequence[str | Path]) -> str:
    """Return a heading and tables for each family, in the order in which the families come.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a run has no report yet.
    """
    families: dict[str, list[RunRecord]] = {}
    for folder in folders:
        run = read_run(folder)
        if not run.report:
            raise ValueError(f"{folder} has no report.json: train to the end, or run evaluate")
        families.setdefault(run.config["task"], []).append(run)
    return "\n\n".join(f"## {task}\n\n{table(runs)}" for task, runs in families.items()) + "\n"


def table(runs: Sequence[RunRecord]) -> str:
    """Return tables with a row for each run: figures, and how they came about.

    Each data set has its own table of figures, since figures of two are not comparable.
    """
    heading = lambda name: words(name) + ARROWS[BETTER[name]]
    names = run_names(runs)
    by_data: dict[tuple, list[int]] = {}
    for i, run in enumerate(runs):
        data = run.config.get("data.name"), *data_options(run)
        by_data.setdefault(data, []).append(i)
    found = []
    for members in by_data.values():
        measured = set().union(*(runs[i].report for i in members)) - SPEED.keys()
        figures = [name for name in BETTER if name in measured]
        cells = [[names[i], *(cell(runs[i], name) for name in figures)] for i in members]
        found.append(markdown(["run", *map(heading, figures)], cells))
    if any(by_steps(run) for run in runs):
        found.append(few_steps(names, runs))
    origins = [[name, *origin(run)] for name, run in zip(names, runs, strict=True)]
    found.append(markdown(["run", "steps, time", "device", "commit", "sampling"], origins))
    return "\n\n".join(found)


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Return the runs' experiments, with the name of the folder where runs share an experiment."""
    names = [run.report["experiment"] for run in runs]
    return [
        f"`{name}`" if names.count(name) == 1 else f"`{name}` in `{run.folder.name}`"
        for name, run in zip(names, runs, strict=True)
    ]


def by_steps(run: RunRecord) -> dict[int, dict[str, float]]:
    """Return the figures that `evaluation.few_steps.FewSteps` found, by number of steps."""
    rows: dict[int, dict[str, float]] = {}
    for name, value in run.report.items():
        if found := re.fullmatch(r"(\w+)_at_(\d+)", name):
            rows.setdefault(int(found[2]), {})[found[1]] = value
    return rows


def few_steps(names: Sequence[str], runs: Sequence[RunRecord]) -> str:
    """Return a table of class accuracy, Fréchet distance and recall by number of steps."""
    rows = {name: rows for name, run in zip(names, runs, strict=True) if (rows := by_steps(run))}
    steps = sorted({number for row in rows.values() for number in row})

    def shown(row: dict[str, float] | None) -> str:
        figures = (number(name, row[name]) if name in row else "–" for name in FEW_STEPS)
        return " / ".join(figures) if row else ""

    cells = [[name, *(shown(row.get(each)) for each in steps)] for name, row in rows.items()]
    titles = [f"{each} step{'s' * (each > 1)}" for each in steps]
    return "Class accuracy / Fréchet distance / recall by number of steps:\n\n" + markdown(
        ["run", *titles], cells
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(run: RunRecord, name: str) -> str:
    """Return a figure, and in parentheses the same figure of real images, if the report has it."""
    if name not in run.report:
        return ""
    shown, of_real = number(name, run.report[name]), reference(run, name)
    return shown if of_real is None else f"{shown} ({number(name, of_real)})"


def reference(run: RunRecord, name: str) -> float | None:
    """Return the same figure of real images, or None if the report has none."""
    return run.report.get(reference_name(run.report, name))


def number(name: str, value: float) -> str:
    """Return a figure with three digits or more, or as a percentage."""
    if name.endswith("accuracy"):
        return f"{100 * value:.1f} %"
    shown = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return shown.replace("-", "−")


def origin(run: RunRecord) -> tuple[str, str, str, str]:
    """Return what a run took, its device, its commit of genjax, and how samples were drawn."""
    report: dict[str, Any] = run.report
    took = f"{report['steps']:,} in {duration(report['seconds'])}"
    commit, _, changes = str(run.environment.get("git_commit") or "unknown").partition("-")
    source = f"`{commit[:7]}`" + ", with changes" * bool(changes)
    sampling = [f"{report['num_samples']:,} samples"] if "num_samples" in report else []
    if "sampler" in report:
        count = report.get("num_steps")
        steps = f", {count} step{'s' * (count != 1)}" if count else ""
        sampling.append(f"{report['sampler']}{steps}".replace("|", "\\|"))
    if "guidance_scale" in report:
        sampling.append(f"guidance scale {report['guidance_scale']:g}")
    return took, report["device"], source, "; ".join(sampling)
