"""Wan's transformer compared with diffusers', through folders that either library saved."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from genjax import pretrained
from genjax.models.transformers.wan import Wan
from genjax.nn import Text

from .libraries import assert_opens, entries_of, with_entries

BATCH, TEXT_FEATURES = 2, 10
SMALL = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=40)
SMALL |= dict(text_dim=TEXT_FEATURES, in_channels=4, out_channels=4)
IMAGE = dict(in_channels=9, image_dim=6, added_kv_proj_dim=32)
# As Wan 2.1's; its image-to-video; first and last frame; with patches of several frames.
CONFIGURATIONS = {
    "text": SMALL,
    "image": SMALL | IMAGE,
    "first and last": SMALL | IMAGE | dict(pos_embed_seq_len=10),
    "odd patches": SMALL | dict(patch_size=(2, 3, 1), out_channels=None, attention_head_dim=14),
}
SHAPES = {"odd patches": (2, 6, 5)}  # of the latents
SHAPE = (3, 6, 10)  # of all others'


def randomized(configuration):
    torch.manual_seed(0)
    model = WanTransformer3DModel(**configuration).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                norm = ".norm" in name and name.endswith("weight")
                parameter.copy_(norm + 0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 3:  # tables
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model


@functools.cache
def pair(name):
    """Return diffusers' network, and ours loaded from its folder with a compiled `apply`."""
    theirs = randomized(CONFIGURATIONS[name])
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        module, variables = pretrained.load(folder)
    return theirs, module, variables, jax.jit(module.apply)


def inputs(name):
    """Return latents, text, and an image's tokens; diffusers wants 512 tokens beside an image."""
    random, configuration = np.random.default_rng(0), CONFIGURATIONS[name]
    normal = lambda *shape: random.standard_normal((BATCH, *shape), np.float32)
    x = normal(*SHAPES.get(name, SHAPE), configuration["in_channels"])
    takes_image = "image_dim" in configuration
    text = Text(jnp.asarray(normal(512 if takes_image else 6, TEXT_FEATURES)))
    return x, text, normal(10, configuration["image_dim"]) if takes_image else None


def outputs_of(model, x, timesteps, text, image):
    if image is not None and model.config.pos_embed_seq_len:  # two frames are two examples
        image = image.reshape(2 * BATCH, -1, image.shape[-1])
    with torch.no_grad():
        output = model(
            torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
            torch.from_numpy(timesteps),
            torch.from_numpy(np.array(text.tokens)),
            None if image is None else torch.from_numpy(image),
        ).sample
    return np.moveaxis(output.numpy(), 1, -1)


def assert_close(output, expected):
    # float32 throughout: a relative 1e-7 in each of some 40 operations, and in angles of times up
    # to 999.
    assert expected.std() > 0.1
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs_agree(name):
    theirs, _, variables, apply = pair(name)
    x, text, image = inputs(name)
    timesteps = np.array([999, 321])
    expected = outputs_of(theirs, x, timesteps, text, image)
    t = jnp.asarray(timesteps / 1000, jnp.float32)
    assert_close(apply(variables, x, t, text, image), expected)
    if image is not None:
        other = apply(variables, x, t, text, -image)
        assert np.abs(other - expected).max() > 1e-2


def test_times_of_tokens_agree():
    """As Wan 2.2's 5B is used: the first frame is clean, and all others have one time."""
    theirs, _, variables, apply = pair("text")
    x, text, _ = inputs("text")
    frames, tokens = SHAPE[0], SHAPE[0] * 3 * 5
    timesteps = np.repeat([[0, 700, 700], [0, 30, 30]], tokens // frames, axis=1)
    expected = outputs_of(theirs, x, timesteps, text, None)
    of_tokens = jnp.asarray(timesteps / 1000, jnp.float32)
    output = apply(variables, x, of_tokens, text)
    assert_close(output, expected)
    of_frames = of_tokens[:, :: tokens // frames]
    assert_close(apply(variables, x, of_frames, text), expected)
    same = apply(variables, x, of_frames[:, -1], text)
    assert np.abs(same - expected).max() > 1e-2


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_saving_what_was_loaded_changes_no_bit(name, tmp_path):
    theirs, module, variables, _ = pair(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    assert entries_of(again) == entries_of(theirs)


def test_diffusers_opens_what_is_saved(tmp_path):
    module = Wan(width=24, depth=2, num_heads=2, mlp_features=30, out_channels=3)
    random = np.random.default_rng(1)
    x = random.standard_normal((BATCH, 1, 4, 6, 5), np.float32)
    text = Text(jnp.asarray(random.standard_normal((BATCH, 5, 7), np.float32)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(BATCH), text)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    pretrained.save(tmp_path, module, variables)
    assert pretrained.load(tmp_path)[0] == module
    model = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    expected = outputs_of(model, x, np.array([250, 750]), text, None)
    assert_close(jax.jit(module.apply)(variables, x, jnp.array([0.25, 0.75]), text), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    randomized(CONFIGURATIONS["image"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("freq_dim", 128),
        ("eps", 1e-5),
        ("cross_attn_norm", False),
        ("qk_norm", None),
        ("added_kv_proj_dim", 31),
        ("patch_size", [2, 2]),
        ("unheard_of", 1),
    ],
)
def test_unsupported_entries_are_named(folder, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"cannot be read as WanTransformer3DModel: .*{name}"):
        pretrained.load(with_entries(folder, tmp_path, **{name: value}))
