"""Several runs side by side in one HTML file that needs nothing else.

    python -m experiments.compare runs/lr1 runs/lr3 --out=compare.html

Figures with the best marked, curves over each other, samples next to each other, and of the configs what differs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.launch.runtime import run_program, user_errors
from experiments.pages.html import Html, chart, element, legend, page, picture, section, table
from experiments.pages.report import BETTER, RunRecord, grid_step, grids, heading, read_run, words

OUT = flags.DEFINE_string("out", "compare.html", "File to write.")


def _read(folders: Sequence[str | Path]) -> dict[str, RunRecord]:
    """Runs by their folders' names, with as many of the folders above as it takes to tell them apart."""
    runs = [read_run(folder) for folder in folders]
    for depth in range(1, max(len(run.folder.parts) for run in runs) + 1):
        named = {"/".join(run.folder.parts[-depth:]): run for run in runs}
        if len(named) == len(runs):
            return named
    raise ValueError(
        f"{len(runs)} folders given, {len(named)} of them different; give each run once"
    )


def best(name: str, values: Sequence[float | None]) -> set[int]:
    """Positions of the best of a figure's values: none where all are equal or only one was measured."""
    distance = {
        "higher": lambda value: -value,
        "lower": lambda value: value,
        "1": lambda value: abs(value - 1),
    }
    ranks = {
        i: distance[BETTER[name]](value) for i, value in enumerate(values) if value is not None
    }
    first = {i for i in ranks if ranks[i] == min(ranks.values())}
    return first if len(first) < len(ranks) else set()


def _figures(runs: Mapping[str, RunRecord]) -> Html:
    rows = []
    for name in BETTER:
        values = [run.report.get(name) for run in runs.values()]
        marked = best(name, values)
        cells = [
            element("td", value, element("span", "best", class_="unit"), class_="best")
            if i in marked
            else element("td", "–" if value is None else value)
            for i, value in enumerate(values)
        ]
        if any(value is not None for value in values):
            rows.append((heading(name), *cells))
    return table("Measured", ("", *runs), rows, class_="figures")


def _differences(caption: str, entries: Mapping[str, Mapping[str, Any]]) -> Html:
    """What is not the same in all of `entries`, which are by run and by field."""
    fields = dict.fromkeys(field for fields in entries.values() for field in fields)
    rows = [(field, *(given.get(field, "–") for given in entries.values())) for field in fields]
    rows = [
        (field, *values) for field, *values in rows if any(value != values[0] for value in values)
    ]
    return (
        table(caption, ("", *entries), rows)
        if rows
        else element("p", f"{caption} nothing differs.")
    )


def comparison(folders: Sequence[str | Path]) -> str:
    """The page that compares the runs in `folders`.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: fewer than two runs, or one given twice.
    """
    if len(folders) < 2:
        raise ValueError(
            f"{len(folders)} folders given; give those of two runs or more, one after another"
        )
    runs = _read(folders)
    evaluated = {name: run for name, run in runs.items() if run.report}
    header = [
        element("h1", f"{len(runs)} runs compared"),
        element(
            "p",
            ", ".join(dict.fromkeys(run.config["experiment"] for run in runs.values())),
            class_="lead",
        ),
    ]
    body = [
        element(
            "p", f"{name} is not evaluated yet: it has logged {run.progress} steps.", class_="note"
        )
        for name, run in runs.items()
        if not run.report
    ]
    if evaluated:
        body.append(section("Figures", _figures(runs)))
    # What a report holds besides figures is how they came about: where that differs, they may not compare.
    how = {
        name: {words(field): value for field, value in run.report.items() if field not in BETTER}
        for name, run in evaluated.items()
    }
    differences = (
        _differences("In the configs", {name: run.config for name, run in runs.items()}),
        _differences("In the rest of the reports", how),
        _differences("In the environments", {name: run.environment for name, run in runs.items()}),
    )
    body.append(section("Differences", element("div", *differences, class_="tables")))
    metrics = dict.fromkeys(metric for run in runs.values() for metric in run.curves)
    charts = [
        chart(metric, {name: run.curves.get(metric, []) for name, run in runs.items()})
        for metric in metrics
    ]
    if charts:
        body.append(
            section("Curves over the steps", legend(runs), element("div", *charts, class_="row"))
        )
    samples = []
    for name, run in runs.items():
        if (run.folder / "samples.png").exists():
            path, step = run.folder / "samples.png", "trained"
        elif over_time := grids(run):
            path, step = over_time[-1], grid_step(over_time[-1])
        else:
            continue
        samples.append(picture(path, name, f"Grid of samples of {name}, {step}", detail=step))
    if samples:
        body.append(section("Samples", element("div", *samples, class_="row")))
    return page(f"{len(runs)} runs compared", header, body)


def main(*folders: str) -> None:
    with user_errors():
        Path(OUT.value).write_text(comparison(folders), encoding="utf-8")
    print(OUT.value)


if __name__ == "__main__":
    run_program(main)
