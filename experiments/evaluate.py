"""Evaluates a checkpoint of a trained run.

    python -m experiments.evaluate --workdir=runs/digits_flow --guidance_scale=1.5 --out=report_1.5.json

Flags left out take the run's own values. Without --out the report takes the place of the run's own, on its page too.
"""

import json
from pathlib import Path

from absl import flags

from experiments.evaluation.features.features import set_features
from experiments.evaluation.images import finish_report, print_report, training_summary
from experiments.launch import sampling_flags
from experiments.launch.opening import restore
from experiments.launch.runtime import run_program, user_errors
from experiments.launch.sampling import add_posthoc
from experiments.launch.sampling_flags import sampling_changes
from experiments.report import write_report
from experiments.tasks.trained import MOMENTS
from genjax.training import Snapshots

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
OUT = flags.DEFINE_string("out", None, "File to write; WORKDIR/report.json if not given.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest good one if not given.")
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Samples, with labels as config.evaluation.labels says.", lower_bound=1
)
FEATURES = flags.DEFINE_list(
    "features",
    None,
    "Weights of networks to measure by, as inception=FILE,dinov2=FOLDER,clip=FOLDER: FID, FD-DINOv2, CLIP score.",
)
flags.adopt_module_key_flags(sampling_flags)


def main() -> None:
    with user_errors():
        config, task, state = restore(
            WORKDIR.value,
            STEP.value,
            **sampling_changes(),
        )
        if NUM_SAMPLES.value is not None:
            config.evaluation.num_samples = NUM_SAMPLES.value
        if FEATURES.value:
            set_features(config, FEATURES.value)
        report = training_summary(WORKDIR.value, config, int(state.step))
        state = add_posthoc(task, state, config.sampling.weights, Snapshots(Path(WORKDIR.value) / "ema"))
        report |= task.evaluate(state, config, task.reference(config))
        finish_report(task, report, WORKDIR.value, int(state.step))
        out = Path(OUT.value or Path(WORKDIR.value) / "report.json")
        if OUT.value is None and out.exists():  # flows on this run's latents have been trained by them
            report |= {name: value for name, value in json.loads(out.read_text()).items() if name in MOMENTS}
        out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"  {out}")
    if OUT.value is None:  # the run's own report, of which its page tells
        print(f"  {write_report(WORKDIR.value)}")


if __name__ == "__main__":
    run_program(main)
