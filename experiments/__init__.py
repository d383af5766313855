"""Tasks, and the programs that train, sample, evaluate and time them."""

import os
import signal
import socket
import sys
import threading
from typing import Any


def end_at_signals() -> None:
    """Let Ctrl-C and SIGTERM end a program at once with one line, unless they are handled already.

    Python calls handlers in the main thread, between two of its operations. One operation may be a
    compiled program of minutes. So a thread reads the number of the signal, which Python writes
    when the signal comes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _end)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    threading.Thread(target=_watch, args=[reader], daemon=True).start()


def _watch(reader: socket.socket) -> None:
    """End the program at a signal that nothing else handles, as training does."""
    while True:
        number = reader.recv(1)[0]
        if signal.getsignal(number) is _end:
            _end(number)


def _end(number: int, frame: Any = None) -> None:
    """Say that the program is stopped, and end it."""
    text = (
        f"\n{signal.Signals(number).name}: stopped. Finished files are kept; the same command goes "
        "on from them or starts again.\n"
    )
    try:
        os.write(2, text.encode())  # Ctrl-C may have ended the reader of a pipe
    finally:
        os._exit(128 + number)


# sys.argv[0] is "-m" until Python has found the program: `python -m experiments.train` begins.
if sys.argv[0] == "-m":
    end_at_signals()
