"""Optimizers, averages, and the states and steps of networks, as tasks share them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from experiments.configuration.kinds import AVERAGE
from genjax.training import (
    at_rounded,
    group_norms,
    make_optimizer,
    update_average,
    value_and_gradient,
)
from genjax.training.ema import PowerFunction, power_of_width
from genjax.training.optimizers import evaluation_params
from genjax.training.sampling import POSTHOC

Averages = tuple[tuple[str, Any], ...]  # rules of genjax.training.ema by name


def make_averages(config: Any) -> Averages:
    """Return the rules of `config.averages`, by name.

    Raises:
        ValueError: there is no such rule, or there are no weights named `config.sampling.weights`.
    """
    rules = {
        name: AVERAGE.bind(fields, f"averages.{name}") for name, fields in config.averages.items()
    }
    check_weights(config.sampling.weights, rules)
    return tuple(rules.items())


def check_weights(weights: str, averages: Mapping[str, Any]) -> None:
    """Raise ValueError if there are no such weights to sample from.

    Args:
        averages: the rules of those that are tracked, by name.
    """
    there = ("params", *averages)
    if weights.startswith(POSTHOC) and any(
        isinstance(rule, PowerFunction) for rule in averages.values()
    ):
        try:
            power_of_width(float(weights.removeprefix(POSTHOC)))
        except ValueError as error:
            raise ValueError(
                f"config.sampling.weights (--weights) is {weights!r}: {error}"
            ) from None
    elif weights not in there:
        raise ValueError(
            f"config.sampling.weights (--weights) is {weights!r}; there are {', '.join(there)}, "
            f"and, if config.averages has a PowerFunction, {POSTHOC}WIDTH, as {POSTHOC}0.12"
        )


def check_players(config: Any, network: str) -> None:
    """Check that a config of several players sets nothing that only one network takes.

    Args:
        network: that sees whole batches, for the error.

    Raises:
        ValueError: a batch is computed in parts, gradients are taken at rounded parameters, or an
            optimizer is schedule-free.
    """
    for player, fields in config.optimizer.items():
        if fields["name"].startswith("schedule_free"):
            raise ValueError(
                f"config.optimizer.{player}.name is {fields['name']!r}, which averages by itself, "
                f"and a {config.task} is not sampled by that average: take 'adamw' or another"
            )
    if config.accumulation_steps != 1:
        raise ValueError(f"config.accumulation_steps must be 1 for {network} whole batches")
    if dtype := config.get("params_dtype"):
        raise ValueError(
            f"config.params_dtype is {dtype!r}, but a {config.task} is trained at its parameters "
            "themselves"
        )


def first_averages(averages: Averages, new: PyTree) -> dict[str, PyTree]:
    """Return the averages before any update: copies of the first parameters."""
    return {name: jax.tree.map(jnp.copy, new) for name, _ in averages}


def update_averages(
    averages: Averages, old: Mapping, new: PyTree, step: Int[Array, ""]
) -> dict[str, PyTree]:
    """Return the averages with the parameters after one more update taken in."""
    return {name: update_average(old[name], new, step, rule) for name, rule in averages}


@flax.struct.dataclass
class Player:
    """One network of several that are trained together.

    Attributes:
        params: what its optimizer changes.
        kept: what else it keeps: batch statistics, a moving average of w, noise images.
    """

    params: PyTree
    kept: PyTree
    optimizer_state: PyTree

    @classmethod
    def create(
        cls, variables: Mapping[str, PyTree], optimizer: optax.GradientTransformation
    ) -> "Player":
        kept = dict(variables)
        params = kept.pop("params")
        return cls(params, kept, optimizer.init(params))

    @property
    def variables(self) -> dict[str, PyTree]:
        return {"params": self.params, **self.kept}

    @staticmethod
    def is_sampled_from(path: str, weights: str, sampled: str) -> bool:
        """Return whether an array of the players' state is read, optimizers' states aside.

        Args:
            sampled: the player that samples by its averages, or else by its own variables.
        """
        first, *others = path.split("/")
        if first == "averages":
            return weights == others[0] or weights.startswith(POSTHOC)
        return (first != sampled or weights == "params") and "optimizer_state" not in others[:1]

    def step(
        self, optimizer: optax.GradientTransformation, gradients: PyTree, kept: PyTree
    ) -> tuple["Player", PyTree]:
        """Return the player after a step along the gradients, and the update made."""
        updates, optimizer_state = optimizer.update(gradients, self.optimizer_state, self.params)
        return Player(optax.apply_updates(self.params, updates), kept, optimizer_state), updates


@flax.struct.dataclass
class State:
    """The state of one trained network."""

    step: Int[Array, ""]
    params: PyTree
    optimizer_state: PyTree
    averages: dict[str, PyTree]

    def weights(self, name: str) -> PyTree:
        """Return "params" (of a schedule-free optimizer, its average) or one of the averages."""
        if name == "params":
            return evaluation_params(self.optimizer_state, self.params)
        return self.averages[name]


def is_sampled_from(path: str, weights: str) -> bool:
    """Return whether sampling by these weights reads an array of a `State`.

    A schedule-free optimizer keeps the parameters to sample from in its own state.
    """
    first, *others = path.split("/")
    if first == "averages":
        return weights == others[0] or weights.startswith(POSTHOC)
    return weights == "params" or first not in ("params", "optimizer_state")


@dataclass(frozen=True)
class Optimization:
    """How one network is optimized: the rule, its schedule, averages, and parts of a batch.

    Attributes:
        accumulation_steps: parts of a batch that are computed one after the other.
        params_dtype: "bfloat16" takes gradients at rounded copies of float32 parameters.
    """

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averages: Averages
    accumulation_steps: int
    params_dtype: str | None

    @classmethod
    def from_config(cls, config: Any) -> "Optimization":
        """Return the optimization of a config.

        Raises:
            ValueError: a name does not exist, or `params_dtype` is not one of the choices.
        """
        dtype = config.get("params_dtype")
        if dtype not in (None, "bfloat16"):
            raise ValueError(
                f"config.params_dtype is {dtype!r}; take 'bfloat16', or none for the parameters "
                "themselves"
            )
        averages = make_averages(config)
        is_free = config.optimizer.name.startswith("schedule_free")
        if is_free and config.sampling.weights != "params":
            raise ValueError(
                f"config.optimizer.name is {config.optimizer.name!r}, which averages by itself: "
                "set config.sampling.weights to 'params', which are that average"
            )
        optimizer, schedule = make_optimizer(**config.optimizer, num_steps=config.num_steps)
        return cls(optimizer, schedule, averages, config.accumulation_steps, dtype)

    def first_state(self, params: PyTree) -> State:
        return State(
            step=jnp.int32(0),
            params=params,
            optimizer_state=self.optimizer.init(params),
            averages=first_averages(self.averages, params),
        )

    def step(
        self, state: State, loss: Callable, *args: PyTree
    ) -> tuple[State, PyTree, dict[str, Float[Array, ""]]]:
        """Return the state after a step down a loss, what the loss measured, and metrics.

        Fields that a task's own state adds to those of `State` stay as they are.

        Args:
            loss: `loss(params, *args) -> (loss, measured)`.
        """
        rounded = at_rounded(loss, self.params_dtype)
        gradient_of = value_and_gradient(rounded, self.accumulation_steps)
        (value, measured), gradients = gradient_of(state.params, *args)
        updates, optimizer_state = self.optimizer.update(
            gradients, state.optimizer_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        evaluated = evaluation_params(optimizer_state, params)
        averages = update_averages(self.averages, state.averages, evaluated, state.step)
        # XLA computes the update, the averages and the norms of its inputs and outputs in one pass
        # over memory, if the last of these norms reads the averages. Norms of `updates`, which are
        # neither, would not be part of that pass, so take new minus old parameters.
        changes = jax.tree.map(
            lambda new, old, *averages: new - old + 0 * sum(averages),
            params,
            state.params,
            *averages.values(),
        )
        metrics = {
            "loss": value,
            "learning_rate": self.schedule(state.step),
            **group_norms("norm/gradient", gradients),
            **group_norms("norm/parameter", params),
            **group_norms("norm/update", changes),
        }
        state = state.replace(
            step=state.step + 1, params=params, optimizer_state=optimizer_state, averages=averages
        )
        return state, measured, metrics


class OneNetwork:
    """What tasks share that train one `network` by an `optimization`, from `State` to `State`."""

    @property
    def averages(self) -> Averages:
        return self.optimization.averages

    def variables(self, state: State, weights: str) -> dict[str, PyTree]:
        return {"params": state.weights(weights)}

    def networks(self, state: State, weights: str) -> dict[str, dict[str, PyTree]]:
        return {"network": {"params": state.weights(weights)}}

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        return self.optimization.first_state(networks["network"]["params"])

    is_sampled_from = staticmethod(is_sampled_from)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return []  # the loss tells
