"""Consistency models in continuous time (Lu & Song 2025, sCM), under TrigFlow.

Teacher: none for training, or a velocity for distillation. The student takes t alone. The loss
takes the derivative of the network along the trajectory, forward-mode (`jax.jvp`).

The network's output is the velocity of TrigFlow, y = s·F with the data's deviation s. The
consistency function is f = cos(t)·x_t − sin(t)·y, which is `flow_maps.ddim_map` at the clean end.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion import targets
from genjax.diffusion.processes import TrigFlow, expand
from genjax.diffusion.targets import Target, check_output, combine, network_inputs, predict
from genjax.diffusion.times import TimeDistribution
from genjax.distillation.distances import squared
from genjax.distillation.draws import draw_times

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def derivative(
    velocity: Callable[[Batch, Times], Batch], x_t: Batch, t: Times, direction: Batch
) -> tuple[Batch, Batch]:
    """Return the network's velocity y, and cos(t)·sin(t)·dy/dt along dx_t/dt = `direction`.

    The factor multiplies the direction of the derivative, which then stays bounded for all t.
    """
    scale = jnp.cos(t) * jnp.sin(t)
    y, change = jax.jvp(velocity, (x_t, t), (expand(scale, x_t) * direction, scale))
    check_output(y, x_t)
    return y, change


def tangent(
    velocity: Callable[[Batch, Times], Batch],
    x_t: Batch,
    t: Times,
    direction: Batch,
    warmup: float | Float[Array, ""] = 1.0,
) -> tuple[Batch, Batch]:
    """Return the network's velocity y and the tangent g = cos(t)·df/dt along the trajectory.

    g = −cos²(t)·(y − dx_t/dt) − w·cos(t)·sin(t)·(x_t + dy/dt). The warm-up w goes from 0 to 1 and
    scales the only unstable term (Lu & Song 2025, equation 6 and algorithm 1).

    Args:
        direction: dx_t/dt, of the data and noise or of a teacher.
    """
    cos, sin = expand(jnp.cos(t), x_t), expand(jnp.sin(t), x_t)
    y, change = derivative(velocity, x_t, t, direction)
    return y, -(cos**2) * (y - direction) - warmup * (cos * sin * x_t + change)


def normalized(g: Batch, offset: float = 0.1) -> Batch:
    """Return g/(‖g‖ + offset), ‖g‖ the Euclidean norm of an example (Lu & Song 2025, 4.1)."""
    norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=range(1, g.ndim), keepdims=True))
    return g / (norm + offset)


def continuous_consistency_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Batch,
    *conditioning,
    process: TrigFlow,
    times: TimeDistribution,
    teacher: Callable[[Batch, Times], Batch] | None = None,
    warmup: float | Float[Array, ""] = 1.0,
    target: Target | None = None,
    tangent_rule: Callable = tangent,
    normalize: Callable[[Batch], Batch] = normalized,
    log_weight: Callable[[Times], Times] | None = None,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute e^w(t)·‖F − sg(F + g)‖² − w(t), the loss of sCM (Lu & Song 2025, equation 8).

    Its gradient is that of the consistency loss for r → t. For data of deviation s, the paper's
    times are `times.log_normal_sigma(mean=−1 + log(2s), deviation=1.4)`. The paper has s = 1/2, so
    its mean is −1.

    Args:
        apply: `(x, t, *conditioning)`, the network with its parameters bound, called as in
            `diffusion.predict`.
        teacher: the velocity `(x_t, t)` of a diffusion model, its conditioning bound. If None, the
            velocity of the data and noise is taken.
        target: what the network's output stands for, such as `targets.of_base` for the network of
            a rectified flow; TrigFlow's velocity if None.
        tangent_rule: `tangent`, or rCM's of `regularized_consistency`.
        log_weight: w(t), a learned function, whose optimum is −log of the loss; 0 if None.

    Returns:
        The loss and the time t of each example.

    Raises:
        ValueError: the process is no `TrigFlow`.
    """
    if not isinstance(process, TrigFlow):
        raise ValueError(
            f"continuous_consistency_loss is for TrigFlow; got {type(process).__name__}: take "
            "TrigFlow, with target=targets.of_base(...) for the network of another process"
        )
    x_t, t, z = draw_times(key, x, process, times, noise)
    of_pair = combine(process, targets.velocity, x, z, t)
    direction = of_pair if teacher is None else teacher(x_t, t)
    if target is None:
        velocity = lambda x_t, t: apply(*network_inputs(process, x_t, t), *conditioning)
    else:
        denoiser = predict(apply, process, target)
        velocity = lambda x_t, t: denoiser(x_t, t, *conditioning).velocity(process, t)
    y, g = tangent_rule(velocity, x_t, t, direction, warmup)
    deviation = process.preconditioning.data_deviation
    goal = jax.lax.stop_gradient(y / deviation + normalize(g))
    loss = squared(y / deviation - goal)
    if log_weight is not None:
        loss = jnp.exp(log_weight(t)) * loss - log_weight(t)
    return loss, t
