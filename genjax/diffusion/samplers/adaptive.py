"""The probability-flow ODE by diffrax's solvers, which choose their own steps."""

from collections.abc import Callable

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.tables import Denoiser, check_grid


def adaptive_solution(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Array, " batch *shape"],
    times: Float[Array, " times"],
    *,
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    solver: Callable[[], diffrax.AbstractAdaptiveSolver] = diffrax.Dopri5,
    adjoint: Callable[[], diffrax.AbstractAdjoint] = diffrax.RecursiveCheckpointAdjoint,
    max_steps: int = 4096,
) -> diffrax.Solution:
    """diffrax's solution of dx/dt = velocity(x, t), `ys` at `times` as far as these are in the process' domain.

    `stats["num_steps"]` counts its steps, rejected ones too; in each Dopri5 evaluates the network 6 times.

    The batch is one system: every step is the same for all samples. The error of a step is the largest over samples of
    √(mean over dimensions of (error/(atol + rtol·|x|))²), so that each sample keeps the tolerance; a sample depends on
    its batch, yet within the tolerance only. Steps' errors grow on the way: expect ten times the tolerance in the end,
    and a hundred times one looser than 1e-5, whose steps are long for an estimate.

    Args:
        times: the first and the last bound the integration, either way; those between cost no evaluation.
        rtol, atol: tolerances of a step, relative and absolute; traced or not.
        solver: one of diffrax's with an estimate of its error, as a function of no arguments.
        adjoint: how it is differentiated. By default in reverse, with checkpoints; `diffrax.ForwardMode` for `jax.jvp`.
        max_steps: more are an error at run time.
    """

    def field(t, x, _):
        t = jnp.full(x.shape[:1], t)
        return denoiser(x, t).velocity(process, t)

    def largest(error):
        return jnp.max(jnp.sqrt(jnp.mean(jnp.square(error), axis=range(1, error.ndim))))

    inside = jnp.clip(times, *process.domain).astype(noise.dtype)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver(),
        inside[0],
        inside[-1],
        dt0=None,
        y0=noise,
        saveat=diffrax.SaveAt(ts=inside),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=largest),
        adjoint=adjoint(),
        max_steps=max_steps,
    )


def adaptive(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Array, " batch *shape"],
    times: Float[Array, " times"],
    *,
    keys: Key[Array, " batch"] | None = None,
    trajectory: bool = False,
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    solver: Callable[[], diffrax.AbstractAdaptiveSolver] = diffrax.Dopri5,
    adjoint: Callable[[], diffrax.AbstractAdjoint] = diffrax.RecursiveCheckpointAdjoint,
    max_steps: int = 4096,
) -> Float[Array, " batch *shape"] | Float[Array, " times batch *shape"]:
    """The probability-flow ODE within tolerances, called as every sampler: see `adaptive_solution`.

    To a clean end outside the domain (EDM: sigma = 0) a step of `ddim` leads from the last time in it. `keys` are not
    used.
    """
    check_grid(process, times)
    states = adaptive_solution(
        denoiser,
        process,
        noise,
        times,
        rtol=rtol,
        atol=atol,
        solver=solver,
        adjoint=adjoint,
        max_steps=max_steps,
    ).ys
    if process.clean_end != process.domain[0]:
        last = jnp.clip(times[-1], *process.domain)
        prediction = denoiser(states[-1], jnp.full(noise.shape[:1], last))
        end = process.alpha(times[-1]) * prediction.clean + process.sigma(times[-1]) * prediction.noise
        states = states.at[-1].set(end)
    return states if trajectory else states[-1]
