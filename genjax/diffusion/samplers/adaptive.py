"""The probability-flow ODE by diffrax's adaptive solvers, which choose their own steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from genjax.diffusion.processes import Process
from genjax.diffusion.samplers.limits import clip
from genjax.diffusion.samplers.tables import Denoiser, check_grid
from genjax.diffusion.trees import Tree


def adaptive_solution(
    denoiser: Denoiser,
    process: Process,
    noise: Tree,
    times: Float[Array, " times"],
    *,
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    solver: Callable[[], Any] | None = None,
    adjoint: Callable[[], Any] | None = None,
    max_steps: int = 4096,
) -> Any:
    """Return diffrax's solution of dx/dt = velocity(x, t), with states `ys` at `times`.

    Times outside the process' domain are clipped to it. `stats["num_steps"]` counts the steps,
    rejected ones included. Dopri5 evaluates the network 6 times in each step. States and times are
    at least float32, whatever the types of noise and predictions.

    The batch is one system: all samples take the same steps. The error of a step is the largest
    over samples of √(mean over dimensions of (error/(atol + rtol·|x|))²), so each sample keeps the
    tolerance. A sample depends on its batch, but only within the tolerance. In a tree, every leaf
    of every sample keeps the tolerance.

    The errors of steps grow on the way. Expect ten times the tolerance in the end. Expect a hundred
    times for tolerances above 1e-5, whose long steps make the error estimate poor.

    Args:
        process, noise: one process, and an array or a tree of arrays.
        times: one grid for all. The first and the last time bound the integration, in either
            direction. Those between cost no evaluation.
        rtol, atol: relative and absolute tolerance of a step; may be traced.
        solver: a diffrax solver that estimates its error, as a function of no arguments. None is
            `diffrax.Dopri5`.
        adjoint: how to differentiate the solution. None is reverse mode with checkpoints; use
            `diffrax.ForwardMode` for `jax.jvp`.
        max_steps: more steps are an error at run time.
    """
    import diffrax  # slow to import

    single = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))
    noise = jax.tree.map(single, noise)

    def field(t, x, _):
        t = _times_of_samples(t, x)
        velocity = denoiser(x, t).velocity(process, t)
        return jax.tree.map(lambda velocity, x: velocity.astype(x.dtype), velocity, x)

    clipped = clip(times, *process.domain).astype(jnp.result_type(*jax.tree.leaves(noise)))
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        (solver or diffrax.Dopri5)(),
        clipped[0],
        clipped[-1],
        dt0=None,
        y0=noise,
        saveat=diffrax.SaveAt(ts=clipped),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest),
        adjoint=(adjoint or diffrax.RecursiveCheckpointAdjoint)(),
        max_steps=max_steps,
    )


def _largest(error: Tree) -> Float[Array, ""]:
    """Return the largest root mean square of a sample's error, over samples and leaves."""
    leaf_error = lambda a: jnp.max(jnp.sqrt(jnp.mean(jnp.square(a), axis=range(1, a.ndim))))
    return jax.tree.reduce(jnp.maximum, jax.tree.map(leaf_error, error))


def _times_of_samples(t: Float[Array, ""], x: Tree) -> Tree:
    """Return the time t for every sample of every leaf."""
    return jax.tree.map(lambda x: jnp.full(x.shape[:1], t), x)


def adaptive(
    denoiser: Denoiser,
    process: PyTree[Process],
    noise: Tree,
    times: PyTree[Float[Array, " ..."]],
    *,
    keys: Key[Array, " batch"] | None = None,
    trajectory: bool = False,
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    solver: Callable[[], Any] | None = None,
    adjoint: Callable[[], Any] | None = None,
    max_steps: int = 4096,
) -> PyTree[Float[Array, " ..."]]:
    """Solve the probability-flow ODE within tolerances, with the arguments of every sampler.

    See `adaptive_solution` for the options. If the clean end lies outside the domain (EDM: sigma =
    0), a step of `ddim` leads there from the last time in the domain. `keys` are unused.

    Raises:
        ValueError: process or times are trees, or there is a time for each frame. The integration
            is over one t.
    """
    if not isinstance(process, Process):
        raise ValueError(
            f"adaptive takes one process and one grid, for a tree too; got the processes {process}"
        )
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
        final = jax.tree.map(lambda states: states[-1], states)
        prediction = denoiser(final, _times_of_samples(last, final))
        step = lambda x, z: process.alpha(times[-1]) * x + process.sigma(times[-1]) * z
        ends = jax.tree.map(step, prediction.clean, prediction.noise)
        states = jax.tree.map(lambda states, end: states.at[-1].set(end), states, ends)
    states = states if trajectory else jax.tree.map(lambda states: states[-1], states)
    return jax.tree.map(lambda states, noise: states.astype(noise.dtype), states, noise)


# Known times of evaluations: the grid's last time is among them, because steps end there.
adaptive.evaluation_times = lambda process, times: clip(times, *process.domain)
