"""Compare several runs in one HTML file.

    python -m experiments.compare runs/lr1 runs/lr3 --out=compare.html

The page shows the runs' samples side by side, their figures, what differs between their configs,
and their curves over each other. The best figures are marked if all runs have the same data.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.evaluation.figures import BETTER, QUALITY, SPEED, UNBIASED
from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.pages.html import (
    Html,
    box,
    breakable,
    chart,
    element,
    fold,
    legend,
    page,
    picture,
    printed,
    section,
    table,
)
from experiments.pages.report import (
    RunRecord,
    data_options,
    few_examples,
    heading,
    newest_sheet,
    read_run,
    real_sheet,
    words,
)

OUT = flags.DEFINE_string("out", "compare.html", "File to write.")


def _read(folders: Sequence[str | Path]) -> dict[str, RunRecord]:
    """Return runs by their folders' names, with as many parents as make the names differ."""
    runs = [read_run(folder) for folder in folders]
    for depth in range(1, max(len(run.folder.parts) for run in runs) + 1):
        named = {"/".join(run.folder.parts[-depth:]): run for run in runs}
        if len(named) == len(runs):
            return named
    raise ValueError(
        f"{len(runs)} folders given, {len(named)} of them different; give each run once"
    )


def best(name: str, values: Sequence[float | None]) -> set[int]:
    """Return the positions of the best of a figure's values, as the page prints the values.

    There is none if all are printed alike, if only one is a finite number, or if the figure
    measures no quality. An unbiased distance below 0 is 0 within its noise, and counts as 0.
    """
    distance = {
        "higher": lambda value: -value,
        "lower": lambda value: max(value, 0.0) if name in UNBIASED else value,
        "1": lambda value: round(abs(value - 1), 9),  # 1.1 is as good as 0.9
    }
    known = ((i, value) for i, value in enumerate(values) if value is not None)
    measured = {i: printed(value) for i, value in known if math.isfinite(value)}
    if name not in QUALITY or not measured:
        return set()
    ranks = {i: distance[QUALITY[name]](value) for i, value in measured.items()}
    first = {i for i in ranks if ranks[i] == min(ranks.values())}
    return first if len(first) < len(ranks) else set()


def _samples(runs: Mapping[str, RunRecord]) -> Html:
    """Show the last samples of each run, and real examples if all runs have the same."""
    sheets = []
    for name, run in runs.items():
        path, step = newest_sheet(run)
        sheets.append(picture(path, name, f"Grid of samples of {name}, {step}", step))
    same_data = len(set(map(_data, runs.values()))) == 1
    real = next(filter(None, map(real_sheet, runs.values())), Html()) if same_data else Html()
    return section("Samples", box("row", *sheets, real))


def _data(run: RunRecord) -> tuple[str, ...]:
    """Return what a run's figures compare with: the held-out examples, and their shape."""
    names = ("name", "directory", "held_out_split", "image_shape", "feature")
    chosen = tuple(str(run.config.get(f"data.{name}")) for name in names)
    return *chosen, *data_options(run), str(bool(run.config.get("data.resize")))


def _notes(runs: Mapping[str, RunRecord]) -> list[Html]:
    """Say of which figures little can be concluded."""
    few = list(dict.fromkeys(filter(None, map(few_examples, runs.values()))))
    if len(set(map(_data, runs.values()))) == 1:
        return few
    text = "The runs have different data, so no figure is marked as the best."
    return [element("p", text, class_="note"), *few]


def _figures(caption: str, names: Sequence[str], runs: Mapping[str, RunRecord]) -> Html:
    """Return a table of these figures, with the best of each marked if the data are the same."""
    same_data = len(set(map(_data, runs.values()))) == 1
    rows = []
    for name in names:
        values = [run.report.get(name) for run in runs.values()]
        marked = best(name, values) if same_data else set()
        cells = [
            element("td", value, element("span", "best", class_="unit"), class_="best")
            if i in marked
            else element("td", "–" if value is None else value)
            for i, value in enumerate(values)
        ]
        if any(value is not None for value in values):
            rows.append((heading(name), *cells))
    return table(caption, ("", *runs), rows, class_="figures")


def _differences(caption: str, entries: Mapping[str, Mapping[str, Any]]) -> Html:
    """Return a table of the fields that differ between `entries`, which are by run and by field."""
    fields = dict.fromkeys(field for fields in entries.values() for field in fields)
    rows = [(field, *(given.get(field, "–") for given in entries.values())) for field in fields]
    rows = [
        (field, *(element("td", breakable(value)) for value in values))
        for field, *values in rows
        if any(value != values[0] for value in values)
    ]
    if not rows:
        return element("p", f"{caption} nothing differs.")
    return table(caption, ("", *entries), rows)


def _all_differences(runs: Mapping[str, RunRecord]) -> Html:
    """Return tables of what differs between the runs beside their figures."""
    # Where the measures were made in other ways, the figures may not be comparable.
    how = {
        name: {words(field): value for field, value in run.report.items() if field not in BETTER}
        for name, run in runs.items()
        if run.report
    }
    return box(
        "tables",
        _differences("In the configs", {name: run.config for name, run in runs.items()}),
        _differences("In the rest of the reports", how) if len(how) > 1 else Html(),
        _differences("In the environments", {name: run.environment for name, run in runs.items()}),
    )


def _curves(runs: Mapping[str, RunRecord]) -> Html:
    """Draw each metric of all runs in one chart; the loss by time and norms are folded away."""
    metrics = list(dict.fromkeys(metric for run in runs.values() for metric in run.curves))
    by_time, norms = (
        [metric for metric in metrics if metric.startswith(start)] for start in ("loss/t_", "norm/")
    )

    def drawn(metrics: Sequence[str]) -> Html:
        curves = lambda metric: {name: run.curves.get(metric, []) for name, run in runs.items()}
        return box("row", *(chart(metric, curves(metric)) for metric in metrics))

    shown = drawn([metric for metric in metrics if metric not in (*by_time, *norms)])
    folded = {"Loss by time": by_time, "Norms of gradients, parameters and updates": norms}
    folds = (
        fold(title, legend(runs, "key"), drawn(group)) for title, group in folded.items() if group
    )
    return section("Curves over the steps", legend(runs), shown, *folds) if metrics else Html()


def comparison(folders: Sequence[str | Path]) -> str:
    """Return the page that compares the runs in `folders`.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: fewer than two runs are given, or one is given twice.
    """
    if len(folders) < 2:
        raise ValueError(
            f"{len(folders)} folders given; give those of two runs or more, one after another"
        )
    runs = _read(folders)
    title = f"{len(runs)} runs compared"
    experiments = ", ".join(dict.fromkeys(run.config["experiment"] for run in runs.values()))
    header = [element("h1", title), element("p", breakable(experiments), class_="lead")]
    says = "{} is not evaluated yet: it has logged {} steps."
    texts = [says.format(name, run.progress) for name, run in runs.items() if not run.report]
    notes = [element("p", text, class_="note") for text in texts]
    figures = (_figures("Quality", list(QUALITY), runs), _figures("Speed", list(SPEED), runs))
    body = [
        *notes,
        _samples(runs),
        section("Figures", *(_notes(runs) if any(figures) else ()), *figures),
        section("Differences", _all_differences(runs)),
        _curves(runs),
    ]
    return page(title, header, body)


def main(*folders: str) -> None:
    with user_errors():
        if Path(OUT.value).suffix != ".html":
            raise ValueError(f"--out={OUT.value} must end in .html, for it is a page")
        check_out(OUT.value)
        Path(OUT.value).write_text(comparison(folders), encoding="utf-8")
    print(OUT.value)


if __name__ == "__main__":
    run_program(main)
