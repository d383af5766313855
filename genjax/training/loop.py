"""The one training loop."""

import contextlib
import itertools
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from genjax.training.checkpoints import Checkpoints
from genjax.training.log import MetricsLog, ProgressBar
from genjax.training.mesh import abstract_state, batch_sharding, place_batch, replicated
from genjax.training.task import Task


class Plugin(NamedTuple):
    """Something done with the state every so many steps and after the last: sampling, evaluation, pictures.

    `call(state, step)` may return metrics to log. It must not keep the state: its memory is given away to
    the next step.
    """

    every: int
    call: Callable[[Any, int], dict[str, float] | None]


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


def compile_update(task: Task, state: Any, mesh: Mesh) -> Callable:
    """`(state, batch, key) -> (state, metrics)`, jitted; the key is folded with the state's step.

    The old state's memory is donated to the new one.
    """
    state_sharding = jax.tree.map(lambda a: a.sharding, state)

    def update(state, batch, key):
        return task.update(state, batch, jax.random.fold_in(key, state.step))

    return jax.jit(
        update,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
    )


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
) -> Any:
    """Trains until step `num_steps`, from the newest good checkpoint if there is one.

    Each step's metrics are read while the next step runs, so the devices never wait for the host.

    Args:
        batches: the batches of this process from a given step on; batch i must depend on i alone.

    Returns:
        The state after the last step, which is also the last checkpoint.

    Raises:
        NonFiniteError: a metric or parameter is NaN or infinite; nothing is saved after it.
        Interrupted: SIGTERM or Ctrl-C; the state has been saved.
        OSError: a checkpoint could not be written.
    """
    init_key, update_key = jax.random.split(jax.random.key(seed))
    with jax.set_mesh(mesh), checkpoints, _stop_signals() as stop, contextlib.ExitStack() as stack:
        abstract = abstract_state(task, init_key, mesh)
        start = checkpoints.latest()
        if start is None:
            start = 0
            state = jax.jit(task.init, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))(init_key)
        else:
            state = checkpoints.restore(start, abstract)
        log = stack.enter_context(contextlib.closing(MetricsLog(log_path, start)))
        progress = stack.enter_context(ProgressBar(start, num_steps))
        update = compile_update(task, abstract, mesh)

        unread: tuple[int, dict[str, jax.Array]] | None = None
        window: list[dict[str, float]] = []
        window_began = log.seconds

        def last_good() -> str:
            checkpoints.wait()
            return f"the last good checkpoint is that of step {checkpoints.latest()}"

        def read() -> None:
            """Fetches the metrics of the last step, waiting for it, and logs every `log_every` steps' mean."""
            nonlocal unread, window, window_began
            if unread is None:
                return
            (step, metrics), unread = unread, None
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"{name} is {value} at step {step}. Nothing is saved from here on; {last_good()}. "
                        "Lower the learning rate, clip gradients, or look at the data."
                    )
            window.append(values)
            progress.update(step, values.get("loss"))
            if step % log_every == 0 or step == num_steps:
                means = {name: float(np.mean([row[name] for row in window])) for name in values}
                rate = len(window) / (log.seconds - window_began)
                log.write(step, {**means, "steps_per_second": round(rate, 3)})
                window, window_began = [], log.seconds

        def save(step: int) -> None:
            if not _all_finite(state):
                raise NonFiniteError(
                    f"the state is not finite after step {step}, and not saved; {last_good()}"
                )
            checkpoints.save(step, state)

        source = itertools.islice(batches(start), num_steps - start)
        for step, batch in enumerate(source, start + 1):
            state, metrics = update(state, place_batch(batch, mesh), update_key)
            read()
            unread = step, metrics

            due = [p for p in plugins if step % p.every == 0 or step == num_steps]
            save_due = step % checkpoint_every == 0 or step == num_steps
            if due or save_due or stop:
                read()
                paused = log.seconds
                if save_due or stop:
                    save(step)
                if stop:
                    checkpoints.wait()
                    print(f"saved step {step} in {checkpoints.directory}; the same command goes on from it")
                    raise Interrupted(stop[0], step)
                for plugin in due:
                    extra = plugin.call(state, step)
                    if extra:
                        log.write(step, extra)
                window_began += log.seconds - paused  # rates count training alone
    return state
