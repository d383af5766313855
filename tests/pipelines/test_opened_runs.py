"""Errors of runs that cannot be opened, or not sampled as asked."""

import json
import pydoc
import re
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.configuration.runs import open_run
from genjax.pipelines import Run, runs


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a run of an older version, whose record names no `built_by`."""
    config = {"sampling": {"weights": "ema", "seed": 0}}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    return tmp_path


def test_an_older_run_names_the_function_that_opens_it(folder):
    with pytest.raises(ValueError, match="older genjax") as raised:
        Run(folder)
    name, argument = re.search(r"open it by ([\w.]+)\((.*)\)", str(raised.value)).groups()
    assert pydoc.locate(name) is open_run and argument == repr(str(folder))


def test_weights_that_are_not_restored_are_refused(folder, monkeypatch):
    """Sampling would find None in their place."""
    task = SimpleNamespace(condition=SimpleNamespace(num_rows=1))
    run = Run(folder, build=lambda config: task)
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(runs, "sample", lambda *inputs, **_: np.array([inputs[-1].seed]))
    words = "weights='params' are not restored.*with the weights 'ema'.*weights='params'"
    with pytest.raises(ValueError, match=words) as raised:
        run.sample(weights="params")
    assert f"open_run({str(folder)!r}, weights='params')" in str(raised.value)
    assert run.sample(weights="ema", seed=1) == [1]


def test_a_prompt_alone_is_refused(folder):
    """A string would be a list of its letters."""
    run = Run(folder, build=lambda config: SimpleNamespace())
    with pytest.raises(ValueError, match="prompts is the string 'seven'; expected a list"):
        run.sample(prompts="seven")
