"""What every program does first and last."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator


def keep_heap() -> None:
    """Asks glibc to keep freed memory instead of giving it back.

    On the CPU back end each step's temporaries are allocated anew; above 32 MB glibc maps them afresh and
    the page faults cost the default experiment 40 % of its speed. Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one message where the user can mend the cause; no traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
