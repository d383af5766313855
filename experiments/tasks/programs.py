"""Compiled programs of trained tasks, which evaluators call."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from genjax.devices.mesh import replicated


@functools.cache
def _jitted(mesh: Mesh, function: Callable, *parts: Any) -> Callable:
    return jax.jit(functools.partial(function, *parts), out_shardings=replicated(mesh))


def on_mesh(mesh: Mesh, function: Callable, *parts: Any) -> Callable[..., PyTree]:
    """Return `function(*parts, *arrays)` of the arrays, which is compiled once for equal parts.

    Every process gets all results; the devices share the work.

    Args:
        function: of a module. Another function, even if equal, would compile again.
        parts: what can be hashed, such as a task.
    """

    def call(*arrays: PyTree) -> PyTree:
        with jax.set_mesh(mesh):
            return _jitted(mesh, function, *parts)(*arrays)

    return call


def in_float32(network: nn.Module) -> nn.Module:
    """Return a network that computes in float32, for measures of small differences."""
    return network.clone(dtype=jnp.float32) if hasattr(network, "dtype") else network
