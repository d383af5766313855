"""One small DiT on the digits under any process and target, on one budget.

python -m experiments.train --config=configs/digits_algebra.py:edm,noise \
    --workdir=runs/digits_algebra_edm_noise

The process is rectified_flow, variance_preserving, variance_exploding or edm. The target is clean,
noise, v, velocity or edm. Every process has the distribution of times, the domain and the grid of
its own paper, and no loss is weighted. Everything else is as in digits_flow, except 2,000 steps and
a shorter average.

2,000 steps take 71 to 219 s on 2 CPU cores shared with other programs. docs/results/algebra.md has
the table of all choices. Some rows, of 1,000 samples each (training digits 0.718):

choice                   class accuracy  Fréchet distance
rectified_flow,velocity  96.9 %          1.05
rectified_flow,clean     99.0 %          1.46
variance_preserving,v    96.8 %          1.29
edm,edm                  47.6 %          1.10
edm,noise                12.0 %          2.56
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

PROCESSES = ("rectified_flow", "variance_preserving", "variance_exploding", "edm")
TARGETS = ("clean", "noise", "v", "velocity", "edm")
CHOICES = tuple(f"{process},{target}" for process in PROCESSES for target in TARGETS)
DEVIATION = 0.85  # root mean square of the digits' pixels in [−1, 1]; Fashion-MNIST has 0.83


def get_config(choice: str = "rectified_flow,velocity") -> ConfigDict:
    name = "digits_algebra_" + choice.replace(",", "_")
    config = base.diffusion(name, name="digits", image_shape=(8, 8, 1))
    config.num_steps = 2000
    config.model.update(patch_size=2, width=96, depth=3, num_heads=3, unroll=3)
    config.optimizer.warmup = 200.0
    config.averages.ema.steps = 300
    config.sampling.every = 2000
    choose(config, choice)
    return config


def choose(config: ConfigDict, choice: str) -> None:
    """Set "process,target", and the times and grid that belong to the process."""
    check_choice(choice, CHOICES)
    process, target = choice.split(",")
    config.target.name = target
    config.process, config.times, config.sampling.grid = {
        "rectified_flow": (
            dict(name="RectifiedFlow"),
            dict(name="logit_normal"),
            dict(name="uniform_grid"),
        ),
        "variance_preserving": (
            # At time 0 the velocity is infinite.
            dict(name="VariancePreservingLinear", domain=(1e-3, 1.0)),
            dict(name="uniform"),
            dict(name="uniform_grid"),
        ),
        "variance_exploding": (
            dict(name="VarianceExploding"),
            dict(name="uniform"),
            dict(name="uniform_grid"),
        ),
        "edm": (
            dict(
                name="EDM",
                preconditioning=dict(name="EDMPreconditioning", data_deviation=DEVIATION),
            ),
            dict(name="log_normal_sigma", mean=-1.2, deviation=1.2),
            dict(name="karras_grid"),
        ),
    }[process]
    if (process, target) == ("rectified_flow", "noise"):
        config.process.domain = (0.0, 0.98)  # at 1 the noise carries no information on the data
    if target == "edm":
        config.target.data_deviation = DEVIATION
