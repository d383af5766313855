"""What tasks of one trained network share: their state, and a step of its optimizer and averages."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from genjax.training import ema, group_norms, update_average
from genjax.training.optimizers import evaluation_params

Averages = tuple[tuple[str, ema.HalfLife | ema.PowerFunction], ...]  # rules by name


@flax.struct.dataclass
class State:
    step: Int[Array, ""]
    params: PyTree
    optimizer_state: PyTree
    averages: dict[str, PyTree]

    def weights(self, name: str) -> PyTree:
        """ "params" (of a schedule-free optimizer, its average) or one of the averages."""
        if name == "params":
            return evaluation_params(self.optimizer_state, self.params)
        return self.averages[name]


def first_state(params: PyTree, optimizer: optax.GradientTransformation, averages: Averages) -> State:
    return State(
        step=jnp.int32(0),
        params=params,
        optimizer_state=optimizer.init(params),
        averages={name: jax.tree.map(jnp.copy, params) for name, _ in averages},
    )


def next_state(
    state: State,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    averages: Sequence,
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """The state after a step along the gradients; the learning rate and norms."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    evaluated = evaluation_params(optimizer_state, params)
    metrics = {
        "learning_rate": schedule(state.step),
        **group_norms("norm/gradient", gradients),
        **group_norms("norm/parameter", params),
        **group_norms("norm/update", updates),
    }
    return State(
        step=state.step + 1,
        params=params,
        optimizer_state=optimizer_state,
        averages={
            name: update_average(state.averages[name], evaluated, state.step, rule) for name, rule in averages
        },
    ), metrics
