"""Spaces: pixels, their levels, points, sound, latents or tokens of a frozen autoencoder.

A space maps the examples of a batch to what a network sees, and samples back to data and pictures
(`genjax.training.task.Space`).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, PyTree
from PIL import Image

from experiments.inputs.autoencoders import FrozenAutoencoder, trim
from genjax.data import sound_to_float, sound_to_int16, to_float, to_uint8
from genjax.nn import TokenLayout
from genjax.training.pictures import image_grid, scatter, spectrograms


def draw(examples: np.ndarray, columns: int) -> Image.Image:
    """Draw images in a grid, or videos as strips of their frames, one a row."""
    if examples.ndim == 4:
        return image_grid(examples, columns)
    return image_grid(rearrange(examples, "n t h w c -> n h (t w) c"), 1)


AXES = {
    "image": ("height", "width", "channels"),
    "video": ("frames", "height", "width", "channels"),
    "audio": ("samples", "channels"),
}
SAMPLE_RATE = 16_000  # Hz, where config.data.sample_rate does not say it


def _check_rank(data: Any) -> None:
    """Raise ValueError if `data.image_shape` is not of an image, a video or a sound."""
    axes = AXES.get(data.feature)
    shape = tuple(data.image_shape)
    whole = all(isinstance(each, int) and each > 0 for each in shape)
    if axes and not (len(shape) == len(axes) and whole):
        raise ValueError(
            f"config.data.image_shape is {','.join(map(repr, shape))}; for config.data.feature="
            f"{data.feature} it needs {len(axes)} positive integers: {', '.join(axes)}"
        )


@dataclass(frozen=True)
class Pixels:
    """Images or clips as they are, in [−1, 1]."""

    shape: tuple[int, ...]
    feature: str = "image"
    autoencoder: ClassVar[None] = None

    @classmethod
    def from_data(cls, data: Any) -> "Pixels":
        """Return the pixels of a data set; raise ValueError if its shape has another rank."""
        _check_rank(data)
        return cls(tuple(data.image_shape), data.feature)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {self.feature: jax.ShapeDtypeStruct(self.shape, jnp.uint8)}

    def frozen(self) -> dict[str, PyTree]:
        return {}

    abstract_frozen = frozen

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        floats = jnp.issubdtype(examples.dtype, jnp.floating)
        return examples if floats else to_float(examples)

    def decode(self, samples: Float[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        return samples

    to_data = staticmethod(to_uint8)
    picture = staticmethod(draw)


@dataclass(frozen=True)
class Levels:
    """Images as integers 0 … `levels` − 1, the values that their pixels can take.

    Attributes:
        levels: how many values a pixel can take, evenly spaced, as `config.data.levels` says.
    """

    shape: tuple[int, ...]
    levels: int
    feature: str = "image"
    autoencoder: ClassVar[None] = None

    @classmethod
    def from_data(cls, data: Any) -> "Levels":
        """Return the levels of a data set; raise ValueError if it does not say how many."""
        _check_rank(data)
        levels = data.get("levels")
        if not levels or not 2 <= levels <= 256:
            raise ValueError(
                f"config.data.levels is {levels}; set it to the number of values of a pixel, 2 to "
                "256"
            )
        return cls(tuple(data.image_shape), levels, data.feature)

    abstract_batch = Pixels.abstract_batch
    frozen = abstract_frozen = Pixels.frozen

    def encode(self, examples: Array, frozen: PyTree = None) -> Int[Array, " batch *shape"]:
        return jnp.round(examples * ((self.levels - 1) / 255)).astype(jnp.int32)

    def decode(self, samples: Int[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        return 2 * samples.astype(jnp.float32) / (self.levels - 1) - 1

    to_data = staticmethod(to_uint8)
    picture = staticmethod(draw)


@dataclass(frozen=True)
class Points:
    """Floats as they are, such as points in the plane, `[batch 2]`."""

    shape: tuple[int, ...]
    feature: str = "image"
    autoencoder: ClassVar[None] = None

    @classmethod
    def from_data(cls, data: Any) -> Self:
        return cls(tuple(data.image_shape), data.feature)

    frozen = abstract_frozen = Pixels.frozen
    decode = Pixels.decode

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {self.feature: jax.ShapeDtypeStruct(self.shape, jnp.float32)}

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        return examples

    @staticmethod
    def to_data(decoded: Array) -> Array:
        return decoded

    @staticmethod
    def picture(examples: np.ndarray, columns: int) -> Image.Image:
        return scatter(examples)


@dataclass(frozen=True)
class Waveforms:
    """Sound as it is, `[samples channels]` in [−1, 1]; data are int16.

    Attributes:
        sample_rate: in Hz, as `config.data.sample_rate` says; for pictures and files of sound.
    """

    shape: tuple[int, ...]
    feature: str = "audio"
    sample_rate: int = SAMPLE_RATE
    autoencoder: ClassVar[None] = None
    config_fields = dict(data=dict(sample_rate=int | None))

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Return the waveforms of a data set.

        Raises:
            ValueError: its shape has another rank, its options have another sample rate, or it is
                mirrored.
        """
        _check_rank(data)
        if data.get("flip"):
            raise ValueError(
                "config.data.flip is True, which would play sounds backwards: set it to False"
            )
        read = (data.get("options") or {}).get("sample_rate")
        rate = data.get("sample_rate") or read or SAMPLE_RATE
        if read not in (None, rate):
            raise ValueError(
                f"config.data.options.sample_rate is {read}, at which sound is read, and "
                f"config.data.sample_rate is {rate}: set both to one rate"
            )
        return cls(tuple(data.image_shape), data.feature, rate)

    frozen = abstract_frozen = Pixels.frozen
    decode = Pixels.decode

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {self.feature: jax.ShapeDtypeStruct(self.shape, jnp.int16)}

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        floats = jnp.issubdtype(examples.dtype, jnp.floating)
        return examples if floats else sound_to_float(examples)

    to_data = staticmethod(sound_to_int16)

    def picture(self, examples: np.ndarray, columns: int) -> Image.Image:
        return spectrograms(examples, columns, self.sample_rate)


@dataclass(frozen=True)
class Latents:
    """Standardized latents of a frozen autoencoder of images, video or sound.

    Examples are data, encoded within the step; or latents, where `directory` holds those that
    `experiments.encode` wrote.

    Attributes:
        shape: of one example's latents.
        data: the space of the data.
    """

    shape: tuple[int, ...]
    data: Pixels | Waveforms
    feature: str
    autoencoder: FrozenAutoencoder
    directory: str | None

    @classmethod
    def from_data(
        cls,
        data: Any,
        *,
        run: str | None = None,
        weights: str = "ema",
        published: str | None = None,
        directory: str | None = None,
        shape: tuple[int, ...] | None = None,
        batch_size: int = 64,
    ) -> "Latents":
        """Return the latents of a run's autoencoder or of a published one.

        Args:
            data: the record of the data set that is encoded.
            run: folder of a training run of an autoencoder.
            weights: of the run: "params" or one of its averages.
            published: folder of published weights.
            directory: folder of latents that `experiments.encode` writes and training reads.
            shape: of one example's latents in that folder; the autoencoder's own if None.
            batch_size: examples that `experiments.encode` encodes at once.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: neither or both of `run` and `published` are given.
        """
        del batch_size
        space = (Waveforms if data.feature == "audio" else Pixels).from_data(data)
        autoencoder = FrozenAutoencoder.open(run, weights, published, directory)
        feature = "image" if directory else data.feature
        shape = shape or autoencoder.latent_shape(space.shape)
        return cls(shape, space, feature, autoencoder, directory)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def sample_rate(self) -> int:
        return self.data.sample_rate

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        if self.directory:
            return {self.feature: jax.ShapeDtypeStruct(self.shape, jnp.float32)}
        return self.data.abstract_batch()

    def made_by(self) -> PyTree:
        """Load the parameters that make the examples of `directory`."""
        return self.autoencoder.variables()

    def frozen(self) -> dict[str, PyTree]:
        return {"autoencoder": self.autoencoder.load()}

    def abstract_frozen(self) -> dict[str, PyTree]:
        return {"autoencoder": self.autoencoder.abstract(self.data_shape)}

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        if jnp.issubdtype(examples.dtype, jnp.floating):
            return examples
        return self.autoencoder.encode(frozen["autoencoder"], self.data.encode(examples))

    def decode(self, samples: Float[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        """Return data of latents.

        Video and sound are cut to the length of the data. Samples with more or fewer latent frames
        than `shape` are decoded whole.
        """
        decoded = self.autoencoder.decode(frozen["autoencoder"], samples)
        own_length = samples.shape[1] == self.shape[0]
        return trim(decoded, self.data_shape) if own_length else decoded

    def to_data(self, decoded: Array) -> Array:
        return self.data.to_data(decoded)

    def picture(self, examples: np.ndarray, columns: int) -> Image.Image:
        return self.data.picture(examples, columns)


@dataclass(frozen=True)
class Tokens:
    """Codes of a frozen autoencoder that quantizes, `[batch *grid]` in int32.

    Examples are data, encoded within the step; or codes, where `directory` holds those that
    `experiments.encode` wrote.

    Attributes:
        shape: of one example's codes: rows and columns of an image, or frames of a sound, and
            levels of a residual quantizer.
        data: the space of the data.
        vocabulary: how many codes there are.
    """

    shape: tuple[int, ...]
    data: Pixels | Waveforms
    feature: str
    autoencoder: FrozenAutoencoder
    vocabulary: int
    directory: str | None = None

    @classmethod
    def from_data(
        cls,
        data: Any,
        *,
        run: str | None = None,
        weights: str = "ema",
        published: str | None = None,
        directory: str | None = None,
        batch_size: int = 64,
    ) -> "Tokens":
        """Return the tokens of a run's autoencoder or of a published one.

        Args are those of `Latents.from_data`, with codes in place of latents.

        Raises:
            FileNotFoundError, ValueError: as of `Latents.from_data`; or the autoencoder has no
                codes.
        """
        del batch_size
        space = (Waveforms if data.feature == "audio" else Pixels).from_data(data)
        autoencoder = FrozenAutoencoder.open(run, weights, published)
        vocabulary, shape = autoencoder.vocabulary, autoencoder.codes_shape(space.shape)
        feature = "image" if directory else data.feature
        return cls(shape, space, feature, autoencoder, vocabulary, directory)

    data_shape, sample_rate = Latents.data_shape, Latents.sample_rate
    made_by = Latents.made_by

    @property
    def layout(self) -> TokenLayout:
        """How the codes of an example form the sequence of a transformer."""
        sides = getattr(self.autoencoder.network.quantizer, "sides", None)
        return TokenLayout(self.shape, self.vocabulary, sides)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        if self.directory:
            return {self.feature: jax.ShapeDtypeStruct(self.shape, jnp.int32)}
        return self.data.abstract_batch()

    def frozen(self) -> dict[str, PyTree]:
        return {"tokenizer": self.autoencoder.variables()}

    def abstract_frozen(self) -> dict[str, PyTree]:
        return {"tokenizer": self.autoencoder.abstract(self.data_shape)["variables"]}

    def encode(self, examples: Array, frozen: PyTree = None) -> Int[Array, " batch *shape"]:
        if examples.dtype == jnp.int32:
            return examples
        return self.autoencoder.encode_codes(frozen["tokenizer"], self.data.encode(examples))

    def decode(self, samples: Int[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        """Return data of codes; places of the code `vocabulary`, which is a mask, are grey.

        Such frames of a sound are silent.
        """
        masked = samples == self.vocabulary
        decoded = self.autoencoder.decode_codes(frozen["tokenizer"], jnp.where(masked, 0, samples))
        if self.layout.sides:  # maps of several scales, which are never masked
            return decoded
        axes = len(self.data_shape) - 1
        hidden = masked.reshape(*masked.shape[: 1 + axes], -1).any(axis=-1)
        for axis, side, count in zip(range(axes), decoded.shape[1:], self.shape, strict=False):
            hidden = jnp.repeat(hidden, side // count, axis=1 + axis)
        return trim(jnp.where(hidden[..., None], 0, decoded), self.data_shape)

    to_data, picture = Latents.to_data, Latents.picture
