"""What a run says that cannot be opened or sampled as it is asked."""

import json
import pydoc
import re

import pytest

from experiments.configuration.runs import open_run
from genjax.pipelines import Run


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
