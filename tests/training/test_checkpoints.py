import hashlib
import json
import shutil
import subprocess
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training import checkpoints as module
from genjax.training import optimizers
from genjax.training.checkpoints import (
    MANIFEST,
    Checkpoints,
    NoWholeCheckpoint,
    OtherState,
    check_space,
    damage,
)

STATE = {
    "step": jnp.int32(7),
    "weights": jnp.arange(1000.0),
    "half": jnp.ones((3, 2), jnp.bfloat16),
}
ABSTRACT = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), STATE
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(directory) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, {**STATE, "step": jnp.int32(step)})
    return directory


@pytest.fixture
def directory(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def largest_file(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_restores_every_bit_and_type(directory):
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest() == 20
        restored = checkpoints.restore(20, ABSTRACT)
    assert restored["step"] == 20
    for name in ("weights", "half"):
        assert restored[name].dtype == STATE[name].dtype
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(STATE[name]))


def test_a_state_of_other_parts_is_refused_by_name(tmp_path, monkeypatch):
    """Muon once had the kernels of `*_exchange`, which AdamW has now."""
    params = {f"{name}_exchange": {"kernel": jnp.ones((2, 2))} for name in ("sound", "video")}
    params |= {"mlp": {"kernel": jnp.ones((2, 2))}}
    rule = optimizers.muon(lambda step: 0.1, weight_decay=0.0, mask=optimizers.kernels_only)
    state = lambda optimizer: {"params": params, "optimizer": optimizer}
    new = jax.eval_shape(lambda: state(rule.init(params)))
    monkeypatch.setattr(optimizers, "NOT_HIDDEN", "embedding")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(1, state(rule.init(params)))
        checkpoints.wait()
        with pytest.raises(OtherState) as refusal:
            checkpoints.restore(1, new)
        unread = new | {"optimizer": jax.tree.map(lambda a: ..., new["optimizer"])}
        np.testing.assert_array_equal(
            checkpoints.restore(1, unread)["params"]["mlp"]["kernel"], np.ones((2, 2))
        )
        with pytest.raises(OtherState, match="it lacks average, and has optimizer/.* more beyond"):
            checkpoints.restore(1, {"params": params, "average": jnp.ones(2)})
    adam, muon = (f"optimizer/0/inner_states/{name}/inner_state/" for name in (False, True))
    for words in (
        f"it lacks {adam}mu/sound_exchange/kernel, {adam}mu/video_exchange/kernel, "
        f"{adam}nu/sound_exchange/kernel and 1 more, ",
        f"has {muon}0/mu/sound_exchange/kernel, {muon}0/mu/video_exchange/kernel beyond",
        f"in another --workdir with --init_from={tmp_path}/run",
    ):
        assert words in str(refusal.value)


def truncate(checkpoint):
    file = largest_file(checkpoint)
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(checkpoint):
    file = largest_file(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete_a_file(checkpoint):
    largest_file(checkpoint).unlink()


def lose_the_manifest(checkpoint):
    (checkpoint / MANIFEST).unlink()


def damage_the_manifest(checkpoint):
    (checkpoint / MANIFEST).write_text("{")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "altered"),
        (flip_a_bit, "altered"),
        (delete_a_file, "missing"),
        (lose_the_manifest, "no manifest"),
        (damage_the_manifest, "manifest is damaged"),
    ],
)
def test_a_damaged_newest_is_named_and_the_one_before_used(directory, harm, words):
    with Checkpoints(directory) as checkpoints:
        harm(checkpoints.path(20))
        with pytest.warns(UserWarning, match=f"00000020.*not used.*{words}"):
            assert checkpoints.latest() == 10
        assert checkpoints.restore(10, ABSTRACT)["step"] == 10
        checkpoints.save(20, STATE)  # training comes to the same step again
        checkpoints.wait()
        assert damage(checkpoints.path(20)) is None


def test_all_damaged_is_none(directory):
    with Checkpoints(directory) as checkpoints:
        for step in (10, 20):
            truncate(checkpoints.path(step))
        with pytest.warns(UserWarning):
            assert checkpoints.latest() is None


def test_what_a_killed_save_leaves_is_not_seen_and_then_cleared(directory):
    for name in ("00000030.unsealed", "00000030.unsealed.orbax-checkpoint-tmp"):
        (directory / name).mkdir()
    with Checkpoints(directory) as checkpoints:
        with warnings.catch_warnings(action="error"):
            assert checkpoints.latest() == 20
        checkpoints.save(30, STATE)
    assert sorted(p.name for p in directory.iterdir()) == ["00000010", "00000020", "00000030"]


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, STATE)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]
    assert json.loads((tmp_path / "00000004" / MANIFEST).read_text())


def test_a_saved_state_is_not_touched_by_donation(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        x = step(jnp.zeros(100_000))
        checkpoints.save(1, {"x": x})
        for _ in range(50):
            x = step(x)
        checkpoints.wait()
        abstract = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)}
        np.testing.assert_array_equal(checkpoints.restore(1, abstract)["x"], np.ones(100_000))


def test_space_is_checked_before_anything_is_written(tmp_path):
    class Huge:
        size, dtype = 2**50, np.dtype(np.float32)

    with pytest.raises(OSError, match="MB free.*need.*MB: make room"):
        check_space(tmp_path / "not" / "there", [Huge()], keep=3)
    check_space(tmp_path, STATE, keep=3)


@pytest.mark.parametrize(("existing", "needed"), [(0, 4), (2, 2), (4, 1), (9, 1)])
def test_there_is_room_for_one_more_than_are_kept(tmp_path, monkeypatch, existing, needed):
    """Three are kept while a fourth is written, which takes the place of those that are there."""
    for step in range(existing):
        (tmp_path / f"{step:08d}").mkdir()
    state, free = {"x": np.zeros(100, np.float32)}, 400 * needed
    monkeypatch.setattr(module, "_free_bytes", lambda directory: free)
    check_space(tmp_path, state, keep=3)
    free -= 1
    with pytest.raises(OSError, match="of which 3 are kept"):
        check_space(tmp_path, state, keep=3)


def test_steps_may_have_nine_digits(tmp_path):
    for name in ("123456789", "00000007", "012345678", "1234567"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path).steps() == [7, 123456789]


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_is_kept(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep is {keep}; at least 1"):
        Checkpoints(tmp_path, keep=keep)


@pytest.mark.parametrize(
    ("folder", "last"), [("absent", "none"), ("checkpoints", "that of step 20")]
)
def test_a_save_that_fails_says_why_and_what_is_left(directory, monkeypatch, folder, last):
    def fail(path, state):
        raise PermissionError("read-only")

    words = rf"(?s)could not be written, with .* MB free: read-only\n.* checkpoint is {last}"
    with Checkpoints(directory.parent / folder) as checkpoints:
        monkeypatch.setattr(checkpoints._writer, "save", fail)
        with pytest.raises(OSError, match=words):
            checkpoints.save(30, STATE)


def test_only_whole_checkpoints_count_for_retention(directory):
    """Neither a stray folder with a later number nor newer damaged ones push out a whole one."""
    (directory / "99999999").mkdir()
    truncate(directory / "00000020")
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(30, STATE)
        checkpoints.wait()
        assert damage(directory / "00000030") is None and damage(directory / "00000010") is None
        checkpoints.save(40, STATE)
        checkpoints.wait()
        assert [step for step in checkpoints.steps() if damage(checkpoints.path(step)) is None] == [
            30,
            40,
        ]
    assert (directory / "99999999").is_dir()


def test_with_one_kept_the_last_written_stays(tmp_path):
    (tmp_path / "00000099").mkdir()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, STATE)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 99] and damage(checkpoints.path(2)) is None


def test_what_is_not_the_loops_own_is_left_alone(directory):
    (directory / ".DS_Store").write_bytes(b"\0")
    (directory / "notes.txt").write_text("the good ones")
    (directory / "00000030").write_text("a file in the place of the next checkpoint")
    shutil.copytree(directory / "00000010", directory / "00000010_best")
    (directory / "mine.unsealed").mkdir()
    (directory / "00000001").mkdir()
    (directory / "00000007").symlink_to(directory / "00000010_best")
    with Checkpoints(directory, keep=1) as checkpoints:
        assert checkpoints.steps() == [1, 7, 10, 20]
        checkpoints.save(30, STATE)
    assert damage(directory / "00000030") is None and damage(directory / "00000010_best") is None
    assert sorted(p.name for p in directory.iterdir()) == [
        *(".DS_Store", "00000001", "00000010_best", "00000030", "00000030.aside"),
        *("mine.unsealed", "notes.txt"),
    ]


def test_what_lies_where_a_checkpoint_goes_is_moved_aside_unless_it_is_a_damaged_one(
    tmp_path, monkeypatch
):
    for name in ("00000005", "00000005.aside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(name)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, STATE)
        checkpoints.wait()
        truncate(tmp_path / "00000005")
        checkpoints.save(5, STATE)
        checkpoints.wait()
        names = ["00000005", "00000005.aside", "00000005.aside2"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert [(tmp_path / name / "notes.txt").read_text() for name in names[1:]] == names[1::-1]
        monkeypatch.setattr(
            "genjax.training.checkpoints.damage", lambda path: "it cannot be read (away)"
        )
        checkpoints.save(5, STATE)
        checkpoints.wait()
    assert (tmp_path / "00000005.aside3" / MANIFEST).exists()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(directory):
    with Checkpoints(directory) as checkpoints, pytest.warns(UserWarning, match="not used"):
        truncate(checkpoints.path(20))
        assert checkpoints.resume_step() == 10
        truncate(checkpoints.path(10))
        with pytest.raises(NoWholeCheckpoint, match=r"steps 10, 20.*from step 0, delete or rename"):
            checkpoints.resume_step()
        shutil.rmtree(directory)
        assert checkpoints.resume_step() is None


def test_every_so_many_and_the_best_are_kept(tmp_path):
    """Also after a stop, and when the best one is damaged."""
    scores = {2: 0.5, 3: 0.9, 5: 0.9, 6: float("-inf"), 7: 0.1}
    for steps in (range(1, 6), range(6, 9)):
        with Checkpoints(tmp_path, keep=2, keep_every=4, scores=lambda: scores) as checkpoints:
            for step in steps:
                checkpoints.save(step, STATE)
    assert checkpoints.steps() == [4, 5, 7, 8] and checkpoints.best() == 5
    truncate(tmp_path / "00000005")
    assert Checkpoints(tmp_path, scores=lambda: scores).best() == 7
    assert Checkpoints(tmp_path).best() is None


def test_scores_that_cannot_be_read_delete_nothing_and_stop_no_run(tmp_path):
    """They are read once a save, however many checkpoints there are."""
    calls = []

    def scores():
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the file server is away")
        return {1: 1.0}

    with Checkpoints(tmp_path, keep=1, scores=scores) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, STATE)
        checkpoints.wait()
        with pytest.warns(UserWarning, match="old checkpoints stay.*file server is away"):
            checkpoints.save(3, STATE)
            checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3] and len(calls) == 3
        checkpoints.save(4, STATE)
    assert checkpoints.steps() == [1, 4]


@pytest.fixture
def checkpoint(tmp_path):
    """Twelve files of several sizes in two folders, without a manifest."""
    (tmp_path / "d").mkdir()
    for i, size in enumerate([900, 700, 500, 500, 400, 300, 100, 100, 50, 50, 1, 0]):
        (tmp_path / ("d" if i % 3 else "") / f"{i}").write_bytes(bytes([i]) * 10 * size)
    return tmp_path


def hashed_files(monkeypatch):
    """Return a list to which the names of files are added that are hashed from now on."""
    names, digest = [], hashlib.file_digest
    record = lambda file, algorithm: names.append(file.name) or digest(file, algorithm)
    monkeypatch.setattr(hashlib, "file_digest", record)
    return names


def test_processes_hash_equal_shares_whose_digests_are_one_manifest(checkpoint, monkeypatch):
    """By hand 12,000 or 12,010 bytes for each of three; by sha256sum one process alone or three."""
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    lines = subprocess.run(
        ["sha256sum", *names], cwd=checkpoint, capture_output=True, text=True
    ).stdout
    expected = {name: digest for digest, name in map(str.split, lines.splitlines())}
    sizes = {str(checkpoint / name): (checkpoint / name).stat().st_size for name in names}
    hashed = hashed_files(monkeypatch)
    for process in (2, 0, 1):
        hashed.clear()
        module._write_share(checkpoint, process, 3)
        assert sum(map(sizes.pop, hashed)) in (12000, 12010)
    assert not sizes
    hashed.clear()
    module._write_manifest(checkpoint, 3)
    assert not hashed and json.loads((checkpoint / MANIFEST).read_text()) == expected
    module._write_manifest(checkpoint, 1)
    assert len(hashed) == 12 and json.loads((checkpoint / MANIFEST).read_text()) == expected
    assert {path.name for path in checkpoint.glob("manifest*")} == {MANIFEST}


def test_what_another_process_could_not_hash_the_first_one_hashes(checkpoint, monkeypatch):
    """The second wrote nothing, the disk was full for the third, and one file comes last."""
    module._write_share(checkpoint, 0, 3)
    done = json.loads((checkpoint / "manifest.0.json").read_text())
    (checkpoint / "manifest.2.json").write_text('{"d/1": "12')
    (checkpoint / "run.json").write_text("{}")
    hashed = hashed_files(monkeypatch)
    module._write_manifest(checkpoint, 3)
    assert done and len(hashed) == 13 - len(done) and damage(checkpoint) is None
    (checkpoint / "beyond").touch()
    assert damage(checkpoint) == "its file beyond is not of it"


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_checks_its_share_and_names_what_is_missing(checkpoint, monkeypatch, process):
    """The largest file is the first share's."""
    module._write_manifest(checkpoint, 1)
    hashed = hashed_files(monkeypatch)
    assert damage(checkpoint, process, 2) is None
    assert sum((checkpoint / name).stat().st_size for name in hashed) in (18000, 18010)
    flip_a_bit(checkpoint)
    assert damage(checkpoint, process, 2) == (None if process else "its file 0 is altered")
    delete_a_file(checkpoint)
    assert damage(checkpoint, process, 2) == "its file 0 is missing"


def test_a_disk_that_is_away_is_no_damage_of_files(checkpoint, monkeypatch):
    module._write_manifest(checkpoint, 1)

    def fail(file, algorithm):
        raise OSError("the file server is away")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    assert damage(checkpoint) == "it cannot be read (the file server is away)"
