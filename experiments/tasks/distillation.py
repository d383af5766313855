"""Few-step students: networks that jump, with a teacher or without one, trained like diffusion."""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.conditions import Classes, Unconditional
from experiments.inputs.pairs import Pairs
from experiments.tasks.diffusion import Diffusion, Objective, check_no_interval, time_grid
from experiments.tasks.methods import Method, Student
from experiments.tasks.optimization import Optimization, State
from experiments.tasks.teachers import Teacher
from genjax import diffusion
from genjax.data.sets.latents import check_origin
from genjax.diffusion import targets
from genjax.diffusion.preconditioning import Preconditioning, SameLevel
from genjax.diffusion.processes import RectifiedFlow, expand
from genjax.nn import forward_mode


@dataclass(frozen=True)
class Distillation(Diffusion):
    """A diffusion task whose network learns to jump, by one of the methods of `tasks.methods`.

    Samples follow the flow map, by a sampler of `genjax.distillation.flow_maps`. The student has
    learned its guidance: sampling takes a scale only if the network takes one.

    Attributes:
        method: what the student minimizes.
        teacher: frozen, or None.
        average: name of the averaged parameters that targets are made with.
        num_steps: of the training, of which a method's schedule is a share.
        pairs_origin: what the pairs are made of, where the method learns from pairs.
    """

    method: Method = None
    teacher: Teacher | None = None
    average: str = "ema"
    num_steps: int = 1
    pairs_origin: Any = field(default=None, compare=False)

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Diffusion`; the method is for another process or target, or does not
                read a field that is set; a teacher or pairs are missing or not wanted, or do not
                fit; the sampling's guidance scale is not 1 and the network does not take one, or it
                is limited to an interval.
        """
        check_no_interval(config.sampling, cls.__name__)
        method, fields = kinds.METHOD.bind(config.method, "method"), super().fields(config)
        _check_process(method, fields["objective"], config.method.name, "config.")
        _check_read(method, config)
        teacher = _teacher(config, method, fields)
        fields |= dict(
            method=method,
            teacher=teacher,
            average=next(iter(config.averages)),
            num_steps=config.num_steps,
        )
        if teacher:
            fields["objective"] = _objective(fields["objective"], teacher.run.task.objective)
        if method.has_stages:
            fields["optimization"] = _with_stages(fields["optimization"], config, method)
            _check_grid(config.sampling.grid, method.last_steps, fields["objective"].process)
        return fields | _pairs(config, method, teacher, fields)

    @staticmethod
    def conditioning_fields(config: Any) -> dict[str, bool]:
        method = kinds.METHOD.bind(config.method, "method")
        return dict(takes_end_time=method.takes_end_time, takes_guidance=method.takes_guidance)

    sampler_kind = kinds.FLOW_MAP_SAMPLER
    optional_sampling = ()
    config_fields = dict(pairs=dict(directory=str | None, count=int, batch_size=int, sampling={}))

    @property
    def starts_from(self) -> str | None:
        """The run whose parameters the student starts from, as far as it has them.

        Adapters start as adapters that change nothing.
        """
        return self.teacher.folder if self.teacher and not self.adapters else None

    @property
    def _is_taught(self) -> bool:
        """Whether the loss calls the teacher."""
        return self.teacher is not None and not self.method.needs_pairs

    def frozen(self) -> tuple:
        if not self._is_taught:
            return super().frozen()
        (others,) = super().frozen() or ({},)
        return (others | {"teacher": self.teacher.load()},)

    def abstract_frozen(self) -> tuple:
        if not self._is_taught:
            return super().abstract_frozen()
        (others,) = super().abstract_frozen() or ({},)
        task = self.teacher.run.task
        params = jax.eval_shape(task._init_network, jax.random.key(0))
        return (others | {"teacher": params},)

    def _extra_inputs(self, t: Array) -> dict[str, Array]:
        """Return the network's inputs beside time and condition, where only shapes matter."""
        conditioning = dict(
            end_time=self.method.takes_end_time, guidance=self.method.takes_guidance
        )
        return {name: t for name, takes in conditioning.items() if takes}

    def sampling_inputs(self, sampling: Any) -> tuple:
        """Return the inputs of sampling. The teacher is not among them, so it is not loaded."""
        times = time_grid(self.process, sampling)
        return jnp.float32(sampling.guidance_scale), times, *super().frozen()

    def functions(self, state: Any, sampling: Any) -> dict[str, Any]:
        """Return `sample_teacher`, if there is a teacher, and what a diffusion task returns."""
        own = super().functions(state, sampling)
        return own | {"sample_teacher": self._sample_teacher} if self.teacher else own

    def _sample_teacher(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
        """Return samples of the teacher by its own sampler, and the number of its steps.

        With the process and the seed of the student they start from the student's noise. Labels
        stand for the student's prompts, of which the teacher's own sheets may have others.
        """
        run, prompts = self.teacher.run, getattr(self.condition, "prompts", None)
        if prompts is None:
            samples = run.sample(labels, seed=seed)
        else:
            samples = run.sample(prompts=[prompts[label] for label in labels], seed=seed)
        return samples, run.config.sampling.num_steps

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
        x = self._examples(batch, key, frozen)
        dropout_key, loss_key = jax.random.split(key)
        dropped = jax.random.bernoulli(dropout_key, self.objective.dropout_rate, (len(x),))
        condition, null = self.condition.of_batch(batch), self.condition.null(frozen)
        drop = lambda c, n: jnp.where(expand(dropped, c), n, c)
        extra = {}
        if self.method.has_stages:
            extra["stage"] = stage(state.step, self.num_steps, self.method.stages)
            extra["previous"] = self._apply(state.averages[PREVIOUS], frozen)
        if isinstance(self.space, Pairs):
            extra["noise"] = self.space.noise(batch[self.space.feature])
        rngs = self._dropout_rngs(key)  # the same for both, so that they drop the same features
        student = Student(
            network=self._apply(params, frozen, rngs),
            averaged=self._apply(state.averages[self.average], frozen, rngs),
            condition=condition,
            null=null,
            condition_with_dropout=jax.tree.map(drop, condition, null),
            dropped=dropped,
            process=self.process,
            target=self.objective.target,
            times=self.objective.times,
            teacher=self.teacher.denoiser(frozen["teacher"], self.process)
            if self._is_taught
            else None,
            progress=state.step / self.num_steps,
            weighting=self.objective.weighting,
            **extra,
        )
        return student, x, loss_key

    def sampled(self, params, condition, null, guidance_scale, frozen):
        """Return the flow map `(x_t, t, s)` under a condition."""
        conditioning = {}
        if self.method.takes_guidance:
            batch = jax.tree.leaves(condition)[0].shape[0]
            conditioning["guidance"] = jnp.full(batch, guidance_scale)
        apply, target = self._apply(params, frozen), self.objective.target
        jump = self.method.flow_map(apply, self.process, target, **conditioning)
        return lambda x_t, t, s: jump(x_t, t, s, condition)


PREVIOUS = "previous_stage"  # the average that holds the student as it was


def stage(step: Int[Array, ""] | int, num_steps: int, count: int) -> Int[Array, ""] | int:
    """Return the number of the stage, one of `count` equal parts of the training, at a step."""
    return step * count // num_steps


@dataclass(frozen=True)
class PreviousStage:
    """An average that is the parameters as they were when the current stage began."""

    num_steps: int
    count: int

    def shares(self, step: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        now, then = (stage(at, self.num_steps, self.count) for at in (step, step + 1))
        new = jnp.where(then > now, 1.0, 0.0)
        return 1 - new, new


def _with_stages(optimization: Optimization, config: Any, method: Method) -> Optimization:
    """Return the optimization whose averages also hold the student of the previous stage."""
    if not 1 <= method.stages <= config.num_steps:
        raise ValueError(
            f"config.method.stages is {method.stages}; take 1 to config.num_steps="
            f"{config.num_steps}"
        )
    kept = PREVIOUS, PreviousStage(config.num_steps, method.stages)
    return replace(optimization, averages=(*optimization.averages, kept))


def _check_grid(grid: Any, steps: int, process: diffusion.Process) -> None:
    """Raise ValueError if the sampler's grid is not the equal steps of the last stage."""
    found = kinds.GRID.bind(grid, "sampling.grid")(process, steps)
    learned = np.linspace(process.domain[1], process.clean_end, steps + 1)
    if not np.allclose(found, learned, atol=1e-5 * process.domain[1]):
        raise ValueError(
            f"config.sampling.grid has the times {np.round(found, 4)} for {steps} steps, but "
            f"the last stage learns equal steps, {np.round(learned, 4)}: take uniform_grid without "
            "a shift, or stages down to one step"
        )


def _check_process(method: Method, objective: Objective, name: str, owner: str) -> None:
    """Raise ValueError if a method is for another process or target than those of an objective."""
    process, target = objective.process, getattr(objective.target, "func", objective.target)
    wanted = method.needs_process
    if wanted and not isinstance(process, wanted):
        raise ValueError(
            f"{owner}process is {type(process).__name__}, but {name} is for {wanted.__name__} "
            "alone: take that process, or another method"
        )
    if wanted is RectifiedFlow and type(process.preconditioning) is not Preconditioning:
        raise ValueError(
            f"{owner}process.preconditioning is {type(process.preconditioning).__name__}, but "
            f"{name} feeds its network x_t and t unchanged: leave it out, or take another method"
        )
    wanted = method.needs_target
    if wanted and target is not wanted:
        raise ValueError(
            f"{owner}target is {target.__name__}, but a network of {name} predicts "
            f"{wanted.__name__}: take that target, or another method"
        )


def _check_read(method: Method, config: Any) -> None:
    """Raise ValueError if a field of the objective is set that the method's loss does not read."""
    read = {
        "loss": (dict(config.loss), dict(name="simple_loss")),
        "times.variates": (config.times.get("variates", "independent"), "independent"),
    }
    if not method.reads_times:
        read["times.name"] = config.times.name, "uniform"
        read["times.shift"] = config.times.get("shift", 1.0), 1.0
    if not method.reads_weighting:
        read["weighting"] = dict(config.weighting), dict(name="uniform")
    if not method.reads_dropout:
        read["conditioning_dropout"] = config.conditioning_dropout, 0.0
    for name, (given, usual) in read.items():
        if given != usual:
            raise ValueError(
                f"config.{name} is {given}, but the loss of {config.method.name} does not read "
                f"it: set it to {usual}, or take another method"
            )


def _objective(own: Objective, theirs: Objective) -> Objective:
    """Return a student's objective on its own process, with its network used as the teacher's is.

    The network gets the inputs that the teacher's process has at the same noise level, and its
    output has the same meaning. So the student starts as its teacher exactly.
    """
    if own.process == theirs.process:
        return own
    feed = SameLevel(base=theirs.process, data_deviation=own.process.preconditioning.data_deviation)
    target = targets.of_base(theirs.process, theirs.target)
    return replace(own, process=replace(own.process, preconditioning=feed), target=target)


def _pairs(
    config: Any, method: Method, teacher: Teacher | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields that are different with pairs; raise ValueError as of `fields`."""
    given = config.get("pairs")
    if bool(given) != method.needs_pairs:
        raise ValueError(
            f"config.method {config.method.name} learns from "
            + (
                "a teacher's pairs: set config.pairs, and make them by python -m experiments.encode"
                if method.needs_pairs
                else "data: leave out config.pairs"
            )
        )
    if not given:
        return {}
    if not isinstance(fields["condition"], Classes | Unconditional):
        raise ValueError(
            f"config.condition is {type(fields['condition']).__name__}, and pairs have class "
            "labels alone: take Classes or Unconditional"
        )
    origin = teacher.origin_of_pairs(given)
    check_origin(given.directory, origin)
    made_by = functools.partial(teacher.load_sampled, given.sampling)
    space = Pairs(fields["space"], given.directory, made_by)
    return dict(space=space, dequantize_levels=None, pairs_origin=origin)


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
        if method.needs_teacher is None and method.guidance_scale != 1:
            raise ValueError(
                f"config.method.guidance_scale is {method.guidance_scale}, the teacher's, but "
                "there is no teacher: set it to 1, or set config.teacher"
            )
        return None
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(
            f"config.teacher names {Path(folder).absolute()}, which has no run; train the teacher "
            "first"
        )
    teacher = Teacher(folder)
    teacher.check(fields, config.data, method.needs_pairs)
    if method.needs_target:
        _check_process(method, teacher.run.task.objective, name, f"the teacher {folder}'s ")
    if getattr(teacher.run.network, "takes_guidance", False) and not method.needs_pairs:
        raise ValueError(
            f"the teacher {folder} takes a guidance scale, which {name} does not give it; take "
            "the run that it learned from"
        )
    return teacher
