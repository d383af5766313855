"""First states of tasks for tests of a step, drawn without a program."""

import jax
import jax.numpy as jnp
import numpy as np


def drawn_state(task, deviation=0.2):
    """Return a state whose variables NumPy draws: to compile initial ones takes seconds."""
    random = np.random.default_rng(0)

    def draw(path, a):
        variable = a.dtype == np.float32 and "optimizer" not in jax.tree_util.keystr(path)
        values = (
            deviation * random.standard_normal(a.shape, np.float32)
            if variable
            else np.zeros(a.shape)
        )
        return jnp.asarray(values, a.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))
