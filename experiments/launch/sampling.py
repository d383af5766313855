"""Samples of a trained task, as bytes."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Float

from experiments.launch.opening import bind
from genjax.devices.mesh import replicated
from genjax.diffusion import Process, grids
from genjax.training import Snapshots, ema
from genjax.training.ema import HalfLife, PowerFunction, power_of_width

POSTHOC = "posthoc_"
SHOWN_CLASSES = 32  # of a picture


def make_averages(config: Any) -> tuple[tuple[str, HalfLife | PowerFunction], ...]:
    """The rules of `config.averages`, by name.

    Raises:
        ValueError: there is no such rule, or no such weights as `config.sampling.weights`.
    """
    averages = {name: bind(ema, fields, f"averages.{name}")() for name, fields in config.averages.items()}
    check_weights(config.sampling.weights, averages)
    return tuple(averages.items())


def power_averages(task: Any, state: Any) -> dict[float, Any]:
    """The averages from which any other width can be reconstructed after training, by their own widths."""
    return {
        rule.width: state.averages[name] for name, rule in task.averages if isinstance(rule, PowerFunction)
    }


def check_weights(weights: str, averages: Mapping[str, Any]) -> None:
    """Raises ValueError if there are no such weights to sample from.

    Args:
        averages: the rules of those that are tracked, by name.
    """
    there = ("params", *averages)
    if weights.startswith(POSTHOC) and any(isinstance(rule, PowerFunction) for rule in averages.values()):
        power_of_width(float(weights.removeprefix(POSTHOC)))
    elif weights not in there:
        raise ValueError(
            f"config.sampling.weights is {weights!r}; there are {', '.join(there)}, and, if config.averages has a "
            f"PowerFunction, {POSTHOC}WIDTH, as {POSTHOC}0.12"
        )


def add_posthoc(task: Any, state: Any, weights: str, snapshots: Snapshots) -> Any:
    """The state with the average that `weights` ("posthoc_<width>") asks for, reconstructed from the run's
    snapshots until now; with any other weights, the state as it is."""
    if not weights.startswith(POSTHOC):
        return state
    width = float(weights.removeprefix(POSTHOC))
    average = snapshots.reconstruct(int(state.step), power_averages(task, state), width)
    return state.replace(averages=state.averages | {weights: average})


def described(fields: Mapping[str, Any]) -> str:
    """What a config names with its arguments, as one would call it: "ddim(eta=0.5)"."""
    arguments = ", ".join(f"{name}={value}" for name, value in fields.items() if name != "name")
    return f"{fields['name']}({arguments})" if arguments else fields["name"]


def time_grid(process: Process, sampling: Any) -> Float[Array, " times"]:
    """The grid of `sampling.num_steps` steps that `sampling.grid` names, noise end first.

    Raises:
        ValueError: there is no such grid, or it cannot be made.
    """
    return bind(grids, sampling.grid, "sampling.grid")(process, sampling.num_steps)


def evaluation_times(sampler: functools.partial, process: Process, times: Float[Array, " times"]) -> Array:
    """The times at which a sampler, bound to its options, evaluates the network: as many as there are evaluations.

    Of one that has no table of coefficients, only those of the grid are known.
    """
    table = getattr(sampler.func, "table", None)
    return table(process, times, **sampler.keywords).times if table else times[:-1]


def mesh_of(state: Any) -> Mesh:
    """That of a state on several devices; one device for others."""
    sharding = jax.tree.leaves(state)[0].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))


@functools.cache
def sampling_program(task: Any, weights: str, trajectory: bool, mesh: Mesh):
    """One compiled program per task and shape: labels, seed and what else `config.sampling` says are its arguments.

    Every process gets all samples; the devices share the work.
    """

    def generate(*args):
        return task.as_data(task.generate(*args, weights=weights, trajectory=trajectory))

    return jax.jit(generate, out_shardings=replicated(mesh))


def sample_images(
    task: Any,
    state: Any,
    labels: np.ndarray,
    sampling: Any,
    *,
    trajectory: bool = False,
) -> np.ndarray:
    """Samples in the form of the data, for images uint8 `[labels height width channels]`; `[times labels …]` with
    `trajectory`.

    Args:
        labels: class of each sample, `[labels]`.
        sampling: `seed`, `weights` ("params" or one of the state's averages), and what the task asks for; `batch_size`,
            samples made at once at most, 500 if it is not there: it does not change them.
    """
    labels = np.asarray(labels, np.int32)
    mesh = mesh_of(state)
    batch_size = min(getattr(sampling, "batch_size", 500), len(labels))
    batch_size += -batch_size % mesh.size
    padded = np.pad(labels, (0, -len(labels) % batch_size))  # one shape, one compilation
    inputs = task.sampling_inputs(sampling)
    generate = sampling_program(task, sampling.weights, trajectory, mesh)
    with jax.set_mesh(mesh):
        batches = [
            generate(
                state,
                jax.random.key(sampling.seed),
                padded[start : start + batch_size],
                np.arange(start, start + batch_size),
                *inputs,
            )
            for start in range(0, len(padded), batch_size)
        ]
    images = np.concatenate([np.asarray(batch) for batch in batches], axis=1 if trajectory else 0)
    return images[:, : len(labels)] if trajectory else images[: len(labels)]


def shown_classes(num_classes: int) -> np.ndarray:
    """All classes, or, of more than `SHOWN_CLASSES`, at most so many, equally far from each other."""
    return np.arange(num_classes)[:: -(-num_classes // SHOWN_CLASSES)]


def class_rows(num_classes: int, per_class: int) -> np.ndarray:
    """Labels of a picture with a row for each of the `shown_classes`."""
    return np.repeat(shown_classes(num_classes), per_class)
