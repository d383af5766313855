"""A trained autoencoder beside a diffusion model: from images to the latents it works on, and back."""

import functools
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, PyTree

from experiments.launch.opening import Config, build, read_config, restore
from genjax.data.sets.latents import read_summary

MOMENTS = ("latent_mean", "latent_deviation")  # of the report of an autoencoder's run


def encode(network: nn.Module, variables: PyTree, x: Float[Array, " batch *shape"]) -> Array:
    """Latents: of Gaussian ones the means, of quantized ones those before quantization."""
    encoded = network.apply(variables, x, method="encode")
    return encoded[0] if isinstance(encoded, tuple) else encoded


def decode(network: nn.Module, variables: PyTree, latents: Float[Array, " batch *shape"]) -> Array:
    """Images or video of latents, which are quantized before if the network does so."""
    if hasattr(network, "quantize"):
        latents = network.apply(variables, latents, method="quantize").latents
    return network.apply(variables, latents, method="decode")


@dataclass(frozen=True)
class FrozenAutoencoder:
    """The network; what it knows is loaded apart, by `load`, and handed to its functions.

    Attributes:
        run: folder of a training run (`experiments.train` with an `Autoencoder`), or None.
        weights: of the run, "params" or one of its averages.
        published: folder of published weights that `genjax.pretrained.<module>` loads, or None.
        latents: folder of latents by whose moments they are standardized; if None, by those in the run's report, or by the
            published network's.
    """

    network: nn.Module
    run: str | None
    weights: str
    published: str | None
    module: str
    latents: str | None

    @classmethod
    def from_config(cls, config: Any) -> "FrozenAutoencoder | None":
        """None if `config.autoencoder` names neither a run nor published weights.

        Raises:
            FileNotFoundError: no such run.
            ValueError: both are named, or the run is of something else.
        """
        fields = config.autoencoder
        if fields.run and fields.published:
            raise ValueError("set config.autoencoder.run or config.autoencoder.published, not both")
        if not fields.run and not fields.published:
            return None
        if fields.run:
            task = build(read_config(fields.run))
            if not hasattr(task, "held_out"):
                raise ValueError(f"config.autoencoder.run is {fields.run}, a run of a {type(task).__name__}")
            network = task.network
        else:
            network = _published(fields.module, fields.published)[0]
        latents = config.data.directory if config.data.name == "latents" else None
        return cls(network, fields.run, fields.weights, fields.published, fields.module, latents)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the latents of one image or video."""
        x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        latents = lambda key, x: encode(self.network, self.network.init(key, x), x)
        return jax.eval_shape(latents, jax.random.key(0), x).shape[1:]

    def variables(self) -> PyTree:
        """Of the network, on the host."""
        if self.published:
            return _published(self.module, self.published)[1]
        return _of_run(self.run, self.weights)

    def load(self) -> PyTree:
        """The network's variables, and `mean` and `deviation` of the latents' channels."""
        if self.latents:
            summary = read_summary(self.latents)
            moments = summary["mean"], summary["deviation"]
        elif self.run:
            path = Path(self.run) / "report.json"
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} does not exist; finish the run, or python -m experiments.evaluate it"
                )
            report = json.loads(path.read_text())
            moments = [report[name] for name in MOMENTS]
        else:
            moments = self.network.latent_mean, self.network.latent_deviation
        mean, deviation = (np.asarray(values, np.float32) for values in moments)
        return {"variables": self.variables(), "mean": mean, "deviation": deviation}

    def abstract(self, image_shape: tuple[int, ...]) -> PyTree:
        """What `load` would give, in shapes."""
        x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        moments = jax.ShapeDtypeStruct(self.latent_shape(image_shape)[-1:], jnp.float32)
        variables = jax.eval_shape(self.network.init, jax.random.key(0), x)
        return {"variables": variables, "mean": moments, "deviation": moments}

    def encode(self, frozen: PyTree, x: Float[Array, " batch *shape"]) -> Array:
        """Standardized latents of images or video in [−1, 1]."""
        latents = encode(self.network, frozen["variables"], x)
        return (latents - frozen["mean"]) / frozen["deviation"]

    def decode(self, frozen: PyTree, latents: Float[Array, " batch *shape"]) -> Array:
        """Images or video of standardized latents."""
        return decode(self.network, frozen["variables"], latents * frozen["deviation"] + frozen["mean"])


@functools.cache
def _published(module: str, folder: str) -> tuple[nn.Module, PyTree]:
    return importlib.import_module(f"genjax.pretrained.{module}").load(folder)


@functools.cache
def _of_run(run: str, weights: str) -> PyTree:
    variables = restore(run, None, weights=weights)[2].weights(weights)
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(variables, tiled=True)
    return jax.device_get(variables)


def as_images(config: Any) -> Config:
    """A config of latents with the data that they were encoded of."""
    plain = {name: dict(config[name]) for name in ("data", "encoding", "evaluation")}
    data = plain["data"] | plain["encoding"]
    if size := data.get("size"):
        data |= dict(image_shape=(size, size, 3), resize=True)
    return Config(data=Config(data), evaluation=Config(plain["evaluation"]))
