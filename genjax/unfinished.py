"""Files that other processes see whole or not at all."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a name beside a file, to write to; at the end one rename gives the file its own name.

    The name is drawn. Processes in containers often have the same number, and may share the folder.
    The folder is made if it is absent. What an exception leaves unfinished is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{secrets.token_hex(8)}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
