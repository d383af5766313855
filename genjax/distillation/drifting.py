"""Drifting: samples move towards data and away from each other, and the generator learns the move.

Deng et al. 2026. Teacher: none, and no ODE. Distances are those of a fixed feature network. The
generator is any function of noise. No derivative but the gradient is taken.

For generated points x_i, data y⁺ and negatives y⁻ (the generated points themselves, and other
data where guidance is wanted), the field at x_i is

    V_i = Σ_j⁺ Σ_k⁻ a_ij·a_ik·(y_j⁺ − y_k⁻)

with affinities a from distances, normalized over both of their indices. The field vanishes if
generated points and data have the same distribution.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Points = Float[Array, "*groups _ dimension"]
Weight = float | Float[Array, "..."]
SMALLEST = 1e-3  # of distances and forces, below which they are not scaled up
# Distances are small differences of large numbers, which products of default precision round away
# on TPUs.
product = functools.partial(jnp.matmul, precision="highest")


def _distances(x: Points, y: Points) -> Float[Array, "*groups x y"]:
    squares = jnp.sum(x**2, -1)[..., :, None] + jnp.sum(y**2, -1)[..., None, :]
    return jnp.sqrt(jnp.maximum(squares - 2 * product(x, y.swapaxes(-1, -2)), 1e-8))


def affinities(
    distances: Float[Array, "*groups x y"], temperature: float
) -> Float[Array, "*groups x y"]:
    """Return √(p(y | x)·p(x | y)) with both probabilities ∝ exp(−distance/temperature)."""
    logits = -distances / temperature
    each = jax.nn.softmax(logits, axis=-1) * jax.nn.softmax(logits, axis=-2)
    return jnp.sqrt(jnp.maximum(each, 1e-6))


def drift(
    x: Points,
    positive: Points,
    negative: Points | None = None,
    negative_weight: Weight = 1.0,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
) -> tuple[Points, Float[Array, ""]]:
    """Return the field V at generated points x, and the scale of the points that it is relative to.

    Distances are divided by their mean, coordinates by that mean over √dimension. The field of each
    temperature is divided by its root mean square, so that all temperatures count equally. Points
    may be in groups, such as the places of a feature map. Points of different groups do not
    interact, but these means are over all groups (appendix A.6).

    Args:
        positive: data of the same condition.
        negative: other points to keep away from, such as data of any class for guidance. The
            generated points, each but itself, count as negatives anyway.
        negative_weight: of each point of `negative` (`guidance_weight`), for all groups or each.
        temperatures: the kernels' widths, in units of the mean distance.
    """
    negative = positive[..., :0, :] if negative is None else negative
    others = jnp.concatenate([x, negative, positive], axis=-2)
    # Only differences of points count. A common offset would round them away.
    others -= jnp.mean(others, axis=-2, keepdims=True)
    x = others[..., : x.shape[-2], :]
    generated, dimension = x.shape[-2:]
    count = generated + negative.shape[-2]
    weights = jnp.ones(others.shape[:-1])
    weights = weights.at[..., generated:count].set(jnp.asarray(negative_weight)[..., None])
    distances = _distances(x, others)
    mean = jnp.mean(distances * weights[..., None, :]) / jnp.mean(weights)
    scale = jnp.maximum(mean / dimension**0.5, SMALLEST)
    itself = jnp.eye(generated, others.shape[-2])
    relative = distances / jnp.maximum(mean, SMALLEST) + 100 * itself
    total = jnp.zeros_like(x)
    for temperature in temperatures:
        a = affinities(relative, temperature) * weights[..., None, :]
        repulsion, attraction = a[..., :count], a[..., count:]
        away = -repulsion * jnp.sum(attraction, -1, keepdims=True)
        towards = attraction * jnp.sum(repulsion, -1, keepdims=True)
        coefficients = jnp.concatenate([away, towards], axis=-1)
        moved = product(coefficients, others) - jnp.sum(coefficients, -1, keepdims=True) * x
        field = moved / scale
        total += field / jnp.sqrt(jnp.maximum(jnp.mean(field**2), 1e-8))
    return total, scale


def drifting_loss(
    x: Points, positive: Points, negative: Points | None = None, **options
) -> Float[Array, "*groups"]:
    """Compute the mean of (x/c − sg(x/c + V))² of each group, c the scale of `drift`.

    Its value is the mean square of V, and its gradient moves x along V. Each layer of features has
    its own loss. Add these losses up.

    Args:
        x: features of generated samples, through which the gradient passes.
        positive, negative: features of data.
        options: of `drift`.
    """
    field, scale = jax.lax.stop_gradient(
        drift(jax.lax.stop_gradient(x), positive, negative, **options)
    )
    scaled = x / scale
    goal = jax.lax.stop_gradient(scaled + field)
    return jnp.mean(jnp.square(scaled - goal), axis=(-2, -1))


def guidance_weight(
    scale: float | Float[Array, "..."], num_generated: int, num_negative: int
) -> float | Float[Array, "..."]:
    """Return the weight of unconditional negatives that corresponds to a guidance scale.

    (scale − 1)·(generated − 1)/negative: the negatives together weigh scale − 1 times as much as
    the other generated points.
    """
    return (scale - 1) * (num_generated - 1) / max(num_negative, 1)


class Bank(NamedTuple):
    """The last examples of each class, which are drawn as positives and negatives.

    Attributes:
        examples: `[classes size …]`.
        pushed: how many examples each class has had, `[classes]`.
    """

    examples: Float[Array, " classes size *shape"]
    pushed: Int[Array, " classes"]

    @classmethod
    def empty(cls, num_classes: int, size: int, shape: tuple[int, ...]) -> "Bank":
        return cls(jnp.zeros((num_classes, size, *shape)), jnp.zeros(num_classes, jnp.int32))

    def push(self, x: Float[Array, " batch *shape"], labels: Int[Array, " batch"]) -> "Bank":
        """Return the bank with a batch written over the oldest examples of its classes."""
        size = self.examples.shape[1]
        same = labels[:, None] == labels
        earlier = jnp.sum(jnp.tril(same, -1), axis=1)  # of the batch, of the same class
        later = jnp.sum(jnp.triu(same, 1), axis=1)
        slot = (self.pushed[labels] + earlier) % size
        slot = jnp.where(later < size, slot, size)  # out of bounds: overwritten within the batch
        return Bank(
            self.examples.at[labels, slot].set(x, mode="drop"), self.pushed.at[labels].add(1)
        )

    def draw(
        self, key: Key[Array, ""], labels: Int[Array, " batch"], count: int
    ) -> Float[Array, " batch count *shape"]:
        """Return random examples of each label, distinct while there are enough of them.

        A class that has had no example is drawn as NaN, so that a loss shows it. Push a batch
        before its classes are drawn.
        """
        size = self.examples.shape[1]

        def one(key, label):
            filled = jnp.minimum(self.pushed[label], size)
            order = jnp.argsort(
                jnp.where(jnp.arange(size) < filled, jax.random.uniform(key, (size,)), 2.0)
            )
            drawn = self.examples[label, order[jnp.arange(count) % jnp.maximum(filled, 1)]]
            return jnp.where(filled > 0, drawn, jnp.nan)

        return jax.vmap(one)(jax.random.split(key, len(labels)), labels)
