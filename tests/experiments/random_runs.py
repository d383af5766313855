"""Runs of random parameters, as `experiments.train` leaves them, and states of such."""

from pathlib import Path

import jax
import numpy as np

from experiments.configuration.runs import build
from genjax.training import Checkpoints, record_config


def random_params(params, seed: int = 0):
    """Return the parameters with random numbers added, so that a network that is new answers."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + 0.1 * random.standard_normal(a.shape, np.float32), params)


def random_state(task):
    """Return a first state of random parameters; to draw it, nothing is compiled."""
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)
    params = random_params(state.params)
    return state.replace(params=params, averages=dict.fromkeys(state.averages, params))


def random_run(folder: Path, config) -> str:
    """Write a finished run of a diffusion model with random parameters; return its folder.

    Nothing is compiled, so it takes a tenth of a short training's time.
    """
    folder.mkdir(parents=True)
    record_config(folder, config.to_dict(), ())
    state = random_state(build(config))
    step = np.asarray(config.num_steps, state.step.dtype)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(config.num_steps, jax.device_put(state.replace(step=step)))
    return str(folder)
