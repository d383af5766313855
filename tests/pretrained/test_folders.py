"""Loading any published folder by its configuration; tests/parity compares outputs."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax import pipelines, pretrained
from genjax.models.encoders.inception import Inception
from genjax.pretrained.bert import BERT
from genjax.pretrained.dit import DIT
from genjax.pretrained.pixart import PIXART
from tests import virtual_devices

from .test_published import network


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    module, variables = network(BERT, 0)
    pretrained.save(folder, module, variables)
    return folder, module, variables


def rewrite_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "config, name",
    [
        (dict(_class_name="UNet2DConditionModel"), "'UNet2DConditionModel'"),
        (dict(architectures=["GPT2Model"]), "'GPT2Model'"),
        (dict(architectures=[]), "None"),
        (dict(_class_name="Transformer2DModel", norm_type="layer_norm"), "'Transformer2DModel'"),
        (
            dict(_class_name="SD3Transformer2DModel_", norm_type="ada_norm_zero"),
            "'SD3Transformer2DModel_'",
        ),
    ],
)
def test_an_unknown_class_is_named_and_the_known_ones_listed(config, name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=f"describes {name}; known are .*AutoencoderKL, .*BertModel"
    ):
        pretrained.load(tmp_path)


def test_a_folder_of_parts_lists_those_that_can_be_loaded(tmp_path):
    for part, file in [
        ("vae", "config"),
        ("transformer", "config"),
        ("scheduler", "scheduler_config"),
    ]:
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{file}.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError,
        match="config.json does not exist; load one of the parts transformer, vae$",
    ):
        pretrained.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json does not exist$"):
        pretrained.load(tmp_path / "scheduler")


@pytest.mark.parametrize("load", [pretrained.load, pipelines.load])
def test_a_name_in_place_of_a_folder_is_answered_with_the_guide(load):
    with pytest.raises(FileNotFoundError, match="no folder org/name, .*guides/published_weights"):
        load("org/name")


def test_a_run_in_place_of_published_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"task": "Diffusion"}}')
    with pytest.raises(ValueError, match=r"is a run: open it by genjax\.pipelines\.Run\('"):
        pretrained.load(tmp_path)


def test_numbers_have_the_given_type(bert_folder):
    folder, expected, variables = bert_folder
    module, loaded = pretrained.load(folder, param_dtype=jnp.bfloat16)
    assert module == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}
    assert_equal(loaded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables))


def test_weights_have_their_librarys_name_where_a_folder_holds_others_too(bert_folder, tmp_path):
    """LTX-2's folder of its text encoder holds an old copy in diffusers' name."""
    folder, module, variables = bert_folder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_file({"old": np.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    again, loaded = pretrained.load(tmp_path)
    assert again == module
    assert_equal(loaded, variables)


ON_EIGHT_DEVICES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from genjax import pretrained
from genjax.devices.mesh import make_mesh, variable_sharding

mesh = make_mesh(dict(data=2, fsdp=4), batch_size=8)
calls = {}

def sharding(path, shape):
    calls[path] = variable_sharding(mesh)(path, shape), shape
    return calls[path][0]

_, variables = pretrained.load(sys.argv[1], param_dtype=jnp.bfloat16, sharding=sharding)
_, expected = pretrained.load(sys.argv[1], param_dtype=jnp.bfloat16)
leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
          for path, leaf in jax.tree.leaves_with_path(variables)}
assert leaves.keys() == calls.keys()
assert all((leaf.sharding, leaf.shape) == calls[path] for path, leaf in leaves.items())
parts = lambda path: {part.data.shape for part in leaves[path].addressable_shards}
assert parts("params/token_embedding/embedding") == {(16, 64)}
# Both layers of the stack are on every device: the layer axis is not split.
assert parts("params/blocks/mlp_in/kernel") == {(2, 64, 768)}
assert parts("params/blocks/mlp_out/bias") == {(2, 64)}  # small, and whole on every device
jax.tree.map(np.testing.assert_array_equal, variables, expected)
"""


def test_variables_lie_where_the_sharding_says(bert_folder):
    virtual_devices.run(["-W", "error", "-c", ON_EIGHT_DEVICES, bert_folder[0]], num_devices=8)


@pytest.mark.parametrize("record", [DIT, PIXART], ids=lambda record: record.name)
def test_an_old_class_is_identified_by_its_norm(record, tmp_path):
    """DiT and PixArt were first published as one class, `Transformer2DModel`."""
    module, variables = network(record, 0)
    pretrained.save(tmp_path, module, variables)
    rewrite_config(tmp_path, _class_name="Transformer2DModel")
    again, loaded = pretrained.load(tmp_path)
    assert again == module
    assert_equal(loaded, variables)


@pytest.mark.parametrize("module", [nn.Dense(2), Inception()])
def test_a_module_without_a_published_form_is_named(module, tmp_path):
    """One module is in no published file, and the other has a loader of its own."""
    with pytest.raises(ValueError, match=f"there is no published form of {type(module).__name__} "):
        pretrained.save(tmp_path / "folder", module, {})
    assert not (tmp_path / "folder").exists()
