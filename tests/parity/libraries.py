"""Helpers of the tests against diffusers and transformers."""

import json

import torch

from genjax import pretrained


def assert_opens(theirs, module, variables, folder, **options):
    """Save a loaded network in a folder, and assert that the library opens it as the same network.

    Args:
        options: arguments of the library's `from_pretrained`.

    Returns:
        The network that the library opened.
    """
    pretrained.save(folder, module, variables)
    again, report = type(theirs).from_pretrained(folder, output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    state, expected = again.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    return again.eval()


def entries_of(model):
    """Return the complete configuration of a diffusers network, as in JSON."""
    config = json.loads(model.to_json_string())
    return {name: value for name, value in config.items() if not name.startswith("_")}


def with_entries(source, folder, **entries):
    """Copy a published folder to `folder`, with other entries in its configuration."""
    for path in source.glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder
