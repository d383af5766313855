"""Discrete diffusion over the levels of pixels, or over the tokens of a frozen autoencoder."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.datasets import condition_of
from experiments.tasks import diffusion as continuous
from experiments.tasks.diffusion import TIME_BINS, Diffusion
from experiments.tasks.optimization import Optimization, State
from experiments.tasks.programs import on_mesh
from experiments.tasks.shapes import first_output, traced_shape
from genjax import diffusion
from genjax.diffusion import discrete, times
from genjax.training.sampling import mesh_of

BOUND_TIMES = 16  # times at which the bound of an image is evaluated


@dataclass(frozen=True)
class Objective:
    """The objective of the network: a process of tokens, a target, and a loss over times.

    With blocks (`block_length` of the loss) the network is also called with the clean tokens.

    Attributes:
        dropout_rate: probability that a training example's condition is dropped.
    """

    process: discrete.DiscreteProcess
    target: Callable
    times: times.TimeDistribution
    variates: Callable
    loss: Callable
    dropout_rate: float

    learned_variance = False
    time_bins = continuous.Objective.time_bins

    @classmethod
    def from_config(cls, config: Any, vocabulary_size: int) -> "Objective":
        distribution = dict(config.times)
        variates = distribution.pop("variates", "independent")
        return cls(
            process=kinds.DISCRETE_PROCESS.bind(
                config.process, "process", vocabulary_size=vocabulary_size
            ),
            target=kinds.DISCRETE_TARGET.find(config.target.name, "target.name"),
            times=kinds.TIME_DISTRIBUTION.bind(distribution, "times"),
            variates=kinds.VARIATES.find(variates, "times.variates"),
            loss=kinds.DISCRETE_LOSS.bind(config.loss, "loss"),
            dropout_rate=config.conditioning_dropout,
        )

    @property
    def block_length(self) -> int | None:
        return self.loss.keywords.get("block_length")

    def __call__(
        self, key: Key[Array, ""], apply: Callable, x: Array, condition: PyTree, null: PyTree
    ) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        """Return the mean loss in nats per token, and its sums and counts by parts of the time."""
        dropout_key, loss_key = jax.random.split(key)
        each, t = self.loss(
            loss_key,
            apply,
            x,
            diffusion.drop_conditioning(dropout_key, condition, null, self.dropout_rate),
            *([x] if self.block_length else []),
            process=self.process,
            target=self.target,
            times=self.times,
            variates=self.variates,
        )
        return each.mean(), diffusion.sums_by_time(self.process, each, t, TIME_BINS)


@dataclass(frozen=True)
class DiscreteDiffusion(Diffusion):
    """A network trained to denoise the tokens that a space holds, with guidance on logits.

    Attributes:
        temperature: of the tokens that are drawn; 0 takes the most likely ones.
    """

    temperature: float = 1.0

    sampler_kind = kinds.DISCRETE_SAMPLER
    built_with = ("sampler", "temperature")
    optional_sampling = ("guidance_interval", "temperature")  # earlier runs have no temperature

    @classmethod
    def from_config(cls, config: Any) -> "DiscreteDiffusion":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist, the space has no tokens, the network does not return
                logits of them, or the loss or the sampler does not fit the other parts.
        """
        task = cls(**cls.fields(config))
        task._check_blocks()
        task._check_network()
        grid = continuous.time_grid(task.process, config.sampling)
        task._check_fit("loss", config.loss.name, task._loss_of_zeros)
        sample = functools.partial(task._sample_of_zeros, times=grid)
        task._check_fit("sampling.sampler", config.sampling.sampler["name"], sample)
        return task

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        vocabulary_size = getattr(space, "levels", None) or getattr(space, "vocabulary", None)
        if not vocabulary_size:
            raise ValueError(
                f"config.space.name is {config.space.name!r}, which has no tokens; take 'Levels' "
                "or 'Tokens'"
            )
        condition = condition_of(config)
        objective = Objective.from_config(config, vocabulary_size)
        network = kinds.DIFFUSION_NETWORK.bind(
            config.model,
            "model",
            num_states=objective.process.num_states,
            vocabulary_size=vocabulary_size,
            **({"block_length": objective.block_length} if objective.block_length else {}),
            **_condition_fields(config, condition),
        )
        return dict(
            network=network,
            space=space,
            condition=condition,
            objective=objective,
            optimization=Optimization.from_config(config),
            sampler=cls.sampler_kind.bind(config.sampling.sampler, "sampling.sampler"),
            flip=config.data.flip,
            dequantize_levels=None,
            temperature=_temperature(config.sampling),
        )

    def _check_blocks(self) -> None:
        """Raise ValueError if the sampler has other blocks than the loss."""
        trained, sampled = (
            part.keywords.get("block_length") for part in (self.objective.loss, self.sampler)
        )
        if trained != sampled:
            raise ValueError(
                f"config.loss.block_length is {trained} and config.sampling.sampler.block_length "
                f"{sampled}; set both to one number, with the sampler blockwise, or neither"
            )

    def _check_network(self) -> None:
        """Raise ValueError if the network does not return logits of every token."""
        x = jax.ShapeDtypeStruct((1, *self.space.shape), jnp.int32)
        has_blocks, condition = bool(self.objective.block_length), self.condition.example()
        t = jax.ShapeDtypeStruct(x.shape if has_blocks else (1,), jnp.float32)
        inputs = jax.random.key(0), x, t, jax.eval_shape(lambda: condition)
        words = f"tokens {[1, *self.space.shape]} and t {list(t.shape)}"
        if has_blocks:
            inputs, words = (*inputs, x), f"{words}, and clean tokens after the condition"
        returned = traced_shape(self.network, "model", words, first_output(self.network), *inputs)
        expected = (1, *self.space.shape, self.process.vocabulary_size)
        if returned != expected:
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {list(returned)} "
                f"of tokens {[1, *self.space.shape]}; logits of every token are {list(expected)}"
            )

    def _check_fit(self, field: str, name: str, apply: Callable) -> None:
        """Raise ValueError if a part cannot be traced with the process, the target and the space.

        Args:
            field, name: of the part in the config, for the error.
            apply: called with one example's tokens, which are a shape.
        """
        try:
            jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *self.space.shape), jnp.int32))
        except Exception as error:  # whatever a part of the user's own raises
            raise ValueError(
                f"config.{field} names {name}, which does not fit the config's other parts: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _zeros(self, x_t: Array, t: Array, *conditioning: Array) -> Array:
        """Return logits of 0, in place of a network's."""
        return jnp.zeros((*x_t.shape, self.process.vocabulary_size))

    def _loss_of_zeros(self, x: Array) -> Array:
        return self.objective(jax.random.key(0), self._zeros, x, jnp.zeros(1), jnp.zeros(1))[0]

    def _sample_of_zeros(self, x: Array, times: Array) -> Array:
        denoiser = discrete.predict(self._zeros, self.process, self.objective.target)
        return self.sampler(denoiser, self.process, x, times, keys=jax.random.key(0)[None])

    def _init_network(self, key: Key[Array, ""]) -> PyTree:
        x, time = jnp.zeros((1, *self.space.shape), jnp.int32), jnp.zeros(1)
        return self.network.init(key, x, time, self.condition.example())["params"]

    def sampled(
        self, params: PyTree, condition: PyTree, null: PyTree, guidance_scale: Any, frozen: PyTree
    ) -> Callable:
        guided = discrete.guide(self.denoiser(params, frozen), condition, null, guidance_scale)
        return guided if self.temperature == 1 else discrete.temper(guided, self.temperature)

    def denoiser(self, params: PyTree, frozen: PyTree = None) -> Callable:
        """Return `denoiser(x_t, t, condition)`, log p(x | x_t) by these parameters."""
        return discrete.predict(self._apply(params, frozen), self.process, self.objective.target)

    def num_evaluations(self, sampling: Any) -> int:
        length, grid = math.prod(self.space.shape), continuous.time_grid(self.process, sampling)
        return discrete.num_evaluations(self.sampler, length, len(grid) - 1)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        tempered = {} if self.temperature == 1 else {"temperature": self.temperature}
        return super().describe_sampling(sampling) | tempered

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `bound(images, labels, indices)`, of log p(image | label), and `Diffusion`'s own.

        It is in nats; images are bytes. Noise depends on the first index. A `Path` has no bound.
        """
        if isinstance(self.process, discrete.Path):
            return super().functions(state, sampling)
        params, mesh = state.weights(sampling.weights), mesh_of(state)

        def bound(images, labels, indices):
            frozen = self.frozen()
            return on_mesh(mesh, _bound, self)(params, images, labels, indices, *frozen)

        return super().functions(state, sampling) | {"bound": bound}


def _temperature(sampling: Any) -> float:
    """Return the temperature of the tokens, which runs of earlier versions do not have."""
    temperature = getattr(sampling, "temperature", 1.0)
    discrete.guidance.check_temperature(temperature)
    return temperature


def _condition_fields(config: Any, condition: Any) -> dict[str, Any]:
    """Return the network's fields for its condition: a prefix if the config names one."""
    if "prefix" not in config:
        return condition.network_fields
    return dict(prefix=kinds.PREFIX.bind(config.prefix, "prefix", **condition.network_fields))


def _bound(task: DiscreteDiffusion, params, images, labels, indices, frozen=None):
    block_length, x = task.objective.block_length, task.space.encode(images, frozen)
    inputs = task.condition.of_labels(labels, frozen), *([x] if block_length else [])
    denoiser = lambda x_t, t: task.denoiser(params, frozen)(x_t, t, *inputs)
    key = jax.random.fold_in(jax.random.key(0), indices[0])
    return discrete.continuous_bound(
        key, denoiser, task.process, x, num_times=BOUND_TIMES, block_length=block_length
    ).log_likelihood
