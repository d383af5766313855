"""Start training from another run's networks, or from published weights."""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.configuration.runs import open_run
from experiments.inputs.autoencoders import on_host
from experiments.tasks.adapters import Adapters
from genjax import pretrained
from genjax.devices.mesh import variable_path
from genjax.folders import located
from genjax.training.json_files import read_json
from genjax.training.task import GenerativeTask
from genjax.training.workdir import read_record


class Transfer(NamedTuple):
    """Variables for a task's networks, and what did not fit.

    Attributes:
        networks: by name, the given arrays where they fit, and the task's own elsewhere.
        taken: how many arrays fit.
        faults: a line for each array that is missing, left over or of another shape.
    """

    networks: dict[str, PyTree]
    taken: int
    faults: list[str]


def resumed_source(workdir: Path, source: str | None) -> str | None:
    """Return what the run in a folder has started from; None if it started from random weights.

    Args:
        workdir: holds checkpoints, so that training goes on from them.
        source: what --init_from gives now, if anything.

    Raises:
        ValueError: the run has started from something else, so `source` would change nothing.
    """
    began = read_record(workdir).get("init_from")
    there = located({"source": began}, workdir)["source"] if began else None
    same = source and there and os.path.abspath(source) == os.path.abspath(there)
    if source and not same:
        raise ValueError(
            f"--init_from={source} would change nothing: {workdir} holds a run that started from "
            f"{began or 'random weights'}. Choose another --workdir to fine-tune, or leave out "
            "--init_from to resume"
        )
    return began


def check_source(workdir: Path) -> None:
    """Check that a run without a source did not have one before.

    Args:
        workdir: holds no checkpoint, as after a stop before the first one.

    Raises:
        ValueError: it had one, so training would begin from random weights instead.
    """
    with contextlib.suppress(FileNotFoundError):
        if began := read_record(workdir).get("init_from"):
            raise ValueError(
                f"{workdir} holds a run that started from {began} and has no checkpoint yet: give "
                f"--init_from={began} again, or choose another --workdir"
            )


def check_frozen(workdir: Path, frozen: Mapping[str, int]) -> None:
    """Check that the frozen parts of a run have been trained no further since the run began.

    Args:
        frozen: the newest steps of the runs that are frozen parts, by folder.

    Raises:
        ValueError: one has been.
    """
    began = read_record(workdir).get("frozen_runs", frozen)
    for folder, step in frozen.items():
        if began.get(folder, step) != step:
            raise ValueError(
                f"{workdir} was trained with {folder} at step {began[folder]}, which is at step "
                f"{step} by now: choose another --workdir, or put back what was there"
            )


def check_examples(workdir: Path, count: int) -> None:
    """Check that a run has as many training examples as when it began.

    Raises:
        ValueError: it has not. Another number gives other batches at every step.
    """
    began = read_record(workdir).get("num_examples", count)  # older runs have none
    if began != count:
        raise ValueError(
            f"{workdir} was trained on {began:,} examples, and config.data has {count:,} by now, "
            "which gives other batches: put back what was there, or train on the new data in "
            f"another --workdir with --init_from={workdir}"
        )


def open_source(source: str, adapters: Adapters | None = None) -> dict[str, PyTree]:
    """Return the variables of the networks in the folder of a run or of published weights.

    They are whole on the host: a run's state may be split over the devices of all processes.

    Args:
        adapters: that are to start from the source. Then return the adapters of a run that trained
            adapters, at the scale of these, not its adapted network.

    Raises:
        FileNotFoundError: the folder holds neither a run nor published weights, or the run has no
            checkpoint.
    """
    if not Path(source).exists():
        raise FileNotFoundError(
            f"--init_from names {Path(source).absolute()}, and there is no such folder"
        )
    if _is_run(Path(source)):
        run = open_run(source)
        trained = getattr(run.task, "adapters", None)
        if trained and not adapters:
            return on_host({"network": run.variables})
        networks = on_host(run.task.networks(run.state, run.config.sampling.weights))
        if trained:
            factors = adapters.rescaled(networks["network"]["params"], trained.scale)
            networks = networks | {"network": {"params": factors}}
        return networks
    try:
        return {"network": pretrained.load(source)[1]}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--init_from needs the folder of a run or of published weights: {error}"
        ) from error


def _is_run(folder: Path) -> bool:
    """Return whether training has written to the folder, even if only its config."""
    record = folder / "config.json"
    return (folder / "checkpoints").is_dir() or (record.exists() and "config" in read_json(record))


def transfer(own: dict[str, PyTree], given: dict[str, PyTree]) -> Transfer:
    """Return a task's networks, with the given arrays wherever they fit.

    Args:
        own: variables of the task's networks, by name.
        given: of the other run. Networks of one name belong together. Where no name is shared,
            the network that fits one of the task's best goes to that one.

    Raises:
        ValueError: too little fits: of every network less than half of the numbers, both of those
            given and of the task's own.
    """
    if not own.keys() & given.keys():
        given = _best_pair(own, given)
    there = {variable_path(path): a for path, a in jax.tree.leaves_with_path(given)}
    taken, fitting, faults = 0, collections.Counter(), []  # fitting: numbers of each network

    def choose(path: tuple, a: jax.Array) -> Any:
        nonlocal taken
        name = variable_path(path)
        other = there.pop(name, None)
        if other is None:
            faults.append(f"missing: {name} {list(a.shape)}")
        elif other.shape != a.shape:
            faults.append(f"other shape: {name} {list(other.shape)}, here {list(a.shape)}")
        else:
            taken += 1
            fitting[name.split("/")[0]] += a.size
            return np.asarray(other, a.dtype)
        return a

    networks = jax.tree.map_with_path(choose, own)
    faults += [f"left over: {name} {list(a.shape)}" for name, a in there.items()]
    size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    if all(2 * n < min(size(own[name]), size(given[name])) for name, n in fitting.items()):
        raise ValueError(
            f"--init_from fits {fitting.total():,} of {size(own):,} numbers, less than half of "
            "every network, so training would begin almost from random weights: give config.model "
            "the fields of that run, or leave out --init_from. These arrays differ:\n  "
            + "\n  ".join(faults[:20])
        )
    return Transfer(networks, taken, faults)


def _best_pair(own: dict[str, PyTree], given: dict[str, PyTree]) -> dict[str, PyTree]:
    """Return the given network of which most arrays fit one of the task's, by that one's name."""

    def arrays(network: PyTree) -> set:
        return {(variable_path(path), a.shape) for path, a in jax.tree.leaves_with_path(network)}

    fitting = lambda pair: len(arrays(own[pair[0]]) & arrays(given[pair[1]]))
    name, source = max(itertools.product(own, given), key=fitting)
    return {name: given[source]}


def initializer(task: GenerativeTask, source: str) -> Callable[[PyTree], PyTree]:
    """Return a function that puts another run's weights into a first state.

    The function prints what did not fit.

    Raises:
        FileNotFoundError, ValueError: as of `open_source` and `transfer`.
    """
    given = open_source(source, adapters=getattr(task, "adapters", None))
    adopted = getattr(getattr(task, "network", None), "adopted", None)
    if adopted and "network" in given:
        given["network"] = given["network"] | {"params": adopted(given["network"]["params"])}
    abstract = jax.eval_shape(
        lambda key: task.networks(task.init(key), "params"), jax.random.key(0)
    )
    transfer(abstract, given)  # a fault shows before any compute

    def initialize(state: PyTree) -> PyTree:
        found = transfer(task.networks(state, "params"), given)
        print(f"{found.taken} arrays of {source}; {len(found.faults)} do not fit", flush=True)
        for fault in found.faults:
            print(f"  {fault}", flush=True)
        shardings = jax.tree.map(lambda a: a.sharding, state)
        return jax.jit(task.start_from, out_shardings=shardings)(state, found.networks)

    return initialize
