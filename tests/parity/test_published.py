"""Every record compared with its library: defaults, and folders that either library wrote."""

import importlib
import inspect
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

from genjax import pretrained
from genjax.pretrained.configuration import default_of
from genjax.pretrained.published import TRANSFORMERS, record_of, records
from genjax.pretrained.safetensors_io import open_tensors
from tests.pretrained.test_published import CASES, CONFIGS, network, shapes_once  # noqa: F401

OF_LIBRARIES = [record for record in records() if record.library.name]
CASES_OF_LIBRARIES = [case for case in CASES if case[0].library.name]


def class_in_library(record):
    return getattr(importlib.import_module(record.library.name), record.name)


def as_json(value):
    return json.loads(json.dumps(value))


def assert_says(config, entries):
    """Assert that a configuration has these entries, recursively for its parts."""
    for name, value in entries.items():
        if isinstance(value, dict):
            assert_says(config[name], value)
        else:
            assert as_json(config[name]) == as_json(value), name


@pytest.mark.usefixtures("shapes_once")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("record", "number"), CASES_OF_LIBRARIES, ids=lambda x: getattr(x, "name", x)
)
def test_the_library_opens_what_is_written_and_writes_it_again(record, number, tmp_path):
    module, variables = network(record, number)
    pretrained.save(tmp_path / "ours", module, variables)
    kind = class_in_library(record_of(module))
    theirs, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.save_pretrained(tmp_path / "theirs")
    entries = record.examples[number]
    if record is not record_of(module):  # a text model of texts and pictures is written alone
        entries = entries.get("text_config", entries)
    assert_says(json.loads((tmp_path / "theirs/config.json").read_text()), entries)
    again, loaded = pretrained.load(tmp_path / "theirs")
    assert again == module
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), loaded, variables)


def completed(record, config):
    """Return a configuration as its library completes it."""
    kind = class_in_library(record)
    if record.library is TRANSFORMERS:
        return kind.config_class(**config).to_dict()
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {name: each.default for name, each in parameters.items() if name != "self"}
    return as_json(defaults | kind.extract_init_dict(config)[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_what_old_configurations_leave_out_is_what_the_library_takes(name):
    (record,) = (record for record in records() if record.describes(CONFIGS[name]))
    ours, theirs = (
        record.make(record.complete(c)) for c in (CONFIGS[name], completed(record, CONFIGS[name]))
    )
    assert ours == theirs


@pytest.mark.parametrize("record", OF_LIBRARIES, ids=lambda record: record.name)
def test_entries_and_their_defaults_are_the_librarys(record):
    kind, required = class_in_library(record), set()
    if record.library is not TRANSFORMERS:
        parameters = dict(inspect.signature(kind.__init__).parameters)
        del parameters["self"]
        required = {n for n, each in parameters.items() if each.default is inspect.Parameter.empty}
        defaults = {name: each.default for name, each in parameters.items()}
        defaults |= {name: record.examples[0][name] for name in required}
    else:
        defaults = kind.config_class().to_dict()
    # Raises an error if an entry is unknown, or its value is not supported.
    record.complete(defaults)
    for name in record.entries.keys() & defaults.keys() - required:
        ours = default_of(record.entries[name])
        if ours not in (None, {}):  # follows from other entries, or is a part
            assert as_json(ours) == as_json(defaults[name]), name


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "pytorch_model"])
def test_a_folder_with_only_pickles_says_how_to_convert_them(stem, tmp_path):
    """Save in two files, with a tensor that is transposed in memory and two that share memory."""
    shared = torch.arange(6.0).reshape(2, 3).T
    torch.save({"a": shared, "b": shared}, tmp_path / f"{stem}-00001-of-00002.bin")
    torch.save({"c": torch.ones(1, dtype=torch.bfloat16)}, tmp_path / f"{stem}-00002-of-00002.bin")
    with pytest.raises(FileNotFoundError) as caught:
        open_tensors(tmp_path)
    message, command = str(caught.value).split(": python -c ")
    assert f"It holds {stem}-00001-of-00002.bin, {stem}-00002-of-00002.bin, pickled" in message
    subprocess.run([sys.executable, "-c", command.strip('"')], cwd=tmp_path, check=True)
    tensors = open_tensors(tmp_path)
    for name in "ab":
        np.testing.assert_array_equal(tensors[name], shared.numpy())
    assert tensors["c"].dtype == "bfloat16" and tensors["c"] == 1
