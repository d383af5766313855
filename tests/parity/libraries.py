"""What tests against diffusers and transformers share."""

import json

import torch

from genjax import pretrained


def assert_opens(theirs, module, variables, folder, **options):
    """Save in a folder what was loaded, and assert that the library opens it as the network it was.

    Args:
        options: of the library's `from_pretrained`.

    Returns:
        That network.
    """
    pretrained.save(folder, module, variables)
    again, report = type(theirs).from_pretrained(folder, output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    state, expected = again.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    return again.eval()


def entries_of(model):
    """Return the configuration of a network of diffusers, all that it knows, as in JSON."""
    config = json.loads(model.to_json_string())
    return {name: value for name, value in config.items() if not name.startswith("_")}


def with_entries(source, folder, **entries):
    """Make of `folder` a copy of a published folder with other entries in its configuration."""
    for path in source.glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder
