"""Measure the quality of trained runs by how they are sampled.

    python -m experiments.sweep runs/a runs/b --samplers="euler ddim,eta=1" --steps=5,9 --out=a.json
    python -m experiments.sweep runs/a --widths=0.05,0.1,0.2 --scales=1,1.5,2 \\
        --intervals=0:1,0.2:0.8 --out=a.json

Measures class accuracy and Fréchet distance to held-out images, as `experiments.evaluate` does, and
the network evaluations of a sample. A run without classes has no class accuracy. A run of prompts
samples the captions of held-out images. With --vgg16, combinations are compared by the Fréchet
distance of VGG16's features (FD-VGG16), not of pixels. The JSON file has a record for each
combination, which says how the samples were made.

The first command prints a Markdown table with a row per run and sampler. The second one finds the
EMA width, guidance scale and guidance interval that are best for a run whose training stored
averages of power functions (docs/guides/evaluation.md). It draws a heat map for each interval
beside the JSON file. It measures the best combination, the run's own and the worst again with other
seeds, and prints what they cost. A run without a condition is not guided, and only its width is
measured.
"""

import itertools
import json
from pathlib import Path
from typing import Any

from absl import flags

from experiments.configuration import kinds
from experiments.configuration.options import interval, named
from experiments.configuration.runs import open_run
from experiments.evaluation.sampling_sweep import (
    check,
    describe,
    describe_verdicts,
    distance_name,
    markdown,
    measure,
    sweep_guidance,
)
from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.pages.heat_maps import draw_heat_maps
from genjax.training.sampling import POSTHOC

SAMPLERS = flags.DEFINE_string(
    "samplers", "euler", "Samplers with their options, separated by spaces."
)
GRID = flags.DEFINE_string(
    "grid", None, "Their times, of genjax.diffusion.grids; each run's own if not given."
)
STEPS = flags.DEFINE_list(
    "steps", ["5", "10", "20", "50"], "Numbers of steps, separated by commas."
)
WIDTHS = flags.DEFINE_list("widths", None, "Relative widths of averages of the weights.")
SCALES = flags.DEFINE_list("scales", ["1", "1.25", "1.5", "2"], "With --widths: guidance scales.")
INTERVALS = flags.DEFINE_list("intervals", ["0:1"], "With --widths: times of guidance, LOW:HIGH.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "Samples of each.", lower_bound=10)
VGG16 = flags.DEFINE_bool("vgg16", False, "Compare by FD-VGG16; needs pip install '.[lpips]'.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)


def main(*workdirs: str) -> None:
    with user_errors():
        if not workdirs:
            raise ValueError(
                "name the folders of runs, as in: python -m experiments.sweep runs/a runs/b --out=…"
            )
        if Path(OUT.value).suffix != ".json":
            raise ValueError(f"--out={OUT.value} must end in .json; heat maps go beside it as .png")
        check_out(OUT.value)
        if WIDTHS.value:
            find_guidance(*workdirs)
        else:
            compare_samplers(*workdirs)


def compare_samplers(*workdirs: str) -> None:
    """Measure every run by every sampler and number of steps."""
    refuse("needs --widths: give both, or leave it out", SCALES, INTERVALS)
    if not all(steps.isdigit() and int(steps) > 0 for steps in STEPS.value):
        raise ValueError(f"--steps={','.join(STEPS.value)} must be positive numbers")
    choices = [named(text, "samplers", kinds.SAMPLER) for text in SAMPLERS.value.split()]
    if not choices:
        raise ValueError("--samplers names no sampler")
    grid = named(GRID.value, "grid", kinds.GRID)
    opened = [
        [open_run(workdir, sampler=sampler, grid=grid) for sampler in choices]
        for workdir in workdirs
    ]
    for run in itertools.chain(*opened):  # before any time is spent
        check(run, VGG16.value)
    records: list[dict[str, Any]] = []
    for runs in opened:
        state = runs[0].state  # the same for all samplers, so it is read and held once
        for run, steps in itertools.product(runs, map(int, STEPS.value)):
            records.append(measure(run, state, NUM_SAMPLES.value, VGG16.value, num_steps=steps))
            save(records)
            print(describe(records[-1]), flush=True)
    print(markdown(records))


def find_guidance(workdir: str, *others: str) -> None:
    """Measure a run by EMA width, guidance scale and guidance interval."""
    refuse("is not for --widths: leave out one of them", SAMPLERS, GRID, STEPS)
    if others:
        raise ValueError(f"--widths is of one run; leave out {', '.join(others)}")
    widths, scales = (numbers(flag) for flag in (WIDTHS, SCALES))
    intervals = [interval(text, "intervals") for text in INTERVALS.value]
    own = open_run(workdir)
    if getattr(own.task.condition, "is_empty", False):
        refuse(f"is of guidance, and {workdir} has no condition: leave it out", SCALES, INTERVALS)
        scales = [1.0]
    check(own, VGG16.value)
    for scale in scales:
        check(open_run(workdir, guidance_scale=scale), VGG16.value)
    runs = [open_run(workdir, weights=f"{POSTHOC}{width:g}") for width in widths]  # checks them
    records: list[dict[str, Any]] = []
    combinations = widths, scales, intervals
    for record in sweep_guidance(own, runs[0], *combinations, NUM_SAMPLES.value, VGG16.value):
        records.append(record)
        save(records)
        line = "{weights} {guidance_scale} {distance:.3f} {seconds:.1f} s"
        distance = record[distance_name(record)]
        print(record.get("verdict", ""), line.format(distance=distance, **record), flush=True)
    draw_heat_maps(records).save(Path(OUT.value).with_suffix(".png"))
    print(describe_verdicts(records))


def refuse(why: str, *unused: flags.FlagHolder) -> None:
    """Raise ValueError if one of the flags, which nothing would read, was given."""
    for flag in unused:
        if flag.present:
            raise ValueError(f"--{flag.name} {why}")


def numbers(flag: flags.FlagHolder) -> list[float]:
    """Return the numbers of a flag; raise ValueError if one is not a number."""
    try:
        return [float(text) for text in flag.value]
    except ValueError:
        raise ValueError(f"--{flag.name}={','.join(flag.value)} must be numbers") from None


def save(records: list[dict[str, Any]]) -> None:
    Path(OUT.value).write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
