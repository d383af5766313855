"""Time grids to sample on: `(process, num_steps, …) -> times`, num_steps + 1 of them, noise end first.

Where the process' clean end lies outside the domain that its network knows (EDM: sigma = 0), a grid has num_steps
times in the domain, and then the clean end.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process, shift_time, to_domain


def _falling(process: Process, num_steps: int) -> Float[Array, " in_domain"]:
    """From 1 to 0 in equal steps: the grid's times in the domain, before anything is done to them.

    Raises:
        ValueError: `num_steps` is not a positive integer.
    """
    if num_steps < 1:
        raise ValueError(f"sampling takes at least one step; got num_steps={num_steps}")
    return jnp.linspace(1.0, 0.0, num_steps + (process.clean_end == process.domain[0]))


def _ended(process: Process, times: Float[Array, " in_domain"]) -> Float[Array, " times"]:
    """The times with the clean end after them, unless it is the last of them."""
    return times if process.clean_end == process.domain[0] else jnp.append(times, process.clean_end)


def uniform_grid(process: Process, num_steps: int, shift: float = 1.0) -> Float[Array, " times"]:
    """Equal steps in t, shifted by `shift_time`."""
    return _ended(process, to_domain(process, shift_time(_falling(process, num_steps), shift)))
