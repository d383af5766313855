"""Folders: the cache, and those that a record names, wherever the record is read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

Fields = TypeVar("Fields", bound=Mapping)

# The fields, at any depth, that name a folder.
NAMES = ("run", "published", "directory", "teacher", "generator_run", "source", "encoder")


def cache_folder() -> Path:
    """Return the folder of what takes long to make: `genjax` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genjax"


def located(fields: Fields, folder: str | os.PathLike) -> Fields:
    """Return the fields recorded in a folder, with the relative folders that they name found.

    A command records "runs/teacher" as seen from where it was started. That is a parent of the
    folder, as long as both stay in one tree. So the folder's nearest parent that has
    runs/teacher comes first, and the current folder last. "." and "../data" stay as they are, for
    every parent has them.
    """
    parents = Path(folder).absolute().parents

    def find(name: str) -> str:
        if Path(name).parts[:1] in ((), ("..",)):
            return name
        for path in (parent / name for parent in parents):
            if path.is_dir():
                return name if os.path.isdir(name) and path.samefile(name) else str(path)
        return name

    def found(name, value):
        if isinstance(value, Mapping):
            return located(value, folder)
        return find(value) if name in NAMES and value and isinstance(value, str) else value

    return type(fields)({name: found(name, value) for name, value in fields.items()})
