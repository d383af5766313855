"""What all linear samplers share: a table of coefficients, and the one `lax.scan` over its rows.

Every step of every sampler here is a linear combination of the state, of the two halves x̂ and ẑ of the
predictions made so far, and of fresh noise. Its coefficients depend on the times alone. So a sampler is a function
`(process, times, …) -> Table`, made callable by `sampler`; the network appears once in the compiled program, and
a grid of equal length never compiles anew if the times are an argument of what is jitted.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Prediction

Denoiser = Callable[[Float[Array, " batch *shape"], Float[Array, " batch"]], Prediction]
Rows = Float[Array, " rows"]
History = Float[Array, " rows history"]


class Table(NamedTuple):
    """The coefficients of a sampler: a row for each evaluation of the network.

    A row evaluates the denoiser at the point y, at `times`, and then moves on:

        x ← state·x + Σ_j clean[j]·x̂[j] + Σ_j noise[j]·ẑ[j] + fresh·ξ
        y ← stage_state·x + Σ_j stage_clean[j]·x̂[j] + Σ_j stage_noise[j]·ẑ[j]

    with x the state, ξ ~ N(0, I), and predictions j evaluations old, j = 0 the one just made. Without `stage_…`
    y is x. If `churn` is given, both become churn_state·(…) + churn·ξ before the evaluation. A row with `langevin` goes
    on with Langevin's step, x ← x + 2·langevin_sigma·q·(ξ − q·ẑ), q = langevin·‖ξ‖/‖ẑ‖ with the norms of each sample:
    the one thing here that is not linear. What a sampler does not use stays None. After every `rows_per_step` rows,
    and the last, x is the state at a time of the grid.
    """

    times: Rows
    state: Rows | None = None
    clean: History | None = None
    noise: History | None = None
    fresh: Rows | None = None
    largest: Rows | None = (
        None  # deviation of the noise where a learned variance is largest, `fresh` being the least
    )
    stage_state: Rows | None = None
    stage_clean: History | None = None
    stage_noise: History | None = None
    churn: Rows | None = None
    churn_state: Rows | None = None
    langevin: Rows | None = None
    langevin_sigma: Rows | None = None
    rows_per_step: int = 1


def check_grid(process: Process, times: Float[Array, " times"]) -> None:
    """Raises ValueError on a grid that is no list of two times or more, or leaves the process' domain.

    Traced times have no values to check: check their grid before it is traced.
    """
    if jnp.ndim(times) != 1 or len(times) < 2:
        raise ValueError(
            f"a time grid has shape [steps + 1], one step at least; got shape {jnp.shape(times)}"
        )
    if isinstance(times, jax.core.Tracer):
        return
    first, last = sorted((process.clean_end, process.domain[1]))
    values = np.asarray(times)  # numpy: under jit, jnp would trace even a constant
    low, high = values.min(), values.max()
    margin = 1e-6 * (last - first)  # float32 rounds the ends of a domain
    if not (first - margin <= low and high <= last + margin):  # NaN too
        raise ValueError(
            f"the time grid runs from {low:g} to {high:g}, but {type(process).__name__} has times from {first:g} to "
            f"{last:g}; make a grid of genjax.diffusion.grids for this process"
        )


def _sum(terms: list[Array], like: Array) -> Array:
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(like)


def run(
    denoiser: Denoiser,
    noise: Float[Array, " batch *shape"],
    table: Table,
    keys: Key[Array, " batch"] | None = None,
    *,
    trajectory: bool = False,
) -> Float[Array, " batch *shape"] | Float[Array, " times batch *shape"]:
    """Starts at `noise` and works through the table.

    Args:
        denoiser: `(x_t, t) -> Prediction`. One with an attribute `initial_memory(noise)` is called as
            `(x_t, t, memory) -> (Prediction, memory)`, and its memory is handed from row to row.
        keys: one per sample, of which each row folds its own; None if the table draws no noise.
        trajectory: return the states at all times of the grid, the noise first.

    Raises:
        ValueError: the table draws noise and there are no keys.
    """
    rows = table._replace(rows_per_step=None)
    if keys is None and not (table.fresh is None and table.churn is None):
        raise ValueError("this sampler draws noise at every step: give it keys, one per sample (sample_keys)")

    def length(*columns):
        return max((column.shape[1] for column in columns if column is not None), default=0)

    def draw(index):
        one = lambda key: jax.random.normal(jax.random.fold_in(key, index), noise.shape[1:], noise.dtype)
        return jax.vmap(one)(keys)

    norm = lambda a: jnp.sqrt(jnp.sum(jnp.square(a), axis=range(1, a.ndim)))
    quotient = lambda a, b: jnp.where(
        b > 0, a / jnp.where(b > 0, b, 1), 0
    )  # without a score there is no step

    def combine(coefficients, history):
        if coefficients is None:
            return []
        return [coefficients[j] * history[j] for j in range(coefficients.shape[0])]

    def body(carry, numbered):
        (x, y, cleans, noises, memory), (index, row) = carry, numbered
        if row.churn is not None:
            change = row.churn * draw(2 * index)
            x, y = row.churn_state * x + change, row.churn_state * y + change
        prediction = denoiser(y, jnp.full(y.shape[:1], row.times), *memory)
        if memory:
            prediction, *memory = prediction
        cleans = (prediction.clean, *cleans)[: len(cleans)]
        noises = (prediction.noise, *noises)[: len(noises)]
        kept = [] if row.state is None else [row.state * x]
        x = _sum(kept + combine(row.clean, cleans) + combine(row.noise, noises), x)
        if row.fresh is not None:
            deviation = row.fresh
            if prediction.variance is not None and row.largest is not None:
                deviation = row.fresh ** (1 - prediction.variance) * row.largest**prediction.variance
            xi = draw(2 * index + 1)
            x = x + deviation * xi
            if row.langevin is not None:
                q = expand(row.langevin * quotient(norm(xi), norm(prediction.noise)), x)
                x = x + 2 * row.langevin_sigma * q * (xi - q * prediction.noise)
        y = x
        if row.stage_state is not None:
            y = row.stage_state * x
            y = _sum([y] + combine(row.stage_clean, cleans) + combine(row.stage_noise, noises), x)
        return (x, y, cleans, noises, tuple(memory)), x if trajectory else None

    zeros = jnp.zeros_like(noise)
    start = (
        noise,
        noise,
        (zeros,) * length(table.clean, table.stage_clean),
        (zeros,) * length(table.noise, table.stage_noise),
        (denoiser.initial_memory(noise),) if hasattr(denoiser, "initial_memory") else (),
    )
    rows = jax.tree.map(lambda column: column.astype(noise.dtype), rows)
    (x, *_), states = jax.lax.scan(body, start, (jnp.arange(len(table.times)), rows))
    if not trajectory:
        return x
    per_step = table.rows_per_step
    ends = states[per_step - 1 :: per_step]
    if len(states) % per_step:  # a last step with fewer evaluations
        ends = jnp.concatenate([ends, states[-1:]])
    return jnp.concatenate([noise[None], ends])


def sampler(table: Callable[..., Table]) -> Callable:
    """Makes a sampler of a function `(process, times, …) -> Table`, which stays its attribute `table`.

    The sampler is called as `(denoiser, process, noise, times, *, keys=None, trajectory=False, …)`, where the rest are
    the table's own options, and returns samples like `noise`, or with `trajectory` the states at all times.
    """

    def sample(
        denoiser: Denoiser,
        process: Process,
        noise: Float[Array, " batch *shape"],
        times: Float[Array, " times"],
        *,
        keys: Key[Array, " batch"] | None = None,
        trajectory: bool = False,
        **options: Any,
    ) -> Float[Array, " batch *shape"] | Float[Array, " states batch *shape"]:
        check_grid(process, times)
        rows = table(process, times, **options)
        draws = not (rows.fresh is None and rows.churn is None)
        if draws and not isinstance(times, jax.core.Tracer) and np.any(np.diff(times) > 0):
            raise ValueError(
                f"{table.__name__} draws noise, which leads from noise to data only, but the times of the grid rise; "
                "invert with a sampler that draws none (ddim with eta=0, heun, …)"
            )
        return run(denoiser, noise, rows, keys, trajectory=trajectory)

    common = [p for p in inspect.signature(sample).parameters.values() if p.kind != p.VAR_KEYWORD]
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in list(inspect.signature(table).parameters.values())[2:]]
    functools.update_wrapper(sample, table)
    sample.__signature__ = inspect.Signature(common + own)
    sample.table = table
    return sample
