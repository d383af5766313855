"""Signals that ask a run to stop, and how to print when they come."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

# SLURM gives notice by either of the last two.
NAMES = {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"}
SIGNALS = tuple(
    each for each in signal.Signals if each.name in NAMES
)  # Windows has not all of them


class Interrupted(BaseException):
    """A signal stopped training after a save; `signal_number` says which.

    It is no Exception, as KeyboardInterrupt is none, so that `except Exception` lets it through.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal_number = number


class StopSignals:
    """Remembers the first signal that asks the run to stop, while it is entered as a context.

    The handler only notes the signal. It does not print: Ctrl-C also ends the `tee` of `| tee log`,
    and then printing fails. A second Ctrl-C acts as if nobody listened. Other signals may be
    repeated, since schedulers send several. SIGHUP stays ignored under `nohup`.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._raising = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        for each in SIGNALS:
            if not (each.name == "SIGHUP" and signal.getsignal(each) is signal.SIG_IGN):
                self._previous[each] = signal.getsignal(each) or signal.SIG_DFL
                # Only now, since the handler reads the former one.
                signal.signal(each, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for each, previous in self._previous.items():
            signal.signal(each, previous)

    @contextlib.contextmanager
    def raising(self, allowed: bool) -> Iterator[None]:
        """Let a signal end what is inside at once by raising Interrupted, if that is allowed."""
        self._raising = allowed
        try:
            if allowed and self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self._raising = False

    def _handle(self, number: int, frame: Any) -> None:
        self.received = self.received or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, self._previous[signal.SIGINT])
        if self._raising:
            self._raising = False
            raise Interrupted(self.received)


@contextlib.contextmanager
def outliving_readers(stream: io.TextIOBase) -> Iterator[None]:
    """Print inside. Drop this and all later output if the pipe or terminal behind it is gone."""
    try:
        yield
    except OSError:  # Python flushes again at exit, which must not fail
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def say(text: str, stream: io.TextIOBase | None = None) -> None:
    """Print a line at once, by default to stdout; drop it if nobody can read it any more."""
    stream = stream or sys.stdout
    with outliving_readers(stream):
        print(text, file=stream, flush=True)
