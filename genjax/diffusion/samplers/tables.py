"""The common part of linear samplers: a table of coefficients, and one `lax.scan` over its rows.

A sampler's step is a linear combination of the state, the halves x̂ and ẑ of all predictions so
far, and fresh noise. The coefficients depend only on the times. So a sampler is a function
`(process, times, …) -> Table`, made callable by `sampler`. The network appears once in the compiled
program. If the times are an argument of the jitted function, a new grid of equal length never
recompiles.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from genjax.diffusion.processes import Process, check_process
from genjax.diffusion.samplers.frames import framewise
from genjax.diffusion.samplers.steps import State
from genjax.diffusion.targets import Prediction, check_prediction
from genjax.diffusion.trees import Tree, leaf_keys

Denoiser = Callable[[Tree, Tree], Prediction]
Rows = Float[Array, " rows *frames"]
History = Float[Array, " rows history *frames"]


class Table(NamedTuple):
    """The coefficients of a sampler: a row for each evaluation of the network.

    A row evaluates the denoiser at the point y, at `times`, and then moves on:

        x ← state·x + Σ_j clean[j]·x̂[j] + Σ_j noise[j]·ẑ[j] + fresh·ξ
        y ← stage_state·x + Σ_j stage_clean[j]·x̂[j] + Σ_j stage_noise[j]·ẑ[j]

    x is the state, ξ ~ N(0, I), and prediction j is j evaluations old, j = 0 the newest. Without
    `stage_…`, y is x. If `churn` is given, both x and y first become churn_state·(…) + churn·ξ,
    before the evaluation. Unused columns are None.

    If `path` is given, the ξ of `fresh` comes from a Brownian path of the sample on [0, 1]. It is
    the increment between the row's two values of `path`, over the root of their distance.

    `step` is the step of the grid that each row belongs to, in order. None means one row per step.
    After the last row of a step, x is the state at the grid's next time. `number` counts the rows
    that draw noise: rows of equal number draw equal noise for equal keys. None counts from 0. Both
    are NumPy arrays, known while tracing.

    For a grid `[times frames]` every other column has a last axis `frames`. Where `waits` is true,
    a row changes nothing of that frame (`frames.framewise`).
    """

    times: Rows
    state: Rows | None = None
    clean: History | None = None
    noise: History | None = None
    fresh: Rows | None = None
    largest: Rows | None = None  # deviation for the largest learned variance; `fresh` is the least
    stage_state: Rows | None = None
    stage_clean: History | None = None
    stage_noise: History | None = None
    churn: Rows | None = None
    churn_state: Rows | None = None
    path: Float[Array, " rows two *frames"] | None = None
    waits: Bool[Array, " rows *frames"] | None = None
    step: Int[np.ndarray, " rows"] | None = None
    number: Int[np.ndarray, " rows"] | None = None


def check_times(times: PyTree) -> None:
    """Raise ValueError unless the times are an array of floats, or a tree of such arrays."""
    for leaf in jax.tree.leaves(times):
        if jnp.ndim(leaf) == 0 or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                "times are an array of floats [steps + 1], as a grid of genjax.diffusion.grids, or "
                f"a tree of such arrays; got {times!r:.60}: give jnp.asarray(times, float)"
            )


def check_grid(
    process: Process, times: Float[Array, " times ..."], shape: tuple[int, ...] = ()
) -> None:
    """Check a time grid against the process' domain.

    Traced times have no values to check, so check their grid before it is traced.

    Args:
        times: `[times]`, at least two, or `[times frames]`.
        shape: of a sample, whose first axes may have times of their own.

    Raises:
        ValueError: the process is a class; or the grid is no array of floats, has another shape, or
            leaves the domain.
    """
    check_process(process)
    check_times(times)
    frames = jnp.shape(times)[1:]
    fits = len(frames) <= len(shape) and all(
        a in (1, b) for a, b in zip(frames, shape, strict=False)
    )
    if jnp.ndim(times) < 1 or not fits or len(times) < 2:
        own = f", or [steps + 1 frames …] for samples of shape {shape}" if shape else ""
        raise ValueError(
            f"a time grid has shape [steps + 1]{own}, at least one step; got shape "
            f"{jnp.shape(times)}"
        )
    if isinstance(times, jax.core.Tracer):
        return
    first, last = sorted((process.clean_end, process.domain[1]))
    # NumPy, because jnp would trace even a constant under jit.
    values = np.asarray(times)
    low, high = values.min(), values.max()
    margin = 1e-6 * (last - first)  # float32 rounds the ends of a domain
    if not (first - margin <= low and high <= last + margin):  # true for NaN too
        raise ValueError(
            f"the time grid runs from {low:g} to {high:g}, but {type(process).__name__} has times "
            f"from {first:g} to {last:g}; make a grid of genjax.diffusion.grids for this process"
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
            Predictions are cast to the type of the noise. Times are at least float32.
        noise: an array, or a tree. For a tree, the denoiser gets trees x_t and t, in one call.
        table: one for all leaves of `noise`, or a tree of tables with equally many rows.
        keys: one per sample, which each row folds with its number; None if the table draws no
            noise. Every leaf draws with its own key of `trees.leaf_keys`.
        trajectory: return the states at all times of the grid, the noise first.
        memory: the denoiser's memory before the first row. Each row passes on what it returns.

    Returns:
        The samples, like `noise`, or with `trajectory` the states, `[steps + 1 batch …]`.

    Raises:
        ValueError: the noise is not of floats; the table draws noise and there are no keys; keys
            are not one per sample; or the denoiser returns no `Prediction`.
    """
    noise = jax.tree.map(_as_floats, noise)
    is_table = lambda a: isinstance(a, Table)
    tables = jax.tree.broadcast(table, noise, is_leaf=is_table)
    first, *others = jax.tree.leaves(tables, is_leaf=is_table)
    _check_keys(keys, noise, [first, *others])
    map_leaves = functools.partial(_map_leaves, noise)
    if keys is not None:
        keys = leaf_keys(jax.random.clone(keys), noise)  # rows fold what the prior has drawn from
    else:
        keys = map_leaves(lambda _: None, noise)
    move = functools.partial(_move, denoiser, keys, map_leaves)
    steps = steps_of(first)

    def body(carry, row):
        states, memory, visited = carry
        states, memory = move(states, memory, *row[1:])
        if trajectory:
            visited = map_leaves(
                lambda visited, state: visited.at[row[0] + 1].set(state.x), visited, states
            )
        return (states, memory, visited), None

    empty_trajectory = lambda noise: (
        jnp.zeros((steps[-1] + 2, *noise.shape), noise.dtype).at[0].set(noise)
    )
    memory = () if memory is None else (memory,)
    start = (
        map_leaves(State.start, noise, tables),
        memory,
        map_leaves(empty_trajectory, noise) if trajectory else None,
    )
    numbers = np.arange(len(steps)) if first.number is None else first.number
    rows = jnp.asarray(steps), jnp.asarray(numbers), map_leaves(_rows, noise, tables)
    (states, _, visited), _ = jax.lax.scan(body, start, rows)
    return visited if trajectory else map_leaves(lambda state: state.x, states)


def _as_floats(noise):
    """Return an array of JAX; raise ValueError if its type would round the samples to integers."""
    noise = jnp.asarray(noise)
    if not jnp.issubdtype(noise.dtype, jnp.floating):
        raise ValueError(f"samplers start at floats; got {noise.dtype}: convert them first")
    return noise


def _check_keys(keys, noise, tables):
    """Raise ValueError if a table draws noise and there is not one key per sample."""
    if keys is None and any(_draws(table) for table in tables):
        raise ValueError(
            "this sampler draws noise at every step: give it keys, one per sample (sample_keys)"
        )
    batch = jax.tree.leaves(noise)[0].shape[:1]
    if keys is not None and jnp.shape(keys) != batch:
        raise ValueError(
            f"keys are one per sample, {batch}; got {jnp.shape(keys)}: give "
            "sample_keys(key, jnp.arange(count)), where key is jax.random.key(seed), not PRNGKey"
        )


def _map_leaves(noise, function, *trees):
    """Map the parts of trees that stand at the leaves of `noise`, as the table of each leaf."""
    return jax.tree.map(lambda _, *parts: function(*parts), noise, *trees)


def _move(denoiser, keys, map_leaves, states, memory, number, rows):
    """Return the states and the memory after one evaluation of the denoiser."""
    states = map_leaves(
        lambda state, row, keys: state.add_churn(row, keys, number), states, rows, keys
    )
    y = map_leaves(lambda state: state.y, states)
    t = map_leaves(lambda y, row: jnp.full(y.shape[:1] + row.times.shape, row.times), y, rows)
    prediction = denoiser(y, t, *memory)
    if memory:
        prediction, *memory = prediction
    check_prediction(prediction)
    nothing = map_leaves(lambda _: None, y)
    fraction = nothing if prediction.fraction is None else prediction.fraction
    advance = lambda state, row, keys, *answer: state.advance(row, keys, number, *answer)
    states = map_leaves(advance, states, rows, keys, prediction.clean, prediction.noise, fraction)
    return states, tuple(memory)


def steps_of(table: Table) -> Int[np.ndarray, " rows"]:
    """Return the step of the grid that each row belongs to."""
    return np.arange(len(table.times)) if table.step is None else np.asarray(table.step)


def cut(table: Table, start: int, stop: int) -> Table:
    """Return the rows of the steps start, …, stop − 1. They draw the same noise as in `table`.

    Raises:
        ValueError: there are no such steps, or the steps need predictions made before them
            (multistep methods).
    """
    steps = steps_of(table)
    rows = np.flatnonzero((start <= steps) & (steps < stop))
    if not len(rows):
        raise ValueError(f"the table has steps 0 to {steps[-1]}; got start={start}, stop={stop}")
    numbers = np.arange(len(steps)) if table.number is None else table.number
    part = jax.tree.map(
        lambda column: column[rows], table._replace(step=steps - start, number=numbers)
    )
    for column in (part.clean, part.noise, part.stage_clean, part.stage_noise):
        if column is None or isinstance(column, jax.core.Tracer):
            continue
        older = np.arange(column.shape[1]) > np.arange(len(rows))[:, None]
        if np.any(np.asarray(column)[older] != 0):
            raise ValueError(
                f"steps {start} to {stop - 1} use predictions made before step {start}; make a "
                "table of their own times"
            )
    return part


def scale_noise(table: Table, factor: float | Float[Array, ""]) -> Table:
    """Return the table whose rows draw noise of `factor` times the deviation: a temperature.

    Scale the noise that sampling starts from too. Then samples of a Gaussian distribution keep
    their mean, and their deviation is `factor` times its own.
    """
    scaled = {name: getattr(table, name) for name in ("fresh", "largest", "churn")}
    return table._replace(**jax.tree.map(lambda column: factor * column, scaled))


def join(*tables: Table) -> Table:
    """Return the table that works through the tables one after another.

    Rows that draw noise get new numbers, so a part that is joined twice draws twice.

    Raises:
        ValueError: some tables draw noise from a Brownian path and others do not.
    """
    steps = [steps_of(table) for table in tables]
    ends = np.cumsum([0] + [each[-1] + 1 for each in steps])
    columns = {
        name: _join_column(name, tables) for name in Table._fields if name not in ("step", "number")
    }
    return Table(**columns, step=np.concatenate([a + b for a, b in zip(steps, ends, strict=False)]))


def _join_column(name, tables):
    """Return a column of the joined table, with the default where a table has None."""
    columns = [getattr(table, name) for table in tables]
    given = [column for column in columns if column is not None]
    if not given:
        return None
    if name == "path" and len(given) < len(tables):
        raise ValueError(
            "some tables draw noise from a Brownian path and others do not; join tables of one kind"
        )
    width = max(column.shape[1:2] for column in given) if name.endswith(("clean", "noise")) else ()
    default = 1 if name in ("stage_state", "churn_state") else 0

    def fill(table, column):
        if column is None:
            shape = table.times.shape[:1] + width + table.times.shape[1:]
            missing = jnp.full(shape, default, given[0].dtype)
            return table.fresh if name == "largest" and table.fresh is not None else missing
        wider = [(0, 0)] * column.ndim
        if width:
            wider[1] = (0, width[0] - column.shape[1])
        return jnp.pad(column, wider)

    return jnp.concatenate([fill(*pair) for pair in zip(tables, columns, strict=True)])


def _draws(table):
    """Return whether the table draws noise."""
    return not (table.fresh is None and table.churn is None)


def _rows(noise, table):
    """Return the columns for the scan, in the noise's type and at least float32."""
    dtype = jnp.promote_types(noise.dtype, jnp.float32)
    cast = lambda column: column if column.dtype == bool else column.astype(dtype)
    return jax.tree.map(cast, table._replace(step=None, number=None))


def _check_columns(name, rows):
    """Raise ValueError unless a sampler's function returns a table of as many rows as times."""
    if not isinstance(rows, Table):
        raise ValueError(f"{name} returns a {type(rows).__name__}; it must return a Table")
    for column, values in rows._asdict().items():
        if values is None or column in ("step", "number"):
            continue
        of_predictions = column.endswith(("clean", "noise"))
        axes = rows.times.ndim + (of_predictions or column == "path")
        if len(values) != len(rows.times) or values.ndim != axes:
            expected = f"{len(rows.times)} rows, one for each evaluation"
            if of_predictions:
                expected += (
                    ", and an axis of predictions, the newest first: process.alpha(s)[:, None]"
                )
            raise ValueError(
                f"the table of {name} has {column} of shape {values.shape}; expected {expected}"
            )


def _check_rows(table, rows, times):
    """Return the rows of a grid after a check. Traced rows have no values to check.

    Raises:
        ValueError: these are no rows of a table, or columns differ in length; the rows draw noise
            on a grid that rises; or some coefficients are infinite.
    """
    _check_columns(table.__name__, rows)
    concrete = not isinstance(times, jax.core.Tracer)
    if _draws(rows) and concrete and np.any(np.diff(times, axis=0) > 0):
        raise ValueError(
            f"{table.__name__} draws noise, so its grid falls from noise to data; got a grid that "
            "rises. Invert with a sampler that draws none (ddim with eta=0, heun, …)"
        )
    for column in jax.tree.leaves(rows):
        if isinstance(column, jax.core.Tracer) or np.isfinite(column).all():
            continue
        row = np.argwhere(~np.isfinite(column))[0, 0]
        raise ValueError(
            f"{table.__name__} has infinite coefficients at t = "
            f"{np.ravel(rows.times[row])[0]:g}; give the process a domain without that time, or "
            "take a sampler in sigma/alpha (ddim, edm_heun)"
        )
    return rows


def _tabulate(table, options, wait, noise, process, times):
    """Return the rows of one leaf. With `wait`, frames wait while their time stays the same."""
    check_grid(process, times, noise.shape[1:])
    if wait or jnp.ndim(times) > 1:
        return _check_rows(table, framewise(table, process, times, options), times)
    return _check_rows(table, table(process, times, **options), times)


def sampler(table: Callable[..., Table]) -> Callable:
    """Make a sampler of a function `(process, times, …) -> Table`, kept as its attribute `table`.

    The sampler is called as `(denoiser, process, noise, times, *, keys=None, trajectory=False,
    memory=None, …)`, where the rest are the table's own options. It returns samples like `noise`,
    or with `trajectory` the states at all times of the grid. `keys` and `memory` are as for `run`.

    Outside `jit` a sampler compiles at every call. One line prevents this, once for each shape:

        sample = jax.jit(lambda noise, times: heun(denoiser, process, noise, times))

    `noise` is an array, or a tree of arrays which step together, with one call of the denoiser.
    Process and times may be trees too, with grids of equal length. A grid is `[times]`, or `[times
    frames]` with a time for each frame. Frames, and the leaves of a tree of several, wait while
    their time stays the same (`frames.framewise`).
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
        check_times(times)
        process, times = (jax.tree.broadcast(prefix, noise) for prefix in (process, times))
        leaves = jax.tree.leaves(times)
        if len({len(times) for times in leaves}) > 1:
            raise ValueError(
                f"leaves step together, so their grids have one length; got {[*map(len, leaves)]}"
            )
        tabulate = functools.partial(_tabulate, table, options, len(leaves) > 1)
        tables = jax.tree.map(tabulate, noise, process, times)
        return run(denoiser, noise, tables, keys, trajectory=trajectory, memory=memory)

    @functools.wraps(table)
    def checked_table(process, times, *options, **named):
        check_times(times)
        return _check_rows(table, table(process, times, *options, **named), times)

    common = [p for p in inspect.signature(sample).parameters.values() if p.kind != p.VAR_KEYWORD]
    functools.update_wrapper(sample, table)
    own = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in list(inspect.signature(table).parameters.values())[2:]
    ]
    sample.__signature__ = inspect.Signature(common + own)
    sample.table = checked_table
    return sample
