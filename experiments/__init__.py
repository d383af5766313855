"""Tasks, and the programs that train, sample, evaluate and time them."""

import signal
import sys


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end a program at once and without a traceback, where nobody asked for anything else."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if sys.argv[0] == "-m":  # so Python calls a program until it is found: `python -m experiments.train` begins
    end_at_ctrl_c()
