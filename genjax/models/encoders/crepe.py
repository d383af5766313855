"""CREPE, which hears the pitch of a single voice or instrument.

Kim et al. 2018, "CREPE: a convolutional representation for pitch estimation", with the layers and
the names of the public PyTorch port (torchcrepe).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.audio import resample

Dtype = Any
SAMPLE_RATE = 16_000  # Hz
FRAME, HOP = 1024, 160  # samples: 64 ms and 10 ms
NUM_BINS = 360  # of pitch, 20 cents apart
# Cents above 10 Hz, from 31.7 Hz to 2,005.5 Hz.
CENTS = 1997.3794084376191 + (7180 / (NUM_BINS - 1)) * np.arange(NUM_BINS)
NEAR = 4  # bins on each side of the likeliest one that are averaged
TINY = (128, 16, 16, 16, 32, 64)
FULL = (1024, 128, 128, 128, 256, 512)


class CREPE(nn.Module):
    """Frames of 1,024 samples to the probability of each bin of pitch.

    Attributes:
        widths: features of the six convolutions, `TINY` or `FULL`.
    """

    widths: Sequence[int] = TINY
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: Float[Array, "batch 1024"]) -> Float[Array, "batch 360"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = frames[..., None].astype(self.dtype)
        for i, width in enumerate(self.widths, 1):
            size, stride, padding = (512, 4, (254, 254)) if i == 1 else (64, 1, (31, 32))
            x = nn.Conv(width, (size,), stride, padding=[padding], name=f"conv{i}", **types)(x)
            norm = nn.BatchNorm(True, epsilon=1e-3, name=f"conv{i}_BN", **types)
            x = nn.max_pool(norm(nn.relu(x)), (2,), (2,))
        logits = nn.Dense(NUM_BINS, name="classifier", **types)(x.reshape(len(x), -1))
        return jax.nn.sigmoid(logits.astype(jnp.float32))


def crepe_frames(
    waveforms: Float[Array, "batch samples channels"], sample_rate: int
) -> Float[Array, "batch frames 1024"]:
    """Return the frames that `CREPE` takes: one every 10 ms, of mean 0 and deviation 1.

    Channels become their mean. Half a frame of silence goes before and after the sound.
    """
    mono = resample(waveforms.mean(-1, keepdims=True), sample_rate, SAMPLE_RATE)[..., 0]
    mono = jnp.pad(mono, ((0, 0), (FRAME // 2, FRAME // 2)))
    starts = HOP * np.arange(1 + (mono.shape[1] - FRAME) // HOP)
    frames = mono[:, starts[:, None] + np.arange(FRAME)]
    frames = frames - frames.mean(-1, keepdims=True)
    return frames / jnp.maximum(frames.std(-1, ddof=1, keepdims=True), 1e-10)


def crepe_pitches(
    module: CREPE,
    variables: Any,
    waveforms: Float[Array, "batch samples channels"],
    sample_rate: int,
) -> tuple[Float[Array, "batch frames"], Float[Array, "batch frames"]]:
    """Return the pitch in Hz every 10 ms, and the probability of its likeliest bin.

    The pitch is the mean of the bins near the likeliest one, weighted by their probabilities
    (equation 2, of the nearest nine bins as in the authors' code).

    Args:
        module, variables: the network and its weights (`genjax.pretrained.crepe.load`).
        waveforms: in [−1, 1].
        sample_rate: of the waveforms, in Hz.
    """
    frames = crepe_frames(waveforms, sample_rate)
    # Full precision, so that a pitch does not depend on the device.
    with jax.default_matmul_precision("highest"):
        probabilities = module.apply(variables, frames.reshape(-1, FRAME))
    probabilities = probabilities.reshape(*frames.shape[:2], NUM_BINS)
    likeliest = probabilities.argmax(-1, keepdims=True)
    near = jnp.abs(jnp.arange(NUM_BINS) - likeliest) <= NEAR
    weights = jnp.where(near, probabilities, 0)
    cents = (weights * jnp.asarray(CENTS, jnp.float32)).sum(-1) / weights.sum(-1)
    return 10 * 2 ** (cents / 1200), probabilities.max(-1)
