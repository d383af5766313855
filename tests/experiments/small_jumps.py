"""A network of few operations for few-step students, and runs of random numbers as teachers."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.configuration.runs import build
from genjax.nn.jumps import check_numbers
from genjax.training import Checkpoints
from genjax.training.workdir import record_config


class Jumps(nn.Module):
    """Two dense layers of input and class, and of the numbers that a method gives its network."""

    num_classes: int
    time_scale: float = 1000.0  # unused; a student's must be its teacher's
    takes_end_time: bool = False
    takes_guidance: bool = False
    width: int = 16

    @nn.compact
    def __call__(self, x, t, condition, *, end_time=None, guidance=None):
        check_numbers(self, end_time=end_time, guidance=guidance)
        given = [number for number in (t, end_time, guidance) if number is not None]
        hidden = nn.Dense(self.width)(x.reshape(len(x), -1))
        hidden += nn.Dense(self.width, name="numbers")(jnp.stack(given, axis=-1))
        hidden += nn.Embed(self.num_classes + 1, self.width)(condition)
        return nn.Dense(x[0].size)(jnp.tanh(hidden)).reshape(x.shape)


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
    """Write a run of a diffusion model with random parameters; return its folder."""
    folder.mkdir(parents=True)
    record_config(folder, config.to_dict(), ())
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, random_state(build(config)))
    return str(folder)
