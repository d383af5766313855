"""Samples of a trained task, as data."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import PyTree

from genjax.devices.mesh import compiler_options, replicated
from genjax.training.ema import PowerFunction
from genjax.training.posthoc import Snapshots
from genjax.training.progress import ProgressBar
from genjax.training.task import GenerativeTask

POSTHOC = "posthoc_"


def mesh_of(state: Any) -> Mesh:
    """Return the mesh of a state on several devices, or a mesh of one device for other states."""
    sharding = jax.tree.leaves(state)[0].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))


@functools.cache
def sampling_program(task: GenerativeTask, weights: str, trajectory: bool, mesh: Mesh):
    """Return the compiled program that samples: one per task and shape.

    Labels, seed and all else that `config.sampling` says are arguments of the program. Every
    process gets all samples; the devices share the work.
    """

    def generate(*args):
        return task.space.to_data(task.generate(*args, weights=weights, trajectory=trajectory))

    options = dict(out_shardings=replicated(mesh), compiler_options=compiler_options(mesh))
    return jax.jit(generate, **options)


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items, each once the next has been made: so devices work while the host waits."""
    items = iter(items)
    for item in items:
        for following in items:
            yield item
            item = following
        yield item


def sample(
    task: GenerativeTask, state: Any, labels: np.ndarray, sampling: Any, *, trajectory: bool = False
) -> PyTree[np.ndarray]:
    """Return samples in the form of the data: for images uint8 `[labels height width channels]`.

    Sound and video together are a tree.

    Args:
        labels: the class or prompt number of each sample, `[labels]`.
        sampling: `seed`, `weights` and what the task's `sampling_inputs` reads. `batch_size` is how
            many samples are made at once at most, 500 if absent; it does not change the samples.
        trajectory: return states at all times, `[times labels …]`.
    """
    labels = np.asarray(labels, np.int32)
    mesh = mesh_of(state)
    batch_size = min(getattr(sampling, "batch_size", 500), len(labels))
    batch_size += -batch_size % mesh.size
    padded = np.pad(labels, (0, -len(labels) % batch_size))  # one shape, one compilation
    inputs = task.sampling_inputs(sampling)
    generate = sampling_program(task, sampling.weights, trajectory, mesh)
    starts, batches = range(0, len(padded), batch_size), []
    with jax.set_mesh(mesh), ProgressBar("sampling", 0, len(padded), "samples") as progress:
        rows = [np.arange(start, start + batch_size) for start in starts]
        key = jax.random.key(sampling.seed)
        made = (generate(state, key, padded[part], part, *inputs) for part in rows)
        for done, batch in zip(starts, one_ahead(made), strict=True):
            batches.append(jax.tree.map(np.asarray, batch))
            progress.update(done + batch_size)
    join = lambda *parts: np.concatenate(parts, axis=1 if trajectory else 0)
    cut = lambda a: a[:, : len(labels)] if trajectory else a[: len(labels)]
    return jax.tree.map(lambda *parts: cut(join(*parts)), *batches)


def power_averages(task: Any, state: Any) -> dict[float, Any]:
    """Return the averages from which any other width can be reconstructed, by their widths."""
    rules = task.averages
    return {
        rule.width: state.averages[name] for name, rule in rules if isinstance(rule, PowerFunction)
    }


def add_posthoc(task: Any, state: Any, weights: str, snapshots: Snapshots) -> Any:
    """Return the state with the average that `weights` names, "posthoc_WIDTH".

    It is reconstructed from snapshots. With any other weights, return the state as it is.
    """
    if not weights.startswith(POSTHOC):
        return state
    width = float(weights.removeprefix(POSTHOC))
    average = snapshots.reconstruct(int(state.step), power_averages(task, state), width)
    return state.replace(averages=state.averages | {weights: average})
