"""Runs of random parameters, as `experiments.train` leaves them, and states of such."""

from pathlib import Path

import jax
import numpy as np

from experiments.configuration.runs import build
from genjax.training import Checkpoints, record_config
from tests.drawn_state import drawn_state


def random_state(task):
    """Return a state of random numbers, whose averages are its parameters."""
    state = drawn_state(task, deviation=0.1)
    return state.replace(averages=dict.fromkeys(state.averages, state.params))


def random_run(folder: Path, config) -> str:
    """Write a finished run of a diffusion model with random parameters; return its folder."""
    folder.mkdir(parents=True)
    record_config(folder, config.to_dict(), ())
    state = random_state(build(config))
    step = np.asarray(config.num_steps, state.step.dtype)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(config.num_steps, jax.device_put(state.replace(step=step)))
    return str(folder)
