"""The report of a run: the cost of training, the results of evaluation, and warnings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.few_examples import FEW, compared_examples, describe_few
from experiments.evaluation.protocol import PROTOCOL
from genjax.training.log import read_metrics
from genjax.training.workdir import read_record


def training_summary(workdir: str | Path, experiment: str, step: int) -> dict[str, Any]:
    """Return what a report says of the training up to a step, as its run wrote it down.

    `seconds` are missing if nothing was logged up to the step. `goodput` is the share of the run's
    time that went into training steps, not into compiling, saving, sampling and evaluation.
    `compile_seconds` are those of all starts together.
    """
    rows = [row for row in read_metrics(Path(workdir) / "metrics.jsonl") if row["step"] <= step]
    windows = [row for row in rows if "steps_per_second" in row]
    seconds = max((row["seconds"] for row in rows), default=None)
    # A window's rate is of its steps since the last stop alone. Older runs logged no seconds.
    step_seconds = [
        row.get("step_seconds", n / row["steps_per_second"])
        for row, n in zip(windows, np.diff([0, *(row["step"] for row in windows)]), strict=True)
    ]
    in_steps, speed = float(sum(step_seconds)), {}
    if in_steps and seconds:
        rates = [row["steps_per_second"] for row in windows]
        speed["steps_per_second"] = float(np.dot(rates, step_seconds)) / in_steps
        speed["goodput"] = round(in_steps / seconds, 4)
        if compiling := [row["compile_seconds"] for row in windows if "compile_seconds" in row]:
            speed["compile_seconds"] = round(sum(compiling), 3)
    return {
        "experiment": experiment,
        "steps": step,
        **({} if seconds is None else {"seconds": seconds}),
        **speed,
        "device": read_record(workdir).device,
    }


def alarms(task: Any, figures: dict[str, Any], workdir: str | Path, step: int) -> list[str]:
    """Return what is going wrong, by a report's figures and the metrics logged until `step`.

    The task's alarms go by the last metrics.
    """
    rows = read_metrics(Path(workdir) / "metrics.jsonl")
    logged = [row for row in rows if row["step"] <= step and "steps_per_second" in row]
    measured = {name: value for name, value in figures.items() if isinstance(value, float)}
    metrics = {name: float(value) for row in logged[-1:] for name, value in row.items()} | measured
    losses = [row["loss"] for row in logged if "loss" in row]
    return [*task.alarms(metrics), *divergence(losses)]


def divergence(losses: Sequence[float]) -> list[str]:
    """Return a sentence if the last three losses show that training diverged, else an empty list.

    All three are above the first loss, and above three times the lowest. Losses that become
    negative, such as those of densities, are not judged.
    """
    lowest = min(losses, default=0.0)
    if lowest <= 0 or min(losses[-3:]) <= max(3 * lowest, losses[0]):
        return []
    return [
        f"Diverged: the loss is {losses[-1]:.3g}. It was {losses[0]:.3g} at first, and "
        f"{lowest:.3g} at its lowest. Try a lower learning rate."
    ]


def print_report(report: dict[str, Any], warned: bool = False) -> None:
    """Print a report: first its alarms, and how uncertain figures of few examples are.

    Args:
        warned: whether this program has warned of few examples already.
    """
    for sentence in report.get("alarms", ()):
        print(f"  ALARM: {sentence}")
    count = compared_examples(report)
    if not warned and count is not None and count < FEW:
        print(f"  warning: {describe_few('the held-out split', count)}")
    for name, value in report.items():
        if name != "alarms" and not name.startswith(PROTOCOL):  # long; the page has a fold of it
            print(
                f"  {name:24} {value:.4g}" if isinstance(value, float) else f"  {name:24} {value}"
            )
