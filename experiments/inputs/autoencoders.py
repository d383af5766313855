"""A trained autoencoder as a frozen part: from data to latents or codes, and back."""

import functools
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, PyTree

from experiments.configuration.runs import open_run
from genjax import pretrained
from genjax.data.sets.latents import read_summary, standard_moments
from genjax.nn.chunking import decode_chunked, encode_chunked

MOMENTS = ("latent_mean", "latent_deviation")  # in the report of an autoencoder's run


def encode(network: nn.Module, variables: PyTree, x: Float[Array, " batch *shape"]) -> Array:
    """Return latents: the means of Gaussian ones, and quantized ones before quantization."""
    encoded = encode_chunked(network, variables, x)
    return encoded[0] if isinstance(encoded, tuple) else encoded


def decode(network: nn.Module, variables: PyTree, latents: Float[Array, " batch *shape"]) -> Array:
    """Return data of latents, quantized first if the network quantizes."""
    if hasattr(network, "quantize"):
        latents = network.apply(variables, latents, method="quantize").latents
    return decode_chunked(network, variables, latents)


def trim(decoded: Float[Array, " batch *shape"], data_shape: tuple[int, ...]) -> Array:
    """Cut the time of decoded video and sound to that of the data; images stay as they are.

    A last latent frame may stand for more frames than the data have left.
    """
    has_time = len(data_shape) in (2, 4)
    return decoded[:, : data_shape[0]] if has_time else decoded


@functools.cache
def _shapes(network: nn.Module, data_shape: tuple[int, ...]) -> tuple[PyTree, tuple[int, ...]]:
    """Return the variables in shapes, and the shape of the latents of one example."""
    x = jax.ShapeDtypeStruct((1, *data_shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    latents = jax.eval_shape(functools.partial(encode, network), variables, x)
    return variables, latents.shape[1:]


@functools.cache
def _codes_shape(network: nn.Module, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the codes of one image or video."""
    variables, latent_shape = _shapes(network, data_shape)
    latents = jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32)
    quantize = functools.partial(network.apply, method="quantize")
    return jax.eval_shape(quantize, variables, latents).indices.shape[1:]


@dataclass(frozen=True)
class FrozenAutoencoder:
    """An autoencoder's network; `load` gives its variables, which its functions take.

    Attributes:
        run: folder of a training run, or None.
        weights: of the run: "params" or one of its averages.
        published: folder of published weights, or None.
        latents: folder of latents whose moments standardize; if None, the moments are those in the
            run's report or the published network's.
    """

    network: nn.Module
    run: str | None
    weights: str
    published: str | None
    latents: str | None

    @classmethod
    def open(
        cls, run: str | None, weights: str, published: str | None, latents: str | None = None
    ) -> "FrozenAutoencoder":
        """Return the autoencoder of a run or of published weights.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: neither or both of `run` and `published` are given, or the network is no
                autoencoder.
        """
        if bool(run) == bool(published):
            raise ValueError(
                f"config.space.run is {run!r} and config.space.published {published!r}: set one of "
                "them to the autoencoder that encodes, and decodes samples"
            )
        if run and not Path(run).is_dir():
            raise FileNotFoundError(
                f"config.space.run names {Path(run).absolute()}, and there is no such folder; "
                "train the autoencoder first, by the command in the header of the config's file"
            )
        network = open_run(run, weights=weights).network if run else _published(published)[0]
        if not all(hasattr(network, name) for name in ("encode", "decode", "factor")):
            given = f"run is {run}, a run" if run else f"published is {published}, the weights"
            raise ValueError(
                f"config.space.{given} of a {type(network).__name__}, which is no autoencoder: it "
                "needs encode, decode and factor"
            )
        return cls(network, run, weights, published, latents)

    def latent_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of one example."""
        return _shapes(self.network, data_shape)[1]

    def codes_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the codes of one image or video."""
        return _codes_shape(self.network, data_shape)

    def variables(self) -> PyTree:
        """Load the network's variables to the host."""
        return _published(self.published)[1] if self.published else _of_run(self.run, self.weights)

    def load(self) -> PyTree:
        """Load the variables, and `mean` and `deviation` of the latents' channels.

        Raises:
            FileNotFoundError, ValueError: the autoencoder's run has not measured these moments.
        """
        if self.latents:
            summary = read_summary(self.latents)
            moments = summary["mean"], summary["deviation"]
        elif self.run:
            report = open_run(self.run, weights=self.weights).report
            if not report.keys() >= set(MOMENTS):
                raise ValueError(
                    f"the report of {self.run} has no {' and no '.join(MOMENTS)}, by which latents "
                    "are standardized: give the autoencoder the measure Reconstructions, or "
                    "SoundReconstruction, and start its command again"
                )
            moments = [report[name] for name in MOMENTS]
        else:
            moments = self.network.latent_mean, self.network.latent_deviation
        mean, deviation = standard_moments(*moments)
        return {"variables": self.variables(), "mean": mean, "deviation": deviation}

    def abstract(self, data_shape: tuple[int, ...]) -> PyTree:
        """Return what `load` would give, in shapes."""
        variables, latent_shape = _shapes(self.network, data_shape)
        moments = jax.ShapeDtypeStruct(latent_shape[-1:], jnp.float32)
        return {"variables": variables, "mean": moments, "deviation": moments}

    def encode(self, frozen: PyTree, x: Float[Array, " batch *shape"]) -> Array:
        """Return standardized latents of data in [−1, 1]."""
        latents = encode(self.network, frozen["variables"], x)
        return (latents - frozen["mean"]) / frozen["deviation"]

    def decode(self, frozen: PyTree, latents: Float[Array, " batch *shape"]) -> Array:
        """Return data of standardized latents."""
        return decode(
            self.network, frozen["variables"], latents * frozen["deviation"] + frozen["mean"]
        )

    @property
    def vocabulary(self) -> int:
        """Return how many codes there are, in all levels of a residual quantizer.

        Raises:
            ValueError: the network does not quantize.
        """
        if not hasattr(self.network, "decode_indices"):
            raise ValueError(
                f"config.space is Tokens, and {type(self.network).__name__} has no codes: it needs "
                "quantize, decode_indices and a quantizer; take a network of discrete latents, or "
                "config.space.name=Latents"
            )
        return self.network.quantizer.num_codes * self._levels

    @property
    def _levels(self) -> int:
        """The number of codebooks. A transformer knows the codes of each as its own tokens."""
        return getattr(self.network.quantizer, "num_levels", 1)

    def encode_codes(
        self, variables: PyTree, x: Float[Array, " batch *shape"]
    ) -> Int[Array, " batch *grid"]:
        """Return the codes of data in [−1, 1]; a level's follow those of the level before."""
        latents = encode(self.network, variables, x)
        codes = self.network.apply(variables, latents, method="quantize").indices
        return codes + self.network.quantizer.num_codes * jnp.arange(self._levels)

    def decode_codes(self, variables: PyTree, codes: Int[Array, " batch *grid"]) -> Array:
        """Return data of codes; one of another level stands for the code of its number there."""
        codes = codes % self.network.quantizer.num_codes
        return decode_chunked(self.network, variables, codes, method="decode_indices")


@functools.cache
def _published(folder: str) -> tuple[nn.Module, PyTree]:
    return pretrained.load(folder)


@functools.cache
def _of_run(run: str, weights: str) -> PyTree:
    return on_host(open_run(run, weights=weights).variables)


def on_host(tree: PyTree) -> PyTree:
    """Return arrays that may be split over all processes as whole NumPy arrays, in each process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
