"""A small random transformer of Stable Diffusion 3, saved by diffusers and loaded here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.numpy import load_file, save_file

from genjax import pretrained
from genjax.models.transformers.mmdit import MMDiT, axis_embedding
from genjax.nn import Text
from genjax.pretrained.sd3 import TABLE, position_table, positions_of

from .libraries import entries_of, with_entries

SHARED = dict(
    sample_size=8,
    attention_head_dim=8,
    joint_attention_dim=6,
    pooled_projection_dim=5,
    pos_embed_max_size=6,
)
CONFIGS = {
    "3": dict(num_layers=3, num_attention_heads=2, in_channels=4, out_channels=4),
    "3.5 medium": dict(
        num_layers=4,
        num_attention_heads=2,
        in_channels=3,
        out_channels=6,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
        pos_embed_max_size=8,  # 10×6 latents, 5×3 patches, are not cropped exactly from its middle
        attention_head_dim=12,
    ),
    "3.5 large": dict(
        num_layers=3, num_attention_heads=3, in_channels=2, out_channels=2, qk_norm="rms_norm"
    ),
    "all but the last dual": dict(
        num_layers=2,
        num_attention_heads=1,
        in_channels=2,
        out_channels=2,
        dual_attention_layers=(0,),
    ),
    "dual here and there, and the last": dict(
        num_layers=5,
        num_attention_heads=1,
        in_channels=2,
        out_channels=2,
        dual_attention_layers=(1, 3, 4),
    ),
    "one layer of odd patches": dict(
        num_layers=1,
        num_attention_heads=2,
        patch_size=3,
        in_channels=5,
        out_channels=None,
        sample_size=12,
    ),
}
SIZES = {"one layer of odd patches": (9, 6)}
BATCH = 2


def create(config):
    """Make all parameters random, also those that a new network has at zero or one."""
    config = SHARED | config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    torch.manual_seed(0)
    model = SD3Transformer2DModel(**config, caption_projection_dim=width).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset, deviation = (
                (0.5, 0.5) if parameter.ndim == 1 else (0.0, parameter[0].numel() ** -0.5)
            )
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
    return model


def inputs_of(config, height, width, tokens=5):
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal((BATCH, *shape), np.float32))
    text = Text(normal(tokens, config.joint_attention_dim), normal(config.pooled_projection_dim))
    return normal(height, width, config.in_channels), jnp.array([0.003, 0.7]), text


def apply_theirs(model, x, t, text):
    tensor = lambda array: torch.from_numpy(np.array(array))
    with torch.no_grad():
        out = model(
            tensor(x.transpose(0, 3, 1, 2)),
            tensor(text.tokens),
            tensor(text.pooled),
            tensor(1000 * t),
        )
    return out.sample.numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs):
    assert theirs.std() > 0.3 and ours.shape == theirs.shape
    # Four blocks in float32 with some ten products and norms each, each rounded by about 1e-7
    # relative.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    theirs = create(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, folder, SIZES.get(request.param, (10, 6)), *pretrained.load(folder)


def test_agrees(saved):
    theirs, _, size, module, variables = saved
    inputs = inputs_of(theirs.config, *size)
    assert_close(jax.jit(module.apply)(variables, *inputs), apply_theirs(theirs, *inputs))


def test_what_was_loaded_is_saved_as_it_was(saved, tmp_path):
    theirs, folder, _, module, variables = saved
    pretrained.save(tmp_path, module, variables, sample_size=theirs.config.sample_size)
    expected = load_file(folder / "diffusion_pytorch_model.safetensors")
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
    again = SD3Transformer2DModel.from_pretrained(tmp_path)
    expected = entries_of(theirs)
    expected["out_channels"] = expected["out_channels"] or expected["in_channels"]
    assert entries_of(again) == expected


@pytest.fixture(scope="module")
def ours():
    """Our network has positions as after training at 1024 pixels that began at 256."""
    module = MMDiT(
        2,
        16,
        3,
        2,
        dual_layers=(0,),
        qk_norm=True,
        max_size=8,
        position_start=-0.5,
        position_step=0.25,
    )
    x, t = jnp.zeros((BATCH, 8, 6, 3)), jnp.zeros(BATCH)
    text = Text(jnp.zeros((BATCH, 4, 6)), jnp.zeros((BATCH, 5)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t, text)
    random = np.random.default_rng(0)
    return module, jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def test_diffusers_opens_what_is_saved_here_and_padding_is_as_no_text(ours, tmp_path):
    """diffusers' network has no mask, so each text is given at its own length."""
    module, variables = ours
    pretrained.save(tmp_path, module, variables)
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path)
    x, t, text = inputs_of(theirs.config, 8, 6)
    lengths = (5, 3)
    mask = jnp.arange(5) < jnp.array(lengths)[:, None]
    outputs = jax.jit(module.apply)(variables, x, t, text.replace(mask=mask))
    for i, length in enumerate(lengths):
        alone = lambda a, i=i: a[i : i + 1]
        text_alone = Text(alone(text.tokens)[:, :length], alone(text.pooled))
        assert_close(alone(outputs), apply_theirs(theirs, alone(x), alone(t), text_alone))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "max_size, start, step", [(192, -16.0, 0.25), (384, -40.0, 0.25), (192, 0.0, 1 / 3)]
)
def test_positions_are_read_off_tables_of_any_type(max_size, start, step, dtype):
    """A table of published size, rounded to 16 bits, still determines the positions exactly."""
    width = 64
    module = MMDiT(2, width, 2, 2, max_size=max_size, position_start=start, position_step=step)
    found = positions_of(position_table(module, dtype), max_size, width)
    assert found == dict(position_start=start, position_step=step)


def test_other_types_are_converted(tmp_path):
    theirs = create(CONFIGS["3"])
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    as_float32, float32 = pretrained.load(tmp_path)
    as_bfloat16, bfloat16 = pretrained.load(tmp_path, param_dtype=jnp.bfloat16)
    assert as_float32 == as_bfloat16
    assert {a.dtype for a in jax.tree.leaves(bfloat16)} == {jnp.dtype("bfloat16")}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), float32, bfloat16
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    create(CONFIGS["3"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"_class_name": "AuraFlowTransformer2DModel"}, "describes 'AuraFlow.*; known are .*SD3"),
        ({"context_dim": 2}, r"entries that are not known here: \{'context_dim': 2\}"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is not supported; only None, 'rms_norm'"),
        ({"caption_projection_dim": 12}, "caption_projection_dim=12 is not supported; only 16"),
        ({"dual_attention_layers": [1]}, "missing: transformer_blocks.1.attn2.to_out.0.weight"),
        ({"dual_attention_layers": [0, 3]}, r"\[0, 3\] is not supported; there are 3 layers"),
        ({"pos_embed_max_size": 5}, r"no table of 5×5 evenly .* its shape is \(1, 36, 16\)"),
        ({"num_layers": 4}, "missing: transformer_blocks.3.norm1.linear.weight"),
    ],
)
def test_faults_of_configurations_are_named(entries, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **entries))


@pytest.mark.parametrize("part", ["columns", "rows", "uneven", "zero", "absent"])
def test_other_tables_of_positions_are_refused(part, folder, tmp_path):
    name = "diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / name)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    table = tensors[TABLE].reshape(6, 6, 2, 8)
    if part == "columns":
        table[3, 4, 0, 2] += 1e-3
    elif part == "rows":
        table[3, 4, 1, 2] += 1e-3
    elif part == "uneven":
        table[:, :, 0] = axis_embedding(np.arange(6.0) ** 1.1, 8)
    elif part == "zero":
        table[:] = 0
    else:
        del tensors[TABLE]
    save_file(tensors, tmp_path / name)
    with pytest.raises(
        ValueError, match="lacks pos_embed" if part == "absent" else "does not continue"
    ):
        pretrained.load(tmp_path)


def test_networks_that_diffusers_does_not_have_are_not_saved(ours, tmp_path):
    module, variables = ours
    params = {
        name: value for name, value in variables["params"].items() if name != "pooled_embedding"
    }
    with pytest.raises(
        ValueError, match="needs pooled text; got parameters of blocks, .* time_embedding$"
    ):
        pretrained.save(tmp_path / "new", module, dict(params=params))
    with pytest.raises(
        ValueError, match="cannot be saved as SD3Transformer2DModel: time_scale=1.0 is not"
    ):
        pretrained.save(tmp_path / "new", module.clone(time_scale=1.0), variables)
    assert not (tmp_path / "new").exists()
