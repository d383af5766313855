"""Where the first state is made: one trace serves its shapes and its program."""

import jax
import numpy as np

from genjax.devices import make_mesh
from genjax.training import init_state


def test_the_first_state_is_traced_once():
    traced = []

    class Task:
        def init(self, key):
            traced.append(key)
            return {"params": jax.random.normal(key, (4,))}

    key = jax.random.key(0)
    state = init_state(Task(), key, make_mesh({"data": 1}, 1))
    assert len(traced) == 1
    np.testing.assert_array_equal(state["params"], jax.random.normal(key, (4,)))
