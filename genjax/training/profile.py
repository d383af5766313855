"""A trace of a few training steps, for TensorBoard's profiler."""

import contextlib
from pathlib import Path
from typing import Any

import jax

PROFILE_STEPS = 5


class Profile:
    """Traces `PROFILE_STEPS` steps after the step `at` into a folder; nothing if `at` is None."""

    def __init__(self, folder: Path, at: int | None, num_steps: int):
        self._folder, self._at = folder, at
        self._end = None if at is None else min(at + PROFILE_STEPS, num_steps)
        self._tracing = contextlib.ExitStack()

    def after(self, step: int, state: Any) -> None:
        """Start or end the trace if it is due after this step, which ended in `state`."""
        if step == self._at:
            jax.block_until_ready(state)
            self._tracing.enter_context(jax.profiler.trace(self._folder))
        elif step == self._end:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        self._tracing.close()
