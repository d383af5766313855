"""One run per folder: a lock file that also works on file systems shared by several machines."""

import contextlib
import datetime
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

BEAT_SECONDS = 5.0  # from one sign of life of the holder to the next
SILENCE_SECONDS = 30.0  # after which a holder on another machine is taken for dead
SHARED_SECONDS = 30.0  # within which all processes must see what the first one writes


class FolderInUse(OSError):
    """Another program holds the folder."""


class FolderLock:
    """Holds `folder/lock.json` while entered as a context.

    On the holder's own machine the operating system tells whether the holder is alive. Elsewhere
    the file's time of change tells, which the holder sets every `BEAT_SECONDS`. Shared file systems
    differ in the locks that they know, and all of them know this time.

    Raises:
        FolderInUse: its holder is alive; the message says who it is.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / "lock.json"
        self._me = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "machine": _machine(),
            "folder": _identity(folder),
            "started": _started(os.getpid()),
            "token": secrets.randbelow(2**31),
        }
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    @property
    def token(self) -> int:
        """A number drawn for this lock."""
        return self._me["token"]

    def __enter__(self) -> "FolderLock":
        while not (self._create() or self._take_over()):
            time.sleep(0.01)
        self._beating.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        self._beating.join()
        if _holder(self._path) == self._me:
            self._path.unlink()

    def _create(self) -> bool:
        try:
            with open(self._path, "x") as file:
                file.write(json.dumps(self._me))
            return True
        except FileExistsError:
            return False

    def _take_over(self) -> bool:
        """Replace the lock of a dead holder, if no other program is doing so."""
        holder = _holder(self._path)
        if _is_alive(holder, self._path):
            if not holder or _last_sign(self._path) is None:
                return False  # it was still being written, or its holder left
            raise FolderInUse(
                f"{self._path.parent} is in use by process {holder.get('process')} on "
                f"{holder.get('host')}, since {holder.get('since')}; wait until it has ended, stop "
                "it, or choose another --workdir"
            )
        claim = self._path.with_suffix(".claim")
        try:
            open(claim, "x").close()
        except FileExistsError:
            if _is_silent(claim):  # its owner died within a moment
                claim.unlink(missing_ok=True)
            return False
        try:
            if _holder(self._path) != holder:
                return False  # another program was faster
            mine = self._path.with_suffix(f".{self.token}")
            mine.write_text(json.dumps(self._me))
            mine.replace(self._path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            if (holder := _holder(self._path)) not in ({}, self._me):
                # This process was stopped for so long that another one went on in its place.
                print(
                    f"error: {self._path.parent} is now held by {holder}; this process ends",
                    file=sys.stderr,
                )
                _end_program()
            with contextlib.suppress(OSError):  # the disk may be full, or away for a while
                os.utime(self._path)


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Lock the folder of a run. The first process locks it, and all processes must see the lock.

    Raises:
        FolderInUse: another run holds the folder.
        OSError: the lock cannot be written, or not all processes see it.
    """
    with contextlib.ExitStack() as stack:
        token, refusal = -1, None
        if jax.process_index() == 0:
            try:
                token = stack.enter_context(FolderLock(workdir)).token
            except OSError as error:
                refusal = error
        if jax.process_count() > 1:
            _meet(workdir, int(multihost_utils.broadcast_one_to_all(np.int32(token))))
        if refusal:
            raise refusal
        yield


def _meet(workdir: Path, token: int) -> None:
    """Check that this process and all others see the lock of the first one in their `workdir`."""
    sees = lambda: token < 0 or _holder(workdir / "lock.json").get("token") == token
    deadline = time.monotonic() + SHARED_SECONDS
    while not sees() and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(sees())))
    if len(blind):
        raise OSError(
            f"--workdir={workdir} is not one folder for all: process {', '.join(map(str, blind))} "
            "does not see there what process 0 writes; choose a folder on a file system that all "
            "processes share"
        )
    if token < 0 and jax.process_index() != 0:
        raise FolderInUse(f"{workdir} cannot be used; process 0 says why")


def _holder(path: Path) -> dict[str, Any]:
    """Return who holds a lock; {} if there is none, or it is still being written."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _end_program() -> None:
    os._exit(1)


def _is_alive(holder: dict[str, Any], path: Path) -> bool:
    """Return whether the holder of a lock still runs, by its process, or by its signs of life."""
    if holder.get("machine") and holder["machine"] == _machine():
        copied = "folder" in holder and holder["folder"] != _identity(path.parent)
        return not copied and _started(holder["process"]) == holder["started"]
    return not (_is_gone(holder) or _is_silent(path))


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return whether a holder on this host has ended, by its process number alone."""
    mine = os.name == "posix" and _machine() is None and holder.get("machine", "") is None
    if not mine or holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _is_silent(path: Path) -> bool:
    """Return whether a file stays as it is for `SILENCE_SECONDS`."""
    first, deadline = _last_sign(path), time.monotonic() + SILENCE_SECONDS
    while first is not None and time.monotonic() < deadline:
        time.sleep(0.1)
        if _last_sign(path) != first:
            return False
    return first is not None


def _identity(folder: Path) -> list[int]:
    """Return numbers that identify a folder on one machine, whatever path leads to it."""
    status = folder.stat()
    return [status.st_dev, status.st_ino]


def _last_sign(path: Path) -> tuple[int, int] | None:
    """Return a lock's size and time of change.

    Opening the file makes network file systems read its attributes again.
    """
    try:
        with open(path) as file:
            status = os.fstat(file.fileno())
            return status.st_size, status.st_mtime_ns
    except OSError:
        return None


def _machine() -> str | None:
    """Return a text shared by all processes that see each other's numbers; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(process: int) -> str | None:
    """Return when a process of this machine started, in ticks; None if it does not run."""
    try:
        # The name, in parentheses, may contain spaces. After it come the state and other fields.
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]
