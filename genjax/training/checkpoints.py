"""Checkpoints: orbax's, written in the background, made atomic and tamper-evident by a checksum manifest.

`directory/<step>/` appears by one rename when orbax has written it whole and every file has been hashed into
its `manifest.json`. A checkpoint whose files differ from the manifest is never used. What is stored knows nothing
of devices: a state is restored in whatever sharding the reader asks for.

With several processes all write their parts into one folder, which all must see, and the first one hashes and renames.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

MANIFEST = "manifest.json"


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest."""
    digests = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST):
        with open(path, "rb") as file:
            digests[str(path.relative_to(checkpoint))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
    except FileNotFoundError:
        return "it has no manifest"
    except ValueError:
        return "its manifest is damaged"
    found = _digests(checkpoint)
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            state = "missing" if name not in found else "altered" if name in expected else "not of it"
            return f"its file {name} is {state}"
    return None


class Checkpoints:
    """The checkpoints of one run, newest `keep` of them.

    With several processes, each makes the same calls. Use as a context manager: on leaving, a save still under way is waited for.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3):
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._writer = ocp.StandardCheckpointer()
        self._sealer = ThreadPoolExecutor(1)
        self._sealed: Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if jax.process_count() > 1 and kind is jax.errors.JaxRuntimeError:
            return  # another process is gone, and a save would wait for it
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._writer.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, damaged or not, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def latest(self) -> int | None:
        """The newest step whose checkpoint is whole; each newer one is named in a warning."""
        found = self._newest_whole() if jax.process_index() == 0 else None
        if jax.process_count() > 1:  # the first decides for all
            found = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found)))
            found = None if found == -1 else found
        return found

    def _newest_whole(self) -> int | None:
        for step in reversed(self.steps()):
            problem = damage(self.path(step))
            if problem is None:
                return step
            warnings.warn(f"the checkpoint {self.path(step)} is not used: {problem}", stacklevel=3)
        return None

    def save(self, step: int, state: Any) -> None:
        """Copies the state off the devices, then writes it in the background.

        Raises:
            OSError: the previous save could not be written (a full disk, say).
        """
        self.wait()
        if jax.process_index() == 0:
            for leftover in self.directory.glob("*[!0-9]"):  # of a save that was killed
                shutil.rmtree(leftover)
        unsealed = self.path(step).with_suffix(".unsealed")
        with self._explaining(unsealed):
            self._writer.save(unsealed, state)
        self._sealed = self._sealer.submit(self._seal, unsealed, step)

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, in the shapes, types and shardings of `abstract`; what is `...` there is not read and stays so."""
        how = ocp.checkpoint_utils.construct_restore_args(abstract)
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(self.path(step), args=ocp.args.PyTreeRestore(abstract, restore_args=how))

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
            OSError: it could not be written; the message names the last good checkpoint.
        """
        if self._sealed is not None:
            sealed, self._sealed = self._sealed, None
            sealed.result()

    def _seal(self, unsealed: Path, step: int) -> None:
        """Waits for orbax, adds the manifest, renames, and deletes what is beyond `keep`."""
        with self._explaining(unsealed):
            self._writer.wait_until_finished()
            if jax.process_index() != 0:
                return
            (unsealed / MANIFEST).write_text(json.dumps(_digests(unsealed), indent=1))
            if self.path(step).exists():  # damaged, or this run would have gone on from it
                shutil.rmtree(self.path(step))
            unsealed.rename(self.path(step))
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old))

    @contextlib.contextmanager
    def _explaining(self, path: Path) -> Iterator[None]:
        """Turns whatever stops a save (orbax wraps a full disk in several types) into an OSError that helps."""
        try:
            yield
        except Exception as error:
            free = shutil.disk_usage(self.directory).free
            good = [step for step in self.steps() if damage(self.path(step)) is None]
            raise OSError(
                f"the checkpoint {path} could not be written, with {free / 1e6:.1f} MB free: {str(error)[:300]}\n"
                f"The last good checkpoint is {f'that of step {good[-1]}' if good else 'none'}."
            ) from error


def check_space(directory: str | os.PathLike, state: Any, keep: int) -> None:
    """Raises OSError if `keep` + 1 checkpoints of `state` (arrays or shapes) do not fit on the disk."""
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
    existing = sum(1 for path in Path(directory).glob("[0-9]*")) if Path(directory).is_dir() else 0
    parent = next(p for p in [Path(directory).absolute(), *Path(directory).absolute().parents] if p.exists())
    needed, free = size * max(keep + 1 - existing, 1), shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"{parent} has {free / 1e6:.1f} MB free; checkpoints of {size / 1e6:.1f} MB each, of which "
            f"{keep} are kept while one more is written, need {needed / 1e6:.1f} MB: make room, lower "
            "config.checkpoint.keep or choose another --workdir"
        )
