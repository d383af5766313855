"""Who may train in a folder: one program at a time, on whichever machine."""

import json
import os
import subprocess
import sys
import threading

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
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 0.5)


def test_a_second_start_says_who_trains_there_until_that_one_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        before = (tmp_path / "lock.json").read_bytes()
        result = run("train", *SMALL, f"--workdir={tmp_path}")
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert f"is in use by process {process.pid} on {os.uname().nodename}, since 20" in result.stderr
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


def test_a_holder_on_another_machine_lives_as_long_as_it_gives_signs(tmp_path, monkeypatch, quick):
    """Two machines are two names of this one."""
    monkeypatch.setattr(lock, "_machine", lambda: threading.current_thread().name)
    with FolderLock(tmp_path):
        monkeypatch.setattr(lock, "_machine", lambda: "other")
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on "), FolderLock(tmp_path):
            pass
        left = (tmp_path / "lock.json").read_text()
    (tmp_path / "lock.json").write_text(left)  # as a machine leaves it that is switched off
    with FolderLock(tmp_path) as taken:
        assert json.loads((tmp_path / "lock.json").read_text())["token"] == taken.token


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
