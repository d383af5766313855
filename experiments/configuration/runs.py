"""From a config to a task, and from a run's folder to the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.configuration import kinds, old_runs
from experiments.configuration.fields import missing_field
from genjax.devices.mesh import AXES, BATCH_AXES
from genjax.folders import located
from genjax.pipelines import Run
from genjax.pipelines.runs import check_field
from genjax.training.task import GenerativeTask
from genjax.training.workdir import Config, read_record


def build(config: Any) -> GenerativeTask:
    """Return the task that `config.task` names.

    Raises:
        ValueError: there is no such task, or the config lacks a field that the task reads; or as of
            the task's own `from_config`.
    """
    task = kinds.TASK.find(config.task, "task")
    try:
        return task.from_config(config)
    except AttributeError as error:
        if not (field := missing_field(error)):
            raise
        raise ValueError(
            f"config.task is {config.task!r}, which reads a field {field} that this config lacks: "
            "add it, or start from another config (head -n 1 configs/*.py says what each trains)"
        ) from error


def read_config(workdir: str | Path) -> Config:
    """Return the config of a run, in today's form whatever version wrote it.

    Other folders that it names are found from any folder (`genjax.folders.located`).

    Raises:
        FileNotFoundError: there is no run.
    """
    return old_runs.upgrade(located(read_record(workdir).config, workdir))


def open_run(
    workdir: str | Path,
    step: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    build: Callable[[Any], GenerativeTask] = build,
    **sampling: Any,
) -> Run:
    """Return the run in a folder, at a step or at its newest good checkpoint.

    Args:
        size: another height and width than the run's own.
        build: makes the task of the config.
        sampling: fields of `config.sampling` to change, or `prompts`; None leaves a field as it is.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run is not sampled by such a field, or makes one size only.
    """
    config = read_config(workdir)
    change_sampling(config, **sampling)
    if size:
        check_diffusion(config)
        *frames, _, _, channels = config.data.image_shape
        config.data.image_shape = [*frames, *size, channels]
        config.space.pop("shape", None)  # of the latents that the run was trained on
    return Run(workdir, step, config=config, build=build)


def change_sampling(config: Config, prompts: list[str] | None = None, **changes: Any) -> None:
    """Set fields of `config.sampling`, and the prompts of the sample sheets.

    Raises:
        ValueError: the config has no such field, or no prompts, or as of `check_field`.
    """
    if prompts and "prompts" not in config.condition:
        instead = ", and choose by --classes" if config.condition.name == "Classes" else ""
        raise ValueError(
            f"--prompt is given, and {config.experiment} knows no prompts (config.condition.name "
            f"is {config.condition.name!r}): leave it out{instead}"
        )
    changes = {name: value for name, value in changes.items() if value is not None}
    optional = getattr(kinds.TASK.find(config.task, "task"), "optional_sampling", ())
    unknown = sorted(changes.keys() - {*config.sampling, *optional})
    if unknown:
        raise ValueError(
            f"{config.experiment} is not sampled by {', '.join(unknown)}; samples depend on "
            f"{', '.join(config.sampling)}"
        )
    guidance = [n for n in ("guidance_scale", "guidance_interval") if changes.get(n, 1) != 1]
    if guidance and config.condition.name == "Unconditional":
        raise ValueError(
            f"--{guidance[0]} is of guidance, and {config.experiment} has no condition: leave it "
            "out"
        )
    for name, value in changes.items():
        check_field(name, value, config.sampling.get(name))
    config.sampling.update(changes)
    if prompts:
        config.condition.prompts = prompts


def check_diffusion(config: Any) -> None:
    """Raise ValueError if the task is not diffusion."""
    if config.task != "Diffusion":
        raise ValueError(
            f"only runs of diffusion can do this; {config.experiment} is a {config.task}"
        )


def mesh_axes(config: Any) -> dict[str, int]:
    """Return the axes of `config.mesh` in the order of `AXES`.

    Neighbours along the last axes are nearest in the machine. `tensor` and `context` are there if
    they split anything.
    """
    sizes = {name: config.mesh.get(name, 1) for name in AXES}
    return {name: size for name, size in sizes.items() if name in BATCH_AXES or size != 1}


def examples_at_once(config: Any) -> int:
    """Return how many examples of a training step all devices compute at once.

    Raises:
        ValueError: the batch does not divide into `config.accumulation_steps`.
    """
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"config.batch_size {config.batch_size} does not divide into config.accumulation_steps "
            f"{config.accumulation_steps} equal parts"
        )
    return config.batch_size // config.accumulation_steps
