"""Names of files that are being written."""

import secrets
from pathlib import Path


def unfinished(path: Path) -> Path:
    """Return a name beside a file, to write to before one rename gives the file its own name.

    The name is drawn. Processes in containers often have the same number, and may share the folder.
    """
    return path.with_suffix(f".{secrets.token_hex(8)}")
