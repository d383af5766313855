"""Runs without training: folders as `experiments.train` leaves them, of random parameters."""

from pathlib import Path

import jax
import numpy as np

from experiments.configuration.runs import build
from genjax.training import Checkpoints, record_config


def save_run(config, folder):
    """Save a run of a config whose network answers, unlike a new one; return the folder's path.

    Nothing is compiled, so it takes a tenth of a training's time.
    """
    folder, task, random = Path(folder), build(config), np.random.default_rng(1)
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)
    draw = lambda a: np.float32(0.03) * random.standard_normal(a.shape, np.float32)
    params = jax.tree.map(draw, abstract.params)
    averages = dict.fromkeys(state.averages, params)
    step = np.asarray(config.num_steps, state.step.dtype)
    folder.mkdir(parents=True)
    record_config(folder, config.to_dict(), ())
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(
            int(step), jax.device_put(state.replace(params=params, averages=averages, step=step))
        )
    return str(folder)
