"""Grids `[times frames]`, in which every frame walks a grid of its own (diffusion forcing)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.diffusion.processes import Process, expand

Times = Float[Array, " times"]


def framewise(
    table: Callable[..., Any],
    process: Process,
    times: Float[Array, " times *frames"],
    options: dict,
) -> Any:
    """Return a sampler's table for a grid in which each frame waits while its time stays the same.

    A frame's coefficients are those of its own grid, without the steps in which it waits. So if the
    network treats each frame separately, a frame's sample equals that of a run with this frame
    alone. Two things still count the steps of the whole grid: the groups of `on_grid`, and the
    churn per step of `edm_stochastic`.

    While a frame waits, its network time lies in the process' domain, even if the clean end lies
    outside.

    Args:
        table: `(process, times, …) -> Table`. Times are NaN where a frame's own grid has not begun.

    Raises:
        ValueError: the sampler does not walk its grid step by step, or it draws noise from a
            Brownian path.
    """
    num_steps, frames, steps = len(times) - 1, times.shape[1:], None

    def frame_rows(times):
        nonlocal steps
        early_grid, late_grid, step, delay = _frame_grids(times)
        early, late = (table(process, grid, **options) for grid in (early_grid, late_grid))
        if early.path is not None and frames:
            raise ValueError(
                f"{table.__name__} draws noise by one time for all frames, so it takes a grid "
                "[steps + 1]; got a grid [steps + 1 frames]"
            )
        count, steps = len(early.times), early.step
        per_step = 1 if steps is None else np.sum(steps == 0)
        if not 0 <= num_steps * per_step - count < per_step:
            raise ValueError(
                f"{table.__name__} goes back and forth in time, so it takes one array and a grid "
                "[steps + 1]"
            )
        repeat_rows = lambda a: jnp.repeat(a, per_step)[:count]
        stage = np.arange(count) % per_step
        first, last = (repeat_rows(a) * per_step + stage for a in (step, step + delay))
        # The last step may have fewer rows.
        waits = repeat_rows(times[1:] == times[:-1]) | (last >= count)
        # Only the grid that ends with the frame's last step treats this step as the last one. Only
        # the grid that begins with the frame's first step knows what a step needs from the step
        # before.
        fill = lambda late, early: jnp.where(jnp.isnan(late[last]), early[first], late[last])
        rows = jax.tree.map(fill, *(rows._replace(step=None) for rows in (late, early)))
        # An unused coefficient may be infinite, which would make gradients NaN.
        rows = jax.tree.map(lambda column: jnp.where(expand(waits, column), 0, column), rows)
        network_times = jnp.where(waits, repeat_rows(times[1:]), rows.times)
        return rows._replace(times=jnp.clip(network_times, *process.domain), waits=waits)

    rows = jax.vmap(frame_rows, in_axes=1, out_axes=-1)(times.reshape(num_steps + 1, -1))
    rows = jax.tree.map(lambda column: column.reshape(*column.shape[:-1], *frames), rows)
    return rows._replace(step=steps)


def _frame_grids(times: Times) -> tuple[Times, Times, Int[Array, " times-1"], Int[Array, ""]]:
    """Return a frame's own grid twice: followed by its last time, and preceded by NaN.

    Both have as many times as the whole grid. Also return the place of every step in the first
    grid, and by how many places the second grid is later.
    """
    moves = times[1:] != times[:-1]
    delay = jnp.sum(~moves)
    index = np.arange(len(times))
    own = jnp.append(times[0], times[1:][jnp.argsort(~moves, stable=True)])
    early = jnp.where(index < len(times) - delay, own, times[-1])
    late = jnp.where(index < delay, jnp.nan, jnp.roll(early, delay))
    return early, late, jnp.maximum(jnp.cumsum(moves) - 1, 0), delay
