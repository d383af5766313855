"""Penalties of a GAN's losses by config: how much each weighs, and at which steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from genjax import parts
from genjax.adversarial import regularizers
from genjax.training import Mean

PENALTIES = ("r1", "r2", "interpolated", "lecam", "path_length", "orthogonality")

Added = tuple[Float[Array, ""], Float[Array, ""]]  # as added to a loss; 1 if computed, else 0


@dataclass(frozen=True)
class Regularizer:
    """How a penalty is added to a loss.

    Attributes:
        weight: what its mean is multiplied by.
        every: steps from one computation to the next; it is then added so many times as much.
        end_weight: to which the weight goes as a half cosine over `burn_in` steps (R3GAN, Huang et
            al. 2024, appendix D); if None, it stays.
    """

    weight: float
    every: int = 1
    end_weight: float | None = None
    burn_in: int = 0

    def __post_init__(self):
        if (self.end_weight is None) != (self.burn_in == 0) or min(
            self.burn_in, self.every - 1
        ) < 0:
            raise ValueError(
                "a regularizer has an `every` of at least 1, and both of end_weight and burn_in "
                f"or neither; got {self}"
            )

    def weight_at(self, step: Int[Array, ""]) -> float | Float[Array, ""]:
        if self.end_weight is None:
            return self.weight
        done = (1 - jnp.cos(jnp.pi * jnp.minimum(step / self.burn_in, 1))) / 2
        return self.weight + done * (self.end_weight - self.weight)


def _regularizer(name: str, fields: Mapping[str, Any]) -> Regularizer:
    field = f"config.regularizers.{name}"
    if not hasattr(fields, "keys") or "weight" not in fields:
        raise ValueError(f"{field} is {fields!r}; set {field} = dict(weight=…)")
    return parts.bind_to(Regularizer, dict(fields), (), field)()


@dataclass(frozen=True)
class Penalties:
    """The penalties of a GAN, by the names in `PENALTIES`."""

    regularizers: tuple[tuple[str, Regularizer], ...]

    @classmethod
    def from_config(cls, penalties: Mapping[str, Any], generator: nn.Module) -> "Penalties":
        """Return the penalties of `config.regularizers`.

        Raises:
            ValueError: a penalty does not exist, has no weight or other fields than those of
                `Regularizer`, or the generator cannot have it.
        """
        if unknown := set(penalties) - set(PENALTIES):
            raise ValueError(
                f"config.regularizers has {min(unknown)!r}; there are {', '.join(PENALTIES)}"
            )
        if "path_length" in penalties and not hasattr(generator, "synthesize"):
            raise ValueError(
                "config.regularizers.path_length is of a generator with styles; "
                f"{type(generator).__module__.rpartition('.')[2]} has none"
            )
        return cls(tuple((name, _regularizer(name, fields)) for name, fields in penalties.items()))

    def __contains__(self, name: str) -> bool:
        return name in dict(self.regularizers)

    def added(
        self, step: Int[Array, ""], penalties: Mapping[str, Callable[[], Array]]
    ) -> dict[str, Added]:
        """Return those penalties that the config has, by name.

        Args:
            penalties: functions that return the penalty of each example, `[batch]`.
        """
        return {
            name: self.lazily(name, step, lambda penalty=penalty: (penalty().mean(), ()), ())[:2]
            for name, penalty in penalties.items()
            if name in self
        }

    def lazily(
        self,
        name: str,
        step: Int[Array, ""],
        penalty: Callable[[], tuple[Float[Array, ""], PyTree]],
        kept: PyTree,
    ) -> tuple[Float[Array, ""], Float[Array, ""], PyTree]:
        """Return the penalty as added, whether it was computed (1 or 0), and what is kept.

        Args:
            penalty: `penalty() -> (value, kept)`.
            kept: the same, at steps that do not compute the penalty.
        """
        regularizer = dict(self.regularizers)[name]
        weight, every = regularizer.weight_at(step), regularizer.every

        def computed():
            value, after = penalty()
            return weight * every * value, jnp.ones(()), after

        return regularizers.lazy_penalty(
            step, every, computed, (jnp.zeros(()), jnp.zeros(()), kept)
        )

    def metrics(self, added: Mapping[str, Added]) -> dict[str, Mean]:
        """Return penalties as they would count if they were computed at every step."""
        every = {name: regularizer.every for name, regularizer in self.regularizers}
        return {
            f"regularizer/{name}": Mean(term / every[name], computed)
            for name, (term, computed) in added.items()
        }
