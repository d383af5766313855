"""Restart: add noise again on the way, so that a method forgets the errors it has made."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import quotient, root
from genjax.diffusion.samplers.runge_kutta import edm_heun
from genjax.diffusion.samplers.tables import Table, cut, join, sampler


def renoising(
    process: Process, low: Float[Array, " *frames"], high: Float[Array, " *frames"]
) -> tuple[Float[Array, " *frames"], Float[Array, " *frames"]]:
    """Return the factor of the state and the deviation of the noise that lead to time `high`."""
    scale = quotient(process.alpha(high), process.alpha(low))
    kept = scale * process.sigma(low)
    # A compiler may round a difference of equal squares below 0, whose root is NaN.
    return scale, root(jnp.maximum((process.sigma(high) - kept) * (process.sigma(high) + kept), 0))


def noised(
    table: Table, process: Process, low: Float[Array, " *frames"], high: Float[Array, " *frames"]
) -> Table:
    """Return the table with noise first, from the distribution at time `low` to that at `high`.

    The state becomes alpha_high/alpha_low·x + √(sigma_high² − (alpha_high/alpha_low·sigma_low)²)·ξ.
    """
    scale, added = renoising(process, low, high)
    churn = jnp.zeros_like(table.times).at[0].set(added)
    return table._replace(churn=churn, churn_state=jnp.ones_like(table.times).at[0].set(scale))


@sampler
def restart(
    process: Process, times: Float[Array, " times"], first: int, last: int, repeats: int = 1
) -> Table:
    """Repeat Heun's steps first, …, last − 1 from new noise (Xu et al. 2023, algorithm 1).

    At times[last] noise leads back up to times[first], and the steps between are taken again,
    `repeats` times (the paper's K). So t_max is times[first] and t_min is times[last]. The steps
    are those of `edm_heun`. The authors' program takes Karras' steps from t_max to t_min instead,
    and scales the noise by `S_noise`. For another interval or another method, combine `join`, `cut`
    and `noised` as here.

    Raises:
        ValueError: not 0 <= first < last <= steps of the grid, or `repeats` is negative.
    """
    num_steps = len(times) - 1
    if not 0 <= first < last <= num_steps or repeats < 0:
        raise ValueError(
            f"restart takes 0 <= first < last <= {num_steps}, the number of steps, and repeats of "
            f"0 or more; got first={first}, last={last}, repeats={repeats}"
        )
    whole = edm_heun.table(process, times)
    again = noised(cut(whole, first, last), process, times[last], times[first])
    rest = [cut(whole, last, num_steps)] if last < num_steps else []
    return join(cut(whole, 0, last), *[again] * repeats, *rest)
