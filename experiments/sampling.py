"""Samples of a trained task, as bytes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data import to_uint8
from genjax.diffusion import uniform_grid


@functools.cache
def _generate(task: Any, trajectory: bool):
    """One compiled program per task and shape: scale, times, labels and seed are its arguments."""

    def generate(*args):
        return to_uint8(task.generate(*args, trajectory=trajectory))

    return jax.jit(generate)


def sample_images(
    task: Any,
    state: Any,
    labels: np.ndarray,
    sampling: Any,
    *,
    trajectory: bool = False,
    batch_size: int = 500,
) -> np.ndarray:
    """uint8 images `[labels height width channels]`, or `[times labels …]` with `trajectory`.

    Args:
        labels: class of each sample, `[labels]`.
        sampling: `seed`, `num_steps`, `shift`, `guidance_scale` and `weights` ("ema" or "params").
        batch_size: samples made at once at most; it does not change them.
    """
    if sampling.weights == "params":
        state = state.replace(ema=state.params)
    elif sampling.weights != "ema":
        raise ValueError(f"weights are 'ema' or 'params'; got {sampling.weights!r}")
    labels = np.asarray(labels, np.int32)
    batch_size = min(batch_size, len(labels))
    padded = np.pad(labels, (0, -len(labels) % batch_size))  # one shape, one compilation
    time_grid = uniform_grid(task.process, sampling.num_steps, sampling.shift)
    batches = [
        _generate(task, trajectory)(
            state,
            jax.random.key(sampling.seed),
            padded[start : start + batch_size],
            jnp.float32(sampling.guidance_scale),
            time_grid,
            np.arange(start, start + batch_size),
        )
        for start in range(0, len(padded), batch_size)
    ]
    images = np.concatenate([np.asarray(batch) for batch in batches], axis=1 if trajectory else 0)
    return images[:, : len(labels)] if trajectory else images[: len(labels)]


def class_rows(num_classes: int, per_class: int) -> np.ndarray:
    """Labels of a picture with a row per class."""
    return np.repeat(np.arange(num_classes), per_class)
