"""Bits per dimension of held-out images under a diffusion model, by its ODE and by the bound."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.evaluation.bounds import noisy_process
from experiments.evaluation.images import draw
from experiments.inputs.datasets import Data, labels_of
from genjax import diffusion
from genjax.data import to_float
from genjax.diffusion import likelihood
from genjax.nn import forward_mode
from genjax.training.progress import ProgressBar

BATCH = 20


def _held_out(config: Any, count: int, levels: Array) -> tuple[Array, Array]:
    """Return at most `count` held-out images, each pixel its nearest level, and their labels."""
    source = Data.from_config(config).held_out().source
    chosen = source[draw(len(source), count)]
    width = 2 / (len(levels) - 1)
    nearest = jnp.round((to_float(chosen["image"]) + 1) / width)  # bytes round some levels
    return levels[nearest.astype(int)], jnp.asarray(labels_of(chosen))


def held_out_bits(
    task: Any,
    state: Any,
    config: Any,
    num_levels: int,
    count: int,
    num_probes: int,
    clean_end: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return bits per dimension of at most `count` held-out images, by the ODE and by the bound.

    The images' classes are given to the network.

    Args:
        num_levels: how many values, equally spaced, a pixel can take.
        num_probes: of the trace; 0 computes it exactly.
        clean_end: as of `noisy_process`.
    """
    levels, width = jnp.linspace(-1, 1, num_levels), 2 / (num_levels - 1)
    images, labels = _held_out(config, count, levels)
    count, conditions = len(images), task.condition.of_batch({"label": labels})
    clipped = noisy_process(task.process, clean_end)

    @jax.jit
    def bits(params, key, images, condition):
        apply = functools.partial(task.network.apply, {"params": params})
        objective = lambda process: replace(task.objective, process=process)
        denoiser = lambda process: lambda x, t: objective(process).denoiser(apply)(x, t, condition)
        dequantize_key, probe_key, bound_key = jax.random.split(key, 3)
        continuous = likelihood.dequantize(dequantize_key, images, width)
        keys = diffusion.sample_keys(probe_key, jnp.arange(len(images))) if num_probes else None
        exact, _ = likelihood.log_likelihood(
            denoiser(task.process),
            task.process,
            continuous,
            keys,
            num_probes=max(num_probes, 1),
            max_steps=2**16,  # a table of betas takes many
        )
        bound = likelihood.continuous_bound(
            bound_key, denoiser(clipped), clipped, images, num_times=100, levels=levels
        )
        return (
            likelihood.bits_per_dimension(exact, images[0].size, width),
            likelihood.bits_per_dimension(bound.log_likelihood, images[0].size),
        )

    params = task.variables(state, config.sampling.weights)["params"]
    parts = []
    with ProgressBar("evaluating", 0, count, "images") as progress:
        for i in range(0, count, BATCH):
            with forward_mode(True):  # for the trace of the Jacobian
                rows = slice(i, i + BATCH)
                part = bits(params, jax.random.key(i), images[rows], conditions[rows])
            parts.append([np.asarray(values) for values in part])
            progress.update(min(i + BATCH, count))
    exact, bound = (np.concatenate(each).astype(float) for each in zip(*parts, strict=True))
    return exact, bound
