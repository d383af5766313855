"""The record of a run: damaged, deleted, and kept in its checkpoints."""

import re
import subprocess

import jax
import jax.numpy as jnp
import pytest

from genjax.training import Checkpoints, new_workdir, record_config
from genjax.training.workdir import _commit_of, environment, read_record

CONFIG = {"seed": 3, "optimizer": {"learning_rate": 0.1}, "shape": [2, 2]}


@pytest.fixture
def workdir(tmp_path):
    record = record_config(tmp_path, CONFIG, ())
    with Checkpoints(tmp_path / "checkpoints", facts={"record": record}) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
    return tmp_path


def test_a_damaged_record_names_file_and_line(tmp_path):
    (tmp_path / "config.json").write_text('{"config":\n {"seed": 0,}}')
    for read in (lambda: read_record(tmp_path), lambda: record_config(tmp_path, CONFIG, ())):
        with pytest.raises(ValueError, match=r"config.json is damaged, line 2, column 13: "):
            read()
    (tmp_path / "config.json").write_bytes(b'{"config": "\xff"}')
    with pytest.raises(ValueError, match="config.json is damaged, byte 12 is not UTF-8"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"device": "cpu"}'])
def test_a_run_is_known_by_its_checkpoints_too(workdir, content):
    """So it does not go on under another seed when `config.json` is lost."""
    expected = (workdir / "config.json").read_text()
    (workdir / "config.json").unlink() if content is None else (workdir / "config.json").write_text(
        content
    )
    older = workdir / "checkpoints/00000000"
    older.mkdir()
    (older / "run.json").write_text('{"record": {"config": {"seed": 99}}}')
    with pytest.warns(
        UserWarning, match="config.json is absent or damaged; its copy in checkpoint 1"
    ):
        assert read_record(workdir).config.optimizer.learning_rate == 0.1
    with (
        pytest.warns(UserWarning, match="its copy in checkpoint 1"),
        pytest.raises(ValueError, match="seed: 3 there, 4 now\nChoose another --workdir, or set"),
    ):
        record_config(workdir, CONFIG | {"seed": 4}, ())
    with pytest.warns(UserWarning, match="its copy in checkpoint 1"):
        record_config(workdir, CONFIG, ())
    assert (workdir / "config.json").read_text() == expected


def test_checkpoints_of_nobody_knows_which_config_are_refused(workdir):
    (workdir / "config.json").unlink()
    (workdir / "checkpoints/00000001/run.json").unlink()
    with pytest.raises(ValueError, match="holds checkpoints and no config.json"):
        record_config(workdir, CONFIG, ())


def test_a_failed_start_leaves_no_empty_folder_and_nothing_else_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in ("new", "deep/new", "mine"):
        with pytest.raises(ValueError), new_workdir(tmp_path / folder) as workdir:
            assert workdir.is_dir()
            raise ValueError("a wrong config")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with new_workdir(tmp_path / "deep/run") as workdir:
        (workdir / "config.json").write_text("{}")
    assert (tmp_path / "deep/run/config.json").exists()


def test_an_unset_variable_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--workdir is empty: give a folder"), new_workdir(""):
        pass
    with new_workdir(".") as workdir:
        assert workdir.samefile(tmp_path)


def test_the_commit_is_that_of_the_file_itself(tmp_path, monkeypatch):
    """An installed genjax may lie within the checkout of something else, or there is no git."""
    file = tmp_path / "environment" / "module.py"
    file.parent.mkdir()
    file.touch()
    (tmp_path / "other.py").touch()

    def commit(name):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init"], ["add", name], [*author, "commit", "-m", "message"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)

    commit("other.py")
    assert _commit_of(file) is None
    commit("environment/module.py")
    assert re.fullmatch("[0-9a-f]{40}", _commit_of(file))
    monkeypatch.setenv("PATH", "")
    assert _commit_of(file) is None


def test_a_start_without_a_checkpoint_may_be_deleted(tmp_path):
    record_config(tmp_path, {"optimizer": {"b2": 0.9}}, ())
    message = "b2: 0.9 there, not set now\nIt has no checkpoint, so you lose nothing if you delete"
    with pytest.raises(ValueError, match=message):
        record_config(tmp_path, {"optimizer": {}}, ())


def test_some_fields_may_differ_and_others_have_advice(tmp_path):
    config = {"seed": 3, "sampling": {"num_steps": 10}, "sampler": "ddim"}
    record_config(tmp_path, config, ())
    new = config | {"sampling": {"num_steps": 20}}
    record = record_config(tmp_path, new, ("sampling",))
    assert read_record(tmp_path).config == record["config"] == new
    advice = {"seed": "Keep the seed.", "sampler": "Keep the sampler."}
    with pytest.raises(ValueError, match="sampler: 'ddim' there, 'heun' now") as refusal:
        record_config(tmp_path, new | {"sampler": "heun"}, ("sampling", "sample"), advice)
    assert str(refusal.value).endswith(" Keep the sampler.") and "seed" not in str(refusal.value)


def test_the_precision_of_products_is_on_record():
    assert environment()["matmul_precision"] is None
    with jax.default_matmul_precision("bfloat16"):
        assert environment()["matmul_precision"] == "bfloat16"


def test_a_file_of_a_run_is_not_its_folder(tmp_path):
    record = tmp_path / "config.json"
    record.write_text('{"config": {}}')
    with pytest.raises(FileNotFoundError, match=re.escape(f"such as {tmp_path}")):
        read_record(record)
