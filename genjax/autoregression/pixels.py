"""Sampling of pictures, sub-pixel by sub-pixel, and completion of pictures that are given in part.

A network over pixels has two functions. `prefill(labels)` returns its outputs for the first
sub-pixel and a cache. `step(cache, levels, position)` reads one sub-pixel, and returns the outputs
for the next. A `PixelLikelihood` turns these outputs into a law of the next level.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.autoregression.decoding import Law, Step, decode
from genjax.autoregression.likelihoods import PixelLikelihood
from genjax.autoregression.logits import sample


def sample_pixels(
    keys: Key[Array, " batch"],
    step: Callable,
    outputs: Float[Array, " batch *outputs"],
    cache: PyTree,
    likelihood: PixelLikelihood,
    shape: tuple[int, int, int],
    law: Law = sample,
    given: Int[Array, "batch places"] | None = None,
) -> Int[Array, "batch height width channels"]:
    """Sample pictures, each sub-pixel given all before it.

    Sub-pixels keep their draws however many are given.

    Args:
        keys: one per picture, so that a sample does not depend on its batch.
        step, outputs, cache: of the network, at the start of a picture.
        shape: height, width, channels.
        law: draws levels; `sample` with its options.
        given: levels of the first sub-pixels, fewer than the picture has.

    Raises:
        ValueError: `given` leaves nothing to sample.
    """
    channels, length = shape[-1], shape[0] * shape[1] * shape[2]
    if given is not None and given.shape[1] >= length:
        raise ValueError(
            f"{given.shape[1]} sub-pixels are given of pictures that have {length}; give fewer"
        )
    pixel = jnp.zeros((len(keys), channels), jnp.int32)
    step, cache = step_of_logits(step, likelihood, channels), (cache, pixel)
    logits = likelihood.logits(outputs, pixel, jnp.int32(0))
    if given is None:
        given = jnp.zeros((len(keys), 0), jnp.int32)
    logits, cache = read(step, logits, cache, given)
    start = given.shape[1]
    drawn = decode(keys, step, logits, cache, length - start, law, start)
    return jnp.concatenate([given, drawn], axis=1).reshape(len(keys), *shape)


def step_of_logits(step: Callable, likelihood: PixelLikelihood, channels: int) -> Step:
    """Return the step of `decode`, from that of a network and the likelihood of its outputs.

    The cache is a pair of the network's, and the levels of the current pixel `[batch channels]`.
    """

    def stepped(cache, levels, position):
        cache, pixel = cache
        pixel = pixel.at[:, position % channels].set(levels)
        outputs, cache = step(cache, levels, position)
        return likelihood.logits(outputs, pixel, (position + 1) % channels), (cache, pixel)

    return stepped


def read(
    step: Step, logits: Float[Array, "batch levels"], cache: PyTree, given: Int[Array, "batch n"]
) -> tuple[Float[Array, "batch levels"], PyTree]:
    """Return the logits and the cache after the given first tokens of sequences.

    Args:
        logits, cache: before the first token.
    """

    def advance(carry, inputs):
        _, cache = carry
        return step(cache, *inputs), None

    inputs = given.T, jnp.arange(given.shape[1])
    return jax.lax.scan(advance, (logits, cache), inputs)[0]
