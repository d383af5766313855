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
from jaxtyping import Array, Bool, Float, Key, PyTree

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.frames import framewise
from genjax.diffusion.samplers.steps import State
from genjax.diffusion.targets import Prediction
from genjax.diffusion.trees import Tree, leaf_keys

Denoiser = Callable[[Tree, Tree], Prediction]
Rows = Float[Array, " rows *frames"]
History = Float[Array, " rows history *frames"]


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

    Of a grid `[times frames]` every column has a last axis `frames`, and where `waits` is true, a row changes nothing
    of that frame (`frames.framewise`).
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
    waits: Bool[Array, " rows *frames"] | None = None
    rows_per_step: int = 1


def check_grid(process: Process, times: Float[Array, " times ..."], shape: tuple[int, ...] = ()) -> None:
    """Check a grid of two times or more, `[times]`, against the process' domain.

    Traced times have no values to check: check their grid before it is traced.

    Args:
        shape: of a sample, whose first axes may have times of their own: `[times frames]`.

    Raises:
        ValueError: the grid has another shape, or leaves the domain.
    """
    frames = jnp.shape(times)[1:]
    fits = len(frames) <= len(shape) and all(a in (1, b) for a, b in zip(frames, shape, strict=False))
    if jnp.ndim(times) < 1 or not fits or len(times) < 2:
        own = f", or [steps + 1 frames …] for samples of shape {shape}" if shape else ""
        raise ValueError(
            f"a time grid has shape [steps + 1]{own}, one step at least; got shape {jnp.shape(times)}"
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


def run(
    denoiser: Denoiser,
    noise: Tree,
    table: Table | PyTree,
    keys: Key[Array, " batch"] | None = None,
    *,
    trajectory: bool = False,
    memory: PyTree | None = None,
) -> PyTree[Float[Array, " ..."]]:
    """Start at `noise` and work through the table.

    Args:
        denoiser: `(x_t, t) -> Prediction`, or `(x_t, t, memory) -> (Prediction, memory)`.
        noise: an array, or a tree of arrays. Of a tree, the denoiser is given trees x_t and t like it, in one call.
        table: one for all leaves of `noise`, or a tree of tables with equally many rows.
        keys: one per sample, of which each row folds its own; None if the table draws no noise. Every leaf draws by
            its own of `trees.leaf_keys`.
        trajectory: return the states at all times of the grid, the noise first.
        memory: of a denoiser with a memory, before the first row. Each row hands on what it
            returns.

    Raises:
        ValueError: the table draws noise and there are no keys.
    """
    is_table = lambda a: isinstance(a, Table)
    tables = jax.tree.broadcast(table, noise, is_leaf=is_table)
    first, *others = jax.tree.leaves(tables, is_leaf=is_table)
    nothing = jax.tree.map(lambda _: None, noise)
    on_leaves = lambda function, *trees: jax.tree.map(lambda _, *parts: function(*parts), noise, *trees)
    if keys is None and any(_draws(table) for table in (first, *others)):
        raise ValueError("this sampler draws noise at every step: give it keys, one per sample (sample_keys)")
    keys = nothing if keys is None else leaf_keys(keys, noise)

    def body(carry, numbered):
        (states, memory), (index, rows) = carry, numbered
        states = on_leaves(lambda state, row, keys: state.churned(row, keys, index), states, rows, keys)
        y = on_leaves(lambda state: state.y, states)
        t = on_leaves(lambda y, row: jnp.full(y.shape[:1] + row.times.shape, row.times), y, rows)
        prediction = denoiser(y, t, *memory)
        if memory:
            prediction, *memory = prediction
        variance = nothing if prediction.fraction is None else prediction.fraction
        move = lambda state, row, keys, *answer: state.moved(row, keys, index, *answer)
        states = on_leaves(move, states, rows, keys, prediction.clean, prediction.noise, variance)
        x = on_leaves(lambda state: state.x, states)
        return (states, tuple(memory)), x if trajectory else None

    start = on_leaves(State.start, noise, tables), () if memory is None else (memory,)
    rows = on_leaves(_rows, noise, tables)
    (states, _), visited = jax.lax.scan(body, start, (jnp.arange(len(first.times)), rows))
    if trajectory:
        return on_leaves(_at_grid, noise, visited, tables)
    return on_leaves(lambda state: state.x, states)


def _draws(table):
    return not (table.fresh is None and table.churn is None)


def _rows(noise, table):
    """Return the columns in the type of the noise, which are what the scan runs over."""
    cast = lambda column: column if column.dtype == bool else column.astype(noise.dtype)
    return jax.tree.map(cast, table._replace(rows_per_step=None))


def _at_grid(noise, states, table):
    """Return, of the noise and the states after all rows, those at the times of the grid."""
    per_step = table.rows_per_step
    ends = states[per_step - 1 :: per_step]
    if len(states) % per_step:  # a last step with fewer evaluations
        ends = jnp.concatenate([ends, states[-1:]])
    return jnp.concatenate([noise[None], ends])


def _check_falling(table, rows, times):
    """Raise ValueError if the rows draw noise, and the times of their grid rise."""
    if _draws(rows) and not isinstance(times, jax.core.Tracer) and np.any(np.diff(times, axis=0) > 0):
        raise ValueError(
            f"{table.__name__} draws noise, which leads from noise to data only, but the times of the grid rise; "
            "invert with a sampler that draws none (ddim with eta=0, heun, …)"
        )


def sampler(table: Callable[..., Table]) -> Callable:
    """Make a sampler of a function `(process, times, …) -> Table`, which stays its attribute `table`.

    The sampler is called as `(denoiser, process, noise, times, *, keys=None, trajectory=False,
    memory=None, …)`, where the rest are the table's own options. It returns samples like `noise`,
    or with `trajectory` the states at all times. `memory` is as of `run`.

    `noise` is an array, or a tree of arrays which step together, with one call of the denoiser. Process and times may
    be trees too, with grids of equal length. A grid is `[times]`, or `[times frames]` with a time for each frame.
    Frames, and leaves of a tree of several, wait while their time stays (`frames.framewise`).
    """

    def sample(
        denoiser: Denoiser,
        process: PyTree[Process],
        noise: Tree,
        times: PyTree[Float[Array, " ..."]],
        *,
        keys: Key[Array, " batch"] | None = None,
        trajectory: bool = False,
        memory: PyTree | None = None,
        **options: Any,
    ) -> PyTree[Float[Array, " ..."]]:
        process, times = (jax.tree.broadcast(prefix, noise) for prefix in (process, times))
        leaves = jax.tree.leaves(times)
        if len({len(times) for times in leaves if jnp.ndim(times)}) > 1:
            raise ValueError(
                f"leaves step together, so their grids have one length; got {[*map(len, leaves)]}"
            )

        def tabulate(noise, process, times):
            check_grid(process, times, noise.shape[1:])
            wait = jnp.ndim(times) > 1 or len(leaves) > 1
            rows = framewise(table, process, times, options) if wait else table(process, times, **options)
            _check_falling(table, rows, times)
            return rows

        tables = jax.tree.map(tabulate, noise, process, times)
        return run(denoiser, noise, tables, keys, trajectory=trajectory, memory=memory)

    common = [p for p in inspect.signature(sample).parameters.values() if p.kind != p.VAR_KEYWORD]
    functools.update_wrapper(sample, table)
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in list(inspect.signature(table).parameters.values())[2:]]
    sample.__signature__ = inspect.Signature(common + own)
    sample.table = table
    return sample
