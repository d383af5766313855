"""The teacher of a few-step student: the network of a trained run, which does not change."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from experiments.configuration.options import described
from experiments.configuration.runs import open_run
from experiments.inputs.autoencoders import on_host
from experiments.inputs.conditions import Unconditional
from experiments.tasks.diffusion import Diffusion
from genjax import diffusion
from genjax.pipelines import Run
from genjax.training.task import Condition, Space

# The fields of config.sampling that decide a sample.
SOLVING = ("sampler", "grid", "num_steps", "guidance_scale", "guidance_interval", "weights", "seed")


@dataclass(frozen=True)
class Teacher:
    """The network of a diffusion run, which does not change.

    Attributes:
        folder: of the run.
    """

    folder: str

    @property
    def run(self) -> Run:
        return _open(self.folder)

    def check(self, fields: Mapping[str, Any], data: Any, by_pairs: bool = False) -> None:
        """Check that the run teaches what the student learns.

        Args:
            fields: of the student's task.
            data: `config.data` of the student.
            by_pairs: the student learns from pairs. It may then ignore their conditions.

        Raises:
            ValueError: the run is no diffusion run, or it has another shape, space, data set,
                condition or scale of times, with which its parameters give other answers; it has
                the student's process and another target; or the student's process has noise levels
                that the run's process does not reach.
        """
        task = self.run.task
        if not isinstance(task, Diffusion):
            raise ValueError(
                f"the teacher {self.folder} is a run of a {type(task).__name__}, not of Diffusion"
            )
        objective, process = fields["objective"], fields["objective"].process
        networks = self.run.network, fields["network"]
        space = getattr(task.space, "base", task.space)  # that of a teacher's own pairs
        spaces, sets = (space, fields["space"]), (self.run.config.data, data)
        pairs = {
            "shape": [each.shape for each in spaces],
            "space": [_space(each) for each in spaces],
            "data set": [each.name for each in sets],
            "model.time_scale": [getattr(each, "time_scale", None) for each in networks],
        }
        pairs |= {
            "folder of latents": _existing([getattr(each, "directory", None) for each in spaces]),
            "folder of data": _existing([each.get("directory") for each in sets]),
        }
        if not (by_pairs and isinstance(fields["condition"], Unconditional)):
            pairs["condition"] = [_kind(each) for each in (task.condition, fields["condition"])]
        if process == task.process:
            # A student of another process takes the teacher's target, and so starts as it.
            pairs["target"] = [_called(each.target) for each in (task.objective, objective)]
        for name, (theirs, own) in pairs.items():
            if theirs != own:
                raise ValueError(
                    f"the teacher {self.folder} has the {name} {theirs}, the student {own}; "
                    "train a teacher like the student, or change the config"
                )
        known, needed = _log_snrs(task.process), _log_snrs(process)
        if task.process != process and not (known[1] <= needed[1] and needed[0] <= known[0]):
            raise ValueError(
                f"the teacher {self.folder} knows the log-SNRs {known[1]:.4g} to {known[0]:.4g}, "
                f"the student's process has {needed[1]:.4g} to {needed[0]:.4g}; narrow "
                "config.process.domain, or train a teacher of that process"
            )

    def load(self) -> PyTree:
        """Load the teacher's parameters, on the host."""
        return on_host(self.run.variables["params"])

    def denoiser(self, params: PyTree, process: diffusion.Process | None = None) -> Callable:
        """Return `(x_t, t, condition) -> Prediction` of these parameters.

        Args:
            process: that of x_t and t; the teacher's own if None. Any other has the teacher's
                answer at the same noise level, which is exact.
        """
        task = self.run.task
        denoiser = task.objective.denoiser(self.network(params))
        if process in (None, task.process):
            return denoiser
        return diffusion.at_same_level(denoiser, task.process, process)

    def network(self, params: PyTree) -> Callable:
        """Return the network `(x, t, condition) -> y` with these parameters."""
        apply = functools.partial(self.run.network.apply, {"params": params})
        if getattr(self.run.network, "takes_end_time", False):
            return lambda x, t, condition, **options: apply(x, t, condition, end_time=t, **options)
        return apply

    def sampled(self, changes: Mapping[str, Any]) -> Run:
        """Return the run with other fields of `config.sampling`."""
        return open_run(self.folder, **dict(changes))

    def load_sampled(self, changes: Mapping[str, Any]) -> PyTree:
        """Load the parameters that sample with these fields of `config.sampling`, on the host."""
        run = self.sampled(changes)
        return on_host(run.state.weights(run.config.sampling.weights))

    def origin_of_pairs(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides the pairs of `config.pairs`: the teacher, and how it is sampled."""
        run = self.sampled(fields["sampling"])
        sampling = run.config.sampling
        return {
            "teacher": self.folder,
            "process": run.config.process,
            "shape": run.task.space.shape,
            # Most runs have no interval of guidance.
            "sampling": {name: sampling[name] for name in SOLVING if name in sampling},
            "count": fields["count"],
        }


def _space(space: Space) -> str:
    """Return the name of a space, and where the autoencoder of latents is."""
    autoencoder = getattr(space, "autoencoder", None)
    if autoencoder is None:
        return type(space).__name__
    run, published = autoencoder.run, autoencoder.published
    weights = f"{autoencoder.weights} of {os.path.realpath(run)}" if run else None
    return f"{type(space).__name__}({weights or os.path.realpath(published)})"


def _existing(folders: Sequence[str | None]) -> list[str | None]:
    """Return the real paths of two folders, or None for both unless both exist.

    A folder may be the default, or be on another machine. Then nobody can say that they differ.
    """
    real = [os.path.realpath(os.path.expanduser(each or "")) for each in folders]
    return real if all(folders) and all(map(os.path.isdir, real)) else [None, None]


def _kind(condition: Condition) -> str:
    """Return what the network sees of a condition. Sample sheets may have other rows."""
    encoder = getattr(condition, "encoder", None)
    if encoder and os.path.isdir(encoder):  # of a published system
        encoder = os.path.realpath(encoder)
    shapes = [list(a.shape[1:]) for a in jax.tree.leaves(jax.eval_shape(condition.example))]
    detail = condition.num_classes or (encoder and f"{encoder}, {shapes}") or shapes
    return f"{type(condition).__name__}({detail})"


def _called(target: functools.partial) -> str:
    return described(dict(name=target.func.__name__) | target.keywords)


def _log_snrs(process: diffusion.Process) -> tuple[float, float]:
    """Return the log-SNRs at the clean end and at the noise end of a process' domain."""
    with jax.ensure_compile_time_eval():  # concrete: a domain is static
        start, end = process.log_snr(jnp.asarray(process.domain))
    return float(start), float(end)


@functools.cache
def _open(folder: str) -> Run:
    return open_run(folder)
