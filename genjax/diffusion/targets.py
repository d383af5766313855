"""Targets: what a network is asked for, y = c(t)·x + d(t)·z.

A target is a function `(process, t) -> (c, d)`. Together with x_t = alpha·x + sigma·z it gives two
equations in x and z, so that every target yields every other by one 2×2 solve, `recover`. The determinant
d·alpha − c·sigma vanishes, half of the prediction is undetermined and the solve not finite, here:

| target   | determinant                  | zero where                                                    |
|----------|------------------------------|---------------------------------------------------------------|
| clean    | −sigma                       | sigma = 0: the noise (the clean end of rectified flow and VP) |
| noise    | alpha                        | alpha = 0: the data (the noise end of rectified flow and VP)  |
| velocity | alpha·sigma' − alpha'·sigma  | nowhere for the processes here                                |

Choose the process' `domain` to stay clear of a zero; nothing is clipped silently.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.processes import Process, expand

Times = Float[Array, " *times"]
Target = Callable[[Process, Times], tuple[Times, Times]]


def clean(process: Process, t: Times) -> tuple[Times, Times]:
    return jnp.ones_like(t), jnp.zeros_like(t)


def noise(process: Process, t: Times) -> tuple[Times, Times]:
    return jnp.zeros_like(t), jnp.ones_like(t)


def velocity(process: Process, t: Times) -> tuple[Times, Times]:
    """dx_t/dt at fixed x and z: z − x for rectified flow (Lipman et al. 2023; Liu et al. 2023)."""
    return process.alpha_prime(t), process.sigma_prime(t)


class Prediction(NamedTuple):
    """Both halves of a denoiser's answer: x̂ and ẑ with alpha·x̂ + sigma·ẑ = x_t.

    `variance` is what a learned-variance network adds, else None.
    """

    clean: Float[Array, " batch *shape"]
    noise: Float[Array, " batch *shape"]
    variance: Float[Array, " batch *shape"] | None = None

    def velocity(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch *shape"]:
        """alpha'·x̂ + sigma'·ẑ, the direction dx_t/dt of the probability-flow ODE."""
        return expand(process.alpha_prime(t), self.clean) * self.clean + (
            expand(process.sigma_prime(t), self.noise) * self.noise
        )


def combine(
    process: Process,
    target: Target,
    x: Float[Array, " batch *shape"],
    z: Float[Array, " batch *shape"],
    t: Float[Array, " batch"],
) -> Float[Array, " batch *shape"]:
    """y = c(t)·x + d(t)·z."""
    c, d = target(process, t)
    return expand(c, x) * x + expand(d, z) * z


def recover(
    process: Process,
    target: Target,
    x_t: Float[Array, " batch *shape"],
    y: Float[Array, " batch *shape"],
    t: Float[Array, " batch"],
) -> Prediction:
    """Solves x_t = alpha·x + sigma·z and y = c·x + d·z for x and z (Cramer's rule)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    c, d = target(process, t)
    alpha, sigma, c, d = (expand(a, x_t) for a in (alpha, sigma, c, d))
    determinant = d * alpha - c * sigma
    return Prediction(clean=(d * x_t - sigma * y) / determinant, noise=(alpha * y - c * x_t) / determinant)


def predict(apply: Callable, process: Process, target: Target) -> Callable[..., Prediction]:
    """A denoiser `(x_t, t, *conditioning) -> Prediction` of a network trained for `target`.

    `apply(x, t, *conditioning)` is the network with its parameters bound; it sees x_t times the process'
    input scale, and the process' network time.
    """

    def denoiser(x_t, t, *conditioning):
        y = apply(expand(process.input_scale(t), x_t) * x_t, process.network_time(t), *conditioning)
        return recover(process, target, x_t, y, t)

    return denoiser
