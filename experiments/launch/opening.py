"""From a configuration's names and numbers to objects."""

import ast
import dataclasses
import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from genjax.devices import make_mesh
from genjax.devices.mesh import AXES, BATCH_AXES
from genjax.training import Checkpoints, Task, abstract_state
from genjax.training.checkpoints import damage


class Config(dict):
    """A dictionary whose entries are attributes too, as in ml_collections, which reading a run does without."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no field {name!r}; it has {', '.join(self)}") from None


def read_config(workdir: str | Path) -> Config:
    """The config of the run in `workdir`.

    Raises:
        FileNotFoundError: there is no run.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"--workdir={workdir} holds no run (no config.json); train one there first")
    return json.loads(path.read_text(), object_hook=Config).config


def lookup(module: ModuleType, name: str, field: str) -> Any:
    """The public object `name` defined in `module`; the error for a wrong name lists the right ones."""
    public = [
        each
        for each, value in vars(module).items()
        if (getattr(value, "__module__", None) or "").startswith(module.__name__) and not each.startswith("_")
    ]
    if name not in public:
        raise ValueError(f"config.{field} is {name!r}; {module.__name__} has {', '.join(public)}")
    return getattr(module, name)


def bind(module: ModuleType, fields: Mapping[str, Any], field: str) -> functools.partial:
    """The object that `fields["name"]` names in `module`, bound to the other fields as keyword arguments.

    A field that has a name itself is first made in the same way, of the same module.

    Raises:
        ValueError: no such name, or it takes no such argument.
    """
    function = lookup(module, fields["name"], f"{field}.name")

    def argument(name, value):
        if hasattr(value, "keys") and "name" in value:
            return bind(module, value, f"{field}.{name}")()
        return tuple(value) if isinstance(value, list) else value  # a config read from JSON has lists

    arguments = {name: argument(name, value) for name, value in fields.items() if name != "name"}
    takes = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    if (unknown := arguments.keys() - takes.keys()) and not takes_any:
        raise ValueError(
            f"config.{field} has {', '.join(sorted(unknown))}, which {fields['name']} does not take; "
            f"it takes {', '.join(takes)}"
        )
    return functools.partial(function, **arguments)


def named(text: str | None, flag: str) -> dict[str, Any] | None:
    """A config's fields of "name,option=value,…".

    Raises:
        ValueError: an option is not of this form.
    """
    if text is None:
        return None
    name, *options = text.split(",")
    try:
        pairs = [option.split("=") for option in options]
        return {"name": name} | {key: ast.literal_eval(value) for key, value in pairs}
    except (ValueError, SyntaxError):
        raise ValueError(f"--{flag}={text} must be a name and options, as in name,option=1.5") from None


def check_diffusion(config: Any) -> None:
    """Raises ValueError if the task is another."""
    if config.task != "ImageDiffusion":
        raise ValueError(f"this program is of diffusion; {config.experiment} is a {config.task}")


def mesh_axes(config: Any) -> dict[str, int]:
    """The axes of `config.mesh` in the order of `AXES`, the last of which are nearest in the machine; `tensor` and `context`
    where they split anything."""
    sizes = {name: config.mesh.get(name, 1) for name in AXES}
    return {name: size for name, size in sizes.items() if name in BATCH_AXES or size != 1}


def examples_at_once(config: Any) -> int:
    """Of a training step, those that are computed at once, on all devices together.

    Raises:
        ValueError: the batch does not divide into `config.accumulation_steps`.
    """
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"config.batch_size {config.batch_size} does not divide into config.accumulation_steps "
            f"{config.accumulation_steps} equal parts"
        )
    return config.batch_size // config.accumulation_steps


def build(config: Any) -> Task:
    """The task that `config.task` names.

    Raises:
        ValueError: there is none, or it cannot be trained as `config.params_dtype` says; as of the task's own.
    """
    from experiments import tasks

    task = lookup(tasks, config.task, "task")
    if dtype := config.get("params_dtype"):
        if "params_dtype" not in {field.name for field in dataclasses.fields(task)}:
            raise ValueError(
                f"config.params_dtype is {dtype!r}, but a {config.task} is trained at its parameters themselves"
            )
        if dtype != "bfloat16":
            raise ValueError(
                f"config.params_dtype is {dtype!r}; take 'bfloat16', or none for the parameters themselves"
            )
    return task.from_config(config)


def change_sampling(config: Config, **changes: Any) -> None:
    """Sets fields of `config.sampling`; those that are None stay as they were.

    Raises:
        ValueError: the run's task is not sampled by such a thing.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if unknown := changes.keys() - config.sampling.keys():
        raise ValueError(
            f"{config.experiment} is not sampled by {', '.join(sorted(unknown))}; its config.sampling has "
            f"{', '.join(config.sampling)}"
        )
    config.sampling.update(changes)
    if "prompts" in changes:
        config.data.num_classes = len(changes["prompts"])  # a row of the pictures for each


def restore(
    workdir: str | Path, step: int | None, size: tuple[int, int] | None = None, **sampling: Any
) -> tuple[Config, Task, Any]:
    """The config, task and state of a run, at a step or at its newest good checkpoint.

    Of the state what sampling and evaluation read is there, by `config.sampling.weights`, and None in the place of all
    else, such as the optimizers' part. It is split over all devices as by an `fsdp` axis.

    Args:
        size: another height and width than the run's own.
        sampling: fields of `config.sampling` to change; those that are None stay as they were.

    Raises:
        FileNotFoundError: no run, no checkpoint, or none of that step.
        ValueError: the run's task is not sampled by such a field, or makes one size only.
    """
    config = read_config(workdir)
    change_sampling(config, **sampling)
    if size:
        check_diffusion(config)
        config.data.image_shape = [*size, config.data.image_shape[-1]]
    task = build(config)
    mesh = make_mesh({"fsdp": jax.device_count()}, jax.device_count())
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen not in checkpoints.steps():
            raise FileNotFoundError(
                f"{checkpoints.directory} has no {'good checkpoint' if step is None else f'checkpoint {step}'}; "
                f"the steps there are {checkpoints.steps()}"
            )
        if problem := damage(checkpoints.path(chosen)):
            raise OSError(f"the checkpoint {checkpoints.path(chosen)} is damaged: {problem}")
        abstract = jax.tree.map_with_path(
            lambda path, a: a if _is_read(path, config.sampling.weights) else ...,
            abstract_state(task, jax.random.key(0), mesh),
        )
        state = checkpoints.restore(chosen, abstract)
        return config, task, jax.tree.map(lambda a: None if a is ... else a, state)


def _is_read(path: tuple, weights: str) -> bool:
    """Whether sampling or evaluation by these weights reads an array of a state, by its place there."""
    first, *others = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    if first == "averages":
        return weights == others[0] or weights.startswith("posthoc_")
    if first == "discriminator":
        return others[0] != "optimizer_state"
    if first in ("generator", "autoencoder"):
        return weights == "params" and others[0] != "optimizer_state"
    # Of a schedule-free optimizer the parameters to sample from are in its state.
    return weights == "params" or first not in ("params", "optimizer_state")
