"""The one training loop."""

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from genjax.devices.mesh import (
    agree,
    batch_sharding,
    compiler_options,
    place_batch,
    replicated,
)
from genjax.training.checkpoints import Checkpoints
from genjax.training.log import Metrics
from genjax.training.meter import Meter, NonFiniteError, open_meter
from genjax.training.placement import abstract_state, init_state, place_frozen
from genjax.training.profile import Profile
from genjax.training.signals import Interrupted, StopSignals, say
from genjax.training.skipping import (
    Explosions,
    all_finite,
    keep_finite,
    keep_usual,
    recent_metrics,
    unwatched,
    watch,
)
from genjax.training.task import Task
from genjax.training.writers import Stream


class Plugin(NamedTuple):
    """Something done with the state at intervals and after the last step, such as sampling.

    `every` is the interval in steps; with 0 it is done after the last step alone. `call(state,
    step)` may return metrics to log, and pictures for TensorBoard. It must not keep the state: its
    memory is given away to the next step. `begin(state, step)` is called once with the state and
    the step from which the run starts or goes on. A run that goes on with other plugins knows by
    their names which of them a stop prevented; without names, by their places in the list.
    """

    every: int
    call: Callable[[Any, int], dict[str, Any] | None]
    begin: Callable[[Any, int], None] = lambda state, step: None
    name: str = ""


def packed_update(task: Task) -> Callable:
    """Return `task.update` with packed metrics, which keep their order if it is jitted."""

    def packed(*args):
        state, metrics = task.update(*args)
        return state, Metrics.pack(metrics)

    return packed


def compile_update(
    task: Task,
    state: Any,
    mesh: Mesh,
    frozen: tuple = (),
    skip_non_finite: bool = False,
    explosions: Explosions | None = None,
    packed: Callable | None = None,
) -> Callable:
    """Return the jitted update `(state, batch, key, *frozen) -> (state, metrics)`.

    The update folds the key with the state's step. Metrics come packed (`Metrics`). The old state's
    memory is donated to the new one.

    Args:
        frozen: what the task reads and does not change, as `place_frozen` returns it.
        skip_non_finite: leave out updates that are not finite, as `keep_finite` does.
        explosions: leave out those that explode, too. The state is a `Watched` one.
        packed: as in `train`.
    """
    packed = packed or packed_update(task)
    state_sharding, frozen_sharding = jax.tree.map(lambda a: a.sharding, (state, frozen))

    def update(state, batch, key, *frozen):
        old = unwatched(state)
        new, metrics = packed(old, batch, jax.random.fold_in(key, old.step), *frozen)
        if explosions:
            return keep_usual(state, new, metrics, explosions)
        return keep_finite(state, new, metrics) if skip_non_finite else (new, metrics)

    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding(mesh), replicated(mesh), *frozen_sharding),
        out_shardings=(state_sharding, replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )


_all_finite = jax.jit(all_finite)


def _first_state(
    task: Task,
    key: jax.Array,
    mesh: Mesh,
    checkpoints: Checkpoints,
    initialize: Callable[[Any], Any],
    explosions: Explosions | None,
) -> tuple[int, Any]:
    """Return step and state of the newest good checkpoint, or those before the first update."""
    start = checkpoints.resume_step()
    if start is None:
        start, state = 0, initialize(init_state(task, key, mesh))
    else:
        state = checkpoints.restore(start, abstract_state(task, key, mesh))
    if explosions:
        state = watch(state, explosions, checkpoints.facts(start).get("recent", {}), mesh)
    return start, state


class _Stopping:
    """Whether signals ask training to stop, on which several processes agree."""

    def __init__(self, signals: StopSignals, mesh: Mesh):
        self.signals = signals
        self._any_process = agree(mesh) if jax.process_count() > 1 else None
        self._agreed: Any = False

    def after_step(self) -> bool:
        """Return whether to stop. Each process calls it after every step.

        What one of several processes knows now, all know at the next step, and act on together.
        """
        if self._any_process is None:
            return self.now()
        before, self._agreed = self._agreed, self._any_process(self.signals.received is not None)
        return bool(before)

    def now(self) -> bool:
        """Return whether to stop; with several processes, wait for their answers."""
        received = self.signals.received is not None
        return received if self._any_process is None else bool(self._any_process(received))

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Let a signal end what is inside, unless other processes would wait for this one."""
        return self.signals.raising(self._any_process is None)

    def signal(self) -> signal.Signals:
        """Return the signal, or SIGTERM if another process got it."""
        return self.signals.received or signal.SIGTERM


class _Pending:
    """The plugins still to be called after a step, in a file that survives a stop or a kill."""

    def __init__(self, folder: Path, plugins: Sequence[Plugin]):
        self._path = folder / "pending.json"
        self._names = [plugin.name or index for index, plugin in enumerate(plugins)]

    def write(self, step: int, indices: Sequence[int]) -> None:
        """Write down plugins, given their places in the list; without any, delete the file.

        The first process does it.
        """
        if jax.process_index() != 0:
            return
        with contextlib.suppress(OSError):  # a full disk shows elsewhere
            if indices:
                names = [self._names[index] for index in indices]
                temporary = self._path.with_suffix(".tmp")
                temporary.write_text(json.dumps({"step": step, "plugins": names}))
                temporary.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)

    def read(self, step: int) -> list[int]:
        """Return the places of the plugins that were pending after a step.

        The first process decides for all.
        """
        try:
            record = json.loads(self._path.read_text())
            found = list(record["plugins"]) if record["step"] == step else []
        except (OSError, ValueError, TypeError, KeyError):
            found = []
        # Earlier versions wrote the places of plugins with names, too.
        places = enumerate(self._names)
        pending = np.array([name in found or place in found for place, name in places], bool)
        if jax.process_count() > 1:
            pending = multihost_utils.broadcast_one_to_all(pending)
        return np.flatnonzero(pending).tolist()


class _Breaks:
    """The work between steps: save the state, show it to plugins, or stop training."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        checkpoint_every: int,
        plugins: Sequence[Plugin],
        num_steps: int,
        meter: Meter,
        stopping: _Stopping,
        pending: _Pending,
    ):
        self._checkpoints, self._checkpoint_every = checkpoints, checkpoint_every
        self._plugins, self._num_steps = plugins, num_steps
        self._meter, self._stopping, self._pending = meter, stopping, pending

    def begin(self, step: int, state: Any) -> None:
        """Begin the plugins; call those that a stop or a kill prevented.

        Raises:
            Interrupted: as in `train`.
        """
        for plugin in self._plugins:
            plugin.begin(unwatched(state), step)
        pending = self._pending.read(step)
        due = [index for index in pending if self._is_due(self._plugins[index].every, step)]
        if self._cut_short(due, step, state):
            self._stop(step, state, saved=True)

    def after(self, step: int, state: Any) -> None:
        """Do what is due after a step.

        Raises:
            NonFiniteError, Interrupted: as in `train`.
        """
        stopping, saving = self._stopping.after_step(), self._is_due(self._checkpoint_every, step)
        due = [i for i, plugin in enumerate(self._plugins) if self._is_due(plugin.every, step)]
        if not (stopping or saving or due):
            return
        self._meter.read()
        with self._meter.paused():
            if due:
                self._pending.write(step, due)
            if saving:
                self._save(step, state)
            if stopping or self._cut_short(due, step, state):
                self._stop(step, state, saved=saving)

    def after_all(self, state: Any) -> None:
        """Stop if a signal came in the last step, or to a run that needed no more steps."""
        if self._stopping.now():
            self._stop(self._num_steps, state, saved=True)

    def _is_due(self, every: int, step: int) -> bool:
        return step == self._num_steps or bool(every) and step % every == 0

    def _cut_short(self, due: Sequence[int], step: int, state: Any) -> bool:
        """Call plugins, by their places in the list; return whether a signal cut them short."""
        try:
            for done, index in enumerate(due, 1):
                with self._stopping.interruptible():
                    extra = self._plugins[index].call(unwatched(state), step)
                if extra:
                    self._meter.log.write(step, extra)
                self._pending.write(step, due[done:])
        except Interrupted:
            return True
        return False

    def _save(self, step: int, state: Any) -> None:
        if not _all_finite(unwatched(state)):
            raise NonFiniteError(f"the state is not finite after step {step}, and not saved")
        facts = {"window": self._meter.window(), "recent": recent_metrics(state)}
        self._checkpoints.save(step, unwatched(state), **facts)

    def _stop(self, step: int, state: Any, saved: bool) -> NoReturn:
        number = self._stopping.signal()
        # The first Ctrl-C of two only asks to stop.
        how = "Ctrl-C" if number == signal.SIGINT else "Ctrl-C twice"
        say(f"\n{number.name}: saving after step {step} ({how} stops without)")
        if not saved:
            self._save(step, state)
        self._checkpoints.wait()
        say(f"saved step {step} in {self._checkpoints.directory}; the same command goes on from it")
        raise Interrupted(number)


@contextlib.contextmanager
def _naming_the_last_good(checkpoints: Checkpoints) -> Iterator[None]:
    """Add to a NonFiniteError from which step the run can go on."""
    try:
        yield
    except NonFiniteError as error:
        checkpoints.wait()
        last = "there is no checkpoint yet"
        if (step := checkpoints.latest()) is not None:
            last = f"the last good checkpoint is that of step {step}"
        raise NonFiniteError(
            f"{error}. Nothing is saved from here on; {last}. Lower the learning rate, clip "
            "gradients, or look at the data."
        ) from error


def _take_steps(
    steps: range,
    source: Iterator[dict[str, np.ndarray]],
    update: Callable,
    state: Any,
    inputs: tuple,
    mesh: Mesh,
    *,
    meter: Meter,
    after: Sequence[Callable[[int, Any], None]],
) -> Any:
    """Return the state after the steps, each `update(state, batch, *inputs)`.

    Args:
        source: the batches of this process.
        after: called with the step and the state after each step, in order.
    """
    for step in steps:
        with meter.waiting():
            batch = next(source, None)
            if batch is None:
                raise ValueError(
                    f"there is no batch for step {step} of {steps.stop - 1}: give batches that go "
                    "on, epoch after epoch"
                )
            batch = place_batch(batch, mesh)
        if step == steps.start:
            meter.compile(update, state, batch, *inputs)
        state, metrics = update(state, batch, *inputs)
        meter.add(step, metrics)
        for call in after:
            call(step, state)
    return state


def train(
    task: Task,
    batches: Callable[[int], Iterable[dict[str, np.ndarray]]],
    *,
    num_steps: int,
    seed: int,
    mesh: Mesh,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    log_path: str | os.PathLike,
    log_every: int,
    plugins: Sequence[Plugin] = (),
    profile_at: int | None = None,
    initialize: Callable[[Any], Any] = lambda state: state,
    max_skipped_steps: int = 0,
    explosions: Explosions | None = None,
    writers: Sequence[Callable[[Path, int], Stream]] = (),
    packed: Callable | None = None,
) -> Any:
    """Train until step `num_steps`, from the newest good checkpoint if there is one.

    Return the state after the last step, the last checkpoint. Plugins that a stop or a kill cut
    short are called first. Each process makes the same call. `Meter` says what is logged.

    Args:
        batches: the batches of this process from a given step on; batch i must depend on i alone.
        checkpoint_every, log_every: in steps; 0 saves or logs after the last step alone.
        profile_at: the step, at least 1, after which some are traced to `profile` beside the log.
        initialize: changes the first state of a run that starts.
        max_skipped_steps: skip so many updates, not finite or `explosions`, before stopping.
        writers: open streams that get what is logged, `writer(folder, step)` (`training.writers`).
        packed: `packed_update(task)`, jitted or not. If it has been traced, it is not traced again.

    Raises:
        NonFiniteError: a metric or parameter is NaN or infinite; nothing is saved after it.
        ValueError: there are fewer batches than steps.
        Interrupted: a signal of `StopSignals` came, on any process; the state has been saved.
        OSError, NoWholeCheckpoint: a checkpoint could not be written, or all are damaged.
        OtherState: the newest checkpoint has another optimizer's state.
    """
    init_key, update_key = jax.random.split(jax.random.key(seed))
    with jax.set_mesh(mesh), checkpoints, StopSignals() as signals, contextlib.ExitStack() as stack:
        stack.enter_context(_naming_the_last_good(checkpoints))
        start, state = _first_state(task, init_key, mesh, checkpoints, initialize, explosions)
        opened = open_meter(log_path, log_every, start, num_steps, mesh, max_skipped_steps, writers)
        meter = stack.enter_context(opened)
        meter.go_on(start, **checkpoints.facts(start).get("window", {}))
        profile = stack.enter_context(contextlib.closing(Profile(log_path, profile_at, num_steps)))
        stop, pending = _Stopping(signals, mesh), _Pending(Path(log_path).parent, plugins)
        breaks = _Breaks(checkpoints, checkpoint_every, plugins, num_steps, meter, stop, pending)
        with meter.paused():
            breaks.begin(start, state)
            frozen = place_frozen(task, mesh)
        step = compile_update(task, state, mesh, frozen, max_skipped_steps > 0, explosions, packed)
        source = iter(itertools.islice(batches(start), num_steps - start))
        steps, inputs = range(start + 1, num_steps + 1), (update_key, *frozen)
        after = profile.after, breaks.after
        state = _take_steps(steps, source, step, state, inputs, mesh, meter=meter, after=after)
        breaks.after_all(state)
    return unwatched(state)
