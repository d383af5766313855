"""Sampling of pictures, sub-pixel by sub-pixel, and completion of partly given pictures.

A network over pixels has two functions. `prefill(labels)` returns its outputs for the first
sub-pixel and a cache. `step(cache, levels, position)` reads one sub-pixel, and returns the outputs
for the next. A `PixelLikelihood` turns these outputs into a distribution of the next level. A
transformer's `prefill(labels, given)` reads given first sub-pixels in one pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.autoregression.decoding import Step, TokenSampler, decode
from genjax.autoregression.likelihoods import PixelLikelihood
from genjax.autoregression.logits import check_keys, sample


def sample_pixels(
    keys: Key[Array, " batch"],
    step: Callable,
    outputs: Float[Array, " batch *outputs"],
    cache: PyTree,
    likelihood: PixelLikelihood,
    shape: tuple[int, int, int],
    sampler: TokenSampler = sample,
    given: Int[Array, "batch places"] | None = None,
    num_read: int = 0,
) -> Int[Array, "batch height width channels"]:
    """Sample pictures, each sub-pixel given all before it.

    The random draw of a sub-pixel does not depend on how many sub-pixels are given.

    Args:
        keys: one per picture, so that a sample does not depend on its batch.
        step, outputs, cache: of the network, after the first `num_read` given sub-pixels.
        shape: height, width, channels.
        sampler: draws levels; `sample` with its options.
        given: levels of the first sub-pixels, fewer than the picture has.
        num_read: the number of given sub-pixels that `prefill` has read. The others are read one by
            one.

    Raises:
        ValueError: keys are not one per picture; `given` leaves nothing to sample, or has fewer
            than `num_read` sub-pixels.
    """
    check_keys(keys, len(outputs))
    channels, length = shape[-1], shape[0] * shape[1] * shape[2]
    if given is not None and given.shape[1] >= length:
        raise ValueError(
            f"{given.shape[1]} sub-pixels are given of pictures that have {length}; give fewer"
        )
    if given is None:
        given = jnp.zeros((len(keys), 0), jnp.int32)
    start, channel = given.shape[1], num_read % channels
    if num_read > start:
        raise ValueError(f"{num_read} given sub-pixels have been read; got {start}: give them too")
    known = given[:, num_read - channel : num_read]  # of the pixel in which reading has stopped
    pixel = jnp.zeros((len(keys), channels), jnp.int32).at[:, :channel].set(known)
    step, cache = step_of_logits(step, likelihood, channels), (cache, pixel)
    logits = likelihood.logits(outputs, pixel, jnp.int32(channel))
    logits, cache = read(step, logits, cache, given[:, num_read:], num_read)
    drawn = decode(keys, step, logits, cache, length - start, sampler, start)
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
    step: Step,
    logits: Float[Array, "batch levels"],
    cache: PyTree,
    given: Int[Array, "batch n"],
    start: int = 0,
) -> tuple[Float[Array, "batch levels"], PyTree]:
    """Return the logits and the cache after the given tokens of sequences.

    Args:
        logits, cache: before the first of these tokens.
        start: position of the first of these tokens.
    """

    def advance(carry, inputs):
        _, cache = carry
        return step(cache, *inputs), None

    inputs = given.T, start + jnp.arange(given.shape[1])
    return jax.lax.scan(advance, (logits, cache), inputs)[0]
