"""Measure how many bits a trained model needs for held-out images.

    python -m experiments.likelihood --workdir=runs/digits_likelihood --levels=17 --count=360

Prints bits per dimension, given the class, by two methods. The first is the exact likelihood of the
probability-flow ODE. Uniform noise within each level makes the images continuous for it, so its
bits are an upper bound on those of the images. The second is the variational bound on the images
themselves. Each has the standard error of its mean over images. Writes both to
WORKDIR/likelihood.json.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array

from experiments.configuration.runs import check_diffusion, open_run
from experiments.evaluation.bounds import noisy_process
from experiments.inputs.conditions import Classes, Unconditional
from experiments.inputs.datasets import Data, labels_of
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.launch.runtime import check_out, run_program, user_errors
from genjax import diffusion
from genjax.data import to_float
from genjax.diffusion import likelihood
from genjax.nn import forward_mode
from genjax.training.progress import ProgressBar
from genjax.training.workdir import device_name

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
LEVELS = flags.DEFINE_integer("levels", 256, "How many values a pixel can take.", lower_bound=2)
COUNT = flags.DEFINE_integer("count", 500, "Held-out images, at most.", lower_bound=2)
PROBES = flags.DEFINE_integer(
    "probes",
    0,
    "Random probes of the trace; 0 computes it exactly, a derivative for each pixel.",
    lower_bound=0,
)
BATCH = 20
CLEAN_END = flags.DEFINE_float(
    "clean_end",
    1e-3,
    "Where the bound's last step ends, in parts of the time, if the process starts without noise.",
)


def _held_out(config: Any, count: int, levels: Array) -> tuple[Array, Array]:
    """Return at most `count` held-out images, each pixel its nearest level, and their labels."""
    source = Data.from_config(config).held_out().source
    count = min(count, len(source))
    chosen = source[np.random.default_rng(0).permutation(len(source))[:count]]
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
        apply = lambda *inputs: task.network.apply({"params": params}, *inputs)
        target, learned = task.objective.target, task.objective.learned_variance
        predict = functools.partial(diffusion.predict, apply, learned_variance=learned)
        denoiser = lambda process: lambda x, t: predict(process, target)(x, t, condition)
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


def main() -> None:
    with user_errors():
        run = open_run(WORKDIR.value)
        check_diffusion(run.config)
        if run.task.space.autoencoder:
            raise ValueError(
                f"{run.config.experiment} is a flow on latents, which has no likelihood of "
                "images; take a run on pixels"
            )
        check_not_standardized(run.task.space, "a likelihood")
        condition, feature = run.task.condition, run.task.space.feature
        if feature != "image" or not isinstance(condition, Classes | Unconditional):
            raise ValueError(
                f"{run.config.experiment} is a flow on {feature} given {type(condition).__name__}; "
                "take a run on images, of classes or Unconditional"
            )
        check_out(out := Path(WORKDIR.value) / "likelihood.json")
        numbers = LEVELS.value, COUNT.value, PROBES.value, CLEAN_END.value
        results = held_out_bits(run.task, run.state, run.config, *numbers)
    count = len(results[0])
    report = {"levels": LEVELS.value, "images": count, "steps": run.step, "device": device_name()}
    for name, values in zip(
        ("ode_bits_per_dimension", "bound_bits_per_dimension"), results, strict=True
    ):
        report |= {name: values.mean(), f"{name}_deviation": values.std() / np.sqrt(count)}
        print(f"{name:26} {values.mean():.4f} ± {values.std() / np.sqrt(count):.4f}")
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
