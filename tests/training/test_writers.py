"""Writers that a config turns on: what they get, and that nothing is imported otherwise."""

import importlib.machinery
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from PIL import Image

from genjax.training.log import MetricsLog, read_metrics
from genjax.training.writers import TensorBoard, WeightsAndBiases


class WandbRun:
    """A run with the public interface of Weights & Biases: `id`, `log(data, step)`, `finish()`."""

    def __init__(self, id):
        self.id, self.logged, self.finished = id or "abc123", [], False

    def log(self, data, step=None):
        assert not self.finished
        self.logged.append((step, data))

    def finish(self, exit_code=None):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of `wandb`, which remembers its runs and the arguments of `init`."""
    runs, calls = [], []

    def init(*, project=None, entity=None, mode=None, name=None, dir=None, config=None, id=None, resume=None):  # fmt: skip  # noqa: E501
        place = dict(project=project, entity=entity, mode=mode, name=name, dir=dir)
        calls.append(place | dict(config=config, id=id, resume=resume))
        runs.append(WandbRun(id))
        return runs[-1]

    module = SimpleNamespace(
        init=init,
        Image=lambda picture: ("image", picture),
        runs=runs,
        calls=calls,
        __spec__=importlib.machinery.ModuleSpec("wandb", None),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_numbers_and_pictures(wandb, tmp_path):
    place = dict(project="flows", entity="team", mode="offline")
    writer, picture = WeightsAndBiases(**place), Image.new("L", (2, 2))
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, [writer.open(tmp_path, 0, {"seed": 3})])
    log.write(10, {"loss": 0.5, "samples": picture})
    log.close()
    (run,) = wandb.runs
    assert run.logged == [(10, {"loss": 0.5, "samples": ("image", picture)})] and run.finished
    run_folder = dict(name=tmp_path.name, dir=str(tmp_path))
    assert wandb.calls == [place | run_folder | dict(config={"seed": 3}, id=None, resume=None)]
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.5]


def test_a_resumed_run_goes_on_at_weights_and_biases_and_a_new_one_starts_anew(wandb, tmp_path):
    for step in (0, 30, 0):
        WeightsAndBiases().open(tmp_path, step, {}).close()
    assert [(call["id"], call["resume"]) for call in wandb.calls] == [
        (None, None), ("abc123", "allow"), (None, None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("writer", "package"), [(WeightsAndBiases, "wandb"), (TensorBoard, "tensorboard")]
)
def test_a_writer_without_its_package_says_how_to_install_it(monkeypatch, writer, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"needs the package {package}: pip install {package}$"):
        writer()


def test_what_is_off_is_not_imported(tmp_path):
    """In a program of its own: neither the packages nor, in the folder, what they would write."""
    code = f"""
import sys
from genjax.training.log import MetricsLog
import experiments.train
log = MetricsLog({str(tmp_path / "metrics.jsonl")!r})
log.write(1, {{"loss": 1.0}})
log.close()
assert not any(name.split(".")[0] in ("wandb", "tensorboard", "tensorflow") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


class Own:
    """A writer of a user's own, by a dotted path."""

    def open(self, folder, step, config):
        self.folder, self.lines = folder, [config["seed"], step]
        return self

    def write(self, step, metrics):
        self.lines.append([step, sorted(metrics)])

    def close(self):
        (self.folder / "own.json").write_text(json.dumps(self.lines))


def test_a_writer_of_ones_own_is_named_by_its_path(tmp_path):
    from experiments.train import writers_by

    config = ConfigDict(dict(seed=5, writers=dict(mine=f"{__name__}.Own")))
    (opened,) = (writer(tmp_path, 7) for writer in writers_by(config))
    log = MetricsLog(tmp_path / "metrics.jsonl", 7, [opened])
    log.write(8, {"loss": 0.25})
    log.close()
    assert json.loads((tmp_path / "own.json").read_text()) == [5, 7, [8, ["loss"]]]
    config.writers.mine = "Tensorboard"
    with pytest.raises(ValueError, match="config.writers.mine.name is 'Tensorboard'; did you mean 'TensorBoard'"):  # fmt: skip  # noqa: E501
        writers_by(config)
    with pytest.raises(ValueError, match="there are TensorBoard, WeightsAndBiases; or give"):
        writers_by(config)
