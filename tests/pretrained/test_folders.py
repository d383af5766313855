"""Any published folder by its configuration. That networks compute what their originals do is shown in tests/parity."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import pretrained
from genjax.models.autoencoders.autoencoder_dc import AutoencoderDC, Stage
from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan
from genjax.models.autoencoders.vqgan import VQModel
from genjax.models.encoders.bert import Bert
from genjax.models.encoders.inception import Inception
from genjax.models.transformers.dit import DiT
from genjax.models.transformers.mmdit import MMDiT
from genjax.models.transformers.pixart import PixArt
from genjax.nn import Text
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained import bert
from genjax.pretrained.dit import MAX_PERIOD

IMAGE, LATENTS, TIME = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)
TEXT = Text(jnp.zeros((1, 2, 6)), jnp.zeros((1, 5)))
STAGES = Stage(8, 1), Stage(16, 1, "efficient_vit", (3,))
CASES = {  # the class of diffusers or transformers, a module and what its `init` takes
    "BertModel": (
        Bert(num_tokens=64, width=64, depth=2, num_heads=2, mlp_width=96, max_length=6),
        (jnp.zeros((1, 1), int),),
    ),
    "SD3Transformer2DModel": (
        MMDiT(patch_size=2, width=16, depth=2, num_heads=2, max_size=5, out_channels=2),
        (LATENTS, TIME, TEXT),
    ),
    "AutoencoderKL": (
        AutoencoderKL(2, (4, 8), blocks=1, attention_levels=(1,), groups=2, latent_deviation=(0.5,)),
        (IMAGE,),
    ),
    "VQModel": (
        VQModel(VectorQuantizer(7, 2), 5, (4, 8), blocks=1, groups=2, latent_deviation=(0.5,)),
        (IMAGE,),
    ),
    "AutoencoderTiny": (
        AutoencoderTiny(3, (1, 2), (2, 1), 4, latent_mean=(0.5,), latent_deviation=(4.0,)),
        (IMAGE,),
    ),
    "AutoencoderDC": (
        AutoencoderDC(4, STAGES, (Stage(8, 1, norm="batch", activation="relu"), STAGES[1]), head_features=4),
        (IMAGE,),
    ),
    "AutoencoderKLWan": (
        AutoencoderWan(2, 3, (4, 8), 1, (True,), latent_mean=(0.5, 0.25), latent_deviation=(1.0, 2.0)),
        (IMAGE[None],),
    ),
}


def random_variables(module, inputs):
    # The text is no array, and so no argument of what is only evaluated for its shapes.
    expected = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), expected)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    module, inputs = CASES["BertModel"]
    variables = random_variables(module, inputs)
    pretrained.save(folder, module, variables)
    return folder, variables


def rewrite_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_loaded(name, tmp_path):
    module, inputs = CASES[name]
    variables = random_variables(module, inputs)
    pretrained.save(tmp_path, module, variables)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("_class_name") == name or config.get("architectures") == [name]
    again, loaded = pretrained.load(tmp_path)
    assert again == module
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded))
    assert_equal(loaded, variables)


@pytest.mark.parametrize(
    "config, name",
    [
        (dict(_class_name="UNet2DConditionModel"), "'UNet2DConditionModel'"),
        (dict(architectures=["GPT2Model"]), "'GPT2Model'"),
        (dict(architectures=[]), "None"),
        (dict(_class_name="Transformer2DModel", norm_type="layer_norm"), "'Transformer2DModel'"),
        (dict(_class_name="SD3Transformer2DModel_", norm_type="ada_norm_zero"), "'SD3Transformer2DModel_'"),
    ],
)
def test_an_unknown_class_is_named_and_the_known_ones_listed(config, name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"describes {name}; known are .*AutoencoderKL, .*BertModel"):
        pretrained.load(tmp_path)


def test_a_folder_of_parts_lists_those_that_can_be_loaded(tmp_path):
    for part, file in [("vae", "config"), ("transformer", "config"), ("scheduler", "scheduler_config")]:
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{file}.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="config.json does not exist; load one of the parts transformer, vae$"
    ):
        pretrained.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json does not exist$"):
        pretrained.load(tmp_path / "scheduler")


def test_numbers_are_of_the_type_asked_for(bert_folder):
    folder, variables = bert_folder
    module, loaded = pretrained.load(folder, param_dtype=jnp.bfloat16)
    assert module == CASES["BertModel"][0]
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}
    assert_equal(loaded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables))


def test_integers_stay_integers(tmp_path, monkeypatch):
    """None of the networks here has any yet, so one of a reader that returns what it is told to read."""
    leaves = {
        "indices": jax.ShapeDtypeStruct((3,), jnp.int32),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
    }
    monkeypatch.setattr(bert, "load", lambda folder, abstract: (nn.Dense(2), abstract(leaves)))
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    for param_dtype, expected in [(jnp.bfloat16, jnp.bfloat16), (None, jnp.float32)]:
        _, read = pretrained.load(tmp_path, param_dtype=param_dtype)
        assert (read["indices"].dtype, read["scale"].dtype) == (jnp.int32, expected)


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
assert parts("params/blocks/mlp_in/kernel") == {(2, 64, 24)}  # of two layers, neither taken from the other
assert parts("params/blocks/mlp_in/bias") == {(2, 96)}  # small, and whole on every device
jax.tree.map(np.testing.assert_array_equal, variables, expected)
"""


def test_variables_lie_where_the_sharding_says(bert_folder):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error", "-c", ON_EIGHT_DEVICES, bert_folder[0]]
    subprocess.run(command, check=True, env=environment)


OLD = {
    "ada_norm_zero": (
        DiT(2, 8, 2, 2, num_classes=5, out_channels=4, base_size=2, max_period=MAX_PERIOD),
        (LATENTS, TIME, jnp.zeros(1, int)),
    ),
    "ada_norm_single": (PixArt(2, 8, 2, 2, base_size=2, out_channels=4), (LATENTS, TIME, TEXT)),
}


@pytest.mark.parametrize("norm_type", OLD)
def test_a_class_of_old_is_told_by_its_norm(norm_type, tmp_path):
    """DiT and PixArt were published when both were `Transformer2DModel`."""
    module, inputs = OLD[norm_type]
    variables = random_variables(module, inputs)
    pretrained.save(tmp_path, module, variables)
    rewrite_config(tmp_path, _class_name="Transformer2DModel")
    assert json.loads((tmp_path / "config.json").read_text())["norm_type"] == norm_type
    again, loaded = pretrained.load(tmp_path)
    assert again == module
    assert_equal(loaded, variables)


@pytest.mark.parametrize("module", [nn.Dense(2), Inception()])
def test_a_module_without_a_published_form_is_named(module, tmp_path):
    """One of no file of networks, and one whose weights are read otherwise."""
    with pytest.raises(ValueError, match=f"there is no published form of {type(module).__name__} "):
        pretrained.save(tmp_path / "folder", module, {})
    assert not (tmp_path / "folder").exists()
