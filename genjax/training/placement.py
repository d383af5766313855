"""Where a task's state and its frozen networks live on a mesh."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from genjax.devices.mesh import variable_sharding


def _sharding(path: tuple, a: Any, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of one array of a state, by its place there."""
    return variable_sharding(mesh)(jax.tree_util.keystr(path, simple=True, separator="/"), a.shape)


def abstract_state(task: Any, key: jax.Array, mesh: Mesh | AbstractMesh) -> Any:
    """Return shapes, types and shardings of `task.init(key)`, without allocating anything."""

    def abstract(path, a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_sharding(path, a, mesh))

    return jax.tree.map_with_path(abstract, jax.eval_shape(task.init, key))


def init_state(task: Any, key: jax.Array, mesh: Mesh) -> Any:
    """Return `task.init(key)`, of which each device makes only its own part."""

    def init(key):  # Python makes a method anew at each use, and JAX keeps traces by function
        return task.init(key)

    with jax.set_mesh(mesh):
        shardings = jax.tree.map_with_path(
            lambda path, a: _sharding(path, a, mesh), jax.eval_shape(init, key)
        )
        return jax.jit(init, out_shardings=shardings)(key)


def place_frozen(task: Any, mesh: Mesh) -> tuple:
    """Load `task.frozen()`, split over the devices as a state is; nothing for a task without it."""
    if not hasattr(task, "frozen"):
        return ()
    return jax.tree.map_with_path(
        lambda path, a: jax.device_put(a, _sharding(path, a, mesh)), task.frozen()
    )


def abstract_frozen(task: Any, mesh: Mesh | AbstractMesh) -> tuple:
    """Return shapes, types and shardings of what `place_frozen` places.

    Loads nothing if the task has `abstract_frozen`.
    """
    if not hasattr(task, "frozen"):
        return ()
    loaded = task.abstract_frozen() if hasattr(task, "abstract_frozen") else task.frozen()
    return jax.tree.map_with_path(
        lambda path, a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_sharding(path, a, mesh)),
        loaded,
    )
