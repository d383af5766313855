"""DINOv2 compared with transformers', small and random, through saved folders.

Measured: states differ by less than 6e-7 of their largest value, images of other sizes included.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from genjax import pretrained
from genjax.models.encoders import dinov2
from genjax.models.encoders.dinov2 import COLOUR_DEVIATION, COLOUR_MEAN, dinov2_features, preprocess

from .libraries import assert_opens, with_entries

TINY = dict(hidden_size=12, num_attention_heads=2, num_hidden_layers=2, patch_size=2, image_size=10)
# Two thirds of three times the width are 20 features, rounded up to 24.
GATED = dict(use_swiglu_ffn=True, hidden_size=10, mlp_ratio=3)
CONFIGS = {
    "plain": (Dinov2Model, Dinov2Config(**TINY, num_channels=2)),
    "gated": (Dinov2Model, Dinov2Config(**TINY | GATED, layer_norm_eps=1e-2)),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**TINY, num_register_tokens=3),
    ),
}
# The trained size; larger; smaller and not square; as many patches, but not square.
SIZES = {
    "plain": [(10, 10), (14, 24), (6, 8)],
    "gated": [(10, 10)],
    "registers": [(10, 10), (6, 14)],
}


def create(name):
    """Make all parameters random: mask token and registers start at zero, scales at one."""
    model, config = CONFIGS[name]
    torch.manual_seed(0)
    model = model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset, deviation = 0.0, np.prod(parameter.shape[1:]) ** -0.5
            if parameter.ndim == 1:
                offset, deviation = 0.5, 0.3
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
    return model


def channel_first(images):
    return torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2))


def assert_close(ours, theirs):
    theirs = theirs.numpy()
    assert theirs.std() > 0.1 and ours.dtype == jnp.float32
    # float32 on both sides: a few layers, each rounded by about 1e-7, and the filters' positions
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For a configuration: transformers' network, its folder, and the module loaded from it."""

    @functools.cache
    def save(name):
        theirs, folder = create(name), tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, folder, *pretrained.load(folder)

    return save


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name in CONFIGS for size in SIZES[name]]
)
def test_agrees(saved, name, size):
    theirs, _, module, variables = saved(name)
    random = np.random.default_rng(0)
    images = random.standard_normal((2, *size, theirs.config.num_channels), np.float32)
    masked = random.random((2, size[0] * size[1] // 4)) < 0.3
    masked = masked if size == (10, 10) else None
    with torch.no_grad():
        expected = theirs(
            channel_first(images), masked if masked is None else torch.from_numpy(masked)
        )
    assert_close(jax.jit(module.apply)(variables, images, masked), expected.last_hidden_state)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_opens_in_transformers(saved, tmp_path, name):
    theirs, _, module, variables = saved(name)
    again = assert_opens(theirs, module, variables, tmp_path)
    assert pretrained.load(tmp_path)[0] == module
    images = torch.randn(2, theirs.config.num_channels, 6, 10)
    with torch.no_grad():
        assert torch.equal(again(images).last_hidden_state, theirs(images).last_hidden_state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_act="relu"), "hidden_act='relu' is not supported; only 'gelu'"),
        (dict(qkv_bias=False), "qkv_bias=False"),
        (dict(use_mask_token=False), "use_mask_token=False"),
        (dict(new_entry=1), "entries that are not known here: {'new_entry': 1}"),
        (
            dict(architectures=["ViTModel"]),
            "describes 'ViTModel'; known are .*Dinov2Model, Dinov2With",
        ),
        (dict(image_size=12), "misshapen: embeddings.position_embeddings"),
        (dict(use_swiglu_ffn=True), "missing: encoder.layer.0.mlp.weights_in"),
    ],
)
def test_faults(saved, tmp_path, change, message):
    _, folder, _, _ = saved("plain")
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **change))


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_published_entries_of_registers(saved, tmp_path, offset):
    _, folder, expected, _ = saved("registers")
    with_entries(folder, tmp_path, interpolate_antialias=True, interpolate_offset=offset)
    if not offset:
        assert pretrained.load(tmp_path)[0] == expected
        return
    with pytest.raises(ValueError, match="interpolate_offset=0.1 is not supported; only 0.0"):
        pretrained.load(tmp_path)


def test_an_offset_that_transformers_cannot_say_is_named(saved, tmp_path):
    _, _, module, variables = saved("plain")
    with pytest.raises(ValueError, match="cannot be saved as Dinov2Model: position_offset=0.1"):
        pretrained.save(tmp_path / "ours", module.clone(position_offset=0.1), variables)
    assert not (tmp_path / "ours").exists()


def test_features(tmp_path):
    """The authors' protocol: antialiased bicubic to 224 pixels, ImageNet's colours, positions.

    Positions of 16 patches are interpolated with a scale factor of 16.1 over the trained number.
    """
    _, config = CONFIGS["plain"]
    torch.manual_seed(0)
    theirs = Dinov2Model(
        Dinov2Config(**TINY | dict(patch_size=14, image_size=70, num_hidden_layers=1))
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    module, variables = pretrained.load(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), np.uint8)
    interpolate = torch.nn.functional.interpolate
    resized = (
        interpolate(channel_first(pictures).float(), (224, 224), mode="bicubic", antialias=True)
        / 255
    )
    column = lambda values: torch.tensor(values)[:, None, None]
    inputs = (resized - column(COLOUR_MEAN)) / column(COLOUR_DEVIATION)
    images = pictures / np.float32(127.5) - 1
    # values reach 2.6; transformers computes positions in float32
    np.testing.assert_allclose(jax.jit(preprocess)(images), inputs.permute(0, 2, 3, 1), atol=2e-5)

    table = theirs.embeddings.position_embeddings[0]
    grid = table[1:].T.reshape(1, -1, 5, 5)
    grid = interpolate(grid, scale_factor=(16.1 / 5, 16.1 / 5), mode="bicubic")
    table = torch.cat([table[:1], grid.flatten(2)[0].T])
    theirs.embeddings.interpolate_pos_encoding = lambda *_: table[None]
    with torch.no_grad():
        expected = theirs(inputs).pooler_output
    features = jax.jit(functools.partial(dinov2_features, module))(variables, images)
    assert_close(features, expected)


def test_their_processor_agrees_on_pictures_of_its_size():
    processor = BitImageProcessor(
        size=dict(shortest_edge=224),
        crop_size=dict(height=224, width=224),
        resample=3,
        do_convert_rgb=True,
    )
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    processor.image_mean, processor.image_std = COLOUR_MEAN, COLOUR_DEVIATION
    expected = processor(list(pictures), return_tensors="pt").pixel_values.permute(0, 2, 3, 1)
    np.testing.assert_allclose(
        jax.jit(preprocess)(pictures / np.float32(127.5) - 1), expected, atol=1e-6
    )


PUBLISHED = {
    "small": dict(hidden_size=384, num_attention_heads=6),
    "base": {},
    "large": dict(hidden_size=1024, num_attention_heads=16, num_hidden_layers=24),
    "giant": dict(
        hidden_size=1536, num_attention_heads=24, num_hidden_layers=40, use_swiglu_ffn=True
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    with torch.device("meta"):
        theirs = Dinov2Model(Dinov2Config(image_size=518, **PUBLISHED[name]))
    module = getattr(dinov2, f"dinov2_{name}")()
    images = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    count = sum(a.size for a in jax.tree.leaves(variables))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
