"""Shortcut models: one jump equals two jumps of half the size (Frans et al. 2025).

Teacher: none. The student takes t and s. No derivative is taken. Rectified flow.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from genjax.diffusion.losses import data_and_noise
from genjax.diffusion.processes import RectifiedFlow, expand
from genjax.diffusion.targets import check_output
from genjax.distillation.distances import squared
from genjax.distillation.pairs import first_share

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]
FLOW = RectifiedFlow()


def shortcut_times(
    key: Key[Array, ""], count: int, finest: int, share: float
) -> tuple[Times, Times]:
    """Draw (t, s) for a share of self-consistency, and (t, t) for the rest, which is flow matching.

    A jump has the length 1/2^k, k from 0 to log₂(finest) − 1, and starts at a multiple of its
    length. The two halves are the jumps of the next level, down to 1/finest.

    Raises:
        ValueError: `finest` is not a power of two from 2.
    """
    levels = finest.bit_length() - 1
    if finest < 2 or finest != 2**levels:
        raise ValueError(f"the finest grid has a power of two of steps, 2 or more; got {finest}")
    level_key, time_key, fine_key = jax.random.split(key, 3)
    length = 2.0 ** -jax.random.randint(level_key, (count,), 0, levels)
    start = length * jnp.ceil(jax.random.uniform(time_key, (count,), minval=1e-6) / length)
    fine = jax.random.randint(fine_key, (count,), 1, finest + 1) / finest
    jumps = first_share(count, share)
    return jnp.where(jumps, start, fine), jnp.where(jumps, start - length, fine)


def network_end_time(t: Times, s: Times, finest: int) -> Times:
    """Return the end of a jump as the network gets it: t itself for jumps of 1/finest.

    Flow matching trains these jumps, because its examples have s = t.
    """
    return jnp.where(t - s <= 1.5 / finest, t, s)


def shortcut_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Batch,
    *conditioning,
    finest: int = 128,
    share: float = 0.125,
    target_apply: Callable | None = None,
    largest: float = 4.0,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute flow matching on most examples, and self-consistency on the others.

    The target of a jump from t to s is the mean velocity of its two halves,
    (u(x_t, t, m) + u(x_m, m, s))/2. The first half ends at x_m = x_t + (m − t)·u(x_t, t, m)
    (Frans et al. 2025, equation 5).

    Args:
        apply: `(x, t, s, *conditioning) -> u`, the network with its parameters bound.
        finest: the number of the shortest jumps in [0, 1], whose halves count as flow matching.
        share: of the batch that learns jumps; 1/8 in the paper's code.
        target_apply: the network with averaged parameters; the network itself if None.
        largest: bound of |x_m| and of the target, as in the paper's code.

    Returns:
        The loss and the time t of each example.

    Raises:
        ValueError: the share is less than one example, or `finest` is as `shortcut_times` says.
    """
    time_key, noise_key = jax.random.split(key)
    x, z = data_and_noise(noise_key, x, noise)
    t, s = shortcut_times(time_key, len(x), finest, share)
    x_t = FLOW.corrupt(x, z, t)
    jumps = int(first_share(len(x), share).sum())
    if not jumps:
        raise ValueError(
            f"share={share} of {len(x)} examples is less than one, so no jump is learned; take a "
            "larger share or batch"
        )
    first = jax.tree.map(lambda a: a[:jumps], (x_t, t, s, *conditioning))
    goal = _goal(target_apply or apply, *first[:3], finest, largest, *first[3:])
    output = apply(x_t, t, s, *conditioning)
    check_output(output, x)
    y = jnp.concatenate([jax.lax.stop_gradient(goal), (z - x)[jumps:]])
    return squared(output - y), t


def guide_finest(apply: Callable, null: PyTree, scale: float) -> Callable[..., Batch]:
    """Return a `target_apply` with guidance where s = t, so that longer jumps learn it.

    Only the finest velocities are guided, because longer jumps learn from them (Frans et al. 2025,
    section 4 and the paper's code). Both calls of the network are one batch.

    Args:
        null: the condition that stands for none; broadcasts to the examples' conditions.
        scale: of `u(∅) + scale·(u(c) − u(∅))`.
    """

    def guided(x: Batch, t: Times, s: Times, condition) -> Batch:
        twice = lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)])
        both = jax.tree.map(twice, condition, null)
        u, unconditional = jnp.split(apply(twice(x, x), twice(t, t), twice(s, s), both), 2)
        finest = expand(t == s, x)
        return jnp.where(finest, unconditional + scale * (u - unconditional), u)

    return guided


def _goal(apply, x_t, t, s, finest, largest, *conditioning):
    """Return the bounded mean velocity of two half jumps; the finest halves take s = t."""
    middle = (t + s) / 2
    first = apply(x_t, t, network_end_time(t, middle, finest), *conditioning)
    x_m = jnp.clip(x_t + expand(middle - t, x_t) * first, -largest, largest)
    mean = (first + apply(x_m, middle, network_end_time(middle, s, finest), *conditioning)) / 2
    return jnp.clip(mean, -largest, largest)
