"""HunyuanVideo-1.5's transformer compared with diffusers', through folders, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel

from genjax import pretrained
from genjax.models.transformers.hunyuan_video import HunyuanVideo, hunyuan_video_1_5
from genjax.nn import Text
from genjax.pretrained.hunyuan_video import HUNYUAN_VIDEO
from genjax.pretrained.safetensors_io import open_tensors

from .libraries import assert_opens, entries_of, with_entries

SIDES = (3, 2, 5)  # frames, rows and columns of latents
SMALL = dict(
    in_channels=5,
    out_channels=2,
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=2,
    num_refiner_layers=2,
    rope_axes_dim=(2, 4, 6),
    text_embed_dim=7,
    text_embed_2_dim=6,
    image_embed_dim=9,
)
CONFIGURATIONS = {"guided": SMALL, "mean flow": SMALL | dict(use_meanflow=True, out_channels=None)}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model = HunyuanVideo15Transformer3DModel(**CONFIGURATIONS[request.param]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            is_norm = ".norm" in name and parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(is_norm + scale * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    module, variables = pretrained.load(folder)
    return folder, model, module, variables, jax.jit(module.apply)


def inputs(takes_end_time):
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal((2, *shape), np.float32))
    text = Text(normal(6, 7), None, jnp.arange(6) < jnp.array([[6], [4]]))
    glyphs = Text(normal(3, 6), None, jnp.arange(3) < jnp.array([[0], [2]]))
    end_time = jnp.array([0.2, 0.0]) if takes_end_time else None
    return normal(*SIDES, 5), jnp.array([0.3, 0.9]), text, glyphs, normal(4, 9), end_time


def theirs(model, x, t, text, glyphs, image, end_time):
    tensor = lambda a: torch.from_numpy(np.array(a))
    with torch.no_grad():
        output = model(
            tensor(x).permute(0, 4, 1, 2, 3),
            1000 * tensor(t),
            tensor(text.tokens),
            tensor(text.mask),
            None if end_time is None else 1000 * tensor(end_time),
            tensor(glyphs.tokens),
            tensor(glyphs.mask),
            tensor(jnp.zeros((2, 4, 9)) if image is None else image),
        ).sample
    return output.permute(0, 2, 3, 4, 1).numpy()


def assert_close(ours, theirs):
    assert theirs.std() > 0.1 and ours.shape == theirs.shape and ours.dtype == jnp.float32
    # float32 on both sides, in some 50 operations.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5 * np.abs(theirs).max())


def test_outputs_agree(saved):
    _, model, module, variables, apply = saved
    x, t, text, glyphs, image, end_time = inputs(module.takes_end_time)
    for given in (image, None):
        arguments = x, t, text, glyphs, given, end_time
        assert_close(apply(variables, *arguments), theirs(model, *arguments))
    # diffusers masks the glyphs that are not there.
    none = glyphs.replace(mask=jnp.zeros((2, 3), bool))
    expected = theirs(model, x, t, text, none, image, end_time)
    assert_close(apply(variables, x, t, text, None, image, end_time), expected)


def test_saving_what_was_loaded_changes_no_bit(saved, tmp_path):
    folder, model, module, variables, _ = saved
    back = assert_opens(model, module, variables, tmp_path)
    before, after = open_tensors(folder), open_tensors(tmp_path)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name, strict=True)
    expected = entries_of(model)
    expected["out_channels"] = expected["out_channels"] or expected["in_channels"]
    assert entries_of(back) == expected


def test_diffusers_opens_what_is_saved(tmp_path):
    module = HunyuanVideo(1, 2, (2, 2, 4), refiner_depth=1, takes_end_time=True)
    arguments, random = inputs(True), np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    pretrained.save(tmp_path, module, variables)
    assert pretrained.load(tmp_path)[0] == module.clone(out_channels=5)
    model = HunyuanVideo15Transformer3DModel.from_pretrained(tmp_path).eval()
    assert_close(jax.jit(module.apply)(variables, *arguments), theirs(model, *arguments))


@pytest.mark.parametrize(
    ("name", "value"),
    [("patch_size", 2), ("rope_axes_dim", [2, 4, 4]), ("qk_norm", None), ("mlp_ratio", 2.0)],
)
def test_unsupported_entries_are_named(saved, tmp_path, name, value):
    message = "cannot be read as HunyuanVideo15Transformer3DModel: .*"
    fault = "attention_head_dim" if name == "rope_axes_dim" else name
    with pytest.raises(ValueError, match=message + fault):
        pretrained.load(with_entries(saved[0], tmp_path, **{name: value}))


@pytest.mark.parametrize(("mean_flow", "count"), [(False, 8_326_608_160), (True, 8_331_330_848)])
def test_published_sizes_have_as_many_parameters(mean_flow, count):
    config = HUNYUAN_VIDEO.complete(dict(use_meanflow=mean_flow))
    module = HUNYUAN_VIDEO.make(config)
    assert module == hunyuan_video_1_5(takes_end_time=mean_flow)
    assert module.rotary_features == (16, 56, 56)
    shapes = HUNYUAN_VIDEO.shapes(module, config)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count
    with torch.device("meta"):
        model = HunyuanVideo15Transformer3DModel(use_meanflow=mean_flow)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
