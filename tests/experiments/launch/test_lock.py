"""Who may train in a folder: one program at a time, on whichever machine."""

import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from experiments.launch import lock
from experiments.launch.lock import FolderInUse, FolderLock, hold
from tests.experiments.launching import ROOT, SMALL, run

HOLDER = """
import sys, time
from pathlib import Path
from experiments.launch.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def sleeps(monkeypatch):
    """A clock that only waiting moves on; what is in the list is called each time."""
    now, calls = [0.0], []

    def sleep(seconds):
        now[0] += seconds
        for call in calls:
            call(now[0])

    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return calls


@pytest.fixture(autouse=True)
def unending(monkeypatch):
    """A fault of a test must not end its process."""
    monkeypatch.setattr(lock, "_end_program", lambda: None)


def test_a_second_start_says_who_trains_there_until_that_one_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        before = (tmp_path / "lock.json").read_bytes()
        result = run("train", *SMALL, f"--workdir={tmp_path}")
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert (
            f"is in use by process {process.pid} on {os.uname().nodename}, since 20"
            in result.stderr
        )
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
        assert (tmp_path / "lock.json").read_bytes() == before and process.poll() is None
        process.kill()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
    assert not any(tmp_path.iterdir())


def test_a_process_number_given_again_is_not_the_holder(tmp_path):
    with FolderLock(tmp_path):
        record = json.loads((tmp_path / "lock.json").read_text())
    (tmp_path / "lock.json").write_text(
        json.dumps(record | {"started": "1"})
    )  # an earlier process of our number
    with FolderLock(tmp_path):
        pass


def test_a_holder_on_another_machine_lives_as_long_as_it_gives_signs(tmp_path, monkeypatch, sleeps):
    """Two machines are two names of this one."""
    monkeypatch.setattr(lock, "_machine", lambda: "one")
    with FolderLock(tmp_path):
        monkeypatch.setattr(lock, "_machine", lambda: "other")
        sleeps.append(lambda now: os.utime(tmp_path / "lock.json", (now, now)))
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on "), FolderLock(tmp_path):
            pass
        left = (tmp_path / "lock.json").read_text()
        sleeps.clear()
    (tmp_path / "lock.json").write_text(left)  # as a machine leaves it that is switched off
    with FolderLock(tmp_path) as taken:
        assert json.loads((tmp_path / "lock.json").read_text())["token"] == taken.token


def test_a_holder_says_that_it_lives_and_ends_when_another_one_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.001)
    beat, ended = threading.Event(), threading.Event()

    def utime(path):
        beat.set()
        raise OSError("the file server is away")

    monkeypatch.setattr(lock.os, "utime", utime)
    monkeypatch.setattr(lock, "_end_program", ended.set)
    with FolderLock(tmp_path):
        assert beat.wait(60) and not ended.is_set()
        (tmp_path / "lock.json").unlink()  # as it seems while the file server is away
        for _ in range(2):
            beat.clear()
            assert beat.wait(60) and not ended.is_set()
        (tmp_path / "lock.json").write_text(json.dumps({"process": 1}))
        assert ended.wait(60)
    assert json.loads((tmp_path / "lock.json").read_text()) == {"process": 1}


def test_a_copy_of_a_folder_in_use_is_free(tmp_path):
    (tmp_path / "run").mkdir()
    with FolderLock(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with FolderLock(tmp_path / "copy"):
            pass
        (tmp_path / "link").symlink_to(tmp_path / "run")
        with pytest.raises(FolderInUse), FolderLock(tmp_path / "link"):
            pass


def test_a_claim_of_a_dead_process_ends_by_its_silence_alone(tmp_path, sleeps):
    """Its time is ahead, as of a file server whose clock is."""
    record = {"machine": lock._machine(), "process": 1, "started": "0"}
    (tmp_path / "lock.json").write_text(json.dumps(record))
    (tmp_path / "lock.claim").touch()
    os.utime(tmp_path / "lock.claim", (2**33, 2**33))
    waits = []
    sleeps.append(
        lambda now: waits.append(now) or now < 100 or pytest.fail("the claim is never given up")
    )
    with FolderLock(tmp_path):
        assert not (tmp_path / "lock.claim").exists() and waits[-1] > lock.SILENCE_SECONDS - 1


def test_a_holder_that_leaves_meanwhile_is_not_waited_for(tmp_path, monkeypatch, sleeps):
    create, attempts = FolderLock._create, []

    def create_at_last(held):
        attempts.append(1)
        return len(attempts) > 1 and create(held)

    monkeypatch.setattr(FolderLock, "_create", create_at_last)
    waits = []
    sleeps.append(waits.append)
    with FolderLock(tmp_path):  # the first attempt failed, and now there is no holder
        assert len(attempts) == 2 and len(waits) == 1


def test_where_no_machine_tells_its_number_a_process_that_is_gone_holds_nothing(
    tmp_path, monkeypatch, sleeps
):
    """As on macOS. A child that has been waited for is gone."""
    monkeypatch.setattr(lock, "_machine", lambda: None)
    with FolderLock(tmp_path):
        record = json.loads((tmp_path / "lock.json").read_text())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    (tmp_path / "lock.json").write_text(json.dumps(record | {"process": process.pid}))
    waits = []
    sleeps.append(waits.append)
    with FolderLock(tmp_path):
        assert waits == []
    elsewhere = record | {"process": process.pid, "host": "another"}
    (tmp_path / "lock.json").write_text(json.dumps(elsewhere))
    with FolderLock(tmp_path):
        assert waits[-1] > lock.SILENCE_SECONDS - 1


def test_a_process_that_has_ended_is_dead_before_its_parent_asks():
    """Nobody asks in a container whose first process is no init."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert lock._started(process.pid) is None
    assert lock._started(os.getpid())


def test_a_faster_program_keeps_the_lock(tmp_path, monkeypatch):
    """It takes over from a dead process between our look at the lock and our claim."""
    path = tmp_path / "lock.json"
    path.write_text('{"process": 1}')
    faster = lambda holder, path: path.write_text('{"process": 2}') and False
    monkeypatch.setattr(lock, "_is_alive", faster)
    assert not FolderLock(tmp_path)._take_over()
    assert [each.name for each in tmp_path.iterdir()] == ["lock.json"]
    assert json.loads(path.read_text()) == {"process": 2}


def test_of_many_at_once_one_holds(tmp_path):
    """The file is of a dead process, and eight take it over."""
    (tmp_path / "lock.json").write_text(
        json.dumps({"machine": lock._machine(), "process": 1, "started": "0"})
    )
    start, held, refused = threading.Barrier(8), [], []

    def take():
        start.wait()
        try:
            held.append(FolderLock(tmp_path).__enter__())
        except FolderInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 7
    held[0].__exit__()
    assert not any(tmp_path.iterdir())


def test_processes_that_do_not_share_the_folder_are_named(tmp_path, monkeypatch):
    """As process 0 sees it; process 1 answers as this one would in its place."""
    monkeypatch.setattr(lock, "SHARED_SECONDS", 0.2)
    answers = lambda sees: np.array([True, bool(sees)])
    monkeypatch.setattr(multihost_utils, "process_allgather", answers)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    with FolderLock(tmp_path / "one") as held:
        lock._meet(tmp_path / "one", held.token)
        with pytest.raises(OSError, match="not one folder for all: process 1 does not see there"):
            lock._meet(tmp_path / "two", held.token)
    with pytest.raises(FolderInUse, match="process 0 says why"):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        lock._meet(tmp_path / "one", -1)


def test_a_run_ends_its_hold(tmp_path):
    with hold(tmp_path):
        assert (tmp_path / "lock.json").exists()
    assert not any(tmp_path.iterdir())
