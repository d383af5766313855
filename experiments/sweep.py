"""Measure the quality of trained runs by sampler and number of steps.

    python -m experiments.sweep runs/a runs/b --samplers="euler ddim,eta=1" --steps=5,9 --out=a.json

Measures class accuracy and Fréchet distance to held-out images, as `experiments.evaluate` does, and
the network evaluations of a sample. Prints a Markdown table with a row per run and sampler. The
JSON file has a record for each run, sampler and number of steps, which says how the samples were
made.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.configuration import kinds
from experiments.configuration.options import described, named
from experiments.configuration.runs import check_diffusion, open_run
from experiments.evaluation.context import Context
from experiments.evaluation.images import compare, image_reference, pixel_features
from experiments.inputs.datasets import Data
from experiments.launch.runtime import run_program, user_errors
from genjax.pipelines import Run
from genjax.training.workdir import device_name

SAMPLERS = flags.DEFINE_string(
    "samplers", "euler", "Samplers with their options, separated by spaces."
)
GRID = flags.DEFINE_string(
    "grid", None, "Their times, of genjax.diffusion.grids; each run's own if not given."
)
STEPS = flags.DEFINE_list(
    "steps", ["5", "10", "20", "50"], "Numbers of steps, separated by commas."
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "Samples of each.", lower_bound=10)
OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)


def main(*workdirs: str) -> None:
    records = []
    with user_errors():
        if not workdirs:
            raise ValueError(
                "name the folders of runs, as in: python -m experiments.sweep runs/a runs/b --out=…"
            )
        if not all(steps.isdigit() and int(steps) > 0 for steps in STEPS.value):
            raise ValueError(f"--steps={','.join(STEPS.value)} must be positive numbers")
        choices = [named(text, "samplers", kinds.SAMPLER) for text in SAMPLERS.value.split()]
        grid = named(GRID.value, "grid", kinds.GRID)
        opened = itertools.product(workdirs, choices)
        runs = [open_run(workdir, sampler=sampler, grid=grid) for workdir, sampler in opened]
        for run in runs:  # before any time is spent
            check_diffusion(run.config)
        for run, steps in itertools.product(runs, map(int, STEPS.value)):
            records.append(measure(run, steps))
            Path(OUT.value).write_text(json.dumps(records, indent=2) + "\n")
            line = "{experiment} {sampler} {num_steps}: {class_accuracy:.3f} {frechet_distance:.3f}"
            print(line.format(**records[-1]), flush=True)
    print(markdown(records))


def measure(run: Run, num_steps: int) -> dict[str, Any]:
    """Return the record of one sampler's samples after so many steps."""
    config, task = run.config, run.task
    config.sampling.num_steps = num_steps
    labels = config.evaluation.get("labels", "balanced")
    context = Context(
        Data.from_config(config), task.space, task.condition, NUM_SAMPLES.value, labels
    )
    reference = image_reference(context.data, context.num_samples)
    classes = context.draw_labels(lambda: reference.train_labels)
    state = run.state  # restored before the clock starts
    began = time.perf_counter()
    images = run.sample(classes)
    seconds = time.perf_counter() - began
    del state
    sampling, features = config.sampling, pixel_features(images)
    return {
        "workdir": str(run.folder),
        "experiment": config.experiment,
        "steps": run.step,
        "process": described(config.process),
        "target": described(config.target),
        "sampler": described(sampling.sampler),
        "grid": described(sampling.grid),
        "num_steps": num_steps,
        "evaluations": task.num_evaluations(sampling)
        if hasattr(task.sampler.func, "table")
        else None,
        "guidance_scale": sampling.guidance_scale,
        "weights": sampling.weights,
        "num_samples": len(images),
        "class_accuracy": reference.accuracy(images, classes).get("class_accuracy"),
        "frechet_distance": compare(features, reference.unseen)["frechet_distance"],
        "seconds": round(seconds, 2),
        "device": device_name(),
    }


def markdown(records: list[dict]) -> str:
    """Return a table of Fréchet distance / class accuracy.

    It has a row per run and sampler and a column per number of steps.
    """
    numbers = sorted({record["num_steps"] for record in records})
    cells = {(r["experiment"], r["sampler"], r["num_steps"]): r for r in records}
    rows = dict.fromkeys((r["experiment"], r["sampler"]) for r in records)
    lines = [
        "| run | sampler | " + " | ".join(f"{n} steps" for n in numbers) + " |",
        "|---" * (2 + len(numbers)) + "|",
    ]
    for run, sampler in rows:
        values = [cells.get((run, sampler, n)) for n in numbers]
        share = lambda accuracy: "" if accuracy is None else f" / {accuracy:.1%}".replace("%", " %")
        shown = [
            f"{c['frechet_distance']:.3g}{share(c['class_accuracy'])}" if c else "" for c in values
        ]
        lines.append("| " + " | ".join([run, sampler, *shown]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
