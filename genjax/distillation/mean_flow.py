"""Mean flows: a network learns the average velocity between two times from flows alone.

Teacher: none. The student takes t and s. The loss takes the derivative of the network along the
trajectory, forward-mode (`jax.jvp`). Rectified flow, x_t = (1 − t)·x + t·z.

The average velocity u(x_t, t, s) = (x_t − x_s)/(t − s) satisfies

    u = v − (t − s)·du/dt,   du/dt = v·∂_x u + ∂_t u   (Geng et al. 2025, equations 6 and 8).

At s = t it is the velocity v, and the loss is flow matching. `flow_maps.flow_map` with the target
`velocity` turns u into jumps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from genjax.diffusion.processes import RectifiedFlow, expand
from genjax.diffusion.targets import check_output
from genjax.distillation.distances import Distance, adaptive
from genjax.distillation.draws import draw_pairs
from genjax.distillation.flow_maps import diagonal
from genjax.distillation.pairs import Pairs

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]
FLOW = RectifiedFlow()


def total_derivative(
    apply: Callable, x_t: Batch, t: Times, s: Times, direction: Batch, *conditioning
) -> tuple[Batch, Batch]:
    """Return u and du/dt at fixed s, along dx_t/dt = `direction`."""
    network = lambda x_t, t: apply(x_t, t, s, *conditioning)
    tangents = direction.astype(x_t.dtype), jnp.ones_like(t)
    u, change = jax.jvp(network, (x_t, t), tangents)
    check_output(u, x_t)
    return u, change


def guided_velocity(
    apply: Callable,
    x_t: Batch,
    t: Times,
    velocity: Batch,
    condition: PyTree,
    null: PyTree,
    scale: float | Times,
    mixing: float = 0.0,
) -> Batch:
    """Return ω·v + κ·u(x_t, t, t | c) + (1 − ω − κ)·u(x_t, t, t | ∅) (Geng et al. 2025, eq. 21).

    A network trained on this velocity gives guided predictions in one call. The effective guidance
    scale is ω/(1 − κ). Both calls of the network are one batch. Without κ only the unconditional
    call is made. No gradient passes.

    Args:
        velocity: v = z − x.
        condition, null: one for each example, both of the same shape.
        scale: ω, one or one per example.
        mixing: κ.
    """
    network = diagonal(apply)
    scale = expand(jnp.asarray(scale), x_t) if jnp.ndim(scale) else scale
    if mixing == 0:
        mean = scale * velocity + (1 - scale) * network(x_t, t, null)
        return jax.lax.stop_gradient(mean)
    twice = lambda a: jnp.concatenate([a, a])
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)
    conditional, unconditional = jnp.split(network(twice(x_t), twice(t), both), 2)
    mean = scale * velocity + mixing * conditional + (1 - scale - mixing) * unconditional
    return jax.lax.stop_gradient(mean)


def mean_flow_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Batch,
    *conditioning,
    pairs: Pairs,
    guided: Callable[[Batch, Times, Batch], Batch] | None = None,
    distance: Distance = adaptive,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute d(u − sg(v − (t − s)·du/dt)) (Geng et al. 2025, MeanFlow, algorithm 1).

    Args:
        apply: `(x, t, s, *conditioning) -> u`, the network with its parameters bound.
        pairs: the distribution of (t, s). The paper's is `pairs.ordered` with a diagonal of 0.75.
        guided: `(x_t, t, v) -> v`, which replaces the velocity (`guided_velocity`).

    Returns:
        The loss and the time t of each example.
    """
    x_t, t, s, z = draw_pairs(key, x, FLOW, pairs, noise)
    v = z - x if guided is None else guided(x_t, t, z - x)
    u, change = total_derivative(apply, x_t, t, s, v, *conditioning)
    goal = v - expand(t - s, x_t) * change
    return distance(u - jax.lax.stop_gradient(goal)), t


def improved_mean_flow_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Batch,
    *conditioning,
    pairs: Pairs,
    guided: Callable[[Batch, Times, Batch], Batch] | None = None,
    head: Callable | None = None,
    distance: Distance = adaptive,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute d(u + (t − s)·sg(du/dt) − v), a regression on v (Geng et al. 2025, iMF).

    The derivative goes along the network's own velocity, which depends on x_t alone, not along
    z − x as in `mean_flow_loss`. So the prediction of v is a function of x_t, and the variance of
    the loss is that of flow matching.

    Args:
        head: `(x, t, *conditioning) -> v`, an output of the network for the velocity. Its
            regression is added to the loss. If None, the network at s = t gives the velocity.
    """
    x_t, t, s, z = draw_pairs(key, x, FLOW, pairs, noise)
    v = z - x if guided is None else guided(x_t, t, z - x)
    own = (diagonal(apply) if head is None else head)(x_t, t, *conditioning)
    check_output(own, x_t)
    u, change = total_derivative(apply, x_t, t, s, jax.lax.stop_gradient(own), *conditioning)
    loss = distance(u + expand(t - s, x_t) * jax.lax.stop_gradient(change) - v)
    return loss if head is None else loss + distance(own - v), t


def guidance_scales(
    u: Float[Array, " batch"], max_guidance_scale: float = 8.0
) -> Float[Array, " batch"]:
    """Return scales from 1 to the maximum, of density ∝ 1/scale, for u uniform in (0, 1) (iMF)."""
    return max_guidance_scale**u


def guidance_intervals(key: Key[Array, ""], t: Times, s: Times) -> Float[Array, "batch 2"]:
    """Draw times between which guidance applies: from U(0, ½) to U(½, 1), and all where s = t."""
    ends = jax.random.uniform(key, (len(t), 2)) / 2 + jnp.array([0.0, 0.5])
    return jnp.where((s == t)[:, None], jnp.array([0.0, 1.0]), ends)


def _velocities(
    network: Callable, x_t: Batch, t: Times, condition: PyTree, null: PyTree, scale: Times
) -> tuple[Batch, Batch]:
    """Return v(x_t, t | c, ω) and v(x_t, t | ∅, 1) by one call, without gradients."""
    twice = lambda a, b: jnp.concatenate([a, b])
    both = jax.tree.map(twice, condition, null)
    always = jnp.tile(jnp.array([0.0, 1.0]), (2 * len(t), 1))
    x_twice, t_twice, scales = twice(x_t, x_t), twice(t, t), twice(scale, jnp.ones_like(scale))
    _, velocities = network(x_twice, t_twice, t_twice, both, scales, always)
    conditional, unconditional = jnp.split(jax.lax.stop_gradient(velocities), 2)
    return conditional, unconditional


def guided_mean_flow_loss(
    key: Key[Array, ""],
    network: Callable,
    x: Batch,
    condition: PyTree,
    null: PyTree,
    dropped: Bool[Array, " batch"],
    *,
    pairs: Pairs,
    max_guidance_scale: float = 8.0,
    smallest: float = 0.0,
    extra: Callable[[Batch, Times, Batch], Times] | None = None,
    distance: Distance = adaptive,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute iMF's loss for a network with a guidance scale ω and interval as inputs.

    The network has two outputs, u for the average velocity and v for the velocity. Both learn

        v_g = z − x + (1 − 1/ω)·(v(x_t, t | c, ω) − v(x_t, t | ∅, 1)),

    with ω = 1 outside the interval. u learns it through u + (t − s)·sg(du/dt), with the derivative
    along v(x_t, t | c, ω) (Geng et al. 2025, "Improved mean flows", section 4.3, as released).
    `guidance_scales` draws the scale, and `guidance_intervals` the interval.

    Differences from the released code: any example may drop its condition, and the derivative then
    goes along the unconditional velocity. There only examples with s = t drop it, which need no
    derivative.

    Args:
        network: `(x, t, s, condition, scale, interval) -> (u, v)`, its parameters bound.
        condition: of the batch, none dropped.
        null: what replaces a dropped condition, like `condition` in shape.
        dropped: which examples have no condition, and therefore no guidance.
        pairs: the distribution of (t, s). The paper's is `pairs.ordered` with a diagonal of 0.5.
        max_guidance_scale: scales are drawn from 1 to it.
        smallest: below this time (x_t − x)/smallest replaces z − x, as in `average_velocity`.
        extra: `(x_t, t, u) -> [batch]`, a loss of the average velocity, which is added.

    Returns:
        The loss and the time t of each example.
    """
    pair_key, scale_key, interval_key = jax.random.split(key, 3)
    x_t, t, s, z = draw_pairs(pair_key, x, FLOW, pairs, noise)
    flow = expand(jnp.minimum(t / smallest, 1), x) * (z - x) if smallest else z - x
    scale = guidance_scales(jax.random.uniform(scale_key, t.shape), max_guidance_scale)
    interval = guidance_intervals(interval_key, t, s)
    inside = (interval[:, 0] <= t) & (t <= interval[:, 1])
    now = jnp.where(inside & ~dropped, scale, 1.0)
    condition = jax.tree.map(lambda c, n: jnp.where(expand(dropped, c), n, c), condition, null)
    conditional, unconditional = _velocities(network, x_t, t, condition, null, now)
    goal = flow + expand(1 - 1 / now, x_t) * (conditional - unconditional)
    velocities = lambda x_t, t: network(x_t, t, s, condition, scale, interval)
    tangents = conditional.astype(x_t.dtype), jnp.ones_like(t)
    u, change, v = jax.jvp(velocities, (x_t, t), tangents, has_aux=True)
    for output in (u, v, conditional):
        check_output(output, x_t)
    average = u + expand(t - s, x_t) * jax.lax.stop_gradient(change)
    loss = distance(average - goal) + distance(v - goal)
    return loss if extra is None else loss + extra(x_t, t, u), t
