"""One small DiT on the digits under any process and target: what the choice of either does, on one budget.

python -m experiments.train --config=configs/digits_algebra.py:edm,noise --workdir=runs/digits_algebra_edm_noise

The process is rectified_flow, variance_preserving, variance_exploding or edm; the target clean, noise, v, velocity or
edm. Every process has the law of times of its own paper, its domain and its grid, and every loss weight 1; all else is
that of digits_flow, but for 2,000 steps and a shorter average.

On 2 CPU cores, with other work on them, 2,000 steps took 71 to 219 s; the figures are in the README.
"""

from ml_collections import ConfigDict

from configs import digits_flow
from experiments.configuration.choices import check_choice

PROCESSES = ("rectified_flow", "variance_preserving", "variance_exploding", "edm")
TARGETS = ("clean", "noise", "v", "velocity", "edm")
CHOICES = tuple(f"{process},{target}" for process in PROCESSES for target in TARGETS)
DEVIATION = 0.85  # root mean square of the digits' pixels in [−1, 1]; 0.83 of Fashion-MNIST's


def get_config(choice: str = "rectified_flow,velocity") -> ConfigDict:
    config = digits_flow.get_config()
    config.experiment = "digits_algebra_" + choice.replace(",", "_")
    config.num_steps = 2000
    config.optimizer.warmup = 200.0
    config.averages.ema.steps = 300
    config.sampling.every = 2000
    choose(config, choice)
    return config


def choose(config: ConfigDict, choice: str) -> None:
    """Sets "process,target", and what goes with the process."""
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
            dict(
                name="VariancePreservingLinear", domain=(1e-3, 1.0)
            ),  # at 0 its velocity is infinite
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
        config.process.domain = (0.0, 0.98)  # at 1 the noise says nothing of the data
    if target == "edm":
        config.target.data_deviation = DEVIATION
