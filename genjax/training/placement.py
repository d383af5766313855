"""Where a task's state and its frozen networks live on a mesh."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from genjax.devices.mesh import state_sharding


def _abstract(arrays: Any, mesh: Mesh | AbstractMesh) -> Any:
    of = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.tree.map(of, arrays, state_sharding(arrays, mesh))


def abstract_state(task: Any, key: jax.Array, mesh: Mesh | AbstractMesh) -> Any:
    """Return shapes, types and shardings of `task.init(key)`, without allocating anything."""
    return _abstract(jax.eval_shape(task.init, key), mesh)


def init_state(task: Any, key: jax.Array, mesh: Mesh) -> Any:
    """Return `task.init(key)`, of which each device makes only its own part."""

    def init(key):  # Python makes a method anew at each use, and JAX keeps traces by function
        return task.init(key)

    with jax.set_mesh(mesh):
        shardings = state_sharding(jax.eval_shape(init, key), mesh)
        return jax.jit(init, out_shardings=shardings)(key)


def place_frozen(task: Any, mesh: Mesh) -> tuple:
    """Load `task.frozen()`, split over the devices as a state is; nothing for a task without it."""
    if not hasattr(task, "frozen"):
        return ()
    frozen = task.frozen()
    return jax.tree.map(jax.device_put, frozen, state_sharding(frozen, mesh))


def abstract_frozen(task: Any, mesh: Mesh | AbstractMesh) -> tuple:
    """Return shapes, types and shardings of what `place_frozen` places.

    Loads nothing if the task has `abstract_frozen`.
    """
    if not hasattr(task, "frozen"):
        return ()
    loaded = task.abstract_frozen() if hasattr(task, "abstract_frozen") else task.frozen()
    return _abstract(loaded, mesh)
