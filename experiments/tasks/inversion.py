"""GAN inversion: an encoder that is trained for the frozen generator of a finished run."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.configuration.runs import open_run
from experiments.inputs.autoencoders import on_host
from experiments.inputs.datasets import Data
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.tasks.adversarial import GAN
from experiments.tasks.bidirectional import BidirectionalGAN
from experiments.tasks.latent_generators import Inverses, LatentGenerator
from experiments.tasks.optimization import OneNetwork, Optimization, State
from experiments.tasks.shapes import first_output, traced_shape
from experiments.tasks.walks import latent_walk
from genjax import adversarial
from genjax.autoencoding import diagnostics
from genjax.data import flip_images
from genjax.metrics.lpips import LPIPS
from genjax.pipelines import Run
from genjax.pretrained.lpips import load_lpips, require_lpips
from genjax.training.task import Condition, Space

TERMS = ("latents", "images", "perceptual")


@dataclass(frozen=True)
class Inversion(OneNetwork):
    """An encoder that learns the inverse of the generator of a GAN's run, which does not change.

    The loss is the weighted sum of `latents`, the mean square of E(G(z)) − z, of `images`, the
    distance of G(E(x)) to x, and of `perceptual`, its LPIPS. Latents of a generator with styles are
    w. Samples are reconstructions of held-out examples.

    Attributes:
        generator_run: folder of the GAN's run. Its weights are those that it is sampled by.
    """

    network: nn.Module
    generator_run: str
    space: Space
    condition: Condition
    data: Data
    distance: Callable
    weights: tuple[tuple[str, float], ...]
    optimization: Optimization
    columns: int
    flip: bool

    animation: ClassVar[str] = "latent_walk.gif"

    @classmethod
    def from_config(cls, config: Any) -> "Inversion":
        """Return the task of a config.

        Raises:
            FileNotFoundError: `config.generator_run` is no run.
            ValueError: the run is no GAN's or of other data; or a part does not exist or does not
                fit the others.
            ImportError: LPIPS has a weight and is not installed.
        """
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        check_not_standardized(space, "an encoder")
        condition = kinds.CONDITION.bind(config.condition, "condition")
        generator = _check_run(config, space, condition)
        network = kinds.ENCODER.bind(
            config.model, "model", features=generator.latent_size, **condition.network_fields
        )
        if unknown := sorted(set(config.weights) - set(TERMS)):
            raise ValueError(f"config.weights has {unknown[0]!r}; there are {', '.join(TERMS)}")
        weights = tuple((name, weight) for name, weight in config.weights.items() if weight)
        if not weights:
            raise ValueError(f"config.weights are all 0; set one of {', '.join(TERMS)}")
        if getattr(network, "stochastic", False):
            raise ValueError(
                "config.model.stochastic is True, and no term of GAN inversion trains a deviation "
                "of the latents: set it to False"
            )
        if "perceptual" in dict(weights):
            require_lpips()
        task = cls(
            network=network,
            generator_run=config.generator_run,
            space=space,
            condition=condition,
            data=Data.from_config(config),
            distance=kinds.DISTANCE.bind(config.reconstruction, "reconstruction"),
            weights=weights,
            optimization=Optimization.from_config(config),
            columns=config.sampling.per_class,
            flip=config.data.flip,
        )
        x = jax.ShapeDtypeStruct((1, *space.shape), jnp.float32)
        labels = jax.ShapeDtypeStruct((1,), jnp.int32) if task.conditional else None
        called_with = f"config.data.image_shape {list(space.shape)}"
        apply = first_output(network)
        traced_shape(network, "model", called_with, apply, jax.random.key(0), x, labels)
        return task

    @property
    def run(self) -> Run:
        return _open(self.generator_run)

    @property
    def generator(self) -> LatentGenerator:
        return LatentGenerator(self.run.network)

    @property
    def conditional(self) -> bool:
        return self.condition.num_classes > 0

    @property
    def originals_per_label(self) -> int:
        """The number of held-out examples that are reconstructed for a label."""
        return self.columns if self.conditional else self.num_originals

    @property
    def num_originals(self) -> int:
        return self.condition.num_rows * self.columns

    def frozen(self) -> tuple:
        """Return the variables of the generator, and of LPIPS if it has a weight."""
        others = {"lpips": load_lpips()[1]} if "perceptual" in dict(self.weights) else {}
        return ({"generator": on_host(self.run.variables)} | others,)

    def abstract_frozen(self) -> tuple:
        """Return what `frozen` would load, in shapes."""
        task, x = self.run.task, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        state = jax.eval_shape(task.init, jax.random.key(0))
        frozen = {"generator": task.variables(state, "params")}
        if "perceptual" in dict(self.weights):
            frozen["lpips"] = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)
        return (frozen,)

    def init(self, key: Key[Array, ""]) -> State:
        labels = jnp.zeros(1, int) if self.conditional else None
        variables = self.network.init(key, jnp.zeros((1, *self.space.shape)), labels)
        return self.optimization.first_state(variables["params"])

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        loss = functools.partial(self._loss, frozen=frozen)
        state, measured, metrics = self.optimization.step(state, loss, batch, key)
        return state, {"loss": metrics.pop("loss")} | measured | metrics

    def _loss(self, params, batch, key, frozen):
        """Return the weighted sum of the terms, and each of them without its weight."""
        x = batch[self.space.feature]
        if self.flip:
            x = flip_images(jax.random.fold_in(key, 2), x)
        x = self.space.encode(x)
        labels = self.condition.of_batch(batch) if self.conditional else None
        losses = adversarial.encoder_losses(
            lambda images: self.network.apply({"params": params}, images, labels),
            lambda latents: self.generator.images(frozen["generator"], latents, labels),
            self.generator.draw(frozen["generator"], key, labels, len(x)),
            x,
            self.distance,
        )
        weights = dict(self.weights)
        terms = {"latents": losses.latents, "images": losses.images}
        if "perceptual" in weights:
            terms["perceptual"] = LPIPS().apply(frozen["lpips"], losses.reconstructions, x)
        terms = {name: term.mean() for name, term in terms.items()}
        total = sum(weights[name] * terms[name] for name in weights)
        return total, {f"loss/{name}": term for name, term in terms.items()}

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        originals: Array,
        frozen: PyTree,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, " batch *shape"] | Float[Array, " frames batch *shape"]:
        """Return reconstructions G(E(x)) of originals of the labels, in turn; the key is unused.

        Args:
            weights: as of `State.weights`.
            originals: of the data's form, a row for each label.
            frozen: what `frozen` loads.
            trajectory: a walk of straight lines through the latents, from others to these.
        """
        x = self.space.encode(self._chosen(originals, labels, indices))
        labels = labels if self.conditional else None
        latents = self.network.apply({"params": state.weights(weights)}, x, labels)
        images = lambda latents: self.generator.images(frozen["generator"], latents, labels)
        if not trajectory:
            return images(latents)
        stops = jnp.stack([jnp.roll(latents, 1, axis=0), latents])
        return latent_walk(images, stops, adversarial.lerp)

    def _chosen(self, originals: Array, labels: Array, indices: Array) -> Array:
        """Return originals of the labels, or of all labels in turn for an encoder without any."""
        if self.conditional:
            return originals[labels, indices % self.columns]
        flat = originals.reshape(-1, *originals.shape[2:])
        return flat[indices % len(flat)]

    def networks(self, state: State, weights: str) -> dict[str, dict[str, PyTree]]:
        return {"encoder": self.variables(state, weights)}

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        return self.optimization.first_state(networks["encoder"]["params"])

    def sampling_inputs(self, sampling: Any) -> tuple:
        rows = np.repeat(np.arange(self.condition.num_rows), self.columns)
        originals = self.condition.real_examples(self.data, rows, ()).examples
        return originals.reshape(-1, self.columns, *originals.shape[1:]), *self.frozen()

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        example = batch[self.space.feature]
        shape = (self.condition.num_rows, self.columns, *example.shape[1:])
        return jax.ShapeDtypeStruct(shape, example.dtype), *frozen

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often a reconstruction evaluates encoder and generator: once."""
        return 1

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"sampler": "reconstruction of held-out examples"}

    def functions(self, state: State, sampling: Any) -> dict[str, Any]:
        """Return `inverses`: this encoder, and the one that a bidirectional GAN was trained with.

        The evaluator of inversions reads it.
        """
        task, run = self.run.task, self.run
        encoders = {"encoder": self._encode}

        def load():
            own = {"own": self.variables(state, sampling.weights)}
            if isinstance(task, BidirectionalGAN):
                own |= task.networks(run.state, run.config.sampling.weights)
            return on_host(own | {"generator": run.variables})

        if isinstance(task, BidirectionalGAN):
            encoders["joint training"] = functools.partial(task.encode_jointly, self.generator)
        return {"inverses": Inverses(self.generator, self.conditional, encoders, load)}

    def _encode(self, variables, images, labels):
        return self.network.apply(variables["own"], images, labels)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return diagnostics.alarms(metrics)


def _check_run(config: Any, space: Space, condition: Condition) -> LatentGenerator:
    """Return the generator of `config.generator_run`; raise as `Inversion.from_config` does."""
    folder = config.generator_run
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(
            f"config.generator_run names {Path(folder).absolute()}, which has no run; train a GAN "
            "there first"
        )
    run = _open(folder)
    if not isinstance(run.task, GAN):
        raise ValueError(
            f"config.generator_run {folder} is a run of a {type(run.task).__name__}, not of a GAN"
        )
    if space.frozen():
        raise ValueError(f"config.space is {config.space.name}; GAN inversion takes Pixels")
    pairs = {
        "shape": (run.task.space.shape, space.shape),
        "data set": (run.config.data.name, config.data.name),
        "number of classes": (run.task.condition.num_classes, condition.num_classes),
    }
    for name, (theirs, own) in pairs.items():
        if theirs != own:
            raise ValueError(
                f"config.generator_run {folder} has the {name} {theirs}, this config {own}; train "
                "a GAN like this config, or change the config"
            )
    return LatentGenerator(run.network)


@functools.cache
def _open(folder: str) -> Run:
    return open_run(folder)
