"""JSON files that people and programs write, read with errors that say where they are damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the message names the file and the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_hook=object_hook)
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8"
    raise ValueError(f"{path} is damaged, {problem}; put back what was there, or delete the file")
