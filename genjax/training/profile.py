"""A trace of a few training steps, for TensorBoard's profiler."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax

PROFILE_STEPS = 5


class Profile:
    """Traces `PROFILE_STEPS` steps after the step `at` into the folder `profile` beside the log.

    If `at` is None it traces nothing.
    """

    def __init__(self, log_path: str | os.PathLike, at: int | None, num_steps: int):
        self._folder, self._at = Path(log_path).parent / "profile", at
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
