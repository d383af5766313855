"""Checkpoints: orbax's, written in the background, atomic, and with a checksum manifest.

`directory/<step>/` appears by one rename when orbax has written it whole and every file has been
hashed into its `manifest.json`. A checkpoint whose files differ from the manifest is never used.
The files do not depend on devices: a state is restored in whatever sharding the reader asks for.

With several processes all write their parts into one folder, which all must see, and each hashes a
share of the files. The first one puts the digests together and renames.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from genjax.devices.mesh import variable_path

MANIFEST = "manifest.json"
SHARE = re.compile(r"manifest\.[0-9]+\.json")  # the digests of one of several processes
BARRIER_SECONDS = 3600  # of waiting for the digests of others; the death of one ends the waiting
FACTS = "run.json"  # what a checkpoint says of its run beside the state
# What a killed save leaves: orbax's folder before it is complete, or before it is sealed.
UNREADABLE = "it cannot be read"
LEFTOVER = re.compile(r"[0-9]{8,}\.unsealed(\.orbax-checkpoint-tmp.*)?")


class NoWholeCheckpoint(ValueError):
    """All checkpoints of a run are damaged."""


class OtherState(ValueError):
    """A checkpoint has a state of other parts than the state that is restored."""


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Return the bytes of every file but the manifest."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}


def _shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Divide files into `count` shares: the largest first, each into the one with fewest bytes."""
    shares, loads = [[] for _ in range(count)], [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += sizes[name]
    return shares


def _digests(checkpoint: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files, computed in threads: hashing releases Python's lock."""

    def digest(name: str) -> str:
        with open(checkpoint / name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _write_share(checkpoint: Path, process: int, count: int) -> None:
    """Write the digests of the files that one of `count` processes hashes."""
    sizes = {name: size for name, size in _sizes(checkpoint).items() if not SHARE.fullmatch(name)}
    share = _digests(checkpoint, _shares(sizes, count)[process])
    (checkpoint / f"manifest.{process}.json").write_text(json.dumps(share))


def _write_manifest(checkpoint: Path, count: int) -> None:
    """Put the shares of `count` processes together. Hash here what none of them has hashed."""
    found: dict[str, str] = {}
    for path in [checkpoint / f"manifest.{process}.json" for process in range(count)]:
        with contextlib.suppress(OSError, ValueError):  # its process could not write it
            found |= json.loads(path.read_text())
        path.unlink(missing_ok=True)
    names = sorted(_sizes(checkpoint))
    found |= _digests(checkpoint, [name for name in names if name not in found])
    (checkpoint / MANIFEST).write_text(json.dumps({name: found[name] for name in names}, indent=1))


def damage(checkpoint: Path, process: int = 0, count: int = 1) -> str | None:
    """Return what is wrong with a checkpoint, in words; None if it is whole.

    Args:
        process, count: hash only the share of one of `count` processes.
    """
    try:
        expected = dict(json.loads((checkpoint / MANIFEST).read_text()))
        sizes = _sizes(checkpoint)
        found = _digests(checkpoint, _shares(sizes, count)[process])
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, TypeError):
        return "its manifest is damaged"
    except OSError as error:
        return f"{UNREADABLE} ({error})"
    for name in sorted(expected.keys() | sizes.keys()):
        if name not in sizes or name not in expected:
            return f"its file {name} is {'missing' if name not in sizes else 'not of it'}"
        if found.get(name, expected[name]) != expected[name]:
            return f"its file {name} is altered"
    return None


def _of_first_process(number: int) -> int:
    """Return what the first process passes, in all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _damage_seen_by_all(checkpoint: Path) -> str | None:
    """Return `damage`, with a share of the files hashed by each process; all return the same."""
    count = jax.process_count()
    problem = damage(checkpoint, jax.process_index(), count)
    if count == 1:
        return problem
    text = np.frombuffer((problem or "").encode()[:300].ljust(300, b"\0"), np.uint8)
    rows = map(bytes, multihost_utils.process_allgather(text))
    return next((row.rstrip(b"\0").decode(errors="replace") for row in rows if any(row)), None)


def saved_steps(directory: Path) -> list[int]:
    """Return the steps of all folders named as checkpoints, damaged or not, oldest first."""
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{8}|[1-9][0-9]{8,}", name))


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint keeps beside the state; nothing if it is damaged or an old one."""
    try:
        return dict(json.loads((checkpoint / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _names(tree: Any) -> dict[str, None]:
    """Return the paths of a tree's leaves, in their order."""
    return dict.fromkeys(variable_path(path) for path, _ in jax.tree.leaves_with_path(tree))


def _first_of(names: list[str]) -> str:
    """Return the first three names, and the number of the others."""
    others = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing") + others


def _free_bytes(directory: str | os.PathLike) -> int:
    """Return the free bytes of the disk that a folder, absent or not, belongs to."""
    path = Path(directory).absolute()
    return shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free


def _remove(path: Path) -> None:
    """Delete a folder, or a link to one. A failure is ignored: it must not stop a save."""
    with contextlib.suppress(OSError):
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run: the newest whole ones, those of every so many steps, the best.

    Only whole checkpoints count. Other files and folders in the directory are left alone. With
    several processes, each makes the same calls. Use as a context manager: on leaving, a save still
    under way is waited for.

    Args:
        keep: how many of the newest.
        keep_every: in steps; checkpoints of its multiples are kept for good. 0 keeps none for this.
        scores: returns the known scores by step, larger is better: the best checkpoint is kept too.
        facts: JSON that every checkpoint keeps beside the state.

    Raises:
        ValueError: `keep` is below 1.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        keep: int = 3,
        *,
        keep_every: int = 0,
        scores: Callable[[], Mapping[int, float]] = dict,
        facts: Mapping[str, Any] = types.MappingProxyType({}),
    ):
        if keep < 1:
            raise ValueError(
                f"config.checkpoint.keep is {keep}; at least 1 checkpoint must be kept"
            )
        self.directory = Path(directory).absolute()
        self.keep, self._keep_every, self._scores, self._facts = keep, keep_every, scores, facts
        self._whole: set[int] = set()  # steps whose checkpoints this process has written or checked
        self._writer = ocp.StandardCheckpointer()
        self._sealer = ThreadPoolExecutor(1)
        self._sealed: Future | None = None
        # No collective: a thread must not call one beside the training steps.
        self._wait_for_all, self._seals = ocp.multihost.get_barrier_sync_fn(), itertools.count()

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
        """Return the steps that have a checkpoint, damaged or not, oldest first."""
        return saved_steps(self.directory)

    def path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def latest(self) -> int | None:
        """Return the newest step whose checkpoint is whole; warn of each newer one."""
        steps = self.steps()
        while (step := _of_first_process(steps.pop() if steps else -1)) >= 0:
            problem = _damage_seen_by_all(self.path(step))
            if problem is None:
                self._whole.add(step)
                return step
            warnings.warn(f"the checkpoint {self.path(step)} is not used: {problem}", stacklevel=2)
        return None

    def resume_step(self) -> int | None:
        """Return the step to go on from: `latest()`, or None where a run begins.

        Raises:
            NoWholeCheckpoint: there are checkpoints, and all are damaged.
        """
        step = self.latest()
        if step is None and (damaged := self.steps()):
            raise NoWholeCheckpoint(
                f"all checkpoints in {self.directory} are damaged (steps "
                f"{', '.join(map(str, damaged))}). To start again from step 0, delete or rename "
                "this folder."
            )
        return step

    def facts(self, step: int) -> dict[str, Any]:
        """Return what the checkpoint of a step keeps beside the state; nothing if there is none."""
        return read_facts(self.path(step))

    def save(self, step: int, state: Any, **facts: Any) -> None:
        """Copy the state off the devices, then write it in the background.

        Args:
            facts: JSON to keep beside it.

        Raises:
            OSError: the previous save could not be written (a full disk, say).
        """
        self.wait()
        unsealed = self.path(step).with_suffix(".unsealed")
        with self._explaining(unsealed):
            if jax.process_index() == 0 and self.directory.is_dir():
                for path in [p for p in self.directory.iterdir() if LEFTOVER.fullmatch(p.name)]:
                    _remove(path)
            self._writer.save(unsealed, state)
        self._sealed = self._sealer.submit(self._seal, unsealed, step, {**self._facts, **facts})

    def restore(self, step: int, abstract: Any) -> Any:
        """Return the state of a step in the shapes, types and shardings of `abstract`.

        What is `...` there is not read and stays so.

        Raises:
            OtherState: the checkpoint lacks parts of that state.
        """
        how = ocp.checkpoint_utils.construct_restore_args(abstract)
        with ocp.PyTreeCheckpointer() as reader:
            saved = _names(reader.metadata(self.path(step)).item_metadata.tree)
            try:
                state = reader.restore(
                    self.path(step), args=ocp.args.PyTreeRestore(abstract, restore_args=how)
                )
            except ValueError as error:
                if _names(abstract).keys() <= saved.keys():
                    raise  # shapes differ, say
                raise OtherState(self._differing(step, abstract, saved)) from error
        # Orbax puts None where a group of an optimizer has had no such parameter.
        if _names(state).keys() != _names(abstract).keys():
            raise OtherState(self._differing(step, abstract, saved))
        return state

    def _differing(self, step: int, abstract: Any, saved: dict[str, None]) -> str:
        """Return in words which parts a state and its checkpoint do not share, and what to do."""
        wanted = _names(abstract)
        absent = [name for name in wanted if name not in saved]
        beyond = [name for name in saved if name not in wanted]
        return (
            f"the checkpoint {self.path(step)} is of another optimizer or network, or of another "
            f"version of genjax: it lacks {_first_of(absent)}, and has {_first_of(beyond)} beyond "
            "this state. To go on from its parameters, train in another --workdir with "
            f"--init_from={self.directory.parent}"
        )

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
            OSError: it could not be written; the message names the last good checkpoint.
        """
        if self._sealed is not None:
            sealed, self._sealed = self._sealed, None
            sealed.result()

    def _seal(self, unsealed: Path, step: int, facts: dict[str, Any]) -> None:
        """Wait for orbax, add facts and manifest, rename, and delete what is beyond `keep`."""
        with self._explaining(unsealed):
            self._writer.wait_until_finished()
            if (count := jax.process_count()) > 1:
                with contextlib.suppress(OSError):  # the first process hashes what is missing
                    _write_share(unsealed, jax.process_index(), count)
                key = f"digests {next(self._seals)} of {unsealed.name}"
                self._wait_for_all(key=key, timeout_ms=1000 * BARRIER_SECONDS)
            if jax.process_index() != 0:
                return
            (unsealed / FACTS).write_text(json.dumps(facts))
            _write_manifest(unsealed, count)
            self._make_room(self.path(step))
            unsealed.rename(self.path(step))
        self._whole.add(step)
        try:
            dispensable = self._dispensable()
        except Exception as error:  # this checkpoint is whole, so the run can go on
            warnings.warn(
                f"old checkpoints stay, since it is not known which is best: {error}", stacklevel=2
            )
            return
        for old in dispensable:
            # The new name makes a checkpoint that is half deleted a leftover.
            with contextlib.suppress(OSError):
                _remove(self.path(old).rename(self.path(old).with_suffix(".unsealed")))

    def _make_room(self, path: Path) -> None:
        """Delete a damaged checkpoint; move aside what is not one, or cannot be read now."""
        readable = not (damage(path) or "").startswith(UNREADABLE)
        # It is damaged, or this run would have gone on from it.
        if readable and os.path.exists(path / MANIFEST):
            _remove(path)
        if os.path.lexists(path):
            numbers = itertools.chain([""], itertools.count(2))
            names = (path.with_suffix(f".aside{number}") for number in numbers)
            path.rename(next(name for name in names if not os.path.lexists(name)))

    def best(self) -> int | None:
        """Return the step of the best whole checkpoint, None if no score is known."""
        scores = self._scores()
        rank = lambda step: (scores[step], step)
        steps = sorted(scores.keys() & self.steps(), key=rank, reverse=True)
        return next(filter(self._is_whole, steps), None)

    def _dispensable(self) -> list[int]:
        """Return the steps, of this loop's own checkpoints, that nothing keeps."""
        steps, count, best = self.steps(), 0, self.best()
        while steps and count < self.keep:
            count += self._is_whole(steps.pop())
        kept = lambda step: step == best or bool(self._keep_every) and step % self._keep_every == 0
        return [step for step in steps if not kept(step) and (self.path(step) / MANIFEST).exists()]

    def _is_whole(self, step: int) -> bool:
        if step not in self._whole and damage(self.path(step)) is None:
            self._whole.add(step)
        return step in self._whole

    @contextlib.contextmanager
    def _explaining(self, path: Path) -> Iterator[None]:
        """Turn whatever stops a save into an OSError that helps.

        Orbax wraps a full disk in several types of errors.
        """
        try:
            yield
        except Exception as error:
            free = _free_bytes(self.directory)
            good = [step for step in self.steps() if damage(self.path(step)) is None]
            raise OSError(
                f"the checkpoint {path} could not be written, with {free / 1e6:.1f} MB free: "
                f"{str(error)[:300]}\n"
                f"The last good checkpoint is {f'that of step {good[-1]}' if good else 'none'}."
            ) from error


def check_space(directory: str | os.PathLike, state: Any, keep: int) -> None:
    """Raise OSError if the disk has no room for `keep` + 1 checkpoints of `state`."""
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
    existing = len(saved_steps(Path(directory)))
    needed, free = size * max(keep + 1 - existing, 1), _free_bytes(directory)
    if free < needed:
        raise OSError(
            f"{directory} has {free / 1e6:.1f} MB free; checkpoints of {size / 1e6:.1f} MB each, "
            f"of which {keep} are kept while one more is written, need {needed / 1e6:.1f} MB: make "
            "room, lower config.checkpoint.keep or choose another --workdir"
        )
