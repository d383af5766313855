"""Consistency: jumps from two points of one trajectory lead to the same end.

The loss of this file is d(X(x_t, t, e), sg X⁻(x_r, r, e)). Time r lies a step before t, and both
jumps end at a time e ≤ r. Methods differ in e and x_r:

| method | e | x_r | Source |
|---|---|---|---|
| distillation | clean end | a step of the teacher from x_t | Song et al. 2023, algorithm 2 |
| training | clean end | same data and noise as x_t | Song et al. 2023, algorithm 3 |
| iCT | clean end | same data and noise | Song & Dhariwal 2024 |
| ECT | clean end | same data and noise, pairs by `pairs.easy` | Geng et al. 2025 |
| LCM | clean end | a DDIM step of the guided teacher | Luo et al. 2023 |
| TCD, CTM | any e ≤ r | a step of the teacher | Zheng et al. 2024; Kim et al. 2024 |

CTM also jumps from e to the clean end before it compares the two points. This file leaves that out.

Teacher: a denoiser for distillation, none for training. The student takes t, and e if it jumps
anywhere but to the clean end. No derivative is taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.losses import data_and_noise
from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Prediction, check_prediction
from genjax.distillation.distances import Distance, squared
from genjax.distillation.flow_maps import FlowMap
from genjax.distillation.pairs import Pairs

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def consistency_loss(
    key: Key[Array, ""],
    student: FlowMap,
    x: Batch,
    *conditioning,
    process: Process,
    pairs: Pairs,
    teacher: Callable[[Batch, Times, Times], Batch] | None = None,
    target_student: FlowMap | None = None,
    distance: Distance = squared,
    weighting: Callable[[Times, Times], Times] | None = None,
    anywhere: bool = False,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute w(t, r)·d(X(x_t, t, e), sg X⁻(x_r, r, e)) (see the table of this module).

    A jump from the clean end to the clean end is the identity. No network is evaluated for it.

    Args:
        student: `(x_t, t, s, *conditioning)`, its parameters bound (`flow_maps`).
        pairs: the distribution of (t, r). An r before the process' domain stands for the clean end.
        teacher: `(x_t, t, r) -> x_r`, one step of a solver (`solver_step`), its conditioning bound.
            If None, x_r has the data and noise of x_t, which is unbiased for r → t.
        target_student: X⁻, with averaged or otherwise older parameters; the student itself if None.
        weighting: w(t, r); `inverse_step` is iCT's.
        anywhere: whether e is drawn uniformly between the clean end and r, as in CTM and TCD.
            Otherwise e is the clean end.

    Returns:
        The loss and the time t of each example.
    """
    pair_key, noise_key, end_key = jax.random.split(key, 3)
    x, z = data_and_noise(noise_key, x, noise)
    t, r = pairs(pair_key, process, len(x))
    start = process.clean_end
    at_start = (r <= start) | (r < process.domain[0])
    r = jnp.where(at_start, start, r)
    x_t = process.corrupt(x, z, t)
    x_r = process.corrupt(x, z, r) if teacher is None else teacher(x_t, t, r)
    share = jax.random.uniform(end_key, t.shape) if anywhere else 0.0
    end = start + share * (r - start)
    older = student if target_student is None else target_student
    # A target can be singular at the clean end, so the examples there are evaluated at t instead.
    goal = older(x_r, jnp.where(at_start, t, r), end, *conditioning)
    goal = jnp.where(expand(at_start, x_r), x_r, goal)
    loss = distance(student(x_t, t, end, *conditioning) - jax.lax.stop_gradient(goal))
    return loss if weighting is None else weighting(t, r) * loss, t


def inverse_step(t: Times, r: Times) -> Times:
    """Return 1/(t − r), the weight of improved consistency training (Song & Dhariwal 2024)."""
    return 1 / (t - r)


def solver_step(
    denoiser: Callable[[Batch, Times], Prediction], process: Process, order: int = 1
) -> Callable[[Batch, Times, Times], Batch]:
    """Return one step `(x_t, t, r) -> x_r` of the probability-flow ODE, each example at its times.

    Order 1 is DDIM's step, which latent consistency models take; order 2 is Heun's in sigma/alpha,
    which consistency distillation takes (Song et al. 2023, section 6.1). Where Heun's step does not
    exist, order 2 takes DDIM's step too. Heun's step divides by alpha(t), which is 0 where no data
    is left. Heun's step also evaluates the denoiser at r, which can be singular at the clean end.

    Raises:
        ValueError: another order.
    """
    if order not in (1, 2):
        raise ValueError(f"order is 1 (DDIM) or 2 (Heun); got {order}")

    def step(x_t, t, r):
        first = denoiser(x_t, t)
        check_prediction(first)
        x_r = process.corrupt(first.clean, first.noise, r)
        if order == 1:
            return x_r
        alpha, sigma = process.alpha(t), process.sigma(t)
        only_ddim = (alpha == 0) | (r <= process.clean_end)
        mean = (first.noise + denoiser(x_r, jnp.where(only_ddim, t, r)).noise) / 2
        alpha, sigma = expand(jnp.where(only_ddim, 1, alpha), x_t), expand(sigma, x_t)
        heun = process.corrupt((x_t - sigma * mean) / alpha, mean, r)
        return jnp.where(expand(only_ddim, x_r), x_r, heun)

    return step
