"""Trains an experiment, samples from it and evaluates it.

    python -m experiments.train --config=configs/digits_flow.py --workdir=runs/digits_flow

Any field of the config can be set on the command line: --config.optimizer.learning_rate=1e-3. The same
command started again goes on from the newest good checkpoint. Ctrl-C saves and stops.

On several hosts, start it once on each with --coordinator (see --help) and a --workdir that all of them see.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from experiments.evaluation.images import finish_report, print_report, training_summary
from experiments.inputs.datasets import abstract_batch, training_batches
from experiments.launch.opening import build, examples_at_once, mesh_axes
from experiments.launch.runtime import run_program, user_errors
from experiments.launch.sampling import add_posthoc, class_rows, power_averages, sample_images
from experiments.report import BETTER, write_report
from genjax.devices import make_mesh
from genjax.nn import attention_choices
from genjax.training import (
    Checkpoints,
    Interrupted,
    NonFiniteError,
    Plugin,
    Snapshots,
    abstract_state,
    check_space,
    make_workdir,
    record_config,
    train,
)
from genjax.training.pictures import save_animation, save_curves
from genjax.training.placement import abstract_frozen
from genjax.training.workdir import device_name

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file of configs/. Its fields are set by --config.FIELD=VALUE."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, made if absent: metrics, pictures, checkpoints, report."
)
flags.mark_flags_as_required(["config", "workdir"])

# What may change when a run is resumed: none of it changes the parameters that come out.
FREE_TO_DIFFER = (
    "mesh.",
    "log_every",
    "profile_at",
    "snapshot_every",
    "checkpoint.",
    "sampling.",
    "evaluation.",
    "data.directory",
)


def run(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains `config` in `workdir`, or goes on with it; returns the report, which is also written there."""
    with user_errors():
        workdir = make_workdir(workdir)
        mesh = make_mesh(mesh_axes(config), examples_at_once(config))
        task = build(config)
        abstract = abstract_state(task, jax.random.key(config.seed), mesh)
        check_space(workdir / "checkpoints", abstract, config.checkpoint.keep)
        batches = training_batches(config, task, mesh)
        with jax.set_mesh(mesh), attention_choices() as choices:
            frozen = abstract_frozen(task, mesh)
            jax.eval_shape(task.update, abstract, abstract_batch(config, task), jax.random.key(0), *frozen)
        attention = "; ".join(sorted(map(str, choices))) or None
        record_config(workdir, config.to_dict(), FREE_TO_DIFFER, attention=attention)

    sampling, num_classes = config.sampling, config.data.num_classes
    rows = class_rows(num_classes, sampling.per_class)
    (workdir / "samples").mkdir(exist_ok=True)
    metrics_path = workdir / "metrics.jsonl"

    snapshots = Snapshots(workdir / "ema")

    def snapshot(state, step):
        snapshots.save(step, power_averages(task, state))

    def picture(state, step):
        state = add_posthoc(task, state, sampling.weights, snapshots)
        images = sample_images(task, state, rows, sampling)
        if jax.process_index() != 0:
            return
        grid = task.picture(images, sampling.per_class)
        grid.save(workdir / f"samples/step_{step:06d}.png")
        save_curves(workdir / "curves.png", metrics_path)
        return {"samples": grid}

    reference = functools.cache(lambda: task.reference(config))

    def evaluate(state, step):
        """The measures and pictures to log; a report."""
        report = task.evaluate(state, config, reference())
        if jax.process_index() != 0:
            return {}, report
        pictures = finish_report(task, report, workdir, step)
        for name, drawn in pictures.items():
            (workdir / name).mkdir(exist_ok=True)
            drawn.save(workdir / name / f"step_{step:06d}.png")
        measures = {name: report[name] for name in report if name in BETTER or "/" in name}
        return measures | pictures, report

    reports = {}

    def look(state, step):
        measures, reports[step] = evaluate(add_posthoc(task, state, sampling.weights, snapshots), step)
        for sentence in reports[step].get("alarms", ()):
            print(f"ALARM at step {step}: {sentence}", flush=True)
        return measures

    plugins = [
        Plugin(config.snapshot_every, snapshot, snapshots.begin),
        Plugin(sampling.every, picture),
    ]
    if config.evaluation.every:
        plugins.append(Plugin(config.evaluation.every, look))

    print(f"{config.experiment}: {config.num_steps} steps on {device_name()} in {workdir}", flush=True)
    state = train(
        task,
        batches.iterate,
        num_steps=config.num_steps,
        seed=config.seed,
        mesh=mesh,
        checkpoints=Checkpoints(workdir / "checkpoints", config.checkpoint.keep),
        checkpoint_every=config.checkpoint.every,
        log_path=metrics_path,
        log_every=config.log_every,
        plugins=plugins,
        profile_at=config.profile_at,
    )

    print("sampling and evaluating", flush=True)
    state = add_posthoc(task, state, sampling.weights, snapshots)
    frames = sample_images(task, state, rows, sampling, trajectory=True)
    evaluation = reports.get(config.num_steps) or evaluate(state, config.num_steps)[1]
    if jax.process_index() != 0:
        return evaluation
    pictures = [task.picture(frame, sampling.per_class) for frame in frames]
    pictures[-1].save(workdir / "samples.png")
    save_animation(workdir / task.animation, pictures)
    report = training_summary(workdir, config, config.num_steps) | evaluation
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    for name in ("samples.png", task.animation, "curves.png", "report.json"):
        print(f"  {workdir / name}")
    print(f"  {write_report(workdir)}")
    return report


def main() -> None:
    try:
        run(CONFIG.value, WORKDIR.value)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except NonFiniteError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}\nStart the same command again to go on from the last good checkpoint.")


if __name__ == "__main__":
    run_program(main)
