"""Autoregression over pixels: the exact likelihood of pictures, trained on and sampled from."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.datasets import condition_of
from experiments.tasks.optimization import OneNetwork, Optimization, State
from experiments.tasks.programs import on_mesh
from experiments.tasks.shapes import first_output, traced_shape
from genjax import autoregression
from genjax.data import flip_images
from genjax.diffusion import sample_keys
from genjax.training.sampling import mesh_of
from genjax.training.task import Condition, Space

Levels = Int[Array, "batch height width channels"]


@dataclass(frozen=True)
class Autoregression(OneNetwork):
    """A network of each sub-pixel given those before it, trained on bits per dimension.

    Attributes:
        space: whose `levels` are the values of a pixel.
        order: of sub-pixels. The network sees a picture whose raster order is this order.
        flip: mirror half of the examples left to right.
    """

    network: nn.Module
    space: Space
    condition: Condition
    likelihood: autoregression.PixelLikelihood
    order: Callable
    optimization: Optimization
    flip: bool

    animation: ClassVar[str] = "decoding.gif"

    @classmethod
    def from_config(cls, config: Any) -> "Autoregression":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist, the space has no levels, the network does not return
                what the likelihood reads, pictures in columns are not square, or the temperature is
                negative.
        """
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        if not hasattr(space, "levels"):
            raise ValueError(
                f"config.space.name is {config.space.name!r}, which has no levels; take 'Levels'"
            )
        order, (height, width) = kinds.ORDER.find(config.order, "order"), space.shape[:2]
        if order is autoregression.orders.columns and height != width:
            raise ValueError(
                f"config.order is 'columns', and config.data.image_shape {space.shape} is not "
                "square: columns would not fill the rows that the network sees. Take 'raster'"
            )
        condition = condition_of(config)
        likelihood = kinds.PIXEL_LIKELIHOOD.bind(
            config.likelihood, "likelihood", levels=space.levels
        )
        network = kinds.PIXEL_NETWORK.bind(
            config.model,
            "model",
            image_shape=space.shape,
            num_levels=space.levels,
            outputs=likelihood.outputs(space.shape[-1]),
            **condition.network_fields,
        )
        task = cls(
            network=network,
            space=space,
            condition=condition,
            likelihood=likelihood,
            order=order,
            optimization=Optimization.from_config(config),
            flip=config.data.flip,
        )
        task._check_network(config)
        task.sampling_inputs(config.sampling)
        return task

    def _check_network(self, config: Any) -> None:
        """Raise ValueError if the network does not return what the likelihood reads."""
        shape, divisor = self.space.shape, getattr(self.network, "divisor", 1)
        if any(side % divisor for side in shape[:-1]):
            raise ValueError(
                f"config.data.image_shape {shape} has sides that are no multiples of {divisor}, "
                f"which {type(self.network).__name__} needs"
            )
        levels = jax.ShapeDtypeStruct((1, *shape), jnp.int32)
        inputs = jax.random.key(0), levels, jax.eval_shape(self.condition.example)
        words = f"levels {[1, *shape]} and config.condition's example"
        returned = traced_shape(self.network, "model", words, first_output(self.network), *inputs)
        read = (1, *shape[:2], *self.likelihood.outputs(shape[-1]))
        if returned != read:
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {list(returned)} "
                f"of levels {[1, *shape]}; config.likelihood.name {config.likelihood.name!r} reads "
                f"{list(read)}"
            )

    def init(self, key: Key[Array, ""]) -> State:
        levels = jnp.zeros((1, *self.space.shape), jnp.int32)
        params = self.network.init(key, levels, self.condition.example())["params"]
        return self.optimization.first_state(params)

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        def loss(params, batch, key):
            images, labels = batch[self.space.feature], self.condition.of_batch(batch)
            if self.flip:
                images = flip_images(jax.random.fold_in(key, 2), images)
            levels = self.space.encode(images)
            log_probability = self.log_probability(params, levels, labels, {"dropout": key})
            return -log_probability.mean() / jnp.log(2), ()

        state, _, metrics = self.optimization.step(state, loss, batch, key)
        return state, metrics

    def log_probability(
        self,
        params: PyTree,
        levels: Levels,
        condition: Int[Array, " batch"],
        rngs: Mapping[str, Key[Array, ""]] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Return log p of each sub-pixel given those before it, in nats."""
        levels = self._ordered(levels)
        outputs = self.network.apply({"params": params}, levels, condition, rngs=rngs)
        return self._restored(self.likelihood.log_probability(outputs, levels))

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        temperature: float | Float[Array, ""],
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> (
        Float[Array, "batch height width channels"]
        | Float[Array, "frames batch height width channels"]
    ):
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            temperature: 1 samples from the model, 0 takes the most likely level each time.
            weights: as of `State.weights`.
            trajectory: the picture after each row's number of sub-pixels; others are black.
        """
        condition = self.condition.of_labels(labels, None)
        keys = sample_keys(key, indices)
        images = self.space.decode(
            self.complete(state.weights(weights), keys, condition, temperature)
        )
        if not trajectory:
            return images
        rank = jnp.asarray(np.argsort(self._places)).reshape(self.space.shape)
        height, row = self.space.shape[0], images[0, 0].size
        seen = rank < row * jnp.arange(height + 1).reshape(-1, 1, 1, 1, 1)
        return jnp.where(seen, images, -1.0)

    def complete(
        self,
        params: PyTree,
        keys: Key[Array, " batch"],
        condition: Int[Array, " batch"],
        temperature: float | Float[Array, ""],
        given: Int[Array, "batch rows width channels"] | None = None,
    ) -> Levels:
        """Return pictures of which nothing or the first rows are given.

        In another order than raster, `given` are the rows of the picture that the network sees.
        """
        variables, apply = {"params": params}, self.network.apply
        given = None if given is None else given.reshape(len(given), -1)
        known = [given] if given is not None and self.network.reads_given else []
        outputs, cache = apply(variables, condition, *known, method="prefill")
        levels = autoregression.sample_pixels(
            keys,
            functools.partial(apply, variables, method="step"),
            outputs,
            cache,
            self.likelihood,
            self.space.shape,
            functools.partial(autoregression.sample, temperature=temperature),
            given,
            num_read=given.shape[1] if known else 0,
        )
        return self._restored(levels)

    @property
    def _places(self) -> Int[np.ndarray, " length"]:
        return self.order(self.space.shape)

    def _ordered(self, images: Array) -> Array:
        return images.reshape(len(images), -1)[:, self._places].reshape(images.shape)

    def _restored(self, images: Array) -> Array:
        flat = images.reshape(len(images), -1)
        return flat[:, np.argsort(self._places)].reshape(images.shape)

    def sampling_inputs(self, sampling: Any) -> tuple:
        autoregression.check_sampling(self.space.levels, sampling.temperature)
        return (jnp.float32(sampling.temperature),)

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return self.sampling_inputs(sampling)

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network: once for each sub-pixel."""
        return math.prod(self.space.shape)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"sampler": "one sub-pixel after another", "temperature": sampling.temperature}

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `log_probabilities(images, labels)` and `completions(images, labels, keys, rows)`.

        The first is in nats, of each sub-pixel. The second keeps the first rows. Images are bytes.
        """
        params, mesh = state.weights(sampling.weights), mesh_of(state)

        def completions(images, labels, keys, rows):
            return on_mesh(mesh, _completions, self, rows)(params, images, labels, keys)

        log_probabilities = functools.partial(on_mesh(mesh, _log_probabilities, self), params)
        return {"log_probabilities": log_probabilities, "completions": completions}


def _log_probabilities(task: Autoregression, params, images, labels):
    condition = task.condition.of_labels(labels, None)
    return task.log_probability(params, task.space.encode(images), condition)


def _completions(task: Autoregression, rows: int, params, images, labels, keys):
    condition = task.condition.of_labels(labels, None)
    given = task._ordered(task.space.encode(images))[:, :rows]
    levels = task.complete(params, keys, condition, 1.0, given)
    return task.space.to_data(task.space.decode(levels))
