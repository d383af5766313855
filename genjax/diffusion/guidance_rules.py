"""Guidance rules: what conditional and unconditional answers make together, `(c, u, s) -> y`.

c is the conditional answer, u the unconditional one and s the guidance scale. Rules act on one quantity,
such as x̂ or the velocity; `guidance.target_rule` makes rules for predictions of them.
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
    """u + s·(c − u) (Ho & Salimans 2022, equation 6): s = 1 is conditional, s = 0 unconditional sampling."""
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
    """phi·y·std(c)/std(y) + (1 − phi)·y of another rule's y (Lin et al. 2024, section 3.4).

    Deviations are per example, over all other axes. The authors rescale what their network predicts, which is v.
    """
    y = rule(c, u, s)
    axes = tuple(range(1, y.ndim))
    ratio = jnp.std(c, axes, keepdims=True) / jnp.std(y, axes, keepdims=True)
    return phi * ratio * y + (1 - phi) * y


def _projection(a: Data, onto: Data) -> Array:
    """<a, b>/‖b‖² per example, so that it times b is the part of a along b; 0 where b is 0."""
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
    """c + (s − 1)·(Δ⊥ + eta·Δ∥), Δ = c − u shortened to `norm_threshold`, split along c (Sadat et al. 2025, APG).

    Meant for x̂, `target_rule(process, clean, …)`; the authors' reverse momentum is the `momentum` of `target_rule`. With eta = 1 and
    no threshold it is `classifier_free`.
    """
    difference = c - u
    square = jnp.sum(difference**2, tuple(range(1, c.ndim)), keepdims=True)
    difference = difference * jax.lax.rsqrt(jnp.maximum(1, square / norm_threshold**2))
    return c + (s - 1) * (difference - (1 - eta) * _projection(difference, c) * c)


@leafwise
def zero_star(c: Data, u: Data, s: float | Array) -> Data:
    """r·u + s·(c − r·u), r = <c, u>/‖u‖² per example: the scale of CFG-Zero* (Fan et al. 2025).

    Meant for the velocity; the other half of the method is `zero_init`.
    """
    return classifier_free(c, _projection(c, u) * u, s)


@leafwise
def tangential(c: Data, u: Data, s: float | Array) -> Data:
    """u′ + s·(c − u′), u′ the part of u along the first singular vector of (c, u).

    That vector is cos θ·c + sin θ·u with tan 2θ = 2<c, u>/(‖c‖² − ‖u‖²), the direction that c and u
    share most (Kwon et al. 2025, TCFG).
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
    """u + low_scale·Δ_low + s·Δ_high, Δ = c − u (Sadat et al. 2025, FDG, algorithm 1).

    Δ_low is what remains of Δ when all axes between batch and channels shrink by `factor` and grow
    again, by linear interpolation: the coarse level of a Laplacian pyramid. The authors take
    low_scale = 5 and s = 10 for Stable Diffusion XL.

    With a factor of 2, Δ_low keeps cos⁶(ω/2) of a wave of frequency ω per pixel, and an alias of the
    wave. diffusers blurs before and after too, so its Δ_low is narrower: cos¹²(ω/2).
    """
    difference = c - u
    small = (len(c), *(max(1, side // factor) for side in c.shape[1:-1]), c.shape[-1])
    low = jax.image.resize(jax.image.resize(difference, small, "linear"), c.shape, "linear")
    return u + low_scale * low + s * (difference - low)
