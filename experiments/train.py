"""Train an experiment, sample from it and evaluate it.

    python -m experiments.train --config=configs/digits_flow.py --workdir=runs/digits_flow

Any field of the config can be set on the command line: --config.optimizer.learning_rate=1e-3. The
same command started again resumes from the newest good checkpoint. Ctrl-C saves and stops. For a
finished run the command says so, and makes only the missing measures.

On several hosts, start the command once on each host, with --coordinator and a --workdir that all
hosts see.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.configuration import kinds, old_runs
from experiments.configuration.fields import ignored_fields
from experiments.configuration.numbers import check_numbers
from experiments.configuration.runs import examples_at_once, mesh_axes
from experiments.evaluation.figures import BETTER
from experiments.inputs.datasets import abstract_batch, training_batches
from experiments.launch import runtime
from experiments.launch.config_flag import define_config
from experiments.launch.experiment import Experiment, Measure
from experiments.launch.fine_tuning import (
    check_examples,
    check_frozen,
    check_source,
    initializer,
    resumed_source,
)
from experiments.launch.held_out import check_held_out
from experiments.launch.lock import hold
from experiments.launch.recorder import Recorder
from experiments.launch.reports import print_report
from experiments.launch.runtime import run_program, user_errors
from experiments.pages.report import write_report
from genjax.devices import make_mesh
from genjax.nn import attention_choices
from genjax.nn.attention.dispatch import Choice
from genjax.pipelines.null_condition import check_null_condition
from genjax.training import (
    Checkpoints,
    Explosions,
    Interrupted,
    NonFiniteError,
    NoWholeCheckpoint,
    OtherState,
    abstract_state,
    check_space,
    new_workdir,
    record_config,
    train,
)
from genjax.training.checkpoints import saved_steps
from genjax.training.log import read_metrics
from genjax.training.loop import packed_update
from genjax.training.placement import abstract_frozen
from genjax.training.task import GenerativeTask
from genjax.training.workdir import device_name, frozen_runs, read_record
from genjax.training.writers import Stream

CONFIG = define_config(
    "The experiment: a file of configs/. Its fields are set by --config.FIELD=VALUE."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, made if absent: metrics, pictures, checkpoints, report."
)
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Fine-tune: start from the weights of this run's folder, or of a folder of published weights.",
)
flags.mark_flag_as_required("workdir")
flags.adopt_module_key_flags(runtime)

# Fields that may change when a run is resumed, since the resulting parameters do not depend on
# them.
FREE_TO_DIFFER = (
    "mesh",
    "log_every",
    "writers",
    "profile_at",
    "snapshot_every",
    "max_skipped_steps",
    "explosions",
    "checkpoint",
    "sampling",
    "evaluation",
    "data.directory",
    "condition.prompts",
    "condition.directory",
    "condition.num_rows",
)


def free_to_differ(config: Any, trained_with: Collection[str] = ()) -> tuple[str, ...]:
    """Return the fields that may change when a run is resumed.

    With constant learning rates its length may change, too. A warm-up or an end of the decay that
    is a fraction of the run would change with the length, and so would a student's schedules.

    Args:
        trained_with: names of fields of `config.sampling` that training reads. They may not change.
    """
    free = FREE_TO_DIFFER
    if trained_with:
        others = [f"sampling.{name}" for name in config.sampling if name not in trained_with]
        free = (*(field for field in free if field != "sampling"), *others)
    optimizers = (
        [config.optimizer] if "name" in config.optimizer else list(config.optimizer.values())
    )
    lengths = [each.get(name) for each in optimizers for name in ("warmup", "decay")]
    whole = all(length is None or length == 0 or length >= 1 for length in lengths)
    constant = all(each.schedule == "constant" for each in optimizers)
    longer = constant and whole and "method" not in config
    return (*free, "num_steps") if longer else free


class Preparation(NamedTuple):
    """Checked inputs of a training.

    Attributes:
        update: the task's, packed, which has been traced.
        initialize: changes the first state of a run that starts.
        warned: whether few held-out examples have been warned of.
    """

    experiment: Experiment
    mesh: Mesh
    batches: Any
    update: Callable
    initialize: Callable[[Any], Any]
    checkpoints: Checkpoints
    explosions: Explosions | None
    writers: tuple[Callable[[Path, int], Stream], ...]
    warned: bool


def writers_by(config: Any) -> tuple[Callable[[Path, int], Stream], ...]:
    """Return what opens the writers of `config.writers`.

    Raises:
        ValueError, ImportError: there is no such writer, or its package is not installed.
    """
    writers = []
    for name, given in config.get("writers", {}).items():  # older runs have none
        fields = {"name": given} if isinstance(given, str) else given
        writer = kinds.WRITER.bind(fields, f"writers.{name}")
        writers.append(functools.partial(writer.open, config=config.to_dict()))
    return tuple(writers)


def scores_by(name: str | None, workdir: Path) -> Callable[[], dict[int, float]]:
    """Return a function that reads how good a logged figure was, by step: the larger, the better.

    Raises:
        ValueError: neither larger nor smaller values of the figure are better.
    """
    if name is None:
        return dict
    signs = {
        each: {"higher": 1.0, "lower": -1.0}[better]
        for each, better in BETTER.items()
        if better != "1"
    }
    if name not in signs:
        raise ValueError(
            f"config.checkpoint.keep_best is {name!r}; it must be one of {', '.join(signs)}"
        )

    def scores() -> dict[int, float]:
        rows = read_metrics(workdir / "metrics.jsonl")
        known = [row for row in rows if name in row and math.isfinite(row[name])]
        return {row["step"]: signs[name] * row[name] for row in known}

    return scores


def check_retention(config: Any, measures: Sequence[Measure]) -> None:
    """Check that the checkpoints to keep will be written, and measured if the best one is kept.

    Raises:
        ValueError: they are not.
    """
    every, keep_every = config.checkpoint.every, config.checkpoint.get("keep_every", 0)
    if every and keep_every % every:
        raise ValueError(
            f"config.checkpoint.keep_every is {keep_every}; it must be a multiple of "
            f"config.checkpoint.every, {every}"
        )
    name = config.checkpoint.get("keep_best")
    if name and not any(measure.every for measure in measures):
        raise ValueError(
            f"config.checkpoint.keep_best is {name!r}, and nothing is measured while the run "
            "trains; set config.evaluation.every"
        )
    intervals = [measure.every for measure in measures if measure.every]
    if name and every and all(each % every and every % each for each in intervals):
        raise ValueError(
            f"config.checkpoint.keep_best is {name!r}, and measures every "
            f"{', '.join(map(str, intervals))} steps meet few checkpoints every {every}: set "
            "config.checkpoint.every to a divisor of config.evaluation.every"
        )


def explosions_by(config: Any, metrics: Collection[str]) -> Explosions | None:
    """Return when a step explodes, by a config; None if that is off.

    Raises:
        ValueError: a watched metric is not one of the task's `metrics`.
    """
    fields = config.get("explosions")  # older runs have none
    if not fields or not fields.deviations:
        return None
    if unknown := [name for name in fields.metrics if name not in metrics]:
        raise ValueError(
            f"config.explosions.metrics has {', '.join(unknown)}; the metrics of a step are "
            f"{', '.join(sorted(metrics))}"
        )
    return Explosions(tuple(fields.metrics), fields.deviations)


def recording_attention(update: Callable) -> tuple[Callable, set[Choice]]:
    """Jit an update so that its one trace serves the checks before training and training itself.

    Its operations become part of the program that calls it.

    Returns:
        The update, and a set that contains its choices of attention once it has been traced.
    """
    choices: set[Choice] = set()

    @functools.partial(jax.jit, inline=True)
    def recorded(*args):
        with attention_choices() as chosen:  # around the whole, JAX would trace again to train
            result = update(*args)
        choices.update(chosen)
        return result

    return recorded, choices


def check_length(workdir: Path, num_steps: int, profile_at: int | None) -> None:
    """Raise ValueError if a run is already beyond its new end, or ends before its profile."""
    newest = max(saved_steps(workdir / "checkpoints"), default=0)
    if newest > num_steps:
        raise ValueError(
            f"the run in {workdir} is at step {newest}, beyond config.num_steps={num_steps}; take "
            "a larger number, or another --workdir"
        )
    if profile_at is not None and profile_at >= num_steps:
        raise ValueError(
            f"config.profile_at={profile_at} traces the steps after it; take one below "
            f"config.num_steps={num_steps}"
        )


def check_precision(task: GenerativeTask, state: PyTree[jax.ShapeDtypeStruct]) -> None:
    """Raise ValueError if a network has a type in which small updates or gradients are lost.

    Moments and averages have the types of their parameters. In bfloat16 they round away changes of
    less than 1/512, so an average whose decay is 0.999 stands still. Gradients below 2⁻²⁴ are 0 in
    float16. StyleGAN, whose `clamp` bounds activations, is trained so by its authors.
    """
    networks = jax.eval_shape(lambda state: task.networks(state, "params"), state)
    types = {a.dtype for a in jax.tree.leaves(networks) if jnp.issubdtype(a.dtype, jnp.floating)}
    if small := [str(dtype) for dtype in types if dtype.itemsize < 4]:
        raise ValueError(
            f"parameters are {min(small)}, in which averages and an optimizer's moments stand "
            "still: leave out param_dtype, and set config.model.dtype for layers in half precision"
        )
    adversary = getattr(task, "adversary", None)  # of an autoencoder
    for network in (*vars(task).values(), getattr(adversary, "network", None)):
        if not isinstance(network, nn.Module) or getattr(network, "clamp", None):
            continue
        if jnp.dtype(getattr(network, "dtype", None) or "float32") == jnp.float16:
            raise ValueError(
                f"{type(network).__name__} has dtype float16, in which small gradients are 0, "
                "since training scales no loss: take bfloat16"
            )


def check_stages(task: GenerativeTask, max_skipped_steps: int) -> None:
    """Raise ValueError if a step may be skipped in which a student becomes the next teacher."""
    if max_skipped_steps and getattr(getattr(task, "method", None), "has_stages", False):
        raise ValueError(
            f"config.max_skipped_steps is {max_skipped_steps}, but the last step of each stage of "
            f"{type(task.method).__name__} makes the student the next teacher, and cannot be "
            "skipped: set it to 0"
        )


def record_run(config: Any, workdir: Path, task: GenerativeTask, **facts: Any) -> dict[str, Any]:
    """Record a config and facts in a folder; raise as `record_config` does."""
    advice = {
        "num_steps": "To train longer, start in another --workdir with "
        f"--init_from={workdir}: a finished run can only be made longer where its learning rate is "
        "constant and its warm-up is given in steps."
    }
    free = free_to_differ(config, getattr(task, "trained_with", ()))
    with contextlib.suppress(FileNotFoundError):  # earlier versions let any field pass
        for path in ignored_fields(old_runs.upgrade(read_record(workdir).config)):
            print(f"config.{path} of {workdir} was read by nothing; the run goes on without it")
            free = (*free, path)
    facts = {"built_by": "experiments.configuration.runs.build", **facts}
    return record_config(workdir, config.to_dict(), free, advice, **facts)


def prepare(config: Any, workdir: Path, init_from: str | None) -> Preparation:
    """Resolve a config, check that it can be trained in a folder, and record it there.

    Raises:
        ValueError, OSError, ImportError: it cannot; the message says what to change.
    """
    check_length(workdir, config.num_steps, config.profile_at)
    scores = scores_by(config.checkpoint.get("keep_best"), workdir)
    mesh = make_mesh(mesh_axes(config), examples_at_once(config))
    experiment = Experiment.from_config(config)
    check_retention(config, experiment.measures)
    warned = check_held_out(experiment)
    writers = writers_by(config)
    task = experiment.task
    abstract = abstract_state(task, jax.random.key(config.seed), mesh)
    check_precision(task, abstract)
    check_stages(task, config.get("max_skipped_steps", 0))
    check_space(workdir / "checkpoints", abstract, config.checkpoint.keep)
    batches = training_batches(config, task, mesh)
    update, choices = recording_attention(packed_update(task))
    with jax.set_mesh(mesh):
        frozen = abstract_frozen(task, mesh)
        step = abstract, abstract_batch(config, task), jax.random.key(0)
        _, metrics = jax.eval_shape(update, *step, *frozen)
    task.space.frozen()  # an autoencoder that is not finished shows before the run begins
    explosions = explosions_by(config, metrics.names)
    initialize, frozen_parts = lambda state: state, frozen_runs(config.to_dict())
    num_examples = len(batches.dataset.source)
    if saved_steps(workdir / "checkpoints"):  # a kill may leave an empty folder
        with contextlib.suppress(FileNotFoundError):  # `record_config` says what to do
            check_frozen(workdir, frozen_parts)
            check_examples(workdir, num_examples)
            init_from = resumed_source(workdir, init_from)
    elif init_from := init_from or getattr(task, "starts_from", None):
        initialize = initializer(task, init_from)
    else:
        check_source(workdir)
    check_null_condition(config, task, init_from)
    record = record_run(
        config,
        workdir,
        task,
        attention="; ".join(sorted(map(str, choices))) or None,
        init_from=init_from,
        class_names=batches.dataset.class_names,
        num_examples=num_examples,
        frozen_runs=frozen_parts,
    )
    options = dict(
        keep_every=config.checkpoint.get("keep_every", 0), scores=scores, facts={"record": record}
    )
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, **options)
    inputs = experiment, mesh, batches, update, initialize
    return Preparation(*inputs, checkpoints, explosions, writers, warned)


def run(config: Any, workdir: str | Path, init_from: str | None = None) -> dict[str, Any]:
    """Train `config` in `workdir`, or resume that; return the report, which is also written there.

    Args:
        init_from: folder of a run or of published weights to start from.
    """
    with contextlib.ExitStack() as stack:
        with user_errors():
            check_numbers(config)
            if init_from == "":
                raise ValueError("--init_from is empty: give a folder, or leave the flag out")
            workdir = stack.enter_context(new_workdir(workdir))
            stack.enter_context(hold(workdir))
            prepared = prepare(config, workdir, init_from)
        return train_and_report(config, workdir, prepared)


def train_and_report(config: Any, workdir: Path, prepared: Preparation) -> dict[str, Any]:
    """Train what has been prepared, evaluate it and return the report."""
    task, class_names = prepared.experiment.task, prepared.batches.dataset.class_names
    recorder = Recorder(prepared.experiment, workdir, class_names)
    print(
        f"{config.experiment}: {config.num_steps} steps on {device_name()} in {workdir}", flush=True
    )
    if adapters := getattr(task, "adapters", None):
        print(adapters.describe(), flush=True)
    state = train(
        task,
        prepared.batches.iterate,
        num_steps=config.num_steps,
        seed=config.seed,
        mesh=prepared.mesh,
        checkpoints=prepared.checkpoints,
        checkpoint_every=config.checkpoint.every,
        log_path=workdir / "metrics.jsonl",
        log_every=config.log_every,
        plugins=recorder.plugins(),
        profile_at=config.profile_at,
        initialize=prepared.initialize,
        max_skipped_steps=config.get("max_skipped_steps", 0),
        explosions=prepared.explosions,
        writers=prepared.writers,
        packed=prepared.update,
    )
    report = recorder.finish(state, config.num_steps)
    if jax.process_index() == 0:
        print_report(report, prepared.warned)
        if name := config.checkpoint.get("keep_best"):
            best = prepared.checkpoints.best()
            where = "not measured at any" if best is None else f"step {best}"
            print(f"  best {name} at a checkpoint: {where}")
        film = Path(task.animation).with_suffix(".webp").name
        for name in ("samples.png", task.animation, film, "curves.png", "report.json"):
            print(f"  {workdir / name}")
        print(f"  {write_report(workdir)}")
    return report


def main() -> None:
    try:
        run(CONFIG.value, WORKDIR.value, INIT_FROM.value)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except (NonFiniteError, NoWholeCheckpoint, OtherState) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: {error}\nStart the same command again to go on from the last good checkpoint."
        )


if __name__ == "__main__":
    run_program(main)
