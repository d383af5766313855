"""Few-step students of the digits, one by each method of experiments/tasks/methods.

python -m experiments.train --config=configs/digits_distillation.py:MeanFlow \
    --workdir=runs/digits_mean_flow

The choices of `WITH_TEACHER` learn from runs/digits_flow, a run of configs/digits_flow.py, or from
`--config.teacher`. Reflow and DistilledReflow learn from pairs, which the teacher makes first:

python -m experiments.encode --config=configs/digits_distillation.py:Reflow
python -m experiments.train --config=configs/digits_distillation.py:Reflow \
    --workdir=runs/digits_reflow
python -m experiments.encode --config=configs/digits_distillation.py:DistilledReflow
python -m experiments.train --config=configs/digits_distillation.py:DistilledReflow \
    --workdir=runs/digits_distilled_reflow

For another reflow, give Reflow the last run as `--config.teacher`, another folder as
`--config.pairs.directory` and `--config.pairs.sampling.guidance_scale=1.0`. All choices train for
5,000 steps of 64 examples. No choice has been trained to its end yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import digits_flow
from experiments.configuration.choices import check_choice

RENOISED = dict(sampler=dict(name="consistency"))
GUIDED = dict(guidance_scale=1.25)
ANY_SCALE = dict(least=1.0, largest=4.0)
EQUAL_TIMES = dict(times=dict(name="uniform"))
SIGMA = dict(  # as in the papers
    process=dict(name="EDM"),
    target=dict(name="edm"),
    times=dict(name="karras"),
    sampling=dict(grid=dict(name="karras_grid"), **RENOISED),
)
TRIGFLOW = dict(
    process=dict(name="TrigFlow"),
    times=dict(name="log_normal_sigma", mean=-1.0, deviation=1.4),
)
LAST_STAGE = dict(averages=dict(ema=dict(steps=100.0)))


def pairs(folder: str, **sampling) -> dict:
    """Return the fields of a student of pairs. Samples to measure have the seed 0."""
    sampling = dict(num_steps=100, seed=1) | sampling
    made = dict(directory=folder, count=50_000, batch_size=500, sampling=sampling)
    return EQUAL_TIMES | dict(pairs=made, conditioning_dropout=0.0)


# For each choice the method, and what else differs from digits_flow.
WITHOUT_TEACHER = {
    "MeanFlow": (dict(name="MeanFlow"), {}),
    "ImprovedMeanFlow": (dict(name="ImprovedMeanFlow"), {}),
    "Shortcut": (dict(name="Shortcut"), {}),
    "ConsistencyTraining": (dict(name="DiscreteConsistency"), SIGMA),
    "ImprovedConsistencyTraining": (dict(name="ImprovedConsistencyTraining"), SIGMA),
    "ContinuousConsistency": (dict(name="ContinuousConsistency"), TRIGFLOW),
}
WITH_TEACHER = {
    "Lagrangian": (dict(name="Lagrangian", **GUIDED), {}),
    "Eulerian": (dict(name="Eulerian", **GUIDED), {}),
    "Semigroup": (dict(name="Semigroup", **GUIDED), {}),
    "Consistency": (dict(name="Consistency", **GUIDED), {}),
    "ConsistencyDistillation": (
        dict(name="DiscreteConsistency", **GUIDED),
        EQUAL_TIMES | dict(sampling=RENOISED),
    ),
    "LatentConsistency": (
        dict(name="LatentConsistency", **ANY_SCALE),
        EQUAL_TIMES | dict(sampling=RENOISED | GUIDED),
    ),
    "TrajectoryConsistency": (
        dict(name="TrajectoryConsistency", **ANY_SCALE),
        EQUAL_TIMES
        | dict(sampling=dict(sampler=dict(name="trajectory_consistency", gamma=0.3), **GUIDED)),
    ),
    "ConsistencyTrajectory": (dict(name="ConsistencyTrajectory", **GUIDED), EQUAL_TIMES),
    "ContinuousDistillation": (dict(name="ContinuousConsistency", **GUIDED), TRIGFLOW),
    # As many steps as the teacher, with one call of the student for two of the teacher.
    "GuidanceDistillation": (
        dict(name="GuidanceDistillation"),
        dict(sampling=dict(num_steps=50, **GUIDED)),
    ),
    "Halving": (dict(name="Halving", **GUIDED), LAST_STAGE),
    "GuidedHalving": (dict(name="GuidedHalving", **ANY_SCALE), LAST_STAGE | dict(sampling=GUIDED)),
    "Reflow": (dict(name="Reflow"), pairs("runs/digits_pairs")),
    # The straightened flow has the guidance of its own teacher.
    "DistilledReflow": (
        dict(name="DistilledReflow"),
        pairs("runs/digits_reflow_pairs", guidance_scale=1.0) | dict(teacher="runs/digits_reflow"),
    ),
}
CHOICES = (*WITHOUT_TEACHER, *WITH_TEACHER)


def get_config(choice: str = "MeanFlow") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = digits_flow.get_config()
    config.experiment, config.task = f"digits_distillation_{choice}", "Distillation"
    method, changes = (WITHOUT_TEACHER | WITH_TEACHER)[choice]
    config.method = method
    config.teacher = "runs/digits_flow" if choice in WITH_TEACHER else placeholder(str)
    config.evaluation.measures.few_steps = dict(name="FewSteps", num_steps=(1, 2, 4, 8))
    config.sampling.update(num_steps=1, guidance_scale=1.0, sampler=dict(name="jump"))
    config.evaluation.measures.few_step_pictures = dict(name="FewStepPictures")
    config.update(changes)
    return config
