"""The metrics of training steps: read while later steps run, averaged over windows, logged."""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from genjax.devices.cost import multiply_adds, peak_operations
from genjax.training.log import Metrics, MetricsLog, window_means
from genjax.training.progress import ProgressBar, losses_of
from genjax.training.skipping import SKIPPED
from genjax.training.writers import Stream

SLOW_SECONDS = 30.0  # what takes less varies by itself


class NonFiniteError(FloatingPointError):
    """A metric or a parameter became NaN or infinite."""


class Meter:
    """Logs the means of every `log_every` steps' metrics, and how fast these steps were.

    With a `log_every` of 0 only the last step's metrics are logged.

    The metrics of a step are read when the next step has been started, so that the devices never
    wait for the host. The log also gets:

    - `steps_per_second`, and `step_seconds`, the time of the same steps together.
    - `compile_seconds` in the first window after a start, which no rate contains.
    - `input_wait`, the share of time spent waiting for batches.
    - `operations_per_second` of the matrix products, two to a multiply-add. It counts products that
      rematerialization computes again.
    - `skipped_steps` of the run until now, where steps may be skipped.
    - `peak_share`, the share of the devices' peak, on devices of a known peak.
    - `device_memory`, the most bytes in use at once on one device, on devices that report it.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: ProgressBar | None,
        log_every: int,
        num_steps: int,
        mesh: Mesh,
        max_skipped: int,
    ):
        self.log, self._progress = log, progress
        self._max_skipped, self._skipped = max_skipped, 0
        self._rates: list[float] = []
        self._log_every, self._num_steps, self._mesh = log_every, num_steps, mesh
        self._unread: tuple[int, Metrics] | None = None
        self._window: list[Metrics] = []
        self._began, self._waited, self._steps, self._operations = log.seconds, 0.0, 0, 0
        self._compile_seconds: float | None = None  # until it is logged

    def compile(self, update: Callable, *arguments: Any) -> None:
        """Compile a jitted step; note how long it takes, and what its matrix products cost.

        JAX keeps the compiled program, so the step's first call finds it.
        """
        began = self.log.seconds
        with self.paused():
            with contextlib.suppress(ValueError):  # a loop of unknown length has no count
                self._operations = 2 * multiply_adds(update, *arguments)
            update.lower(*arguments).compile()
        self._compile_seconds = self.log.seconds - began

    def window(self) -> dict[str, Any]:
        """Return the metrics that are read and not logged yet, and the run's time, as JSON."""
        names = self._window[0].names if self._window else ()
        tables = [step.table.tolist() for step in self._window]
        seconds = self.log.seconds
        return dict(names=list(names), tables=tables, skipped=self._skipped, seconds=seconds)

    def go_on(
        self,
        step: int,
        names: Sequence[str] = (),
        tables: Sequence[Any] = (),
        skipped: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Take up what `window` returned at `step`.

        Means are then over the same steps as without a stop. The run's time goes on, too: its
        records end at the last multiple of `log_every`, and there are none if that is 0.
        """
        self.log.go_on(seconds)
        self._began, self._skipped = self.log.seconds, skipped
        count = min(step % self._log_every, len(tables)) if self._log_every else 0
        kept = tables[len(tables) - count :]
        self._window = [Metrics(np.array(table, np.float32), tuple(names)) for table in kept]

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent waiting for a batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the rates, which count training alone."""
        began = self.log.seconds
        yield
        self._began += self.log.seconds - began

    def add(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step that has been started; read those of the step before."""
        self.read()
        self._unread = step, metrics

    def read(self) -> None:
        """Wait for the last step and read its metrics.

        Raises:
            NonFiniteError: one of them is NaN or infinite.
        """
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        metrics = jax.device_get(metrics)
        if SKIPPED in metrics.names:
            self._count_skipped(step, int(metrics[SKIPPED]))
        for name, total in zip(metrics.names, metrics.table[:, 0], strict=True):
            if not np.isfinite(total):
                raise NonFiniteError(f"{name} is {total} at step {step}")
        if not self._log_every or self._window and self._window[0].names != metrics.names:
            self._window = []  # of the last step alone, or of one version of the task
        self._window.append(metrics)
        self._steps += 1
        if self._progress:
            self._progress.update(step, losses_of(window_means([metrics])))
        window_ends = self._log_every and step % self._log_every == 0
        if window_ends or step == self._num_steps:
            means = window_means(self._window)
            if means.pop(SKIPPED, None) is not None:
                means["skipped_steps"] = self._skipped
            speed = self._speed()
            self.log.write(step, means | speed)
            self._warn_if_slow(step, speed["input_wait"])
            self._began, self._waited, self._steps = self.log.seconds, 0.0, 0
        if window_ends:
            self._window = []

    def _count_skipped(self, step: int, skipped: int) -> None:
        self._skipped += skipped
        if self._skipped > self._max_skipped:
            raise NonFiniteError(
                f"the update at step {step} is not finite or explodes, and {self._max_skipped} "
                "were skipped before, as many as config.max_skipped_steps allows"
            )

    def _warn_if_slow(self, step: int, input_wait: float) -> None:
        """Warn if the steps of a window took twice as long as is usual in this run."""
        seconds = self.log.seconds - self._began
        rate = self._steps / seconds
        usual = median(self._rates) if len(self._rates) > 2 else 0.0
        if seconds > SLOW_SECONDS and 2 * rate < usual:
            warnings.warn(
                f"the {self._steps} steps until step {step} were {usual / rate:.1f} times slower "
                f"than usual: {rate:.3g} a second, {input_wait:.0%} of the time waiting for "
                "batches",
                stacklevel=2,
            )
        self._rates.append(rate)

    def _speed(self) -> dict[str, float]:
        steps, seconds = self._steps, self.log.seconds - self._began
        values = {
            "steps_per_second": round(steps / seconds, 3),
            "step_seconds": round(seconds, 3),
            "input_wait": round(self._waited / seconds, 5),
        }
        if self._compile_seconds is not None:
            values["compile_seconds"], self._compile_seconds = round(self._compile_seconds, 3), None
        if self._operations:
            values["operations_per_second"] = per_second = self._operations * steps / seconds
            if peak := peak_operations(self._mesh.devices.flat[0].device_kind):
                values["peak_share"] = per_second / (peak * self._mesh.size)
        if memory := self._mesh.local_devices[0].memory_stats():
            values["device_memory"] = memory["peak_bytes_in_use"]
        return values


@contextlib.contextmanager
def open_meter(
    log_path: str | os.PathLike,
    log_every: int,
    start: int,
    num_steps: int,
    mesh: Mesh,
    max_skipped: int,
    writers: Sequence[Callable[[Path, int], Stream]] = (),
) -> Iterator[Meter]:
    """Open the log of a run that goes on from step `start`; only the first process' log is kept.

    Args:
        writers: open streams that get what is logged: `writer(folder, start)`.
    """
    with contextlib.ExitStack() as stack:
        progress, streams = None, []
        if jax.process_index() == 0:
            progress = stack.enter_context(ProgressBar("training", start, num_steps, "steps"))
            streams = [writer(Path(log_path).parent, start) for writer in writers]
        else:
            log_path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "metrics.jsonl"
        log = stack.enter_context(contextlib.closing(MetricsLog(log_path, start, streams)))
        yield Meter(log, progress, log_every, num_steps, mesh, max_skipped)
