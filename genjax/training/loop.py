"""The one training loop."""

import contextlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from genjax.devices.cost import multiply_adds, peak_operations
from genjax.devices.mesh import agree, batch_sharding, place_batch, replicated
from genjax.training.checkpoints import Checkpoints
from genjax.training.log import Metrics, MetricsLog, ProgressBar, window_means
from genjax.training.placement import abstract_state, init_state, place_frozen
from genjax.training.task import Task


class Plugin(NamedTuple):
    """Something done with the state every so many steps and after the last: sampling, evaluation, pictures.

    `call(state, step)` may return metrics to log, and pictures for TensorBoard. It must not keep the state: its
    memory is given away to the next step. `begin(step)` is called once with the step from which the run starts or
    goes on.
    """

    every: int
    call: Callable[[Any, int], dict[str, Any] | None]
    begin: Callable[[int], None] = lambda step: None


class NonFiniteError(FloatingPointError):
    """A metric or a parameter became NaN or infinite."""


class Interrupted(Exception):
    """SIGTERM or SIGINT stopped training after a save; `signal_number` says which."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"{signal.Signals(signal_number).name}: saved step {step}")
        self.signal_number = signal_number


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in the list it yields; a second one acts as if nobody collected."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        print(f"\n{signal.Signals(number).name}: saving after this step (again to stop without)", flush=True)
        for each, previous in handlers.items():
            signal.signal(each, previous)

    handlers = {each: signal.signal(each, handle) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for each, previous in handlers.items():
            signal.signal(each, previous)


def compile_update(task: Task, state: Any, mesh: Mesh, frozen: tuple = ()) -> Callable:
    """`(state, batch, key, *frozen) -> (state, metrics)`, jitted; the key is folded with the state's step.

    Metrics come packed (`Metrics`). The old state's memory is donated to the new one.

    Args:
        frozen: what the task reads and does not change, as `place_frozen` returns it.
    """
    state_sharding, frozen_sharding = jax.tree.map(lambda a: a.sharding, (state, frozen))

    def update(state, batch, key, *frozen):
        state, metrics = task.update(state, batch, jax.random.fold_in(key, state.step), *frozen)
        return state, Metrics.pack(metrics)

    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding(mesh), replicated(mesh), *frozen_sharding),
        out_shardings=(state_sharding, replicated(mesh)),
    )


PROFILE_STEPS = 5


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in floats]))


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
) -> Any:
    """Trains until step `num_steps`, from the newest good checkpoint if there is one.

    Each step's metrics are read, and the next batch is copied to the devices, while a step runs, so the devices
    never wait for the host. With several processes each makes the same call; the first one logs.

    Besides the task's metrics, means over `log_every` steps, it logs `steps_per_second`; `input_wait`, the share
    of time spent waiting for batches; `operations_per_second`, of the matrix products, two to a multiply-add,
    what rematerialisation computes again included; and, on devices that tell, `peak_share`, that over the
    devices' peak, and `device_memory`, the most bytes in use at once on one device.

    Args:
        batches: the batches of this process from a given step on; batch i must depend on i alone.
        profile_at: the step after which `PROFILE_STEPS` steps are traced into the folder `profile` beside the log.
        initialize: changes the first state of a run that starts, as to other weights; a run that goes on needs none.

    Returns:
        The state after the last step, which is also the last checkpoint.

    Raises:
        NonFiniteError: a metric or parameter is NaN or infinite; nothing is saved after it.
        Interrupted: SIGTERM or Ctrl-C, on any process; the state has been saved.
        OSError: a checkpoint could not be written.
    """
    init_key, update_key = jax.random.split(jax.random.key(seed))
    with jax.set_mesh(mesh), checkpoints, _stop_signals() as stop, contextlib.ExitStack() as stack:
        abstract = abstract_state(task, init_key, mesh)
        start = checkpoints.latest()
        if start is None:
            start = 0
            state = initialize(init_state(task, init_key, mesh))
        else:
            state = checkpoints.restore(start, abstract)
        first_process = jax.process_index() == 0
        if not first_process:
            log_path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "metrics.jsonl"
        log = stack.enter_context(contextlib.closing(MetricsLog(log_path, start)))
        for plugin in plugins:
            plugin.begin(start)
        progress = stack.enter_context(ProgressBar(start, num_steps)) if first_process else None
        frozen = place_frozen(task, mesh)
        update = compile_update(task, abstract, mesh, frozen)
        any_process = agree(mesh) if jax.process_count() > 1 else None
        tracing = stack.enter_context(contextlib.ExitStack())

        unread: tuple[int, Metrics] | None = None
        window: list[Metrics] = []
        window_began, waited, operations = log.seconds, 0.0, 0

        def last_good() -> str:
            checkpoints.wait()
            return f"the last good checkpoint is that of step {checkpoints.latest()}"

        def read() -> None:
            """Fetches the metrics of the last step, waiting for it, and logs every `log_every` steps' mean."""
            nonlocal unread, window, window_began, waited
            if unread is None:
                return
            (step, metrics), unread = unread, None
            metrics = jax.device_get(metrics)
            for index in np.flatnonzero(~np.isfinite(metrics.table[:, 0])):
                raise NonFiniteError(
                    f"{metrics.names[index]} is {metrics.table[index, 0]} at step {step}. Nothing is saved from "
                    f"here on; {last_good()}. Lower the learning rate, clip gradients, or look at the data."
                )
            window.append(metrics)
            if progress:
                progress.update(step, float(metrics["loss"]) if "loss" in metrics.names else None)
            if step % log_every == 0 or step == num_steps:
                means = window_means(window)
                seconds = log.seconds - window_began
                log.write(step, means | speed(len(window), seconds, waited / seconds))
                window, window_began, waited = [], log.seconds, 0.0

        def speed(steps: int, seconds: float, input_wait: float) -> dict[str, float]:
            values = {"steps_per_second": round(steps / seconds, 3), "input_wait": round(input_wait, 5)}
            if operations:
                values["operations_per_second"] = per_second = operations * steps / seconds
                if peak := peak_operations(mesh.devices.flat[0].device_kind):
                    values["peak_share"] = per_second / (peak * mesh.size)
            if memory := mesh.local_devices[0].memory_stats():
                values["device_memory"] = memory["peak_bytes_in_use"]
            return values

        def save(step: int) -> None:
            if not _all_finite(state):
                raise NonFiniteError(
                    f"the state is not finite after step {step}, and not saved; {last_good()}"
                )
            checkpoints.save(step, state)

        source = iter(itertools.islice(batches(start), num_steps - start))
        agreed = False
        for step in range(start + 1, num_steps + 1):
            began = time.perf_counter()
            batch = place_batch(next(source), mesh)
            waited += time.perf_counter() - began
            if step == start + 1:
                with contextlib.suppress(ValueError):  # a loop of unknown length has no count
                    operations = 2 * multiply_adds(update, abstract, batch, update_key, *frozen)
            if any_process:  # what one process knows now, all know at the next step, and act on together
                stopping, agreed = bool(agreed), any_process(bool(stop))
            else:
                stopping = bool(stop)
            state, metrics = update(state, batch, update_key, *frozen)
            read()
            unread = step, metrics

            if step == profile_at:
                jax.block_until_ready(state)
                tracing.enter_context(jax.profiler.trace(Path(log_path).parent / "profile"))
            elif profile_at is not None and step == min(profile_at + PROFILE_STEPS, num_steps):
                jax.block_until_ready(state)
                tracing.close()
            due = [p for p in plugins if step % p.every == 0 or step == num_steps]
            save_due = step % checkpoint_every == 0 or step == num_steps
            if due or save_due or stopping:
                read()
                paused = log.seconds
                if save_due or stopping:
                    save(step)
                if stopping:
                    checkpoints.wait()
                    print(f"saved step {step} in {checkpoints.directory}; the same command goes on from it")
                    raise Interrupted(stop[0] if stop else signal.SIGTERM, step)
                for plugin in due:
                    extra = plugin.call(state, step)
                    if extra:
                        log.write(step, extra)
                window_began += log.seconds - paused  # rates count training alone
    return state
