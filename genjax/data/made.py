"""Arrays that a program makes once, and that a cache keeps."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def made_once(name: str, description: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array of the cache, or make it and keep it there.

    The cache is `genjax` in `$XDG_CACHE_HOME`, else in `~/.cache`. A process that is killed leaves
    no half array.

    Args:
        name: begins the file's name.
        description: of all that the array depends on. Another description is another array.
    """
    digest = hashlib.sha256(description.encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genjax"
    path = folder / f"{name}-{digest[:16]}.npy"
    if not path.exists():
        array = make()
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        with open(unfinished, "wb") as file:  # given a path, NumPy would add a suffix
            np.save(file, array)
        unfinished.replace(path)
    return np.load(path)
