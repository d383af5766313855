"""Few-step students: networks that jump, with a teacher or without one, trained like diffusion."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from experiments.configuration import kinds
from experiments.configuration.runs import open_run
from experiments.tasks.diffusion import Diffusion
from experiments.tasks.methods import Method, Student
from experiments.tasks.optimization import State
from genjax import diffusion
from genjax.diffusion.processes import expand
from genjax.distillation import flow_maps
from genjax.nn import forward_mode
from genjax.pipelines import Run
from genjax.training.task import Space


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

    def check(self, process: diffusion.Process, space: Space, data_name: str) -> None:
        """Check that the run teaches what the student learns.

        Raises:
            ValueError: the run is no diffusion run, or it has another process, shape or data set.
        """
        task = self.run.task
        if not isinstance(task, Diffusion):
            raise ValueError(
                f"the teacher {self.folder} is a run of a {type(task).__name__}, not of Diffusion"
            )
        pairs = {
            "process": (task.process, process),
            "shape": (task.space.shape, space.shape),
            "data set": (self.run.config.data.name, data_name),
        }
        for name, (theirs, own) in pairs.items():
            if theirs != own:
                raise ValueError(
                    f"the teacher {self.folder} has the {name} {theirs}, the student {own}; "
                    "train a teacher like the student, or change the config"
                )

    def load(self) -> PyTree:
        """Load the teacher's parameters, on the host."""
        return jax.tree.map(np.asarray, self.run.variables["params"])

    def denoiser(self, params: PyTree) -> Any:
        """Return `(x_t, t, condition) -> Prediction` of these parameters."""
        task = self.run.task
        return diffusion.predict(self.network(params), task.process, task.objective.target)

    def network(self, params: PyTree) -> Any:
        """Return the network `(x, t, condition) -> y` with these parameters."""
        return functools.partial(self.run.network.apply, {"params": params})


@functools.cache
def _open(folder: str) -> Run:
    return open_run(folder)


@dataclass(frozen=True)
class Distillation(Diffusion):
    """A diffusion task whose network learns to jump, by one of the methods of `tasks.methods`.

    Samples follow the flow map, by a sampler of `genjax.distillation.flow_maps`. Guidance is what
    the student has learned: sampling takes a scale only where the network is told one.

    Attributes:
        method: what the student minimizes.
        teacher: frozen, or None.
        average: name of the averaged parameters that targets are made with.
        num_steps: of the training, of which a method's schedule is a share.
    """

    method: Method = None
    teacher: Teacher | None = None
    average: str = "ema"
    num_steps: int = 1

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Diffusion`; a teacher is missing or not wanted, or does not fit; the
                sampling's guidance scale is not 1 and the network is not told one.
        """
        method = kinds.METHOD.bind(config.method, "method")
        config.model.takes_end_time, config.model.takes_guidance = (
            method.takes_end_time,
            method.takes_guidance,
        )
        fields = super().fields(config)
        return fields | dict(
            method=method,
            teacher=_teacher(config, method, fields),
            average=next(iter(config.averages)),
            num_steps=config.num_steps,
        )

    sampler_kind = kinds.FLOW_MAP_SAMPLER

    @property
    def starts_from(self) -> str | None:
        """The run whose parameters the student starts from, as far as it has them."""
        return self.teacher and self.teacher.folder

    def frozen(self) -> tuple:
        if not self.teacher:
            return super().frozen()
        (others,) = super().frozen() or ({},)
        return (others | {"teacher": self.teacher.load()},)

    def abstract_frozen(self) -> tuple:
        if not self.teacher:
            return super().abstract_frozen()
        (others,) = super().abstract_frozen() or ({},)
        task = self.teacher.run.task
        params = jax.eval_shape(task._init_network, jax.random.key(0))
        return (others | {"teacher": params},)

    def _told(self, t: Array) -> dict[str, Array]:
        """Return what the network is told beside the condition, where its shapes alone count."""
        told = dict(end_time=self.method.takes_end_time, guidance=self.method.takes_guidance)
        return {name: t for name, takes in told.items() if takes}

    def _loss(self, params, batch, key, state, frozen):
        student, x, loss_key = self._student(params, batch, key, state, frozen)
        with forward_mode(self.method.forward_mode):
            each, t = self.method(loss_key, student, x)
        return each.mean(), diffusion.sums_by_time(self.process, each, t, self.num_time_bins)

    def _student(
        self, params: PyTree, batch: dict, key: Key[Array, ""], state: State, frozen: PyTree
    ) -> tuple[Student, Array, Key[Array, ""]]:
        """Return what the method sees of this step, the examples, and the key of the loss."""
        batch = self._mirrored(batch, key)
        condition, null = self.condition.of_batch(batch), self.condition.null(frozen)
        x = self._examples(batch, key, frozen)
        dropout_key, loss_key = jax.random.split(key)
        dropped = jax.random.bernoulli(dropout_key, self.objective.dropout_rate, (len(x),))
        drop = lambda c, n: jnp.where(expand(dropped, c), n, c)
        student = Student(
            network=self._apply(params, frozen),
            averaged=self._apply(state.averages[self.average], frozen),
            condition=condition,
            null=null,
            told=jax.tree.map(drop, condition, null),
            dropped=dropped,
            process=self.process,
            target=self.objective.target,
            times=self.objective.times,
            teacher=self.teacher and self.teacher.denoiser(frozen["teacher"]),
            progress=state.step / self.num_steps,
        )
        return student, x, loss_key

    def sampled(self, params, condition, null, guidance_scale, frozen):
        """Return the flow map `(x_t, t, s)` under a condition."""
        apply = self._apply(params, frozen)
        told = {}
        if self.method.takes_guidance:
            batch = jax.tree.leaves(condition)[0].shape[0]
            told["guidance"] = jnp.full(batch, guidance_scale)
        if self.method.takes_end_time:
            network = lambda x, t, s: apply(x, t, condition, end_time=s, **told)
            return flow_maps.flow_map(network, self.process, self.objective.target)
        network = lambda x, t: apply(x, t, condition, **told)
        denoiser = diffusion.predict(network, self.process, self.objective.target)
        return flow_maps.ddim_map(denoiser, self.process)


def _teacher(config: Any, method: Method, fields: dict[str, Any]) -> Teacher | None:
    """Return the teacher of a config, or None; raise ValueError as of `Distillation.fields`."""
    name, folder = config.method.name, config.teacher
    if method.needs_teacher and not folder:
        raise ValueError(
            f"config.method {name} needs a teacher: set config.teacher to a run's folder"
        )
    if method.needs_teacher is False and folder:
        raise ValueError(f"config.method {name} learns without a teacher; leave out config.teacher")
    if config.sampling.guidance_scale != 1 and not method.takes_guidance:
        raise ValueError(
            f"config.sampling.guidance_scale is {config.sampling.guidance_scale}, but a student of "
            f"{name} has the guidance that it learned; set it to 1"
        )
    if not folder:
        return None
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(
            f"config.teacher names {folder}, which has no run; train the teacher first"
        )
    teacher = Teacher(folder)
    teacher.check(fields["objective"].process, fields["space"], config.data.name)
    return teacher
