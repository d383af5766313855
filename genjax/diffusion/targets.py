"""Targets: the quantity y = c(t)·x + d(t)·z that a network predicts.

A target is a function `(process, t) -> (c, d)`, and any linear combination is a lambda. Together
with x_t = alpha·x + sigma·z, a target gives two equations in x and z. So one 2×2 solve, `recover`,
converts every target to every other. The determinant of that solve is D = d·alpha − c·sigma:

    clean −sigma    noise alpha    velocity alpha·sigma' − alpha'·sigma
    v alpha² + sigma²    score −alpha/sigma    edm −√(sigma² + alpha²s²)/s

The table names the ends of time where the solve is singular. `z` is the clean end, where sigma = 0
and the noise is lost. `x` is the noise end, where alpha = 0 and the data are lost. `∞` is the clean
end, where the coefficients are infinite (those of velocity as t^−½).

| process                                    | clean | noise | velocity | v | score | edm |
|--------------------------------------------|-------|-------|----------|---|-------|-----|
| RectifiedFlow                              | z     | x     |          |   | ∞ x   |     |
| VariancePreservingCosine                   | z     | x     |          |   | ∞ x   |     |
| TrigFlow                                   | z     | x     |          |   | ∞ x   |     |
| VariancePreservingLinear                   | z     |       | ∞        |   | ∞     |     |
| VariancePreservingScaledLinear             | z     |       | ∞        |   | ∞     |     |
| VariancePreservingTable                    | z     |       | ∞        |   | ∞     |     |
| VariancePreservingTable, zero_terminal_snr | z     | x     | ∞        |   | ∞ x   |     |
| SubVariancePreserving                      | z     |       |          |   | ∞     |     |
| EDM                                        | z     |       |          |   | ∞     |     |
| VarianceExploding                          |       |       |          |   |       |     |

A `Shifted` process has the row of its base. The clean end of the tables and of EDM lies outside
their domain, where no network is evaluated. For the other processes, choose a `domain` that stays
clear of the singular end. Nothing is clipped silently: `check_target` raises an error.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from genjax.diffusion.processes import Process, check_process, expand
from genjax.diffusion.trees import Tree, leafwise

Times = Float[Array, " *times"]
Target = Callable[[Process, Times], tuple[Times, Times]]


def clean(process: Process, t: Times) -> tuple[Times, Times]:
    """Return (1, 0): the target is the data x."""
    return jnp.ones_like(t), jnp.zeros_like(t)


def noise(process: Process, t: Times) -> tuple[Times, Times]:
    """Return (0, 1): the target is the noise z."""
    return jnp.zeros_like(t), jnp.ones_like(t)


def velocity(process: Process, t: Times) -> tuple[Times, Times]:
    """Return (alpha', sigma'): the target is dx_t/dt at fixed x and z.

    It is z − x for rectified flow (Lipman et al. 2023; Liu et al. 2023).
    """
    return process.alpha_prime(t), process.sigma_prime(t)


def v(process: Process, t: Times) -> tuple[Times, Times]:
    """Return (−sigma, alpha): the target is v = alpha·z − sigma·x (Salimans & Ho 2022, section 4).

    For the cosine process, velocity is π/2·v.
    """
    return -process.sigma(t), process.alpha(t)


def score(process: Process, t: Times) -> tuple[Times, Times]:
    """Return (0, −1/sigma): the target is −z/sigma.

    Its mean given x_t is ∇log p_t(x_t) (Vincent 2011; Song et al. 2021, equation 7).
    """
    return jnp.zeros_like(t), -1 / process.sigma(t)


def edm(process: Process, t: Times, data_deviation: float | None = None) -> tuple[Times, Times]:
    """Return the coefficients of EDM's target, which has unit variance at every t.

    This is what EDM's preconditioning leaves to the network (Karras et al. 2022, section 5). Let s
    be the deviation of the data and r² = sigma² + alpha²s² the variance of x_t. Then y = (x −
    alpha·s²/r²·x_t)·r/(s·sigma), which for alpha = 1 is (x − c_skip·x_t)/c_out. It is −v where s =
    1 and alpha² + sigma² = 1.

    Args:
        data_deviation: s. None takes that of the process' preconditioning.
    """
    s = process.preconditioning.data_deviation if data_deviation is None else data_deviation
    alpha, sigma = process.alpha(t), process.sigma(t)
    r = jnp.sqrt(sigma**2 + (alpha * s) ** 2)
    return sigma / (s * r), -s * alpha / r


def of_base(base: Process, target: Target) -> Target:
    """Make the target of another process, `base`, one of every process, at the same noise level.

    With the preconditioning `SameLevel` a network of `base` becomes one of the other process.
    """
    return lambda process, t: target(base, base.at_level_of(process, t)[0])


class Prediction(NamedTuple):
    """Both halves of a denoiser's answer: x̂ and ẑ with alpha·x̂ + sigma·ẑ = x_t.

    Each half is an array or a tree, as x_t is. `fraction` is None unless the network has a learned
    variance. It then places the log-variance of a step between its least (0) and its largest value
    (1). These are the values of `losses.step_variances` (Nichol & Dhariwal 2021, equation 15). An
    untrained network may leave [0, 1].
    """

    clean: Tree
    noise: Tree
    fraction: Tree | None = None

    def velocity(self, process: PyTree[Process], t: Tree) -> Tree:
        """Return alpha'·x̂ + sigma'·ẑ, the direction dx_t/dt of the probability-flow ODE."""
        return _direction(process, self.clean, self.noise, t)


@leafwise
def _direction(process, clean, noise, t):
    return (
        expand(process.alpha_prime(t), clean) * clean
        + expand(process.sigma_prime(t), noise) * noise
    )


def check_functions(**parts: PyTree) -> None:
    """Raise ValueError if a name or a number stands in place of a function."""
    for name, part in parts.items():
        for leaf in jax.tree.leaves(part):
            if not callable(leaf):
                raise ValueError(
                    f"{name} is {leaf!r}; expected a function, such as those of genjax.diffusion"
                )


def check_prediction(answer: Any) -> None:
    """Raise ValueError unless a denoiser's answer is a `Prediction`. A network's is not."""
    if not isinstance(answer, Prediction):
        raise ValueError(
            f"a denoiser returns a Prediction, and this one a {type(answer).__name__}: make one of "
            "a network by predict(apply, process, target)"
        )


def check_output(y: Float[ArrayLike, "..."], x: Float[ArrayLike, "..."]) -> None:
    """Raise ValueError unless a network's output has the shape of x: the two would broadcast."""
    if jnp.shape(y) != jnp.shape(x):
        raise ValueError(
            f"the network returns shape {jnp.shape(y)}; it must return that of x, {jnp.shape(x)}"
        )


@leafwise
def combine(
    process: Process,
    target: Target,
    x: Float[Array, " batch *shape"],
    z: Float[Array, " batch *shape"],
    t: Float[Array, " batch *times"],
) -> Float[Array, " batch *shape"]:
    """Return y = c(t)·x + d(t)·z, for an array or a tree."""
    c, d = target(process, t)
    return expand(c, x) * x + expand(d, z) * z


@leafwise
def recover(
    process: Process,
    target: Target,
    x_t: Float[Array, " batch *shape"],
    y: Float[Array, " batch *shape"],
    t: Float[Array, " batch *times"],
) -> Prediction:
    """Solve x_t = alpha·x + sigma·z and y = c·x + d·z for x and z, for an array or a tree.

    The solution is Cramer's rule.

    Raises:
        ValueError: y has not the shape of x_t.
    """
    check_output(y, x_t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    alpha, sigma, c, d = (expand(a, x_t) for a in (alpha, sigma, c, d))
    determinant = d * alpha - c * sigma
    return Prediction(
        clean=(d * x_t - sigma * y) / determinant, noise=(alpha * y - c * x_t) / determinant
    )


@leafwise
def check_target(process: Process, target: Target, times: Times) -> None:
    """Check that x̂ and ẑ follow from `target` at all times at which a network will be evaluated.

    Process, target and times may be trees.

    Args:
        times: concrete times of any shape: all but the last time of a grid, or the ends of a
            distribution. Traced times have no values to check.

    Raises:
        ValueError: the target is singular at one of the times.
    """
    name = getattr(getattr(target, "func", target), "__name__", repr(target))
    times = times.reshape(-1)
    alpha, sigma = process.alpha(times), process.sigma(times)
    c, d = target(process, times)
    determinant = d * alpha - c * sigma
    for i in np.flatnonzero(~(np.isfinite(determinant) & (determinant != 0))):
        if not np.isfinite(determinant[i]):
            reason = f"its coefficients ({c[i]:g}, {d[i]:g}) of data and noise are not finite"
        else:
            half = "data" if alpha[i] == 0 else "noise"
            reason = (
                f"alpha = {alpha[i]:g} and sigma = {sigma[i]:g}, so it and x_t do not determine "
                f"the {half}"
            )
        raise ValueError(
            f"the target {name} is singular at t = {times[i]:g} of {type(process).__name__}: "
            f"{reason} (see the table in genjax.diffusion.targets). Choose another target, or a "
            "domain of the process without that time"
        )


@leafwise
def split_variance(
    output: Float[Array, " batch *shape"],
) -> tuple[Float[Array, " batch *half"], Float[Array, " batch *half"]]:
    """Return the prediction and `Prediction.fraction` of a network with learned variance.

    The output of such a network has twice the data's channels. The second half v is −1 for the
    least and 1 for the largest variance (Nichol & Dhariwal 2021, as released; Peebles & Xie 2023).
    """
    y, v = jnp.split(output, 2, axis=-1)
    return y, (v + 1) / 2


@leafwise
def network_inputs(
    process: Process, x_t: Float[Array, " batch *shape"], t: Float[Array, " batch *times"]
) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *times"]]:
    """Return x_t scaled and the network's time, both by the process' preconditioning.

    For a tree x_t both are trees like it, because each leaf has its own times.
    """
    feed = process.preconditioning
    return expand(feed.input_scale(process, t), x_t) * x_t, feed.network_time(process, t)


def predict(
    apply: Callable,
    process: PyTree[Process],
    target: PyTree[Target],
    *,
    learned_variance: bool = False,
) -> Callable[..., Prediction]:
    """Make a denoiser `(x_t, t, *conditioning) -> Prediction` of a network trained for `target`.

    Predictions are infinite or NaN at times where the target is singular, as `noise` is where alpha
    = 0. Samplers cannot see the target, so call `check_target(process, target, times[:-1])` first,
    with all times for `heun` and `rk4`, which evaluate at the last one, too.

    Args:
        apply: `apply(x, t, *conditioning) -> y`, the network with its parameters bound. Its x and t
            are `network_inputs`. t is `[batch]`, or `[batch frames]` for one time per frame. For a
            tree x_t the network gets trees and returns a tree, in one call.
        learned_variance: the network's output is that of `split_variance`.

    Raises:
        ValueError: `process` is no process, or `target` no function.
    """
    jax.tree.map(check_process, process)
    check_functions(apply=apply, target=target)

    def denoiser(x_t, t, *conditioning):
        y = apply(*network_inputs(process, x_t, t), *conditioning)
        y, fraction = split_variance(y) if learned_variance else (y, None)
        return recover(process, target, x_t, y, t)._replace(fraction=fraction)

    return denoiser


def at_same_level(
    denoiser: Callable[..., Prediction], base: Process, process: Process
) -> Callable[..., Prediction]:
    """Make a denoiser for x_t of `process` of a denoiser for x_t of `base`.

    Both see the same data and noise at the same noise level, so x̂ and ẑ are those of `base`
    exactly. The levels of `process` should lie in the domain of `base`.

    Raises:
        ValueError: `process` ends in noise alone, and `base` does not.
    """
    with jax.ensure_compile_time_eval():  # concrete: domains are static
        ends = [float(each.log_snr(jnp.asarray(each.domain[1]))) for each in (base, process)]
    if ends[1] == -math.inf < ends[0]:
        names = type(base).__name__, type(process).__name__
        raise ValueError(
            f"{names[1]} ends in noise alone, and {names[0]} at a log-SNR of {ends[0]:.4g}: end "
            f"the domain of {names[1]} earlier"
        )

    def converted(x_t, t, *conditioning):
        time, factor = base.at_level_of(process, t)
        return denoiser(expand(factor, x_t) * x_t, time, *conditioning)

    return converted
