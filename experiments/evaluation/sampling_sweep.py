"""The quality of a run's samples by sampler, steps, weights and guidance."""

import collections
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.configuration.options import described
from experiments.configuration.runs import check_diffusion
from experiments.evaluation.autoencoders import originals_of, vgg16_protocol
from experiments.evaluation.context import Context
from experiments.evaluation.images import (
    compare,
    draw,
    image_reference,
    pixel_features,
    pixel_protocol,
)
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.pipelines import Run
from genjax.pretrained.lpips import require_lpips
from genjax.training import Snapshots
from genjax.training.sampling import POSTHOC, power_averages, sample
from genjax.training.workdir import Config, device_name

SWEPT = "swept"  # the name of every post-hoc average in the state, so that all share one program
CHECK_SEEDS = 3  # other seeds than the sweep's, so that the best is not the luckiest
DISTANCES = {"fd_vgg16": "FD-VGG16", "frechet_distance": "Fréchet distance"}
FIGURES = ("class_accuracy", *DISTANCES)
VERDICTS = ("best", "own", "worst")
AXES = ("weights", "guidance_scale", "guidance_interval")


def check(run: Run, vgg16: bool = False) -> None:
    """Check that a run's samples can be measured.

    Raises:
        ValueError: the task is not diffusion, its data are no images, or it is guided without a
            null condition that it has learned.
        ImportError: `vgg16`, and the weights are not installed.
    """
    check_diffusion(run.config)
    feature = Data.from_config(run.config).feature
    if feature != "image":
        raise ValueError(
            f"{run.folder} is a run of {feature}, and a sweep measures images; measure it by "
            "experiments.evaluate, with --guidance_scale and --weights"
        )
    run.check_guidance()
    if vgg16:
        require_lpips()


def distance_name(record: dict[str, Any]) -> str:
    """Return the name of the distance that a sweep compares: FD-VGG16 if it was measured."""
    return next(name for name in DISTANCES if name in record)


def measure(
    run: Run, state: Any, num_samples: int, vgg16: bool = False, **changes: Any
) -> dict[str, Any]:
    """Return the record of the samples of a state: how they were made, and their measures.

    The record has a `class_accuracy` if the network and the data have classes. A network of prompts
    gets the captions of the held-out images, from the first again if there are too few.

    Args:
        vgg16: also measure FD-VGG16, as `VGG16Distance` does.
        changes: values of fields of `config.sampling` that differ from the run's.
    """
    config, task = run.config, run.task
    sampling = Config(dict(config.sampling) | changes)
    labels = config.evaluation.get("labels", "balanced")
    context = Context(Data.from_config(config), task.space, task.condition, num_samples, labels)
    reference = image_reference(context.data, num_samples)
    labels = context.draw_labels(lambda: reference.train_labels)
    prompted = hasattr(task.condition, "prompts")
    if prompted:
        captions = context.data.held_out().captions
        rows = draw(len(captions), num_samples)  # those of the reference
        task = task.with_prompts([captions[row][0] for row in rows])
        labels = np.arange(num_samples) % len(rows)
    began = time.perf_counter()
    images = sample(task, state, labels, sampling)
    seconds = time.perf_counter() - began
    figures = compare(pixel_features(images), reference.unseen)
    if context.class_conditional:
        figures |= reference.accuracy(images, labels)
    features = pixel_protocol(context.data)
    if vgg16:
        features |= vgg16_protocol()
        figures["fd_vgg16"] = originals_of(context.data, num_samples).distance(images)
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
        "samples_per_distance": len(reference.unseen),
        "labels": None if prompted else context.labels,
        "features": {name: asdict(each) for name, each in features.items()},
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
    vgg16: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the records of all combinations, then those of three of them with other seeds.

    The three have a `verdict`: "best" and "worst" of the sweep by `distance_name`, and "own", as
    the run's config samples. One compiled program makes the samples of all combinations.

    Args:
        own: the run, opened with its own weights.
        run: the same run, opened with all its averages.
        widths: relative widths of the averages of the weights.
        intervals: times (low, high) of guidance.
        vgg16: compare by FD-VGG16.
    """
    records = []
    for width in widths:
        state = posthoc_state(run, width)
        for scale, interval in itertools.product(scales, intervals):
            if scale == 1 and interval != intervals[0]:  # no guidance is the same at all times
                record = records[-1] | {"guidance_interval": list(interval)}
            else:
                changes = dict(weights=SWEPT, guidance_scale=scale, guidance_interval=interval)
                record = measure(run, state, num_samples, vgg16, **changes)
            records.append(record | {"weights": f"{POSTHOC}{width:g}"})
            yield records[-1]
    ordered = sorted(records, key=lambda record: record[distance_name(record)])
    for verdict, record in zip(VERDICTS, (ordered[0], None, ordered[-1]), strict=True):
        chosen, state, changes = own, own.state, {}
        if record:
            chosen, state = run, posthoc_state(run, float(record["weights"].removeprefix(POSTHOC)))
            changes = {axis: record[axis] for axis in AXES} | {"weights": SWEPT}
        for number in range(1, CHECK_SEEDS + 1):
            seed = own.config.sampling.seed + number
            again = measure(chosen, state, num_samples, vgg16, seed=seed, **changes)
            named = {"weights": record["weights"]} if record else {}
            yield again | named | {"verdict": verdict}


def posthoc_state(run: Run, width: float) -> Any:
    """Return the run's state with the average of a relative width, named `SWEPT`."""
    averages = power_averages(run.task, run.state)
    average = Snapshots(run.folder / "ema").reconstruct(run.step, averages, width)
    return run.state.replace(averages=run.state.averages | {SWEPT: average})


def describe(record: dict[str, Any]) -> str:
    """Return the run, how it was sampled, class accuracy if there is one, and distances."""
    figures = [f"{record[name]:.3f}" for name in FIGURES if name in record]
    return "{workdir} {sampler} {num_steps}: ".format(**record) + " ".join(figures)


def markdown(records: list[dict]) -> str:
    """Return a table of distance / class accuracy, or of the distance alone (`distance_name`).

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
    """Return distance / class accuracy of a record, such as "0.85 / 99.0 %"."""
    accuracy = f" / {100 * record['class_accuracy']:.1f} %" if "class_accuracy" in record else ""
    return f"{record[distance_name(record)]:.3g}{accuracy}"


def describe_verdicts(records: Sequence[dict[str, Any]]) -> str:
    """Return a table of the three combinations that were measured again, and what they cost.

    The cost is a combination's mean distance over the best one's. Intervals are of 95 %
    over seeds. The column of accuracy is left out of a run without classes.
    """
    classified = all("class_accuracy" in record for record in records)
    distance = distance_name(records[0])
    header = ["combination", "weights", "guidance", DISTANCES[distance]]
    header += ["accuracy", "cost"] if classified else ["cost"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    groups = {
        verdict: [record for record in records if record.get("verdict") == verdict]
        for verdict in VERDICTS
    }
    distances = {
        verdict: np.array([record[distance] for record in group])
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
