"""The quality of a run's samples by how they are made."""

import collections
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.configuration.options import described
from experiments.configuration.runs import check_diffusion
from experiments.evaluation.context import Context
from experiments.evaluation.images import compare, image_reference, pixel_features
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.pipelines import Run
from genjax.training import Snapshots
from genjax.training.sampling import POSTHOC, power_averages, sample
from genjax.training.workdir import Config, device_name

SWEPT = "swept"  # the name of every post-hoc average in the state, so that all share one program
CHECK_SEEDS = 3  # other seeds than the sweep's, so that the best is not the luckiest
FIGURES = ("class_accuracy", "frechet_distance")
VERDICTS = ("best", "own", "worst")
AXES = ("weights", "guidance_scale", "guidance_interval")


def check(run: Run) -> None:
    """Check that a run's samples can be measured by class.

    Raises:
        ValueError: the task is not diffusion, or its condition are prompts, which have no classes.
    """
    check_diffusion(run.config)
    if isinstance(run.task.condition, Prompts):
        raise ValueError(
            f"{run.folder} is a run of prompts, and a sweep measures samples of classes; measure "
            "it by experiments.evaluate, with --guidance_scale and --weights"
        )


def measure(run: Run, state: Any, num_samples: int, **changes: Any) -> dict[str, Any]:
    """Return the record of the samples of a state: how they were made, and their measures.

    The record has a `class_accuracy` if the network and the data have classes.

    Args:
        changes: values of fields of `config.sampling` that differ from the run's.
    """
    config, task = run.config, run.task
    sampling = Config(dict(config.sampling) | changes)
    labels = config.evaluation.get("labels", "balanced")
    context = Context(Data.from_config(config), task.space, task.condition, num_samples, labels)
    reference = image_reference(context.data, num_samples)
    classes = context.draw_labels(lambda: reference.train_labels)
    began = time.perf_counter()
    images = sample(task, state, classes, sampling)
    seconds = time.perf_counter() - began
    figures = compare(pixel_features(images), reference.unseen)
    if context.class_conditional:
        figures |= reference.accuracy(images, classes)
    return {
        "workdir": str(run.folder),
        "experiment": config.experiment,
        "steps": run.step,
        "process": described(config.process),
        "target": described(config.target),
        **task.describe_sampling(sampling),
        "evaluations": task.num_evaluations(sampling)
        if hasattr(task.sampler.func, "table")
        else None,
        "weights": sampling.weights,
        "seed": sampling.seed,
        "num_samples": len(images),
        **{name: figures[name] for name in FIGURES if name in figures},
        "seconds": round(seconds, 2),
        "device": device_name(),
    }


def sweep_guidance(
    own: Run,
    run: Run,
    widths: Sequence[float],
    scales: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    num_samples: int,
) -> Iterator[dict[str, Any]]:
    """Yield the records of all combinations, then those of three of them with other seeds.

    The three have a `verdict`: "best" and "worst" of the sweep by Fréchet distance, and "own", as
    the run's config samples. One compiled program makes the samples of all combinations.

    Args:
        own: the run, opened with its own weights.
        run: the same run, opened with all its averages.
        widths: relative widths of the averages of the weights.
        intervals: times (low, high) of guidance.
    """
    records = []
    for width in widths:
        state = posthoc_state(run, width)
        for scale, interval in itertools.product(scales, intervals):
            if scale == 1 and interval != intervals[0]:  # no guidance is the same at all times
                record = records[-1] | {"guidance_interval": list(interval)}
            else:
                changes = dict(weights=SWEPT, guidance_scale=scale, guidance_interval=interval)
                record = measure(run, state, num_samples, **changes)
            records.append(record | {"weights": f"{POSTHOC}{width:g}"})
            yield records[-1]
    ordered = sorted(records, key=lambda record: record["frechet_distance"])
    for verdict, record in zip(VERDICTS, (ordered[0], None, ordered[-1]), strict=True):
        chosen, state, changes = own, own.state, {}
        if record:
            chosen, state = run, posthoc_state(run, float(record["weights"].removeprefix(POSTHOC)))
            changes = {axis: record[axis] for axis in AXES} | {"weights": SWEPT}
        for number in range(1, CHECK_SEEDS + 1):
            seed = own.config.sampling.seed + number
            again = measure(chosen, state, num_samples, seed=seed, **changes)
            named = {"weights": record["weights"]} if record else {}
            yield again | named | {"verdict": verdict}


def posthoc_state(run: Run, width: float) -> Any:
    """Return the run's state with the average of a relative width, named `SWEPT`."""
    averages = power_averages(run.task, run.state)
    average = Snapshots(run.folder / "ema").reconstruct(run.step, averages, width)
    return run.state.replace(averages=run.state.averages | {SWEPT: average})


def describe(record: dict[str, Any]) -> str:
    """Return the run, how it was sampled, class accuracy if there is one, and Fréchet distance."""
    figures = [f"{record[name]:.3f}" for name in FIGURES if name in record]
    return "{workdir} {sampler} {num_steps}: ".format(**record) + " ".join(figures)


def markdown(records: list[dict]) -> str:
    """Return a table of Fréchet distance / class accuracy, or of Fréchet distance alone.

    It has a row per run and sampler and a column per number of steps. Runs of one experiment, such
    as those of several seeds, also have the names of their folders.
    """
    numbers = sorted({record["num_steps"] for record in records})
    cells = {(r["workdir"], r["sampler"], r["num_steps"]): r for r in records}
    rows = dict.fromkeys((r["workdir"], r["sampler"]) for r in records)
    experiments = {r["workdir"]: r["experiment"] for r in records}
    repeated = collections.Counter(experiments.values())
    lines = [
        "| run | sampler | " + " | ".join(f"{n} steps" for n in numbers) + " |",
        "|---" * (2 + len(numbers)) + "|",
    ]
    for folder, sampler in rows:
        values = [cells.get((folder, sampler, n)) for n in numbers]
        shown = [cell(record) if record else "" for record in values]
        name = experiments[folder]
        run = f"{name} ({folder})" if repeated[name] > 1 else name
        lines.append("| " + " | ".join([run, sampler, *shown]) + " |")
    return "\n".join(lines)


def cell(record: dict[str, Any]) -> str:
    """Return Fréchet distance / class accuracy of a record, such as "0.85 / 99.0 %"."""
    accuracy = f" / {100 * record['class_accuracy']:.1f} %" if "class_accuracy" in record else ""
    return f"{record['frechet_distance']:.3g}{accuracy}"


def describe_verdicts(records: Sequence[dict[str, Any]]) -> str:
    """Return a table of the three combinations that were measured again, and what they cost.

    The cost is a combination's mean Fréchet distance over the best one's. Intervals are of 95 %
    over seeds. The column of accuracy is left out of a run without classes.
    """
    classified = all("class_accuracy" in record for record in records)
    header = ["combination", "weights", "guidance", "Fréchet distance"]
    header += ["accuracy", "cost"] if classified else ["cost"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    groups = {
        verdict: [record for record in records if record.get("verdict") == verdict]
        for verdict in VERDICTS
    }
    distances = {
        verdict: np.array([record["frechet_distance"] for record in group])
        for verdict, group in groups.items()
    }
    for verdict, group in groups.items():
        low, high = metrics.seed_interval(distances[verdict])
        guidance = f"{group[0]['guidance_scale']:g}"
        if interval := group[0].get("guidance_interval"):
            guidance += f" in ({interval[0]:g}, {interval[1]:g}]"
        cells = [
            verdict,
            group[0]["weights"],
            guidance,
            f"{distances[verdict].mean():.3g} ({low:.3g} to {high:.3g})",
        ]
        if classified:
            cells.append(f"{100 * np.mean([each['class_accuracy'] for each in group]):.1f} %")
        cells.append(f"{distances[verdict].mean() / distances['best'].mean():.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
