"""What every program does first and last."""

import contextlib
import ctypes
import re
import sys
import warnings
from collections.abc import Callable, Iterator

import absl.logging
from absl import app


def _keep_heap() -> None:
    """Asks glibc to keep freed memory instead of giving it back.

    On the CPU back end each step's temporaries are allocated anew; above 32 MB glibc maps them afresh, and
    without these settings the page faults made a step of the default experiment half as long again. Does
    nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 2**26)  # M_TOP_PAD: as large as a heap of a thread, so that those are kept too


def run_program(main: Callable[[], None]) -> None:
    """Parses the flags, quietens the libraries and runs `main`."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError) as error:  # how ml_collections reports a field that is not there
            nearest = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error.args[0]))
            hint = f": {nearest[2]!r}. Did you mean {nearest[1]!r}?" if nearest else f": {error.args[0]}"
            sys.exit(f"error: a --config.FIELD is not one of the config's fields{hint}")
        if len(rest) > 1:
            sys.exit(f"error: {' '.join(rest[1:])} is not understood; flags begin with --, see --help")
        return rest

    def start(_: list[str]) -> None:
        absl.logging.set_verbosity(absl.logging.WARNING)
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        _keep_heap()
        main()

    app.run(start, flags_parser=parse)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one message where the user can mend the cause; no traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
