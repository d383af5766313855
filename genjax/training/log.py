"""The log of a run: metrics as JSON lines, and to writers that a config turns on."""

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from genjax.training.writers import Stream


class Mean(NamedTuple):
    """A metric that is a mean of a varying number of things: their total and their number."""

    total: Float[Array, ""]
    count: Float[Array, ""]


@flax.struct.dataclass
class Metrics:
    """The metrics of a step in one array, since each array that leaves a step costs the host time.

    Attributes:
        table: totals and counts, `[names 2]` in float32 (or what a transformation puts in its
            place).
    """

    table: Any
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def pack(cls, metrics: Mapping[str, Float[Array, ""] | Mean]) -> "Metrics":
        """Pack metrics into one array; a scalar counts as one thing.

        Raises:
            ValueError: a metric is not a scalar.
        """
        pairs = [each if isinstance(each, Mean) else (each, 1.0) for each in metrics.values()]
        for name, pair in zip(metrics, pairs, strict=True):
            if any(map(np.shape, pair)):
                shape = next(filter(None, map(np.shape, pair)))
                raise ValueError(f"metric {name!r} has shape {shape}: give its mean, a scalar")
        return cls(jnp.array(pairs, jnp.float32), tuple(metrics))

    def __getitem__(self, name: str) -> Float[Array, ""] | np.float32:
        total, count = self.table[self.names.index(name)]
        return total / count


def window_means(window: Sequence[Metrics]) -> dict[str, float]:
    """Return each metric's mean over the steps of a window, without metrics of no count."""
    totals, counts = np.sum([step.table for step in window], axis=0, dtype=np.float64).T
    return {
        name: float(t / c) for name, t, c in zip(window[0].names, totals, counts, strict=True) if c
    }


class MetricsLog:
    """`metrics.jsonl` of one run: a line per record, with its `step` and the run's `seconds`.

    Opening it drops what is beyond `step`, the step a run resumes from, and a last line cut short.
    So a resumed run's file reads as an uninterrupted one's.

    Args:
        writers: get the same numbers, and pictures, which have no line in the file.
    """

    def __init__(self, path: str | os.PathLike, step: int = 0, writers: Sequence[Stream] = ()):
        self.path = Path(path)
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.rename(self.path)
        self._file = open(self.path, "a", buffering=1)
        self._writers = writers
        before = max((row.get("seconds", 0.0) for row in rows), default=0.0)
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its starts."""
        return time.perf_counter() - self._start

    def go_on(self, seconds: float) -> None:
        """Count the run's time from `seconds`, unless its records say more."""
        self._start -= max(seconds - self.seconds, 0.0)

    def write(self, step: int, metrics: dict[str, float | Image.Image]) -> None:
        numbers = {n: value for n, value in metrics.items() if not isinstance(value, Image.Image)}
        if numbers:
            row = {"step": step, "seconds": round(self.seconds, 3), **numbers}
            self._file.write(json.dumps(row) + "\n")
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        self._file.close()
        for writer in self._writers:
            writer.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, float | int]]:
    """Return the records of a metrics file.

    A last line without its end, which a kill leaves, is left out. So is any other line that is no
    record, with a warning that names the line.
    """
    if not Path(path).exists():
        return []
    *lines, unfinished = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if (row := _record(line)) is not None:
            rows.append(row)
        elif line.strip():
            warnings.warn(
                f"line {number} of {path} is damaged and left out: {line[:60]!r}", stacklevel=2
            )
    return [*rows, row] if (row := _record(unfinished)) else rows


def _record(line: bytes) -> dict[str, float | int] | None:
    """Return a line's record, or None if it is none."""
    try:
        row = json.loads(line)
        numbers = row["step"] + row.get("seconds", 0.0)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return row if isinstance(numbers, int | float) else None
