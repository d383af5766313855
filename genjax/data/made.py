"""Arrays that other programs make once, and that a cache keeps."""

import hashlib
import shutil
from collections.abc import Callable

import numpy as np

from genjax.folders import cache_folder
from genjax.unfinished import unfinished


def find_program(program: str, dataset: str, packages: str, formula: str) -> str:
    """Return the path of a program that makes a data set.

    Args:
        packages: Debian's packages.
        formula: Homebrew's.

    Raises:
        FileNotFoundError: the program is not installed.
    """
    path = shutil.which(program)
    if path is None:
        raise FileNotFoundError(
            f"dataset {dataset!r} is made by {program}, which is not installed: apt-get install "
            f"{packages}, or brew install {formula}"
        )
    return path


def made_once(
    name: str, description: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return arrays of the cache, or make them and keep them there.

    The cache is `genjax` in `$XDG_CACHE_HOME`, else in `~/.cache`. A process that is killed leaves
    no half file.

    Args:
        name: begins the file's name.
        description: of all that the arrays depend on. Another description is another file.
    """
    digest = hashlib.sha256(description.encode()).hexdigest()
    path = cache_folder() / f"{name}-{digest[:16]}.npz"
    if not path.exists():
        made = make()
        # Given a path, NumPy would add a suffix.
        with unfinished(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **made)
    with np.load(path) as arrays:
        return dict(arrays)
