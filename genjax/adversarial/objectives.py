"""Objectives: what discriminator and generator minimize, as functions of their logits.

An `Objective` is two functions `(real, fake) -> losses` of logits `[batch]`, with one loss per
pair. The discriminator minimizes the mean of the first, the generator that of the second.
Probabilities are never computed: log D = −softplus(−logit) stays exact and keeps its gradient even
where D is near 0 or 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus
from jaxtyping import Array, Float

Logits = Float[Array, " batch"]
Loss = Callable[[Logits, Logits], Logits]


class Objective(NamedTuple):
    """`discriminator(real, fake)` and `generator(real, fake)`, losses `[batch]` of logits.

    Attributes:
        boundary: the logit between real and generated. None if only differences of logits count.
    """

    discriminator: Loss
    generator: Loss
    boundary: float | None = 0.0


def _equal_shapes(loss: Loss) -> Loss:
    """Return a loss that refuses logits of two shapes: [batch] and [batch 1] would be all pairs."""

    @functools.wraps(loss)
    def checked(real: Array, fake: Array) -> Array:
        if jnp.shape(real) != jnp.shape(fake):
            raise ValueError(
                "logits of pairs have one shape, [batch]; got "
                f"{jnp.shape(real)} and {jnp.shape(fake)}"
            )
        return loss(real, fake)

    return checked


@_equal_shapes
def value(real: Logits, fake: Logits) -> Logits:
    """Return log D(x) + log(1 − D(G(z))), whose mean is V(G, D), for D = sigmoid(logit).

    Goodfellow et al. 2014, equation 1. D ascends it and G descends it. The best D is p/(p + q),
    whose logit is log p − log q. With it the mean is −log 4 + 2·JSD(p ‖ q) (theorem 1).
    """
    return -softplus(-real) - softplus(fake)


def _cross_entropy(real: Logits, fake: Logits) -> Logits:
    return -value(real, fake)


saturating = Objective(_cross_entropy, lambda real, fake: -softplus(fake))
"""The minimax game: G minimizes log(1 − D(G(z))), whose slope −D vanishes where D is sure."""

non_saturating = Objective(_cross_entropy, lambda real, fake: softplus(-fake))
"""G minimizes −log D(G(z)) instead, whose slope is −(1 − D) (Goodfellow et al. 2014, section 3)."""

hinge = Objective(
    _equal_shapes(lambda real, fake: relu(1 - real) + relu(1 + fake)), lambda real, fake: -fake
)
"""The hinge loss (Lim & Ye 2017, "Geometric GAN"; Miyato et al. 2018, equations 16 and 17)."""

least_squares = Objective(
    _equal_shapes(lambda real, fake: (jnp.square(real - 1) + jnp.square(fake)) / 2),
    lambda real, fake: jnp.square(fake - 1) / 2,
    boundary=0.5,
)
"""Labels are 0 and 1, and G aims at 1 (Mao et al. 2017, equation 9)."""

wasserstein = Objective(
    _equal_shapes(lambda real, fake: fake - real), lambda real, fake: -fake, boundary=None
)
"""For a critic that a penalty or spectral norm keeps Lipschitz (Arjovsky et al. 2017)."""

relativistic = Objective(
    _equal_shapes(lambda real, fake: softplus(fake - real)),
    _equal_shapes(lambda real, fake: softplus(real - fake)),
    boundary=None,
)
"""Losses of the difference of the logits in each pair of a real and a generated example.

Jolicoeur-Martineau 2019; R3GAN, Huang et al. 2024, equation 2.
"""


def generator_slope(objective: Objective, real: Logits, fake: Logits) -> Logits:
    """Return |∂ loss of G / ∂ logit of the generated example|: how much of D's gradient reaches G.

    The slope lies between 0 and 1 for losses made of softplus. The slope of the saturating loss is
    D(G(z)), which is near 0 where D recognizes generated examples. The slope of the non-saturating
    loss is 1 − D(G(z)).
    """
    return jnp.abs(jax.grad(lambda fake: objective.generator(real, fake).sum())(fake))
