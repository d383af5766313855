"""Few-step students of the digits, one by each method of experiments/tasks/methods.py.

python -m experiments.train --config=configs/digits_distillation.py:MeanFlow \
    --workdir=runs/digits_mean_flow

MeanFlow, ImprovedMeanFlow, Shortcut and ContinuousConsistency learn from data. The others learn
from a run of configs/digits_flow.py: Lagrangian, Eulerian, Semigroup, Consistency,
GuidanceDistillation. That run is runs/digits_flow, or `--config.teacher`. No choice has been
trained to its end yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import digits_flow
from experiments.configuration.choices import check_choice

WITH_TEACHER = ("Lagrangian", "Eulerian", "Semigroup", "Consistency", "GuidanceDistillation")
CHOICES = ("MeanFlow", "ImprovedMeanFlow", "Shortcut", "ContinuousConsistency", *WITH_TEACHER)


def get_config(choice: str = "MeanFlow") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = digits_flow.get_config()
    config.experiment, config.task = f"digits_distillation_{choice}", "Distillation"
    config.method = dict(name=choice)
    config.teacher = placeholder(str)
    config.evaluation.measures.few_steps = dict(name="FewSteps", num_steps=(1, 2, 4, 8))
    config.sampling.update(num_steps=1, guidance_scale=1.0, sampler=dict(name="jump"))
    config.evaluation.measures.few_step_pictures = dict(name="FewStepPictures")
    if choice in WITH_TEACHER:
        config.teacher = "runs/digits_flow"
    if choice == "GuidanceDistillation":  # as many steps as the teacher, with one call for two
        config.sampling.update(num_steps=50, guidance_scale=1.25)
    elif choice in WITH_TEACHER:
        config.method.guidance_scale = 1.25
    if choice == "ContinuousConsistency":
        config.process = dict(name="TrigFlow")
        config.times = dict(name="log_normal_sigma", mean=-1.0, deviation=1.4)
    return config
