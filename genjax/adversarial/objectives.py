"""What discriminator and generator minimize, as functions of the logits of real and generated examples.

An `Objective` is two functions `(real, fake) -> losses`, of logits `[batch]`, one loss per pair: the discriminator
minimizes the mean of the first, the generator that of the second. Probabilities are never formed: log D = −softplus(−logit)
keeps its digits, and its gradient, however sure D is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus
from jaxtyping import Array, Float

Logits = Float[Array, " batch"]


class Objective(NamedTuple):
    """`discriminator(real, fake)` and `generator(real, fake)`: losses `[batch]` of logits `[batch]`.

    Attributes:
        boundary: the logit between real and generated; None where only differences of logits count.
    """

    discriminator: Callable[[Logits, Logits], Logits]
    generator: Callable[[Logits, Logits], Logits]
    boundary: float | None = 0.0


def value(real: Logits, fake: Logits) -> Logits:
    """log D(x) + log(1 − D(G(z))), whose mean is V(G, D), D = sigmoid(logit) (Goodfellow et al. 2014, equation 1).

    D ascends it and G descends it. With the best D, p/(p + q), whose logit is log p − log q, it is
    −log 4 + 2·JSD(p ‖ q) (theorem 1).
    """
    return -softplus(-real) - softplus(fake)


def _cross_entropy(real: Logits, fake: Logits) -> Logits:
    return -value(real, fake)


saturating = Objective(_cross_entropy, lambda real, fake: -softplus(fake))
"""The minimax game itself: G minimizes log(1 − D(G(z))), whose slope, −D, vanishes where D is sure."""

non_saturating = Objective(_cross_entropy, lambda real, fake: softplus(-fake))
"""G minimizes −log D(G(z)) instead, whose slope is −(1 − D) (Goodfellow et al. 2014, section 3)."""

hinge = Objective(lambda real, fake: relu(1 - real) + relu(1 + fake), lambda real, fake: -fake)
"""Lim & Ye 2017, "Geometric GAN"; Miyato et al. 2018, equations 16 and 17."""

least_squares = Objective(
    lambda real, fake: (jnp.square(real - 1) + jnp.square(fake)) / 2,
    lambda real, fake: jnp.square(fake - 1) / 2,
    boundary=0.5,
)
"""Mao et al. 2017, equation 9: labels 0 and 1, and G wants 1."""

wasserstein = Objective(lambda real, fake: fake - real, lambda real, fake: -fake, boundary=None)
"""Arjovsky et al. 2017, of a critic that a penalty or spectral norm keeps Lipschitz."""

relativistic = Objective(
    lambda real, fake: softplus(fake - real),
    lambda real, fake: softplus(real - fake),
    boundary=None,
)
"""Real and generated examples in pairs, each critic's logit against the other's (Jolicoeur-Martineau 2019; R3GAN,
Huang et al. 2024, equation 2)."""


def generator_slope(objective: Objective, real: Logits, fake: Logits) -> Logits:
    """|∂ loss of G / ∂ logit of the generated example|: how much of D's gradient reaches G.

    Between 0 and 1 for losses made of softplus: the saturating one's is D(G(z)), which is 0 where D is sure; the
    non-saturating one's is 1 − D(G(z)).
    """
    return jnp.abs(jax.grad(lambda fake: objective.generator(real, fake).sum())(fake))
