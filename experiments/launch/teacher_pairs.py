"""The pairs of noise and sample that a teacher makes for its student."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.configuration.runs import build
from experiments.inputs.pairs import Pairs
from genjax.data.sets.latents import PARAMETERS, write_summary
from genjax.devices import make_mesh
from genjax.devices.mesh import batch_sharding, replicated
from genjax.pretrained.variables import parameters_digest
from genjax.training.task import GenerativeTask
from genjax.training.workdir import read_record


class TeacherPairs:
    """Pairs `[2 *shape]` of noise and the sample that the teacher of a config made of it.

    Pair i has the class i mod the number of classes, and the noise of the sample with index i. So
    every batch and every process makes the same pair i.

    Attributes:
        folder: where `experiments.encode` writes them.
        origin: what they are made of.
        counts: how many, by split.

    Raises:
        ValueError, FileNotFoundError: as of the config's task; or its method does not learn from
            pairs, or its teacher is guided by a null condition that it never learned.
    """

    def __init__(self, config: Any):
        task = build(config)
        if not isinstance(task.space, Pairs):
            raise ValueError(f"config.pairs is set, but {config.method.name} learns from data")
        self._run = task.teacher.sampled(config.pairs.sampling)
        self._run.check_guidance()
        self.folder, params = Path(task.space.directory), task.space.made_by()
        # A run of the same name may have been trained anew since.
        self.origin = task.pairs_origin | {PARAMETERS: parameters_digest(params)}
        self.counts = {config.data.train_split: config.pairs.count}
        self.shape = (2, *task.space.shape)
        self.num_classes = task.condition.num_classes
        devices = jax.local_devices()
        self._size = config.pairs.batch_size + -config.pairs.batch_size % len(devices)
        self._mesh = make_mesh({"data": -1}, self._size, devices)
        # All processes take part in this transfer, also those that have no pairs to make.
        inputs = params, *self._run.task.sampling_inputs(self._run.config.sampling)
        self._inputs = jax.device_put(inputs, replicated(self._mesh))

    def __call__(self, split: str, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs with these numbers and their labels."""
        pairs = [
            np.asarray(self._solve(np.arange(start, start + self._size)))[: rows.stop - start]
            for start in range(rows.start, rows.stop, self._size)
        ]
        return np.concatenate(pairs), np.asarray(rows) % max(self.num_classes, 1)

    @functools.cached_property
    def _solve(self) -> Callable[[np.ndarray], Array]:
        """The program that maps the numbers of pairs to the pairs."""
        task, num_classes = self._run.task, max(self.num_classes, 1)
        key = jax.random.key(self._run.config.sampling.seed)

        def solve(params, scale, grid, *frozen, numbers):
            labels = numbers % num_classes
            return pairs_of(task, params, key, labels, numbers, scale, grid, *frozen)

        program = jax.jit(solve, out_shardings=replicated(self._mesh))
        place = functools.partial(jax.device_put, device=batch_sharding(self._mesh))
        return lambda numbers: program(*self._inputs, numbers=place(numbers))

    def summarize(self) -> None:
        """Write the summary of the finished folder. Pairs are not standardized."""
        channels = self.shape[-1]
        summary = {
            "shape": self.shape,
            "mean": [0.0] * channels,
            "deviation": [1.0] * channels,
            "splits": self.counts,
            "num_classes": self.num_classes or None,
            "class_names": read_record(self._run.folder).get("class_names"),
        }
        write_summary(self.folder, summary)


def pairs_of(
    task: GenerativeTask, params: Any, key: Array, labels: Int[Array, " batch"], *args: Any
) -> Float[Array, "batch 2 *shape"]:
    """Return noise of deviation 1 and the samples that a task of diffusion makes of it.

    Args:
        args: indices, guidance scale, grid and frozen parts, as of `Diffusion.solve`.
    """
    noise, samples = task.solve(params, key, labels, *args)
    return jnp.stack([noise / task.process.sigma(args[2][0]), samples], axis=1)
