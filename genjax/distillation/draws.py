"""Draws that the losses of this package share: times, noise, and the noised data."""

import jax
from jaxtyping import Array, Float, Key

from genjax.diffusion.losses import data_and_noise
from genjax.diffusion.processes import Process
from genjax.diffusion.times import TimeDistribution, independent
from genjax.distillation.pairs import Pairs

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def draw_times(
    key: Key[Array, ""], x: Batch, process: Process, times: TimeDistribution, noise: Batch | None
) -> tuple[Batch, Times, Batch]:
    """Return x_t, times t drawn from a distribution, and the noise z, from N(0, I) if None."""
    time_key, noise_key = jax.random.split(key)
    x, z = data_and_noise(noise_key, x, noise)
    t = times(process, independent(time_key, x.shape[:1]))
    return process.corrupt(x, z, t), t, z


def draw_pairs(
    key: Key[Array, ""], x: Batch, process: Process, pairs: Pairs, noise: Batch | None
) -> tuple[Batch, Times, Times, Batch]:
    """Return x_t, times t and s drawn from a distribution of pairs, and the noise z."""
    pair_key, noise_key = jax.random.split(key)
    x, z = data_and_noise(noise_key, x, noise)
    t, s = pairs(pair_key, process, len(x))
    return process.corrupt(x, z, t), t, s, z
