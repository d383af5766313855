"""Few-step students of the digits, one by each method of experiments/tasks/methods.

python -m experiments.train --config=configs/digits_distillation.py:MeanFlow \
    --workdir=runs/digits_mean_flow

A choice is a method. docs/lecture/distillation.md explains all methods. They form three groups:
- `WITHOUT_TEACHER` learns from data, for 5,000 steps of 64 examples.
- `WITH_TEACHER` learns from runs/digits_flow, a run of configs/digits_flow.py, or from
  `--config.teacher`, for 5,000 steps.
- `MATCHING` (DMD, DMD2, LADD, RCM) matches the teacher's distribution, with a critic that has its
  own optimizer.

Three choices need other commands first. Reflow and DistilledReflow learn from pairs of noise and
sample, which their teacher makes:

python -m experiments.encode --config=configs/digits_distillation.py:Reflow
python -m experiments.train --config=configs/digits_distillation.py:Reflow \
    --workdir=runs/digits_reflow
python -m experiments.encode --config=configs/digits_distillation.py:DistilledReflow
python -m experiments.train --config=configs/digits_distillation.py:DistilledReflow \
    --workdir=runs/digits_distilled_reflow

To repeat reflow, give Reflow the last run as `--config.teacher`, and another folder as
`--config.pairs.directory`. The last run makes the new pairs at its own guidance scale, which is 1.

ContinuousDistillation takes a derivative in time, so its teacher has a time scale of 1:

python -m experiments.train --config=configs/digits_flow.py --workdir=runs/digits_flow_unscaled \
    --config.model.time_scale=1.0

Class accuracy and Fréchet distance of 1,000 samples, and the time on one of 2 CPU cores while other
programs ran. The teacher's 50 steps have 99.7 % and 0.829:

                                  1 step          4 steps         time
    DistilledReflow               99.7 %  0.858   97.7 %  4.52     3 min 56 s
    Consistency                   99.5 %  0.867   99.4 %  0.864    4 min 45 s
    Lagrangian                    99.3 %  0.868   99.7 %  0.818   22 min 17 s
    Reflow                        99.6 %  0.887   99.7 %  0.850    3 min 53 s
    ContinuousDistillation        99.1 %  0.888   99.7 %  0.851   11 min 18 s
    ProgressiveDistillation       99.3 %  0.898   91.9 %  2.10    23 min 30 s
    ImprovedConsistencyTraining   96.6 %  0.901   97.1 %  0.840    6 min 46 s
    DMD2                          99.5 %  0.909   99.6 %  2.12    13 min 46 s
    ConsistencyDistillation       99.6 %  0.940   99.6 %  0.974    4 min 10 s
    DMD                           99.8 %  0.942   99.8 %  2.10     6 min 41 s
    Eulerian                      99.7 %  0.959   99.7 %  0.847   29 min 24 s
    RCM                           98.3 %  0.966   98.7 %  0.919   21 min 19 s
    GuidedProgressiveDistillation 99.2 %  1.01    88.7 %  2.64    22 min  0 s
    Drift                         99.9 %  1.01    one step only     8 min 59 s
    Semigroup                     99.5 %  1.06    99.4 %  0.844   10 min  8 s
    ContinuousConsistency         96.9 %  1.07    97.6 %  1.06     3 min 31 s
    ImprovedMeanFlow              99.8 %  1.10    100 %   1.19     5 min 54 s
    ConsistencyTrajectory         99.1 %  1.13    99.5 %  0.889   19 min  3 s
    MeanFlow                      99.7 %  1.15    100 %   1.28     5 min 14 s
    LatentConsistency             99.9 %  1.23    99.9 %  0.925    4 min 56 s
    Shortcut                      98.5 %  1.34    99.6 %  1.14     4 min 48 s
    LADD                          99.2 %  1.36    98.8 %  2.10     2 min  7 s
    TrajectoryConsistency         99.8 %  1.36    99.9 %  0.881    7 min 10 s
    PixelMeanFlow                 99.7 %  1.48    99.8 %  1.26    33 min 25 s
    GuidedMeanFlow                99.7 %  1.67    99.8 %  1.46    34 min  7 s
    ConsistencyTraining           89.3 %  2.17    98.3 %  1.28     3 min 38 s
    GuidanceDistillation          100 %   4.00    99.9 %  1.31     6 min 36 s

The pairs of Reflow took another 11 min 43 s, and those of DistilledReflow 5 min 45 s.

How to read the table:
- Guidance makes a student more accurate and less varied, which raises the distance. MeanFlow
  without guidance has 97.9 % and 1.00 in one step.
- Four steps are worse than one for DistilledReflow, DMD, DMD2 and LADD, which train for one step.
  The same is true of ProgressiveDistillation and GuidedProgressiveDistillation, whose last stage
  trains for one step.
- A student of GuidanceDistillation still needs the teacher's 50 steps, with one call in place of
  two: 99.6 % and 0.828.

Some choices need these settings:
- MeanFlow and ImprovedMeanFlow: uniform times and model.time_scale=1. With the time_scale of 1000
  and the b2 of 0.999 of digits_flow, MeanFlow has 86.2 % and 6.99. The logit-normal times of
  digits_flow almost never contain a jump from noise to data.
- ContinuousConsistency and ContinuousDistillation: model.time_scale=1. With 1000 the first
  diverged, and the second had 9.2 % and 39.0.
- A small range of guidance scales: GuidedMeanFlow and PixelMeanFlow learn scales from 1 to 1.5.
  With scales up to 4, GuidedMeanFlow had 2.44.
- Drift predicts the velocity, so the samples of an untrained network differ by their noise. The
  paper's target is clean. With it an untrained network draws the same sample from every noise. The
  samples of a class then stay alike: 100 % and 6.61, recall 0. Drift compares pixels. Images of 16
  pixels or more may take `--config.method.features=VGG16Features`.
- PixelMeanFlow has no perceptual term here, because that term needs images of 16 pixels.

docs/results/runs.md has the figures for 2 and 8 steps, precision, recall, and the commit of each
run.
"""

from ml_collections import ConfigDict

from configs import digits_flow
from experiments.configuration import base
from experiments.configuration.choices import check_choice

RENOISED = dict(sampler=dict(name="consistency"))
GUIDED = dict(guidance_scale=1.25)
ANY_SCALE = dict(min_guidance_scale=1.0, max_guidance_scale=4.0)
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
    sampling=RENOISED,
)
SMALL_DERIVATIVES = dict(model=dict(time_scale=1.0), optimizer=dict(b2=0.95))
TWO_OUTPUTS = dict(name="MeanFlowDiT", depth=4, head_depth=1, unroll=1)
LAST_STAGE = dict(averages=dict(ema=dict(steps=100.0)))
ALL_CONDITIONS = dict(conditioning_dropout=0.0)  # none is dropped


def pairs(folder: str) -> dict:
    """Return the fields of a student of pairs. Samples to measure have the seed 0."""
    sampling = dict(num_steps=50, seed=1)
    made = dict(directory=folder, count=20_000, batch_size=500, sampling=sampling)
    return EQUAL_TIMES | ALL_CONDITIONS | dict(pairs=made)


# The method of each choice, and its other differences from digits_flow.
WITHOUT_TEACHER = {
    "MeanFlow": (
        dict(name="MeanFlow", diagonal=0.5, guidance_scale=1.25),
        EQUAL_TIMES | SMALL_DERIVATIVES,
    ),
    "ImprovedMeanFlow": (
        dict(name="ImprovedMeanFlow", guidance_scale=1.25),
        EQUAL_TIMES | SMALL_DERIVATIVES,
    ),
    "GuidedMeanFlow": (
        dict(name="GuidedMeanFlow", max_guidance_scale=1.5),
        EQUAL_TIMES | dict(model=TWO_OUTPUTS, sampling=GUIDED),
    ),
    "Shortcut": (dict(name="Shortcut", guidance_scale=1.5), EQUAL_TIMES),
    "ConsistencyTraining": (dict(name="DiscreteConsistency"), SIGMA),
    "ImprovedConsistencyTraining": (dict(name="ImprovedConsistencyTraining"), SIGMA),
    "ContinuousConsistency": (dict(name="ContinuousConsistency"), TRIGFLOW | SMALL_DERIVATIVES),
    "Drift": (
        dict(name="Drift", generated=16),
        EQUAL_TIMES | ALL_CONDITIONS | dict(task="Drifting"),
    ),
    "PixelMeanFlow": (
        dict(name="PixelMeanFlow", max_guidance_scale=1.5, perceptual=0.0),
        EQUAL_TIMES
        | dict(
            task="PixelDistillation",
            target=dict(name="clean"),
            model=TWO_OUTPUTS | dict(grid=True),
            optimizer=dict(b2=0.95),
            sampling=GUIDED,
        ),
    ),
}
WITH_TEACHER = {
    "Lagrangian": (dict(name="Lagrangian", **GUIDED), EQUAL_TIMES),
    "Eulerian": (dict(name="Eulerian", **GUIDED), EQUAL_TIMES),
    "Semigroup": (dict(name="Semigroup", **GUIDED), EQUAL_TIMES),
    "Consistency": (
        dict(name="Consistency", **GUIDED),
        EQUAL_TIMES | dict(sampling=RENOISED),
    ),
    "ConsistencyDistillation": (
        dict(name="DiscreteConsistency", **GUIDED),
        EQUAL_TIMES | dict(sampling=RENOISED),
    ),
    "LatentConsistency": (
        dict(name="LatentConsistency", **ANY_SCALE),
        EQUAL_TIMES | ALL_CONDITIONS | dict(sampling=RENOISED | GUIDED),
    ),
    "TrajectoryConsistency": (
        dict(name="TrajectoryConsistency", **ANY_SCALE),
        EQUAL_TIMES
        | ALL_CONDITIONS
        | dict(sampling=dict(sampler=dict(name="trajectory_consistency", gamma=0.3), **GUIDED)),
    ),
    "ConsistencyTrajectory": (dict(name="ConsistencyTrajectory", **GUIDED), EQUAL_TIMES),
    "ContinuousDistillation": (
        dict(name="ContinuousConsistency", **GUIDED),
        TRIGFLOW | dict(model=dict(time_scale=1.0), teacher="runs/digits_flow_unscaled"),
    ),
    # As many steps as the teacher, with one call of the student for two of the teacher.
    "GuidanceDistillation": (
        dict(name="GuidanceDistillation"),
        ALL_CONDITIONS | dict(sampling=dict(num_steps=50, **GUIDED)),
    ),
    "ProgressiveDistillation": (
        dict(name="ProgressiveDistillation", **GUIDED),
        EQUAL_TIMES | LAST_STAGE,
    ),
    "GuidedProgressiveDistillation": (
        dict(name="GuidedProgressiveDistillation", **ANY_SCALE),
        LAST_STAGE | ALL_CONDITIONS | dict(sampling=GUIDED),
    ),
    "Reflow": (dict(name="Reflow"), pairs("runs/digits_pairs")),
    # Samples of runs/digits_reflow have the guidance that it learned from its own teacher.
    "DistilledReflow": (
        dict(name="DistilledReflow"),
        pairs("runs/digits_reflow_pairs") | dict(teacher="runs/digits_reflow"),
    ),
}
MATCHING = {"DMD": GUIDED, "DMD2": GUIDED, "LADD": {}, "RCM": GUIDED}  # the options of each
CHOICES = (*WITHOUT_TEACHER, *WITH_TEACHER, *MATCHING)


def get_config(choice: str = "MeanFlow") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = digits_flow.get_config()
    config.experiment = f"digits_distillation_{choice}"
    config.conditioning_dropout = 0.1
    matching = {name: (dict(name=name, **options), {}) for name, options in MATCHING.items()}
    method, changes = (WITHOUT_TEACHER | WITH_TEACHER | matching)[choice]
    teacher = None if choice in WITHOUT_TEACHER else "runs/digits_flow"
    base.distillation(config, teacher, **method)
    config.evaluation.measures.few_steps = dict(name="FewSteps", num_steps=(1, 2, 4, 8))
    config.update(changes)
    if choice in MATCHING:
        set_players(config, choice)
    return config


def set_players(config: ConfigDict, choice: str) -> None:
    """Set the fields that only a student with a critic has."""
    config.task, config.conditioning_dropout = "Matching", 0.0
    options = dict(schedule="constant", clip_norm=1.0, b1=0.0, b2=0.99)
    rates = dict(student=1e-4, critic=1e-3 if choice == "LADD" else 2e-4)
    config.optimizer = {
        player: base.optimizer(learning_rate=rate, **options) for player, rate in rates.items()
    }
    config.sampling.update(RENOISED)  # as the students' inputs are made in training
    config.num_steps = 1000  # each of them costs as much as 3 (LADD) to 22 (DMD2) of diffusion
    config.averages.ema.steps = 100.0
