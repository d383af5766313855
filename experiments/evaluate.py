"""Evaluate a checkpoint of a trained run.

    python -m experiments.evaluate --workdir=runs/digits_flow --guidance_scale=1.5 --out=strong.json

Flags left out take the run's own values. Without --out the report replaces the run's own, also on
the run's page.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from experiments.configuration.runs import open_run
from experiments.evaluation.protocol import PROTOCOL
from experiments.inputs.autoencoders import MOMENTS
from experiments.launch import sampling_flags
from experiments.launch.experiment import Experiment, split_pictures, with_intervals
from experiments.launch.held_out import check_held_out
from experiments.launch.reports import alarms, print_report, training_summary
from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.launch.sampling_flags import sampling_changes
from experiments.pages.report import write_report
from genjax.training.checkpoints import saved_steps
from genjax.training.json_files import read_json
from genjax.training.workdir import Config

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
OUT = flags.DEFINE_string("out", None, "File to write; WORKDIR/report.json if not given.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest good one if not given.")
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Samples, with labels as config.evaluation.labels says.", lower_bound=1
)
FEATURES = flags.DEFINE_list(
    "features",
    None,
    "Weights of networks to measure by, as inception=FILE,dinov2=FOLDER,clip=FOLDER: FID, "
    "FD-DINOv2, CLIP score.",
)
RESAMPLES = flags.DEFINE_integer(
    "resamples", 0, "Of the samples, for an interval of Fréchet distances.", lower_bound=0
)
flags.adopt_module_key_flags(sampling_flags)
NETWORKS = ("inception", "clean_inception", "pytorch_inception", "dinov2", "clip")


def add_features(config: Config, given: list[str]) -> None:
    """Add a measure by pretrained networks, each NAME=PATH as `--features` takes them.

    Raises:
        ValueError: an entry is not of this form.
        FileNotFoundError: there are no such weights.
    """
    weights = dict(each.partition("=")[::2] for each in given)
    if wrong := [name for name, path in weights.items() if not path or name not in NETWORKS]:
        raise ValueError(
            f"--features={wrong[0]} must be NAME=PATH, with a name of {', '.join(NETWORKS)}"
        )
    if missing := [path for path in weights.values() if not Path(path).exists()]:
        raise FileNotFoundError(
            f"--features names {Path(missing[0]).absolute()}, and there is no such file or folder"
        )
    of = "ReconstructionFeatures" if config.task == "Autoencoder" else "PretrainedFeatures"
    measure = config.evaluation.measures.setdefault("features", Config(name=of))
    measure.update(weights)


def other_counts(report: Mapping[str, Any], num_samples: int) -> list[str]:
    """Return which measures took another number of samples, a sentence each."""
    found = {
        name.removeprefix(PROTOCOL): protocol["num_samples"]
        for name, protocol in report.items()
        if name.startswith(PROTOCOL)
    }
    return [
        f"{name} measured {count} samples, not {num_samples}: its config has a number of its own, "
        "or the data have no more"
        for name, count in found.items()
        if count not in (None, num_samples)
    ]


def main() -> None:
    with user_errors():
        run = open_run(WORKDIR.value, STEP.value, **sampling_changes())
        out = Path(OUT.value or Path(WORKDIR.value) / "report.json")
        check_out(out)
        last = max(saved_steps(Path(WORKDIR.value) / "checkpoints"))
        if STEP.value is not None and OUT.value is None and run.step != last:
            raise ValueError(
                f"--step={run.step} is not the last checkpoint, {last}, whose figures are the "
                "run's report: give --out=FILE"
            )
        if NUM_SAMPLES.value is not None:
            run.config.evaluation.num_samples = NUM_SAMPLES.value
        if FEATURES.value:
            add_features(run.config, FEATURES.value)
        experiment = Experiment.of_run(run)
        if not experiment.measures:
            raise ValueError("config.evaluation.measures of the run is empty: give --features")
        if RESAMPLES.value:
            measures = with_intervals(experiment.measures, RESAMPLES.value)
            experiment = replace(experiment, measures=measures)
        warned = check_held_out(experiment)
        moments = {}
        if OUT.value is None and out.exists():  # flows on these latents were trained by them
            moments = {n: value for n, value in read_json(out).items() if n in MOMENTS}
        report = training_summary(WORKDIR.value, run.config.experiment, run.step)
        figures, _ = split_pictures(experiment.evaluate(experiment.model(run.state)))
        report |= figures | {"alarms": alarms(run.task, figures, WORKDIR.value, run.step)}
        report |= moments
        out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report, warned)
    for sentence in other_counts(report, NUM_SAMPLES.value) if NUM_SAMPLES.value else ():
        print(f"  --num_samples: {sentence}")
    print(f"  {out}")
    if OUT.value is None:  # the run's own report, which its page shows
        print(f"  {write_report(WORKDIR.value)}")


if __name__ == "__main__":
    run_program(main)
