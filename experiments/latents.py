"""Explore a trained GAN's latent space.

    python -m experiments.latents --workdir=runs/digits_stylegan2

Writes into WORKDIR/latents:

- walk_z.gif: a walk on the sphere of Z.
- walk_w.gif: straight lines in W, for a generator with styles.
- mixing.png: coarse styles of the images on the left, fine styles of the images above, for a
  generator with styles.
- directions.png: a row for each direction in W that changes the styles most (SeFa), from −3 to 3
  deviations. Without styles, it is a direction in Z that changes the first layer most.
- principal_directions.png: the same for the directions along which sampled w, or the first layer's
  activations, vary most (GANSpace).
- inversion.png: held-out images, and the nearest images in Z, W and W+.
- latents.json: errors of inversion and perceptual path lengths, as mean squares of pixels in [−1,
  1].
"""

import json
from pathlib import Path

from absl import flags

from experiments.configuration.runs import open_run
from experiments.evaluation.latent_space import explore
from experiments.inputs.spaces import Pixels
from experiments.launch.runtime import run_program, user_errors
from experiments.launch.sampling_flags import sampling_changes
from experiments.tasks.adversarial import GAN

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest good one if not given.")
COUNT = flags.DEFINE_integer(
    "count", 10, "Pictures beside each other, and held-out images to invert.", lower_bound=1
)
INVERSION_STEPS = flags.DEFINE_integer(
    "inversion_steps", 500, "Of gradient descent.", lower_bound=1
)
PAIRS = flags.DEFINE_integer(
    "pairs", 1000, "Of latents, for the perceptual path length.", lower_bound=2
)
for name in ("truncation", "weights", "seed"):  # what GANs are sampled by
    flags.declare_key_flag(name)


def main() -> None:
    with user_errors():
        run = open_run(WORKDIR.value, STEP.value, **sampling_changes())
        if not isinstance(run.task, GAN) or not isinstance(run.task.space, Pixels):
            raise ValueError(
                f"experiments.latents needs a GAN of images; {run.config.experiment} is a "
                f"{run.config.task} of {run.config.space.name}"
            )
        folder = Path(WORKDIR.value) / "latents"
        numbers = COUNT.value, INVERSION_STEPS.value, PAIRS.value
        report = explore(run.task, run.state, run.config, folder, *numbers)
    (folder / "latents.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"  {name:24} {value:.4g}" if isinstance(value, float) else f"  {name:24} {value}")


if __name__ == "__main__":
    run_program(main)
