"""Guidance rules: how conditional and unconditional answers combine, `(c, u, s) -> y`.

c is the conditional answer, u the unconditional answer and s the guidance scale. A rule acts on one
quantity, such as x̂ or the velocity. `guidance.target_rule` makes a rule for predictions from it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.diffusion.trees import leafwise

Data = Float[Array, " batch *shape"]


@leafwise
def classifier_free(c: Data, u: Data, s: float | Array) -> Data:
    """Return u + s·(c − u) (Ho & Salimans 2022, equation 6).

    s = 1 is conditional sampling and s = 0 unconditional sampling.
    """
    return u + s * (c - u)


@leafwise
def rescaled(
    c: Data,
    u: Data,
    s: float | Array,
    *,
    phi: float | Float[Array, ""],
    rule: Callable = classifier_free,
) -> Data:
    """Return phi·y·std(c)/std(y) + (1 − phi)·y for another rule's y (Lin et al. 2024, section 3.4).

    Deviations are per example, over all other axes. The result is y where std(y) = 0. The
    authors rescale what their network predicts, which is v.
    """
    y = rule(c, u, s)
    axes = tuple(range(1, y.ndim))
    own, of_y = (jnp.std(a, axes, keepdims=True) for a in (c, y))
    ratio = jnp.where(of_y == 0, 1, own / jnp.where(of_y == 0, 1, of_y))
    return phi * ratio * y + (1 - phi) * y


def _projection(a: Data, onto: Data) -> Array:
    """Return <a, b>/‖b‖² per example, so that its product with b = `onto` is the part of a along b.

    It is 0 where b is 0.
    """
    axes = tuple(range(1, a.ndim))
    square = jnp.sum(onto * onto, axes, keepdims=True)
    return jnp.sum(a * onto, axes, keepdims=True) / jnp.where(square == 0, 1, square)


@leafwise
def adaptive_projected(
    c: Data,
    u: Data,
    s: float | Array,
    *,
    eta: float | Float[Array, ""] = 0.0,
    norm_threshold: float | Float[Array, ""] = np.inf,
) -> Data:
    """Return c + (s − 1)·(Δ⊥ + eta·Δ∥), where Δ = c − u is split along c (Sadat et al. 2025, APG).

    Δ is first shortened to `norm_threshold`. The rule is meant for x̂: `target_rule(process, clean,
    …)`. The authors' reverse momentum is the `momentum` of `target_rule`. With eta = 1 and no
    threshold it is `classifier_free`.
    """
    difference = c - u
    square = jnp.sum(difference**2, tuple(range(1, c.ndim)), keepdims=True)
    difference = difference * jax.lax.rsqrt(jnp.maximum(1, square / norm_threshold**2))
    return c + (s - 1) * (difference - (1 - eta) * _projection(difference, c) * c)


@leafwise
def zero_star(c: Data, u: Data, s: float | Array) -> Data:
    """Return r·u + s·(c − r·u) with r = <c, u>/‖u‖² per example: the scale of CFG-Zero*.

    Fan et al. 2025. The rule is meant for the velocity. The other half of the method is
    `zero_init`.
    """
    return classifier_free(c, _projection(c, u) * u, s)


@leafwise
def tangential(c: Data, u: Data, s: float | Array) -> Data:
    """Return u′ + s·(c − u′), with u′ the part of u along the first singular vector of (c, u).

    That vector is cos θ·c + sin θ·u with tan 2θ = 2<c, u>/(‖c‖² − ‖u‖²). It is the direction that c
    and u share most (Kwon et al. 2025, TCFG).
    """
    axes = tuple(range(1, c.ndim))
    inner = lambda a, b: jnp.sum(a * b, axes, keepdims=True)
    angle = jnp.arctan2(2 * inner(c, u), inner(c, c) - inner(u, u)) / 2
    shared = jnp.cos(angle) * c + jnp.sin(angle) * u
    return classifier_free(c, _projection(u, shared) * shared, s)


@leafwise
def frequency_decoupled(
    c: Data, u: Data, s: float | Array, *, low_scale: float | Float[Array, ""], factor: int = 2
) -> Data:
    """Return u + low_scale·Δ_low + s·Δ_high with Δ = c − u (Sadat et al. 2025, FDG, algorithm 1).

    Δ_low is the coarse level of a Laplacian pyramid. All axes of Δ between batch and channels
    shrink by `factor` and grow again, by linear interpolation. The authors take low_scale = 5 and s
    = 10 for Stable Diffusion XL (table 8).

    With a factor of 2, Δ_low keeps cos⁶(ω/2) of a wave of frequency ω per pixel, and an alias of
    the wave. The version of diffusers also blurs before and after, so its Δ_low is narrower:
    cos¹²(ω/2).
    """
    difference = c - u
    small = (len(c), *(max(1, side // factor) for side in c.shape[1:-1]), c.shape[-1])
    low = jax.image.resize(jax.image.resize(difference, small, "linear"), c.shape, "linear")
    return u + low_scale * low + s * (difference - low)
