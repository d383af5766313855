"""Long videos and sounds, encoded and decoded by one program in the memory of a part of them.

Causal networks take chunks (`genjax.nn.causal`), and networks of sound take windows
(`genjax.nn.windows`). Both equal the whole. All other networks take the whole, and so do all
networks where an example is short.

A network says by its attributes what it takes: `encoder_causal` and `decoder_causal`, with
`temporal_factor`; or `encoder_margin` and `decoder_margin`, with `factor`, and with `end_frames` if
the last latent frames have no samples of their own.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from genjax.nn.causal import apply_chunks
from genjax.nn.windows import apply_windows

# Pixels or samples of an example that a chunk has, unless a latent frame has more. They are 128
# latent frames of Stable Audio Open, or 4 frames of 256×256 pixels.
PLACES = 2**18


def encode_chunked(
    network: nn.Module, variables: PyTree, x: Float[Array | np.ndarray, "batch ..."]
) -> PyTree:
    """Return `network.encode(x)`, an array or a tree, computed chunk by chunk where x is long."""
    if getattr(network, "encoder_causal", False):
        length = network.temporal_factor
        latent_frames, rest = divmod(x.shape[1] - 1, length)  # after the first
        size = _latent_frames(length * math.prod(x.shape[2:-1]))
        if not rest and latent_frames > size:
            sizes = dict(first=1 + length * (latent_frames % size), size=length * size)
            return apply_chunks(network, variables, x, method="encode", **sizes)
    function = functools.partial(network.apply, variables, method="encode")
    margin = getattr(network, "encoder_margin", None)
    if margin is None or _frames(function, x) * network.factor != x.shape[1]:
        return function(x)
    size = _latent_frames(network.factor)
    return apply_windows(function, x, size=size, margin=margin, stride=network.factor)


def decode_chunked(
    network: nn.Module,
    variables: PyTree,
    latents: Shaped[Array | np.ndarray, "batch ..."],
    *,
    method: str | Callable = "decode",
    convert: Callable[[Array], Array] = lambda decoded: decoded,
) -> PyTree:
    """Return `convert(network.decode(latents))`, computed chunk by chunk where latents are long.

    Args:
        method: the method that decodes, by name or as a function of the network and the latents.
        convert: applied to each chunk's output, such as a change to a smaller type.
    """
    function = lambda latents: convert(network.apply(variables, latents, method=method))
    if getattr(network, "decoder_causal", False):
        sides = [side * network.factor for side in latents.shape[2:-1]]
        size = _latent_frames(network.temporal_factor * math.prod(sides))
        latent_frames = latents.shape[1] - 1  # after the first
        if latent_frames > size:
            sizes = dict(first=1 + latent_frames % size, size=size)
            return apply_chunks(
                network, variables, latents, method=method, convert=convert, **sizes
            )
    margin, end_frames = getattr(network, "decoder_margin", None), getattr(network, "end_frames", 0)
    hops = latents.shape[1] - end_frames
    if margin is None or _frames(function, latents) != hops * network.factor:
        return function(latents)
    options = dict(size=_latent_frames(network.factor), margin=margin, scale=network.factor)
    return apply_windows(function, latents, end_frames=end_frames, **options)


def _latent_frames(places: int) -> int:
    """Return how many latent frames of so many places a chunk has."""
    return max(1, PLACES // places)


def _frames(function: Callable, x: Array) -> int:
    """Return the number of frames or samples of an output."""
    return jax.tree.leaves(jax.eval_shape(function, x))[0].shape[1]
