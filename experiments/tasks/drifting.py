"""One-step generators that drift: samples move to data and away from each other (Deng et al. 2026).

There is no teacher. The network sees noise alone, at the noise end of the process, and its
prediction of the data is the sample. So it is sampled in one step. With the target `clean` the
sample is the network's output, as in the paper. Its last layer is 0 at first, so all samples start
alike. With the target `velocity` they start as the noise, which the network has to remove.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from experiments.configuration import kinds
from experiments.configuration.runs import examples_at_once
from experiments.tasks import optimization
from experiments.tasks.distillation import Distillation
from experiments.tasks.features import PixelFeatures
from experiments.tasks.methods import Losses, Method, Student
from genjax import diffusion
from genjax.distillation.drifting import Bank, drifting_loss, guidance_weight
from genjax.training import Mean


@flax.struct.dataclass
class State(optimization.State):
    """The state of a generator, and the examples that it is compared with.

    Attributes:
        positives: the last examples of each class.
        negatives: the last examples of any class, as a bank of one class.
    """

    positives: Bank
    negatives: Bank


@dataclass(frozen=True)
class Generator(Student):
    """A student with the banks of its state, and what compares images (`tasks.features`).

    Attributes:
        features: images to arrays `[batch places dimension]`.
    """

    positives: Bank
    negatives: Bank
    features: Callable

    def samples(self, key: Key[Array, ""], labels: Array, scales: Array, like: Array) -> Array:
        """Return one sample for each label; the network takes the guidance scales as an input."""
        t = jnp.full(len(labels), self.process.domain[1])
        keys = jax.random.split(key, len(labels))
        noise = self.process.prior(keys, like.shape[1:])
        network = lambda x, t: self.network(x, t, labels, guidance=scales)
        return diffusion.predict(network, self.process, self.target)(noise, t).clean


@dataclass(frozen=True, kw_only=True)
class Drift(Method):
    """`drifting.drifting_loss` of some classes of the batch, each with a guidance scale of its own.

    Attributes:
        classes: of a step: the labels of so many examples.
        generated: samples of each.
        drawn, drawn_negatives: how many data of its class, and of any class, it is compared with.
        sizes: of the banks, for each class and for all.
        min_guidance_scale, max_guidance_scale, power: scales have a density ∝ scale^−power between
        the two.
        temperatures: the kernels' widths.
        features: of `tasks.features`: `{"name": "VGG16Features", "places": 2}`, or a name alone.

    Raises:
        ValueError: the power is 1.
    """

    classes: int = 8
    generated: int = 32
    drawn: int = 64
    drawn_negatives: int = 16
    sizes: tuple[int, int] = (128, 1000)
    min_guidance_scale: float = 1.0
    max_guidance_scale: float = 4.0
    power: float = 5.0
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
    features: Callable = PixelFeatures()
    takes_end_time = False
    takes_guidance = True
    reads_times = False
    reads_dropout = False
    is_guided = False  # samples of other classes take the place of the null condition

    def __post_init__(self):
        if self.power == 1:
            raise ValueError("power is 1, which has another integral; take 0.99 or 1.01")
        if inspect.isclass(self.features):  # a config's name alone
            object.__setattr__(self, "features", self.features())

    def __call__(self, key: Key[Array, ""], student: Generator, x: Array) -> Losses:
        scale_key, sample_key, positive_key, negative_key = jax.random.split(key, 4)
        labels = student.condition[: self.classes]
        scales = self.scales(jax.random.uniform(scale_key, labels.shape))
        repeated = (jnp.repeat(each, self.generated) for each in (labels, scales))
        samples = student.samples(sample_key, *repeated, x)
        positives = student.positives.draw(positive_key, labels, self.drawn)
        negatives = student.negatives.draw(negative_key, 0 * labels, self.drawn_negatives)
        weights = guidance_weight(scales, self.generated, self.drawn_negatives)
        return self.losses(student.features, samples, positives, negatives, weights), jnp.full(
            len(labels), student.process.domain[1]
        )

    def scales(self, u: Float[Array, " classes"]) -> Float[Array, " classes"]:
        """Return guidance scales for u uniform in (0, 1)."""
        low, high = (
            limit ** (1 - self.power)
            for limit in (self.min_guidance_scale, self.max_guidance_scale)
        )
        return (low + u * (high - low)) ** (1 / (1 - self.power))

    def losses(
        self,
        features: Callable,
        samples: Float[Array, " all *shape"],
        positives: Float[Array, " classes drawn *shape"],
        negatives: Float[Array, " classes drawn_negatives *shape"],
        weights: Float[Array, " classes"],
    ) -> Float[Array, " classes"]:
        """Return the loss of each class: the sum over features of the mean over places.

        The classes and the places of a feature share its normalization.
        """

        def by_class(images):
            """Return features `[classes places images dimension]`."""
            every = features(images.reshape(-1, *samples.shape[1:]))
            return [
                each.reshape(len(weights), -1, *each.shape[1:]).swapaxes(1, 2) for each in every
            ]

        options = dict(negative_weight=weights[:, None], temperatures=self.temperatures)
        every = zip(*map(by_class, (samples, positives, negatives)), strict=True)
        return sum(drifting_loss(*each, **options).mean(axis=1) for each in every)


@dataclass(frozen=True)
class Drifting(Distillation):
    """A one-step generator of classes, trained by `Drift`; its banks are part of the state."""

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Distillation.fields`; the features are no such part; the condition
                has no classes; or a part of the batch has fewer examples than a step has classes.
        """
        fields = super().fields(config)
        named = str(config.method.get("features"))
        kinds.FEATURES.check(fields["method"].features, named, "method.features")
        if not fields["condition"].num_classes:
            raise ValueError(
                f"config.condition is {config.condition.name}, and a bank is kept for each class: "
                "take Classes"
            )
        if examples_at_once(config) < fields["method"].classes:
            raise ValueError(
                f"config.method.classes is {fields['method'].classes}, and config.batch_size "
                f"{config.batch_size} in config.accumulation_steps {config.accumulation_steps} "
                "parts has fewer examples to take classes from; change one"
            )
        return fields

    def frozen(self) -> tuple:
        (others,) = super().frozen() or ({},)
        frozen = others | self.method.features.frozen()
        return (frozen,) if frozen else ()

    def abstract_frozen(self) -> tuple:
        (others,) = super().abstract_frozen() or ({},)
        frozen = others | self.method.features.abstract_frozen()
        return (frozen,) if frozen else ()

    def init(self, key: Key[Array, ""]) -> State:
        return self._with_banks(super().init(key))

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        return self._with_banks(super().start_from(state, networks))

    def _with_banks(self, state: optimization.State) -> State:
        counts = self.condition.num_classes, 1
        positives, negatives = (
            Bank.empty(count, size, tuple(self.space.shape))
            for count, size in zip(counts, self.method.sizes, strict=True)
        )
        return State(**vars(state), positives=positives, negatives=negatives)

    @staticmethod
    def is_sampled_from(path: str, weights: str) -> bool:
        is_bank = path.startswith(("positives/", "negatives/"))
        return not is_bank and optimization.is_sampled_from(path, weights)

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        x, labels = self._examples(self._mirrored(batch, key), key, frozen), batch["label"]
        state = state.replace(
            positives=state.positives.push(x, labels),
            negatives=state.negatives.push(x, jnp.zeros_like(labels)),
        )
        return super().update(state, batch, key, frozen)

    def _student(self, params, batch, key, state, frozen):
        student, x, key = super()._student(params, batch, key, state, frozen)
        features = functools.partial(self.method.features, frozen)
        banks = dict(positives=state.positives, negatives=state.negatives)
        return Generator(**vars(student), features=features, **banks), x, key
