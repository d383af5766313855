"""Flow maps: jumps along the probability-flow ODE, and the samplers that take such jumps.

A flow map is a function `X(x_t, t, s, *conditioning) -> x_s`: the point at time s of the ODE's
solution that passes through x_t at time t. Its special cases carry the names of the literature:

- s at the clean end: a consistency function (Song et al. 2023);
- s → t: the velocity, dX/ds at s = t;
- rectified flow: X = x_t + (s − t)·u with the average velocity u (Geng et al. 2025).

Every map satisfies X(x, t, t) = x and X(X(x, t, r), r, s) = X(x, t, s).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process, expand
from genjax.diffusion.samplers.restart import renoising
from genjax.diffusion.samplers.tables import check_grid
from genjax.diffusion.targets import (
    Prediction,
    Target,
    check_output,
    check_prediction,
    network_inputs,
    predict,
)

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]
FlowMap = Callable[..., Batch]


def flow_map(apply: Callable, process: Process, target: Target) -> FlowMap:
    """Make the flow map `(x_t, t, s, *conditioning) -> x_s` of a network that also takes s.

    The map is DDIM's step from t to s, X = alpha(s)·x̂ + sigma(s)·ẑ, with the x̂ and ẑ of this
    network's output. So X(x, t, t) = x exactly, for any output of the network.

    Args:
        apply: `(x, t, s, *conditioning)`, the network with its parameters bound. Its first two
            arguments are those of `diffusion.predict`. Its third is the network time of s, where s
            before the process' domain counts as the start of the domain.
        target: what the network's output stands for. With the velocity of rectified flow it is the
            average velocity. With the v of `TrigFlow` it is the F of sCM, up to the data's
            deviation.
    """

    def jump(x_t: Batch, t: Times, s: Times, *conditioning) -> Batch:
        end_time = process.preconditioning.network_time(process, jnp.maximum(s, process.domain[0]))
        y = apply(*network_inputs(process, x_t, t), end_time, *conditioning)
        return step(process, target, x_t, y, t, s)

    return jump


def step(process: Process, target: Target, x_t: Batch, y: Batch, t: Times, s: Times) -> Batch:
    """Return alpha(s)·x̂ + sigma(s)·ẑ of a network's output y at time t (Song et al. 2021, DDIM).

    The coefficients of x_t and y are 1 and 0 exactly at s = t.
    """
    check_output(y, x_t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_s, sigma_s = process.alpha(s), process.sigma(s)
    c, d = target(process, t)
    determinant = d * alpha - c * sigma
    of_state = (d * alpha_s - c * sigma_s) / determinant
    of_output = (sigma_s * alpha - alpha_s * sigma) / determinant
    return expand(of_state, x_t) * x_t + expand(of_output, x_t) * y


def ddim_map(denoiser: Callable[..., Prediction], process: Process) -> FlowMap:
    """Make the flow map of a denoiser that does not take s: one step of DDIM.

    It is exact for s near t. At the clean end it is the prediction of the data.
    """

    def jump(x_t: Batch, t: Times, s: Times, *conditioning) -> Batch:
        prediction = denoiser(x_t, t, *conditioning)
        check_prediction(prediction)
        return process.corrupt(prediction.clean, prediction.noise, s)

    return jump


def consistency_map(apply: Callable, process: Process) -> FlowMap:
    """Make the map of consistency models to the start of the domain (Song et al. 2023, appendix C).

    f(x_t, t) = c_skip·x_t + c_out·F for a process with alpha = 1, where ε is the sigma at the start
    of the domain, s the data's deviation, and

        c_skip = s²/((sigma − ε)² + s²),   c_out = s·(sigma − ε)/√(sigma² + s²).

    Unlike EDM's preconditioning, which the network's input still has, f is x_t exactly at the
    start of the domain.

    Args:
        apply: `(x, t, *conditioning)`, the network with its parameters bound.

    Returns:
        `(x_t, t, s, *conditioning)`. It ignores s, which stands for the start of the domain.

    Raises:
        ValueError: the process' alpha is not 1.
    """
    with jax.ensure_compile_time_eval():
        if process.alpha(jnp.asarray(process.domain[1])) != 1:
            raise ValueError(
                "consistency_map is for processes with alpha = 1, such as EDM; got "
                f"{type(process).__name__}: take flow_map"
            )
    deviation = process.preconditioning.data_deviation

    def jump(x_t: Batch, t: Times, s: Times, *conditioning) -> Batch:
        past = process.sigma(t) - process.sigma(jnp.full_like(t, process.domain[0]))
        skip = deviation**2 / (past**2 + deviation**2)
        out = deviation * past * jax.lax.rsqrt(process.sigma(t) ** 2 + deviation**2)
        output = apply(*network_inputs(process, x_t, t), *conditioning)
        check_output(output, x_t)
        return expand(skip, x_t) * x_t + expand(out, x_t) * output

    return jump


def diagonal(apply: Callable) -> Callable:
    """Return the network at s = t, `(x, t, *conditioning)`: an ordinary diffusion network.

    `diffusion.predict(diagonal(apply), process, target)` is a denoiser for every sampler.
    """
    return lambda x, t, *conditioning: apply(x, t, t, *conditioning)


def velocity(apply: Callable, process: Process, target: Target) -> Callable[..., Batch]:
    """Return the velocity `(x_t, t, *conditioning)` of the ODE, from the network at s = t."""
    denoiser = predict(diagonal(apply), process, target)
    return lambda x_t, t, *conditioning: denoiser(x_t, t, *conditioning).velocity(process, t)


def jump(
    flow_map: Callable[[Batch, Times, Times], Batch],
    process: Process,
    noise: Batch,
    times: Float[Array, " times"],
    *,
    keys: Key[Array, " batch"] | None = None,
    trajectory: bool = False,
    end_times: Float[Array, " steps"] | None = None,
) -> Batch | Float[Array, " times batch *shape"]:
    """Sample by one jump of a flow map for each step of the grid.

    A jump ends at a time that `end_times` gives. If this time is cleaner than the next time of the
    grid, fresh noise is added up to the grid's time. Three choices of end times are in use:

    - the grid itself, which is None: no noise is drawn;
    - the clean end: the multistep sampler of consistency models (Song et al. 2023, algorithm 1),
      see `consistency`;
    - (1 − γ)·times[1:]: the sampler of trajectory consistency distillation (Zheng et al. 2024,
      TCD), see `trajectory_consistency`. The γ-sampler of CTM (Kim et al. 2024) lands at
      √(1 − γ²)·times[1:] instead.

    Args:
        flow_map: `(x_t, t, s)`, its conditioning bound.
        noise: what sampling starts from, at times[0].
        times: from the noise end to the clean end, `[steps + 1]`; two times are one step.
        keys: one per sample, if noise is drawn.
        trajectory: return the states at all times, the noise first.

    Raises:
        ValueError: the grid leaves the process' domain, or there are end times and not one key per
            sample.
    """
    check_grid(process, times, noise.shape[1:])
    if end_times is not None and np.shape(keys)[:1] != noise.shape[:1]:
        raise ValueError(
            "end_times other than the grid draw noise: give keys, one per sample (sample_keys); "
            f"got shape {np.shape(keys)} for {len(noise)} samples"
        )
    to = times[1:] if end_times is None else end_times

    def one(x, row):
        number, t, low, s = row
        fill = lambda time: jnp.full(x.shape[:1], time)
        x = flow_map(x, fill(t), fill(low))
        if end_times is not None:
            scale, added = renoising(process, low, s)
            draw = lambda key: jax.random.normal(
                jax.random.fold_in(key, number), x.shape[1:], x.dtype
            )
            x = scale * x + added * jax.vmap(draw)(keys)
        x = x.astype(noise.dtype)  # times are float32, and so are jumps from bfloat16
        return x, x if trajectory else None

    rows = jnp.arange(len(times) - 1), times[:-1], to, times[1:]
    x, visited = jax.lax.scan(one, noise, rows)
    return jnp.concatenate([noise[None], visited]) if trajectory else x


def consistency(flow_map, process, noise, times, *, keys=None, trajectory=False):
    """Sample as consistency models do: jump to the clean end and add noise again (`jump`).

    A single step draws no noise, but also needs keys. Jumps end at the last time of the grid: 0, or
    the start of the domain for `consistency_map`.
    """
    end_times = jnp.full(len(times) - 1, times[-1])
    return jump(
        flow_map, process, noise, times, keys=keys, trajectory=trajectory, end_times=end_times
    )


def trajectory_consistency(
    flow_map, process, noise, times, *, gamma: float, keys=None, trajectory=False
):
    """Sample by jumps to (1 − gamma) times the next time, and noise up from there.

    Zheng et al. 2024, TCD. gamma = 0 is `jump` along the grid, gamma = 1 is `consistency` to time
    0. For an EDM network and g in [0, 1], gamma = 1 − √(1 − g²) is the γ-sampler of CTM (Kim et al.
    2024) with γ = g.

    Raises:
        ValueError: gamma is a number outside [0, 1].
    """
    if isinstance(gamma, int | float) and not 0 <= gamma <= 1:
        raise ValueError(
            f"gamma, the share of the next time that noise adds again, is in [0, 1]; got {gamma}"
        )
    end_times = (1 - gamma) * times[1:]
    return jump(
        flow_map, process, noise, times, keys=keys, trajectory=trajectory, end_times=end_times
    )
