"""Averages of parameters over training.

An average is a frozen dataclass with `shares(step)`: what the old average and the new parameters
count in `average ← old·average + new·parameters`.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

MAX_WIDTH = 1 / math.sqrt(12)  # of the plain mean over all of training, γ = 0


@dataclass(frozen=True)
class HalfLife:
    """Exponential decay: parameters `steps` steps old count half as much as the newest.

    The newest parameters' share is max(1 − 2^(−1/steps), 9/(10 + n)) after n updates, so that the
    first weights fade fast. (The second term is the warm-up of TensorFlow's
    ExponentialMovingAverage, a decay of (1 + n)/(10 + n).)
    """

    steps: float

    def __post_init__(self):
        if not self.steps > 0:
            raise ValueError(f"a half-life is a positive number of steps; got {self.steps}")

    def shares(self, step: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        new = jnp.maximum(-math.expm1(-math.log(2) / self.steps), 9 / (10 + step))
        return 1 - new, new


@dataclass(frozen=True)
class PowerFunction:
    """An average whose weights grow as the γ-th power of time since the start.

    At step t the decay is (1 − 1/t)^(γ + 1) (Karras et al. 2024, "Analyzing and improving the
    training dynamics of diffusion models" (EDM2), equation 127).

    Attributes:
        width: σ_rel, the weights' standard deviation as a share of t: above 0, at most 1/√12 ≈
            0.2887.
    """

    width: float

    def __post_init__(self):
        power_of_width(self.width)

    def shares(self, step: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        # 1 − decay by expm1: the difference itself would leave two digits of float32 after 10⁵
        # steps.
        new = -jnp.expm1((power_of_width(self.width) + 1) * jnp.log1p(-1 / (1.0 + step)))
        return 1 - new, new


def update_average(average: PyTree, params: PyTree, step: Int[Array, ""], rule: Any) -> PyTree:
    """Return the average that takes in the parameters after one more update.

    The result has the types of the average. Keep averages in float32: bfloat16 would round away a
    share of less than 1/512.

    Args:
        step: updates made before this one.
        rule: anything with `shares(step)`.
    """
    old, new = rule.shares(step)
    return jax.tree.map(lambda a, p: (old * a + new * p).astype(a.dtype), average, params)


def power_of_width(width: float) -> float:
    """Return the power γ of a relative width σ (EDM2, equation 126).

    It is the largest root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻².

    Raises:
        ValueError: the width is not above 0 and at most 1/√12.
    """
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(
            f"a relative width is above 0 and at most 1/√12 ≈ {MAX_WIDTH:.4f}; got {width}"
        )
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots.real.max())
