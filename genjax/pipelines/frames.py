"""Given frames: how a published video network takes the first and the last frame of a video."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from genjax.data import to_float
from genjax.nn.chunking import encode_chunked

Images = UInt8[np.ndarray | Array, "batch height width 3"]
Latents = Float[Array, "batch time rows columns channels"]
Given = Float[Array, "batch given_time rows columns given_channels"]
Input = Float[Array, "batch time rows columns input_channels"]
Times = Float[Array, " batch *times"]


def _encoded(
    autoencoder: nn.Module, variables: PyTree, video: Float[Array, "batch frames height width 3"]
) -> Latents:
    """Return a video's normalized latents, computed chunk by chunk."""
    mean, _ = encode_chunked(autoencoder, variables, video)
    return (mean - jnp.array(autoencoder.latent_mean)) / jnp.array(autoencoder.latent_deviation)


class CleanFrame:
    """The first frame is among the tokens, clean and with a time of its own, 0: Wan 2.2's 5B.

    Without a given frame, the network makes a video of the prompt alone.
    """

    required, takes_last, needs_last = False, False, False

    def __init__(self, autoencoder: nn.Module):
        self._encode = jax.jit(functools.partial(_encoded, autoencoder))

    def encode(self, variables: PyTree, first: Images, last: None, frames: int) -> Given:
        """Return the latents of the first frame."""
        return self._encode(variables, to_float(first)[:, None])

    def inputs(
        self, x: Latents, t: Times, given: Given
    ) -> tuple[Latents, Float[Array, "batch time"], dict[str, Any]]:
        """Return the network's latents, one time for each of their frames, and named inputs."""
        times = jnp.where(jnp.arange(x.shape[1]) < given.shape[1], 0, t[:, None])
        return self.finish(x, given), times, {}

    def finish(self, latents: Latents, given: Given) -> Latents:
        """Return sampled latents with those of the given frame."""
        return jnp.concatenate([given, latents[:, given.shape[1] :]], axis=1)


class FrameChannels:
    """The frames are among the channels, and CLIP's states of them are tokens: Wan 2.1.

    After the noisy latents come a mask, with a channel for each frame of a latent frame, and the
    latents of a video. The video is grey except for the given frames. Wan 2.2's experts have no
    tokens of images.

    Args:
        encode_image: from images in [−1, 1] to tokens; None for a network without them.
        takes_last, needs_last: whether the network takes, or needs, the last frame too.
    """

    required = True

    def __init__(
        self,
        autoencoder: nn.Module,
        encode_image: Callable[[Array], Array] | None,
        takes_last: bool,
        needs_last: bool,
    ):
        self.takes_last, self.needs_last = takes_last, needs_last
        self._autoencoder, self._encode_image = autoencoder, encode_image
        self._channels = jax.jit(self._channels_of, static_argnames="frames")

    def encode(
        self, variables: PyTree, first: Images, last: Images | None, frames: int
    ) -> dict[str, Any]:
        """Return the further channels of the network's input, and the tokens of the images."""
        images = [to_float(each) for each in (first, last) if each is not None]
        given = dict(channels=self._channels(variables, images, frames=frames))
        if self._encode_image is not None:
            given["image"] = jnp.concatenate([self._encode_image(each) for each in images], axis=1)
        return given

    def _channels_of(self, variables: PyTree, images: list[Array], frames: int) -> Given:
        first, *last = (image[:, None] for image in images)
        batch, _, height, width, colours = first.shape
        blank = jnp.zeros((batch, frames - len(images), height, width, colours))
        video = jnp.concatenate([first, blank, *last], axis=1)
        latents = _encoded(self._autoencoder, variables, video)
        known = np.zeros((latents.shape[1], self._autoencoder.temporal_factor), np.float32)
        known[0] = 1
        if last:
            known[-1, -1] = 1
        mask = jnp.broadcast_to(known[:, None, None], (*latents.shape[:-1], known.shape[1]))
        return jnp.concatenate([mask, latents], axis=-1)

    def inputs(
        self, x: Latents, t: Times, given: dict[str, Any]
    ) -> tuple[Input, Times, dict[str, Any]]:
        """Return the network's input with all channels, the times, and named inputs."""
        tokens = {name: value for name, value in given.items() if name == "image"}
        return jnp.concatenate([x, given["channels"]], axis=-1), t, tokens

    def finish(self, latents: Latents, given: dict[str, Any]) -> Latents:
        """Return sampled latents as they are."""
        return latents
