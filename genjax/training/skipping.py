"""Leave out the updates that would break a state."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from genjax.devices.mesh import replicated
from genjax.training.log import Metrics

SKIPPED = "skipped"
WINDOW = 128  # steps that tell what is usual; half as many must be known


class Explosions(NamedTuple):
    """When a step explodes: a metric is far above its mean over the last `WINDOW` steps.

    This is the rule of OLMo's trainer (Ai2, OLMo-core, `SkipStepOptimizer`), which watches the loss
    and the norm of the gradients, and skips steps at 6 standard deviations.

    Attributes:
        metrics: names of what is watched.
        deviations: so many standard deviations above the mean is too far.
    """

    metrics: tuple[str, ...]
    deviations: float

    def limits(self, recent: Float[Array, "window metrics"]) -> Float[Array, " metrics"]:
        """Return the largest usual values. NaN in `recent` is what is not known.

        A metric without spread, up to the rounding of its mean, has not shown what is usual.
        """
        known = jnp.isfinite(recent)
        count = known.sum(0)
        mean = jnp.where(known, recent, 0.0).sum(0) / count
        squares = jnp.where(known, recent - mean, 0.0) ** 2
        deviation = jnp.sqrt(squares.sum(0) / (count - 1))
        varies = deviation > WINDOW * jnp.finfo(jnp.float32).eps * jnp.abs(mean)
        shown = varies & (count >= WINDOW // 2)
        return jnp.where(shown, mean + self.deviations * deviation, jnp.inf)


@flax.struct.dataclass
class Watched:
    """A state, and the watched metrics of the last steps: step s has row s mod `WINDOW`.

    Attributes:
        recent: floats `[window metrics]`. The type is not declared, since JAX also makes this tree
            of shardings.
        metrics: names of the watched metrics.
    """

    state: PyTree
    recent: Any
    metrics: tuple[str, ...] = flax.struct.field(pytree_node=False)


def watch(
    state: PyTree,
    explosions: Explosions,
    recent: Mapping[str, Sequence[float]] | Sequence[Sequence[float]],
    mesh: Mesh,
) -> Watched:
    """Return a state that remembers the watched metrics among the `recent` ones of a checkpoint.

    Args:
        recent: values by metric. Checkpoints of earlier versions have rows without names, which are
            those of the metrics if they are as many.
    """
    names, unknown = tuple(explosions.metrics), [np.nan] * WINDOW
    if not isinstance(recent, Mapping):
        columns = np.transpose(recent)
        recent = dict(zip(names, columns, strict=True)) if len(columns) == len(names) else {}
    rows = np.array([recent.get(name, unknown) for name in names], np.float32).T
    remembered = jax.make_array_from_callback(rows.shape, replicated(mesh), rows.__getitem__)
    return Watched(state, remembered, names)


def unwatched(state: PyTree | Watched) -> PyTree:
    """Return the state alone."""
    return state.state if isinstance(state, Watched) else state


def recent_metrics(state: PyTree | Watched) -> dict[str, list[float]]:
    """Return the last values of each watched metric, which a checkpoint keeps for `watch`."""
    if not isinstance(state, Watched):
        return {}
    return dict(zip(state.metrics, np.asarray(state.recent).T.tolist(), strict=True))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether no floating-point number of a tree is NaN or infinite."""
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in floats]))


def keep_finite(old: PyTree, new: PyTree, metrics: Metrics) -> tuple[PyTree, Metrics]:
    """Return a new state if it and its metrics are finite, else the old one with the new `step`.

    The metric `skipped` is added: 1 for a step that is left out, whose other metrics then count as
    nothing. It takes memory for one more state.
    """
    return _keep(all_finite((new, metrics.table)), old, new, metrics)


def keep_usual(
    old: Watched, new: PyTree, metrics: Metrics, explosions: Explosions
) -> tuple[Watched, Metrics]:
    """Return the same as `keep_finite`, but also leave out a step that explodes.

    An exploding value is remembered as the limit that it exceeds, so that it does not hide the
    next. A mean of nothing, such as a penalty's between its steps, is NaN, which does not explode.
    """
    values = jnp.stack([metrics[name] for name in explosions.metrics])
    limits = explosions.limits(old.recent)
    usual = all_finite((new, metrics.table)) & ~jnp.any(values > limits)
    recent = old.recent.at[new.step % WINDOW].set(jnp.minimum(values, limits))
    new, metrics = _keep(usual, old.state, new, metrics)
    return Watched(new, recent, old.metrics), metrics


def _keep(
    usual: Bool[Array, ""], old: PyTree, new: PyTree, metrics: Metrics
) -> tuple[PyTree, Metrics]:
    def choose(path: tuple, new: Array, old: Array) -> Array:
        is_step = jax.tree_util.keystr(path, simple=True) == "step"
        return new if is_step else jnp.where(usual, new, old)

    skipped = Metrics.pack({SKIPPED: 1.0 - usual})
    table = jnp.concatenate([jnp.where(usual, metrics.table, 0.0), skipped.table])
    return jax.tree.map_with_path(choose, new, old), Metrics(table, metrics.names + skipped.names)
