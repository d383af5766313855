"""Restart: noise added again on the way makes a method forget the errors that it has made."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import root
from genjax.diffusion.samplers.runge_kutta import edm_heun
from genjax.diffusion.samplers.tables import Table, cut, join, sampler


def noised(
    table: Table, process: Process, low: Float[Array, " *frames"], high: Float[Array, " *frames"]
) -> Table:
    """Return the table with noise first, which leads from the law at time `low` to that at `high`.

    The state becomes alpha_high/alpha_low·x + √(sigma_high² − (alpha_high/alpha_low·sigma_low)²)·ξ.
    """
    scale = process.alpha(high) / process.alpha(low)
    added = root(process.sigma(high) ** 2 - (scale * process.sigma(low)) ** 2)
    churn = jnp.zeros_like(table.times).at[0].set(added)
    return table._replace(churn=churn, churn_state=jnp.ones_like(table.times).at[0].set(scale))


@sampler
def restart(
    process: Process, times: Float[Array, " times"], first: int, last: int, repeats: int = 1
) -> Table:
    """Repeat Heun's steps first, …, last − 1 from new noise (Xu et al. 2023, algorithm 1).

    From times[last] noise leads up to times[first], and the steps between are taken again,
    `repeats` times over (the paper's K). So t_max is times[first] and t_min times[last]; see
    `edm_heun` for the steps. Another interval or another method within is one more line of `join`,
    `cut` and `noised`.

    Raises:
        ValueError: not 0 <= first < last <= steps of the grid, or `repeats` is negative.
    """
    num_steps = len(times) - 1
    if not 0 <= first < last <= num_steps or repeats < 0:
        raise ValueError(
            f"restart takes 0 <= first < last <= {num_steps}, the steps of the grid, and repeats from 0; "
            f"got first={first}, last={last}, repeats={repeats}"
        )
    whole = edm_heun.table(process, times)
    again = noised(cut(whole, first, last), process, times[last], times[first])
    rest = [cut(whole, last, num_steps)] if last < num_steps else []
    return join(cut(whole, 0, last), *[again] * repeats, *rest)
