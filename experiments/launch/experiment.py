"""An experiment: a config that is resolved into objects once, when a command starts."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from PIL import Image

from experiments.configuration.kinds import EVALUATOR, part_fields
from experiments.configuration.runs import build
from experiments.evaluation.context import Context, Model
from experiments.evaluation.protocol import PROTOCOL, protocol_of
from experiments.inputs.datasets import Data
from genjax.pipelines import Run
from genjax.training.progress import ProgressBar
from genjax.training.task import GenerativeTask
from genjax.training.workdir import Config


@dataclass(frozen=True)
class Measure:
    """An evaluator with its name and schedule.

    Attributes:
        every: steps from one measurement to the next; 0 measures after training alone.
    """

    name: str
    every: int
    evaluator: Any

    def __call__(self, model: Model) -> dict[str, Any]:
        """Return the figures and pictures of a model, and the protocol of the figures."""
        found = self.evaluator(model)
        return {**found, f"{PROTOCOL}{self.name}": protocol_of(self.evaluator, model, found)}


@dataclass(frozen=True)
class Experiment:
    """A task, its data, and what its samples are measured by.

    Attributes:
        config: the numbers that the programs read: steps, seeds, batch size, mesh.
    """

    config: Any
    task: GenerativeTask
    data: Data
    measures: tuple[Measure, ...]

    @classmethod
    def from_config(cls, config: Any, task: GenerativeTask | None = None) -> "Experiment":
        """Resolve a config.

        Args:
            task: the config's own, if it has been made already.

        Raises:
            ValueError, FileNotFoundError, ImportError: a part is not there or does not fit the
                others.
        """
        task, data = task or build(config), Data.from_config(config)
        return cls(config, task, data, tuple(_measures(config, task, data)))

    @classmethod
    def of_run(cls, run: Run) -> "Experiment":
        """Resolve the config of a run.

        Raises:
            ValueError: as of `from_config`, and of `Run.check_guidance`.
        """
        run.check_guidance()
        return cls.from_config(run.config, run.task)

    def model(self, state: Any) -> Model:
        """Return the functions of a trained state, for evaluators."""
        return Model(self.task, state, Config(self.config.sampling))

    def evaluate(self, model: Model) -> dict[str, Any]:
        """Return what all measures find, figures and pictures."""
        report: dict[str, Any] = {}
        with ProgressBar("evaluating", 0, len(self.measures), "measures") as progress:
            for done, measure in enumerate(self.measures, 1):
                report |= measure(model)
                progress.update(done)
        return report


def _measures(config: Any, task: GenerativeTask, data: Data) -> Iterator[Measure]:
    """Yield the measures of `config.evaluation`, each with what it does not set itself."""
    evaluation = config.evaluation
    context = Context(
        data,
        task.space,
        task.condition,
        evaluation.num_samples,
        evaluation.get("labels", "balanced"),
    )
    sampling = Config(dict(config.sampling) | {"weights": "params"})  # for names alone

    @functools.cache
    def provided() -> Mapping[str, Any]:  # tracing the first state takes long
        return task.functions(jax.eval_shape(task.init, jax.random.key(0)), sampling)

    for name, given in evaluation.measures.items():
        field = f"evaluation.measures.{name}"
        fields = part_fields({"name": given} if isinstance(given, str) else given, field)
        every = fields.pop("every", evaluation.every)
        changes = {each: fields.pop(each) for each in ("num_samples", "labels") if each in fields}
        evaluator = EVALUATOR.bind(fields, field, context=replace(context, **changes))
        built_with = getattr(task, "built_with", ())
        for each in getattr(evaluator, "varies", ()):
            if each not in config.sampling or each in built_with:
                raise ValueError(
                    f"config.{field} is {fields['name']}, which varies config.sampling.{each}; the "
                    f"samples of a {type(task).__name__} do not change with it: leave the measure "
                    "out, or evaluate the run with other settings"
                )
        if missing := [each for each in evaluator.needs if each not in provided()]:
            raise ValueError(
                f"config.{field} is {fields['name']}, which needs {' and '.join(missing)}; a "
                f"{type(task).__name__} gives {', '.join(provided()) or 'no functions but samples'}"
            )
        yield Measure(name, every, evaluator)


def with_intervals(measures: Iterable[Measure], resamples: int) -> tuple[Measure, ...]:
    """Return the measures, those that can give intervals with so many resamples.

    Raises:
        ValueError: none can, or one has too few samples.
    """
    found = tuple(
        replace(measure, evaluator=replace(measure.evaluator, resamples=resamples))
        if hasattr(measure.evaluator, "resamples")
        else measure
        for measure in measures
    )
    if not any(hasattr(measure.evaluator, "resamples") for measure in found):
        raise ValueError(
            f"--resamples={resamples} is for Samples and --features, and this run is measured by "
            f"{', '.join(measure.name for measure in found) or 'nothing'}: leave it out"
        )
    return found


def split_pictures(
    report: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Image.Image | list[Image.Image]]]:
    """Return a report's figures, and its pictures. A film is a list of pictures."""
    first = lambda value: value[0] if isinstance(value, list) and value else value
    pictures = {n: value for n, value in report.items() if isinstance(first(value), Image.Image)}
    return {name: value for name, value in report.items() if name not in pictures}, pictures
