"""The oracle of these tests: data N(0, s²), of which map, velocity and denoiser are closed forms.

The deviation of x_t is ρ(t) = √(alpha²s² + sigma²). The probability-flow ODE keeps x_t/ρ(t), so

    X(x, t, s) = x·ρ(s)/ρ(t),   v(x, t) = x·ρ'(t)/ρ(t),   x̂ = alpha·s²/ρ²·x,   ẑ = sigma/ρ²·x.
"""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.diffusion.processes import expand
from genjax.diffusion.targets import Prediction

S = 0.7


def rho(process, t):
    return jnp.sqrt((process.alpha(t) * S) ** 2 + process.sigma(t) ** 2)


def rho_prime(process, t):
    return jax.jvp(lambda t: rho(process, t), (t,), (jnp.ones_like(t),))[1]


def exact_map(process):
    return lambda x, t, s: expand(rho(process, s) / rho(process, t), x) * x


def exact_velocity(process):
    return lambda x, t: expand(rho_prime(process, t) / rho(process, t), x) * x


def exact_denoiser(process):
    def denoiser(x, t):
        variance = rho(process, t) ** 2
        return Prediction(
            expand(process.alpha(t) * S**2 / variance, x) * x,
            expand(process.sigma(t) / variance, x) * x,
        )

    return denoiser


def average_velocity(process):
    """(X(x, t, s) − x)/(s − t), the velocity where s = t."""

    def u(x, t, s):
        ratio = rho(process, s) / rho(process, t)
        same = s == t
        mean = (ratio - 1) / jnp.where(same, 1.0, s - t)
        return expand(jnp.where(same, rho_prime(process, t) / rho(process, t), mean), x) * x

    return u


def nodes(count: int = 12):
    """Points and weights of means over data and noise, exact up to degree 2·count − 1."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    x, z = np.meshgrid(S * points, points)
    return x.reshape(-1, 1), z.reshape(-1, 1), np.outer(weights, weights).reshape(-1)


def perturbed(function, theta):
    """`function` plus θ₀·x + θ₁·x·(t − s) + θ₂: a family of which it is a member, at θ = 0.

    A function of (x, t) alone is perturbed with s = 0.
    """

    def member(x, t, s=None, *conditioning):
        times = (t,) if s is None else (t, s)
        gap = expand(t - (0.0 if s is None else s), x)
        return function(x, *times) + theta[0] * x + theta[1] * x * gap + theta[2]

    return member


def mean_gradient(loss):
    """Return θ ↦ the gradient in θ of E[loss], exact over data and noise, compiled once.

    `loss(θ, x, z)` gives [batch].
    """
    x, z, weights = map(jnp.asarray, nodes())
    gradient = jax.jit(jax.grad(lambda theta: jnp.sum(weights * loss(theta, x, z))))
    return lambda theta=(0.0, 0.0, 0.0): np.asarray(gradient(jnp.asarray(theta)))


def at(t, s):
    """A law of pairs that always gives (t, s)."""
    return lambda key, process, count: (jnp.full(count, t), jnp.full(count, s))
