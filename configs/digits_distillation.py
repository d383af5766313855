"""Few-step students of the digits, one by each method of experiments/tasks/methods.py.

python -m experiments.train --config=configs/digits_distillation.py:MeanFlow \
    --workdir=runs/digits_mean_flow

MeanFlow, ImprovedMeanFlow, Shortcut and ContinuousConsistency learn from data. The others learn
from a run of configs/digits_flow.py: Lagrangian, Eulerian, Semigroup, Consistency,
GuidanceDistillation. That run is runs/digits_flow, or `--config.teacher`. No choice has been
trained to its end yet.

DMD, DMD2, LADD and RCM match the teacher's distribution, against a critic with an optimizer of its
own (experiments/tasks/matching_methods.py). Drift learns from data by its banks of examples, in one
step (experiments/tasks/drifting.py). PixelMeanFlow answers with clean pixels, without its
perceptual term, which needs images of 16 pixels (experiments/tasks/pixel_mean_flow.py).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import digits_flow
from experiments.configuration import base
from experiments.configuration.choices import check_choice

WITH_TEACHER = ("Lagrangian", "Eulerian", "Semigroup", "Consistency", "GuidanceDistillation")
MATCHING = ("DMD", "DMD2", "LADD", "RCM")
WITHOUT_TEACHER = (
    "MeanFlow",
    "ImprovedMeanFlow",
    "Shortcut",
    "ContinuousConsistency",
    "Drift",
    "PixelMeanFlow",
)
CHOICES = (*WITHOUT_TEACHER, *WITH_TEACHER, *MATCHING)


def get_config(choice: str = "MeanFlow") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = digits_flow.get_config()
    config.experiment, config.task = f"digits_distillation_{choice}", "Distillation"
    config.method = dict(name=choice)
    config.teacher = placeholder(str)
    config.sampling.update(num_steps=1, guidance_scale=1.0, sampler=dict(name="jump"))
    if choice in (*WITH_TEACHER, *MATCHING):
        config.teacher = "runs/digits_flow"
    if choice == "GuidanceDistillation":  # as many steps as the teacher, with one call for two
        config.sampling.update(num_steps=50, guidance_scale=1.25)
    elif choice in (*WITH_TEACHER, *MATCHING):
        config.method.guidance_scale = 1.25
    if choice == "ContinuousConsistency":
        config.process = dict(name="TrigFlow")
        config.times = dict(name="log_normal_sigma", mean=-1.0, deviation=1.4)
    if choice in MATCHING:
        set_players(config, choice)
    if choice == "Drift":
        config.task, config.conditioning_dropout = "Drifting", 0.0
        config.method.generated = 16
    if choice == "PixelMeanFlow":
        config.task, config.method.perceptual = "PixelDistillation", 0.0
        config.target = dict(name="clean")
        config.times = dict(name="logit_normal", mean=0.8, deviation=0.8)
    return config


def set_players(config: ConfigDict, choice: str) -> None:
    """Set what a student with a critic has beside the fields of other students."""
    config.task, config.conditioning_dropout = "Matching", 0.0
    options = dict(schedule="constant", clip_norm=1.0, b1=0.0, b2=0.99)
    rates = dict(student=1e-4, critic=1e-3 if choice == "LADD" else 2e-4)
    config.optimizer = {
        player: base.optimizer(learning_rate=rate, **options) for player, rate in rates.items()
    }
    config.num_steps = 1000  # each of them costs as much as 3 (LADD) to 22 (DMD2) of diffusion
    config.averages.ema.steps = 100.0
