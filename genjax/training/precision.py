"""Networks that compute with rounded copies of parameters that stay float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from genjax.devices.mesh import variable_path, variable_sharding


def rounded(params: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
    """Return copies in `dtype` of the float32 arrays of `params`.

    Each is split over the mesh in use (`jax.set_mesh`) as the state's array of the same name.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sharding_of = variable_sharding(mesh)

    def copy(path, a):
        if a.dtype != jnp.float32:
            return a
        a = a.astype(dtype)
        if mesh.empty:
            return a
        sharding = sharding_of(variable_path(path), a.shape)
        return jax.lax.with_sharding_constraint(a, sharding)

    return jax.tree.map_with_path(copy, params)


def at_rounded(loss: Callable, dtype: jax.typing.DTypeLike | None) -> Callable:
    """Return `loss(params, …)` at `rounded` parameters; `loss` itself for a `dtype` of None.

    The rounding is no part of the derivative: gradients are those of the copies, float32 again. An
    optimizer and averages that keep float32 parameters do not lose updates that are too small for
    the copies (Micikevicius et al. 2018, "Mixed precision training", section 3.1). All copies are
    made before the first layer, and both passes read half of the bytes, also of what is computed
    again. Devices send as much as before. Layers that compute in bfloat16 are gathered over `fsdp`
    in it anyway, and XLA gathers those that compute in float32 once they are float32 again.
    """
    if dtype is None:
        return loss
    return lambda params, *args: loss(rounded(params, dtype), *args)
