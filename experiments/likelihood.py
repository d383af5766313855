"""Measure how many bits a trained model needs for held-out images.

    python -m experiments.likelihood --workdir=runs/digits_likelihood --levels=17 --count=360

Prints bits per dimension, given the class, by two methods. The first is the exact likelihood of the
probability-flow ODE. Uniform noise within each level makes the images continuous for it, so its
bits are an upper bound on those of the images. The second is the variational bound on the images
themselves. Each has the standard error of its mean over images. Writes both to
WORKDIR/likelihood.json.
"""

import json
from pathlib import Path

from absl import flags

from experiments.configuration.runs import check_diffusion, open_run
from experiments.evaluation.held_out_bits import held_out_bits
from experiments.evaluation.uncertainty import standard_error
from experiments.inputs.conditions import Classes, Unconditional
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.launch.runtime import check_out, run_program, user_errors
from genjax.training.workdir import device_name

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
LEVELS = flags.DEFINE_integer("levels", 256, "How many values a pixel can take.", lower_bound=2)
COUNT = flags.DEFINE_integer("count", 500, "Held-out images, at most.", lower_bound=2)
PROBES = flags.DEFINE_integer(
    "probes",
    0,
    "Random probes of the trace; 0 computes it exactly, a derivative for each pixel.",
    lower_bound=0,
)
CLEAN_END = flags.DEFINE_float(
    "clean_end",
    1e-3,
    "Where the bound's last step ends, in parts of the time, if the process starts without noise.",
)


def main() -> None:
    with user_errors():
        run = open_run(WORKDIR.value)
        check_diffusion(run.config)
        if run.task.space.autoencoder:
            raise ValueError(
                f"{run.config.experiment} is a flow on latents, which has no likelihood of "
                "images; take a run on pixels"
            )
        check_not_standardized(run.task.space, "a likelihood")
        condition, feature = run.task.condition, run.task.space.feature
        if feature != "image" or not isinstance(condition, Classes | Unconditional):
            raise ValueError(
                f"{run.config.experiment} is a flow on {feature} given {type(condition).__name__}; "
                "take a run on images, of classes or Unconditional"
            )
        check_out(out := Path(WORKDIR.value) / "likelihood.json")
        numbers = LEVELS.value, COUNT.value, PROBES.value, CLEAN_END.value
        results = held_out_bits(run.task, run.state, run.config, *numbers)
    report = {"levels": LEVELS.value, "images": len(results[0])}
    report |= {"steps": run.step, "device": device_name()}
    for name, values in zip(
        ("ode_bits_per_dimension", "bound_bits_per_dimension"), results, strict=True
    ):
        mean, error = values.mean(), standard_error(values)
        report |= {name: mean, f"{name}_deviation": error}
        print(f"{name:26} {mean:.4f} ± {error:.4f}")
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
