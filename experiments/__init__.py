"""Tasks, and the programs that train, sample, evaluate and time them."""

import signal
import sys


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end a program at once, without a traceback, unless it is handled already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


# sys.argv[0] is "-m" until Python has found the program: `python -m experiments.train` begins.
if sys.argv[0] == "-m":
    end_at_ctrl_c()
