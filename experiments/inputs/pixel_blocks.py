"""The space of blocks of pixels: clips regrouped as an autoencoder's latents are, without loss."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PyTree

from experiments.inputs.spaces import Pixels


@dataclass(frozen=True)
class PixelBlocks:
    """Clips of 1 + n·`frames` frames, whose blocks of pixels are channels of 1 + n frames.

    The first frame fills a block of its own, repeated, as it is a latent frame of its own in
    autoencoders of video. So a token of `VideoDiT` knows several frames, and nothing is lost.

    Attributes:
        pixels: the clips themselves.
        frames, side: of a block, in frames and in pixels.
        mean, deviation: of pixels in [−1, 1], by which they are standardized.
    """

    pixels: Pixels
    frames: int
    side: int
    mean: float
    deviation: float
    autoencoder: ClassVar[None] = None

    @classmethod
    def from_data(
        cls, data: Any, *, frames: int, side: int, mean: float = 0.0, deviation: float = 1.0
    ) -> Self:
        """Return the blocks of a data set of clips.

        Raises:
            ValueError: its shape has another rank, or does not divide into blocks.
        """
        pixels = Pixels.from_data(data)
        time, height, width = pixels.shape[:3]
        if len(pixels.shape) != 4 or (time - 1) % frames or height % side or width % side:
            raise ValueError(
                f"config.data.image_shape is {pixels.shape}; blocks of {frames} frames of "
                f"{side}×{side} pixels need clips of 1 + n·{frames} frames, and sides that "
                f"{side} divides: set frames and side of config.space"
            )
        return cls(pixels, frames, side, mean, deviation)

    @property
    def shape(self) -> tuple[int, ...]:
        time, height, width, channels = self.pixels.shape
        grid = 1 + (time - 1) // self.frames, height // self.side, width // self.side
        return *grid, self.frames * self.side**2 * channels

    @property
    def feature(self) -> str:
        return self.pixels.feature

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.pixels.abstract_batch()

    frozen = abstract_frozen = Pixels.frozen

    @property
    def _sizes(self) -> dict[str, int]:
        return dict(f=self.frames, p=self.side, q=self.side)

    def encode(self, examples: Array, frozen: PyTree = None) -> Float[Array, " batch *shape"]:
        clips = (self.pixels.encode(examples) - self.mean) / self.deviation
        first = jnp.repeat(clips[:, :1], self.frames - 1, axis=1)
        pattern = "b (t f) (h p) (w q) c -> b t h w (f p q c)"
        return rearrange(jnp.concatenate([first, clips], axis=1), pattern, **self._sizes)

    def decode(self, samples: Float[Array, " batch *shape"], frozen: PyTree = None) -> Array:
        """Return clips of as many blocks of frames as there are, the first one's mean first."""
        pattern = "b t h w (f p q c) -> b (t f) (h p) (w q) c"
        frames = rearrange(samples, pattern, **self._sizes) * self.deviation + self.mean
        first = frames[:, : self.frames].mean(1, keepdims=True)
        return jnp.concatenate([first, frames[:, self.frames :]], axis=1)

    to_data, picture = staticmethod(Pixels.to_data), staticmethod(Pixels.picture)
