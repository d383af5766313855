"""DiT compared with unchanged diffusers, through folders that either library saved.

`test_dit.py` compares the published DiT, with diffusers made equal to it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from genjax import pretrained
from genjax.models.transformers.dit import DiT
from genjax.pretrained.dit import MAX_PERIOD

from .libraries import assert_opens, with_entries

FILE = "diffusion_pytorch_model.safetensors"
# A small published network; and one with all other options, for images of another size than
# `sample_size`.
CONFIGURATIONS = {
    "published": dict(out_channels=8, attention_head_dim=8, sample_size=8),
    "other": dict(
        in_channels=3,
        num_attention_heads=3,
        attention_head_dim=4,
        num_layers=3,
        sample_size=12,
        patch_size=3,
        norm_eps=0.05,
    ),
}
SIDES = {"published": 8, "other": 18}
CLASSES = 10


def randomized(configuration):
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        **dict(num_attention_heads=2, num_layers=2, num_embeds_ada_norm=CLASSES) | configuration
    )
    blocks = model.transformer_blocks
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn_like(parameter))
        for block in blocks[1:]:
            block.norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    return model.eval()  # no label dropout


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = randomized(CONFIGURATIONS[request.param])
    model.save_pretrained(folder)
    return folder, model, SIDES[request.param], *pretrained.load(folder)


# The last label is the null label.
TIMESTEPS, LABELS = (np.array([0, 1, 321, 999]), np.array([0, 3, 9, CLASSES]))


def images(side, channels):
    return np.random.default_rng(0).standard_normal((4, side, side, channels), np.float32)


def assert_agree(module, variables, model, x):
    with torch.no_grad():
        expected = model(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            timestep=torch.from_numpy(TIMESTEPS),
            class_labels=torch.from_numpy(LABELS),
        ).sample.numpy()
    output = jax.jit(module.apply)(variables, x, jnp.asarray(TIMESTEPS / 1000, jnp.float32), LABELS)
    assert expected.std() > 0.1
    # float32 throughout: a relative 1e-7 in each of some 30 operations, and in angles of time up to
    # 999.
    np.testing.assert_allclose(
        output, expected.transpose(0, 2, 3, 1), rtol=0, atol=2e-5 * np.abs(expected).max()
    )


def test_outputs_agree(saved):
    _, model, side, module, variables = saved
    assert module.null_label == CLASSES
    assert_agree(module, variables, model, images(side, model.config.in_channels))


def test_saving_what_was_loaded_changes_no_bit(saved, tmp_path):
    folder, model, _, module, variables = saved
    assert_opens(model, module, variables, tmp_path)
    ours, theirs = load_file(tmp_path / FILE), load_file(folder / FILE)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)


def test_diffusers_opens_what_is_saved(tmp_path):
    module = DiT(2, 16, 2, 4, CLASSES, out_channels=6, base_size=4, max_period=MAX_PERIOD)
    x = images(8, 3)
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(4), LABELS)
    variables = jax.tree.map(lambda a: 0.15 * random.standard_normal(a.shape, np.float32), shapes)
    pretrained.save(tmp_path, module, variables)
    reloaded, tree = pretrained.load(tmp_path)
    assert reloaded == module
    jax.tree.map(np.testing.assert_array_equal, tree, variables)
    assert_agree(module, variables, DiTTransformer2DModel.from_pretrained(tmp_path).eval(), x)


def test_what_diffusers_cannot_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"max_period=10000\.0"):
        pretrained.save(tmp_path, DiT(2, 16, 2, 4, CLASSES), {})
    with pytest.raises(ValueError, match="mlp_ratio=3"):
        pretrained.save(
            tmp_path, DiT(2, 16, 2, 4, CLASSES, mlp_ratio=3.0, max_period=MAX_PERIOD), {}
        )
    with pytest.raises(ValueError, match="base size"):
        pretrained.save(tmp_path, DiT(2, 16, 2, 4, CLASSES, max_period=MAX_PERIOD), {})


def test_arrays_have_the_given_type_and_devices(saved):
    folder, _, _, _, exact = saved
    mesh = jax.make_mesh((1,), ("fsdp",))
    axes = lambda shape: (None, None, "fsdp") if len(shape) == 3 else ()
    sharding = lambda path, shape: NamedSharding(mesh, PartitionSpec(*axes(shape)))
    _, variables = pretrained.load(folder, param_dtype=jnp.bfloat16, sharding=sharding)
    kernel = variables["params"]["blocks"]["query_key_value"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            a, np.asarray(b).astype(jnp.bfloat16), strict=True
        ),
        jax.tree.map(np.asarray, variables),
        exact,
    )


def test_blocks_may_have_embeddings_of_their_own(saved, tmp_path):
    """Training in diffusers separates embeddings; the last modulation takes the first block's."""
    folder, model, side, tied, _ = saved
    theirs = type(model).from_pretrained(folder).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for block in theirs.transformer_blocks[1:]:
            for parameter in block.norm1.emb.parameters():
                parameter.copy_(0.15 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs")
    assert module == tied.clone(embeddings_per_block=True)
    assert_agree(module, variables, theirs, images(side, model.config.in_channels))
    assert_opens(theirs, module, variables, tmp_path / "ours")


def test_the_published_class_name_is_known_and_unsupported_entries_are_named(saved, tmp_path):
    folder, _, _, module, _ = saved
    legacy = dict(num_vector_embeds=None, only_cross_attention=False, cross_attention_dim=None)
    former = with_entries(folder, tmp_path, _class_name="Transformer2DModel", **legacy)
    assert pretrained.load(former)[0] == module
    for name, value in dict(activation_fn="gelu", unheard_of=1).items():
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=name):
            pretrained.load(with_entries(former, tmp_path / name, **{name: value}))
    (tmp_path / "norm").mkdir()
    with pytest.raises(ValueError, match="norm_type='ada_norm_single' is not supported"):
        pretrained.load(with_entries(folder, tmp_path / "norm", norm_type="ada_norm_single"))
