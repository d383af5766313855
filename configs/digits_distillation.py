"""Few-step students of the digits, one by each method of experiments/tasks/methods.py.

python -m experiments.train --config=configs/digits_distillation.py:MeanFlow \
    --workdir=runs/digits_mean_flow

Methods with a teacher take the run of configs/digits_flow.py from `--config.teacher`, which is
runs/digits_flow. `--config.sampling.num_steps=4` samples in four jumps.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import digits_flow

WITH_TEACHER = ("Lagrangian", "Eulerian", "Semigroup", "Consistency")


def get_config(method: str = "MeanFlow") -> ConfigDict:
    config = digits_flow.get_config()
    config.experiment, config.task = f"digits_{method}", "Distillation"
    config.method = dict(name=method)
    config.teacher = placeholder(str)
    config.model.update(takes_end_time=True, takes_guidance=False)
    config.sampling.update(num_steps=1, guidance_scale=1.0, sampler=dict(name="jump"))
    if method in WITH_TEACHER:
        config.teacher = "runs/digits_flow"
        config.method.guidance_scale = 1.25
    return config
