"""LTX-Video's transformer compared with diffusers', through folders, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline, LTXVideoTransformer3DModel

from genjax import pretrained
from genjax.models.transformers.ltx_video import (
    LTXVideo,
    ltx_video_2b,
    ltx_video_13b,
    rotations,
    video_coordinates,
)
from genjax.nn import Text
from genjax.pretrained.safetensors_io import open_tensors

from .libraries import assert_opens, entries_of, with_entries

SIDES = (3, 2, 5)  # frames, rows and columns of latents
# Divided by 6, the widths 32, 16 and 12 leave each possible remainder: 2, 4 and 0.
CONFIGURATIONS = {
    "heads": dict(num_attention_heads=4, attention_head_dim=8, in_channels=6, out_channels=6),
    "odd": dict(num_attention_heads=2, attention_head_dim=8, in_channels=5, out_channels=3),
    "narrow": dict(num_attention_heads=3, attention_head_dim=4, in_channels=3, out_channels=None),
}


def randomized(configuration):
    torch.manual_seed(0)
    width = configuration["num_attention_heads"] * configuration["attention_head_dim"]
    sizes = dict(cross_attention_dim=width, caption_channels=9, num_layers=2)
    model = LTXVideoTransformer3DModel(**configuration, **sizes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_((".norm_" in name) + scale * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = randomized(CONFIGURATIONS[request.param])
    model.save_pretrained(folder)
    module, variables = pretrained.load(folder)
    return folder, model, module, variables, jax.jit(module.apply)


def inputs(channels, mask=True):
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal((2, *shape), np.float32)
    mask = jnp.arange(7) < jnp.array([[7], [4]]) if mask else None
    return jnp.asarray(normal(*SIDES, channels)), Text(jnp.asarray(normal(7, 9)), None, mask)


def theirs(model, x, timesteps, text, **positions):
    """Call the network as the pipelines do, with latents as a sequence."""
    tensor = lambda a: torch.from_numpy(np.array(a))
    with torch.no_grad():
        output = model(
            tensor(x).flatten(1, 3),
            tensor(text.tokens),
            tensor(timesteps),
            None if text.mask is None else tensor(text.mask).float(),
            **positions,
        ).sample
    return output.reshape(*x.shape[:4], -1).numpy()


def scaled(frame_rate):
    """As `LTXPipeline` says where latents are."""
    return dict(
        num_frames=SIDES[0],
        height=SIDES[1],
        width=SIDES[2],
        rope_interpolation_scale=(8 / frame_rate, 32, 32),
    )


def causal(frame_rate):
    """As `LTXConditionPipeline` says where latents are, of which the first are one frame."""
    ids = LTXConditionPipeline._prepare_video_ids(2, *SIDES)
    coordinates = LTXConditionPipeline._scale_video_ids(ids, 32, 8).float()
    coordinates[:, 0] *= 1 / frame_rate
    return dict(video_coords=coordinates)


def assert_close(ours, theirs):
    assert theirs.std() > 0.1 and ours.shape == theirs.shape and ours.dtype == jnp.float32
    # float32 on both sides. Angles up to 15,708 are rounded to 5e-4, alike but for some units in
    # the last place; the largest error is a quarter of this.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("mask", [True, False])
def test_outputs_agree(saved, mask):
    _, model, module, variables, apply = saved
    x, text = inputs(model.config.in_channels, mask)
    t = jnp.array([0.3, 0.9])
    outputs = apply(variables, x, t, text)
    assert_close(outputs, theirs(model, x, 1000 * t, text, **scaled(25)))
    if mask:
        coordinates = video_coordinates(*SIDES, 24.0, causal=True)
        outputs = apply(variables, x, t, text, coordinates)
        assert_close(outputs, theirs(model, x, 1000 * t, text, **causal(24)))


def test_frames_have_their_own_times(saved):
    """As image to video: the first frame is given, and its time is 0."""
    _, model, _, variables, apply = saved
    x, text = inputs(model.config.in_channels)
    t = jnp.array([[0.0, 0.7, 0.7], [0.0, 0.2, 0.4]])
    per_token = np.repeat(t, SIDES[1] * SIDES[2], axis=1)
    expected = theirs(model, x, 1000 * per_token, text, **scaled(25))
    assert_close(apply(variables, x, t, text), expected)


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
    module = LTXVideo(width=12, depth=1, num_heads=2, out_channels=3)
    x, text = inputs(4)
    t, random = jnp.array([0.25, 0.75]), np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t, text)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    pretrained.save(tmp_path, module, variables)
    assert pretrained.load(tmp_path)[0] == module
    model = LTXVideoTransformer3DModel.from_pretrained(tmp_path).eval()
    expected = theirs(model, x, 1000 * t, text, **scaled(25))
    assert_close(jax.jit(module.apply)(variables, x, t, text), expected)


@pytest.mark.parametrize("frame_rate", [25.0, 30.0])
def test_rotations_are_those_of_the_published_width(frame_rate):
    model = LTXVideoTransformer3DModel(num_layers=0)
    sides = 5, 22, 38
    arguments = (torch.zeros(1, 1), *sides, (8 / frame_rate, 32, 32))
    cos, sin = (table[0, :, ::2].numpy() for table in model.rope(*arguments))
    ours = rotations(video_coordinates(*sides, frame_rate), 2048)
    # Both angles are rounded: a unit in the last place of 15,708 is 1e-3. Few are so large.
    difference = np.abs(ours - np.stack([cos, sin], axis=-1))
    assert difference.max() < 4e-3 and difference.mean() < 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [("patch_size", 2), ("cross_attention_dim", 17), ("qk_norm", None), ("norm_eps", 1e-5)],
)
def test_unsupported_entries_are_named(saved, tmp_path, name, value):
    message = f"cannot be read as LTXVideoTransformer3DModel: .*{name}"
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(saved[0], tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("build", "sizes", "count"),
    [
        (ltx_video_2b, dict(), 1_923_385_472),
        (
            ltx_video_13b,
            dict(attention_head_dim=128, num_layers=48, cross_attention_dim=4096),
            13_042_569_344,
        ),
    ],
)
def test_published_sizes_have_as_many_parameters(build, sizes, count):
    def init():
        text = Text(jnp.zeros((1, 3, 4096)))
        return build().init(jax.random.key(0), jnp.zeros((1, 2, 2, 2, 128)), jnp.zeros(1), text)

    assert sum(a.size for a in jax.tree.leaves(jax.eval_shape(init))) == count
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel(**sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
