"""The probability-flow ODE by diffrax's solvers, which choose their own steps."""

from collections.abc import Callable

import diffrax
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
    solver: Callable[[], diffrax.AbstractAdaptiveSolver] = diffrax.Dopri5,
    adjoint: Callable[[], diffrax.AbstractAdjoint] = diffrax.RecursiveCheckpointAdjoint,
    max_steps: int = 4096,
) -> diffrax.Solution:
    """Return diffrax's solution of dx/dt = velocity(x, t), `ys` at `times` as far as the process' domain has them.

    `stats["num_steps"]` counts its steps, rejected ones too; in each Dopri5 evaluates the network 6
    times. States and times are float32 at least, whatever the types of noise and predictions.

    The batch is one system: every step is the same for all samples. The error of a step is the
    largest over samples of √(mean over dimensions of (error/(atol + rtol·|x|))²), so that each
    sample keeps the tolerance; a sample depends on its batch, yet within the tolerance only. Of a
    tree, every leaf of every sample keeps the tolerance. Steps' errors grow on the way: expect ten
    times the tolerance in the end, and a hundred times one looser than 1e-5, whose steps are long
    for an estimate.

    Args:
        process, noise: one process, and an array or a tree of arrays.
        times: one grid for all. The first and the last bound the integration, either way; those
            between cost no evaluation.
        rtol, atol: tolerances of a step, relative and absolute; traced or not.
        solver: one of diffrax's with an estimate of its error, as a function of no arguments.
        adjoint: how it is differentiated. By default in reverse, with checkpoints;
            `diffrax.ForwardMode` for `jax.jvp`.
        max_steps: more are an error at run time.
    """

    single = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))
    noise = jax.tree.map(single, noise)

    def field(t, x, _):
        t = _times_of_samples(t, x)
        velocity = denoiser(x, t).velocity(process, t)
        return jax.tree.map(lambda velocity, x: velocity.astype(x.dtype), velocity, x)

    def largest(error):
        leaf_error = lambda a: jnp.max(jnp.sqrt(jnp.mean(jnp.square(a), axis=range(1, a.ndim))))
        return jax.tree.reduce(jnp.maximum, jax.tree.map(leaf_error, error))

    clipped = clip(times, *process.domain).astype(jnp.result_type(*jax.tree.leaves(noise)))
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver(),
        clipped[0],
        clipped[-1],
        dt0=None,
        y0=noise,
        saveat=diffrax.SaveAt(ts=clipped),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=largest),
        adjoint=adjoint(),
        max_steps=max_steps,
    )


def _times_of_samples(t: Float[Array, ""], x: Tree) -> Tree:
    """Return the time t for every sample of every leaf."""
    return jax.tree.map(lambda x: jnp.full(x.shape[:1], t), x)


def adaptive(
    denoiser: Denoiser,
    process: Process,
    noise: Tree,
    times: Float[Array, " times"],
    *,
    keys: Key[Array, " batch"] | None = None,
    trajectory: bool = False,
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    solver: Callable[[], diffrax.AbstractAdaptiveSolver] = diffrax.Dopri5,
    adjoint: Callable[[], diffrax.AbstractAdjoint] = diffrax.RecursiveCheckpointAdjoint,
    max_steps: int = 4096,
) -> PyTree[Float[Array, " ..."]]:
    """Solve the probability-flow ODE within tolerances, called as every sampler: see `adaptive_solution`.

    To a clean end outside the domain (EDM: sigma = 0) a step of `ddim` leads from the last time in
    it. `keys` are not used.

    Raises:
        ValueError: process or times are trees, or there is a time for each frame: one t is
            integrated over.
    """
    if not isinstance(process, Process):
        raise ValueError(
            f"adaptive steps in one time of one process, for a tree too; got the processes {process}"
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
