"""A trained run as an object: open the folder that training wrote, sample, and take the network."""

import difflib
import functools
import math
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from genjax import parts, pretrained
from genjax.devices.mesh import make_mesh, variable_path
from genjax.folders import located
from genjax.pipelines.generation import check_labels, check_texts
from genjax.pipelines.null_condition import check_null_condition
from genjax.training import Checkpoints, Snapshots, abstract_state
from genjax.training.checkpoints import damage
from genjax.training.json_files import read_json
from genjax.training.sampling import add_posthoc, sample
from genjax.training.task import GenerativeTask
from genjax.training.workdir import Config, frozen_runs, read_record

WHOLE = {"seed": range(2**32), "batch_size": range(1, 2**31)}  # fields of `config.sampling`
NEEDED = (*WHOLE, "guidance_scale", "num_steps")  # None turns other numbers off
LISTED = 20  # class names at most that an error lists; of more it lists the nearest


def labels_of_classes(
    argument: str, given: Sequence[str], num_rows: int, class_names: Sequence[str] | None
) -> np.ndarray:
    """Return the labels of classes that are given by number or name.

    Args:
        argument: what the error calls the argument.
        class_names: by label, if the data set has names. A name that is a number is not read.

    Raises:
        ValueError: there is no such class.
    """
    names = list(class_names or ())[:num_rows]
    labels = {name: label for label, name in enumerate(names) if not name.isdigit()}
    labels |= {str(label): label for label in range(num_rows)}
    if unknown := [each for each in given if each not in labels]:
        many = len(names) > LISTED
        near = difflib.get_close_matches(unknown[0], names, 8, 0.0) if many else names
        shown = [f"{n} {name}" for n, name in enumerate(names) if name in near and name != str(n)]
        raise ValueError(
            f"{argument}={','.join(given)} must be numbers from 0 to {num_rows - 1}"
            + (f", or names{', such as' * many}: {', '.join(shown)}" if shown else "")
        )
    return np.array([labels[each] for each in given])


def check_field(name: str, value: Any, own: Any) -> None:
    """Check a value that replaces a run's own in a field of `config.sampling`.

    Raises:
        ValueError: a part gets no dictionary; a field of a number, or of one for each modality,
            gets no finite number; or a seed or a batch size is no whole number of `WHOLE`.
    """
    if isinstance(own, dict) and "name" in own:
        if not hasattr(value, "keys"):
            instead = {"name": getattr(value, "__name__", value)}
            raise ValueError(
                f"{name}={value!r} has fields of its own: give a dictionary, as {name}={instead}"
            )
    elif hasattr(value, "keys"):
        for key in value:
            _check_number(f"{name}[{key!r}]", value[key])
    elif isinstance(own, int | float | dict) and not (value is None and name not in NEEDED):
        _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    scalar = isinstance(value, jax.Array | np.ndarray) and not value.shape
    number = value.item() if scalar and jnp.issubdtype(value.dtype, jnp.number) else value
    if not (isinstance(number, numbers.Real) and math.isfinite(number)):
        raise ValueError(f"{name}={value!r} must be a finite number")
    allowed = WHOLE.get(name)
    if allowed and not (isinstance(number, numbers.Integral) and number in allowed):
        raise ValueError(
            f"{name}={value!r} must be a whole number from {allowed[0]} to {allowed[-1]}"
        )


class Run:
    """A trained run: `Run("runs/digits_flow").sample(labels=[3, 7], seed=0)`.

    Only the part of the state that sampling reads is restored, at first use. The state is split
    over all devices, as by an `fsdp` axis.

    Attributes:
        folder: the folder of the run.
        config: the recorded config, with later changes to `config.sampling`. Relative folders
            that it names are looked for from the run's parents first.
        task: the network and its algorithm (`genjax.training.task.GenerativeTask`).

    Args:
        step: the step of a checkpoint; None for the newest good checkpoint.
        config: replaces the recorded config.
        build: makes the task of a config; None for the function that the record names as
            `built_by`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the config names parts that do not exist.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        step: int | None = None,
        *,
        config: Config | None = None,
        build: Callable[[Any], GenerativeTask] | None = None,
    ):
        self.folder, self._step = Path(folder), step
        record = read_record(folder)
        self.config = config or located(record.config, folder)
        if build is None:
            if "built_by" not in record:
                raise ValueError(
                    f"{folder} is a run of an older genjax, which does not name its `built_by`; "
                    f"open it by experiments.configuration.runs.open_run({str(folder)!r})"
                )
            build = parts.find(record.built_by, (), "built_by")
        for name, step in record.get("frozen_runs", {}).items():  # older runs have none
            part = located({"run": name}, folder)["run"]
            if (now := frozen_runs({"run": part}).get(part, step)) != step:
                warnings.warn(
                    f"{folder} was trained with {name} at step {step}, which is at step {now} by "
                    "now: it is opened with other frozen parameters than in training (those of a "
                    "teacher matter only for training)",
                    stacklevel=2,
                )
        self.task = build(self.config)
        self._build, self._others, self._init_from = build, {}, record.get("init_from")
        self._class_names = record.get("class_names")

    @functools.cached_property
    def step(self) -> int:
        """The step of the checkpoint.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            OSError: the checkpoint is damaged.
        """
        with self._checkpoints() as checkpoints:
            chosen = checkpoints.latest() if self._step is None else self._step
            if chosen not in checkpoints.steps():
                which = "good checkpoint" if self._step is None else f"checkpoint {self._step}"
                raise FileNotFoundError(
                    f"{checkpoints.directory} has no {which}; the steps there are "
                    f"{checkpoints.steps()}"
                )
            if problem := damage(checkpoints.path(chosen)):
                raise OSError(f"the checkpoint {checkpoints.path(chosen)} is damaged: {problem}")
            return chosen

    @functools.cached_property
    def state(self) -> PyTree:
        """The state, with None for everything that sampling does not read."""
        weights = self.config.sampling.weights

        def wanted(path: tuple, a: jax.ShapeDtypeStruct) -> Any:
            return a if self.task.is_sampled_from(variable_path(path), weights) else ...

        mesh = make_mesh({"fsdp": jax.device_count()}, jax.device_count())
        abstract = jax.tree.map_with_path(
            wanted, abstract_state(self.task, jax.random.key(0), mesh)
        )
        with self._checkpoints() as checkpoints:
            state = checkpoints.restore(self.step, abstract)
        state = jax.tree.map(lambda a: None if a is ... else a, state)
        return add_posthoc(self.task, state, weights, Snapshots(self.folder / "ema"))

    @property
    def network(self) -> nn.Module:
        """The network that makes the samples."""
        return self.task.network

    @property
    def variables(self) -> PyTree:
        """The network's variables, with the weights that `config.sampling.weights` names."""
        return self.task.variables(self.state, self.config.sampling.weights)

    @property
    def report(self) -> dict[str, Any]:
        """The evaluation's report.

        Raises:
            FileNotFoundError: the run has not been evaluated.
        """
        path = self.folder / "report.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; finish the run, or evaluate it: python -m "
                "experiments.evaluate"
            )
        return read_json(path)

    def sample(
        self,
        labels: Sequence[int | str] | np.ndarray | None = None,
        prompts: Sequence[str] | None = None,
        *,
        trajectory: bool = False,
        **sampling: Any,
    ) -> np.ndarray:
        """Return samples in the form of the data (for images bytes), one per label or prompt.

        Args:
            labels: numbers or names of classes. Without labels and prompts, each row of the sample
                sheets gives one sample.
            prompts: texts, for a text-to-image run.
            trajectory: return states at all times, `[times samples …]`.
            sampling: other values of `config.sampling`'s fields, such as seed or num_steps.

        Raises:
            ValueError: both labels and prompts are given; a label is none of the run's; prompts are
                no list of strings; `config.sampling` has no such field; `check_field` refuses the
                value, or the task cannot be built with the value; `weights` are other weights than
                those that the run is opened with; or as of `check_guidance`.
        """
        if labels is not None and prompts is not None:
            raise ValueError("give labels or prompts, not both")
        if isinstance(labels, str):
            raise ValueError(f"labels is the string {labels!r}; expected a list, as [{labels!r}]")
        if prompts is not None:
            check_texts("prompts", prompts)
        optional = getattr(self.task, "optional_sampling", ())
        if unknown := sorted(sampling.keys() - {*self.config.sampling, *optional}):
            raise ValueError(
                f"config.sampling has no {unknown[0]}; it has "
                f"{', '.join(dict.fromkeys([*self.config.sampling, *optional]))}"
            )
        for name, value in sampling.items():
            check_field(name, value, self.config.sampling.get(name))
        opened = self.config.sampling.weights
        if (weights := sampling.get("weights", opened)) != opened:
            raise ValueError(
                f"weights={weights!r} are not restored: {self.folder} is opened with the weights "
                f"{opened!r}. Open the run anew by experiments.configuration.runs.open_run("
                f"{str(self.folder)!r}, weights={weights!r})"
            )
        fields = Config(self.config.sampling | sampling)
        self.check_guidance(fields)
        task = self._task_with(sampling)
        task = task if prompts is None else task.with_prompts(prompts)
        if labels is None:
            labels = range(task.condition.num_rows)
        labels, num_rows = np.asarray(labels), task.condition.num_rows
        if labels.dtype.kind == "U":
            names = self._class_names if task.condition.num_classes > 1 else None
            labels = labels_of_classes("labels", labels.tolist(), num_rows, names)
        check_labels("labels", labels, num_rows)
        return sample(task, self.state, labels, fields, trajectory=trajectory)

    def check_guidance(self, sampling: Config | None = None) -> None:
        """Check that the network has learned the null condition if its samples are guided.

        A student is sampled without guidance, whatever it has learned.

        Args:
            sampling: in place of `config.sampling`.

        Raises:
            ValueError: samples are guided, and training dropped no condition.
        """
        if not hasattr(self.task, "method"):
            config = Config(self.config | {"sampling": sampling or self.config.sampling})
            check_null_condition(config, self.task, self._init_from)

    def _task_with(self, sampling: dict[str, Any]) -> Any:
        """Return the task, built anew if it is built with other values of these fields."""
        own, names = self.config.sampling, getattr(self.task, "built_with", ())
        others = {n: sampling[n] for n in names if n in sampling and sampling[n] != own.get(n)}
        if not others:
            return self.task
        key = repr(others)  # one task, so one compiled program, for each choice
        if key not in self._others:
            changed = Config(self.config | {"sampling": Config(own | others)})
            self._others[key] = self._build(changed)
        return self._others[key]

    def save(self, folder: str | os.PathLike) -> None:
        """Write the network's weights as safetensors, in the published form of its architecture.

        `genjax.pretrained.load(folder)` reads them, and so does the library that has the
        architecture.

        Raises:
            ValueError: no published form exists, or the network has a field that the form cannot
                express; or the folder holds a run, whose record would be replaced.
        """
        if (Path(folder) / "checkpoints").is_dir():
            raise ValueError(f"{folder} holds a run: save the weights into another folder")
        pretrained.save(folder, self.network, jax.device_get(self.variables))

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")
