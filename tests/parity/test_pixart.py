"""PixArt compared with diffusers', through folders that either library saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.numpy import load_file

from genjax import pretrained
from genjax.models.transformers.pixart import PixArt, pixart_xl
from genjax.nn import Text

from .libraries import assert_opens, with_entries

SIZES = dict(num_attention_heads=2, num_layers=2, norm_eps=1e-6)
# As PixArt-α at 1024 pixels; as PixArt-α at 512; with all other options.
CONFIGURATIONS = {
    "with size": dict(
        attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=10,
        sample_size=128,
    ),
    "without size": dict(
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=7,
        sample_size=8,
    ),
    "odd": dict(
        num_attention_heads=3,
        attention_head_dim=4,
        in_channels=5,
        out_channels=None,
        num_layers=3,
        cross_attention_dim=12,
        caption_channels=9,
        sample_size=9,
        patch_size=3,
        interpolation_scale=2.5,
        use_additional_conditions=True,
    ),
}
SHAPES = {"with size": (6, 10), "without size": (8, 8), "odd": (9, 3)}  # of the latents


def randomized(configuration):
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(**SIZES | configuration).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = randomized(CONFIGURATIONS[request.param])
    model.save_pretrained(folder)
    return folder, model, SHAPES[request.param], *pretrained.load(folder)


def inputs(model, shape):
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape, np.float32)
    text = Text(jnp.asarray(normal(3, 6, model.config.caption_channels)))
    size = np.array([[512, 768], [1024, 1024], [300, 1200]], np.float32)
    timesteps = np.array([0, 321, 999])
    x = normal(3, *shape, model.config.in_channels)
    return x, timesteps, text, size if model.use_additional_conditions else None


def theirs(model, x, timesteps, text, size):
    conditions = dict(resolution=None, aspect_ratio=None)
    if size is not None:
        conditions = dict(
            resolution=torch.from_numpy(size),
            aspect_ratio=torch.from_numpy(size[:, :1] / size[:, 1:]),
        )
    with torch.no_grad():
        output = model(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            encoder_hidden_states=torch.from_numpy(np.array(text.tokens)),
            timestep=torch.from_numpy(timesteps),
            encoder_attention_mask=None
            if text.mask is None
            else torch.from_numpy(np.array(text.mask)).float(),
            added_cond_kwargs=conditions,
        ).sample
    return output.numpy().transpose(0, 2, 3, 1)


def assert_close(output, expected):
    # float32 throughout: a relative 1e-7 in each of some 30 operations, and in angles of time up to
    # 999.
    assert expected.std() > 0.1
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_outputs_agree(saved):
    _, model, shape, module, variables = saved
    x, timesteps, text, size = inputs(model, shape)
    apply = jax.jit(module.apply)
    # The prompts' numbers of tokens; the last prompt is empty.
    mask = jnp.arange(6) < jnp.array([[6], [3], [1]])
    outputs = []
    for prompts in (text, text.replace(mask=mask)):
        expected = theirs(model, x, timesteps, prompts, size)
        outputs.append(
            apply(variables, x, jnp.asarray(timesteps / 1000, jnp.float32), prompts, size)
        )
        assert_close(outputs[-1], expected)
    np.testing.assert_array_equal(
        np.abs(outputs[0] - outputs[1]).max((1, 2, 3)) > 1e-3, [False, True, True]
    )


def test_saving_what_was_loaded_changes_no_bit(saved, tmp_path):
    folder, model, _, module, variables = saved
    assert_opens(model, module, variables, tmp_path)
    name = "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / name), load_file(folder / name)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)


@pytest.mark.parametrize("with_size", [False, True])
def test_diffusers_opens_what_is_saved(tmp_path, with_size):
    module = PixArt(
        patch_size=2,
        width=12,
        depth=2,
        num_heads=3,
        base_size=4,
        interpolation_scale=1.5,
        size_conditioning=with_size,
        out_channels=6,
    )
    random = np.random.default_rng(1)
    x, t = random.standard_normal((2, 4, 8, 3), np.float32), jnp.array([0.25, 0.75])
    text = Text(jnp.asarray(random.standard_normal((2, 5, 7), np.float32)))
    size = np.array([[64, 128], [128, 64]], np.float32) if with_size else None
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t, text, size)
    variables = jax.tree.map(lambda a: 0.15 * random.standard_normal(a.shape, np.float32), shapes)
    pretrained.save(tmp_path, module, variables)
    assert pretrained.load(tmp_path)[0] == module
    model = PixArtTransformer2DModel.from_pretrained(tmp_path).eval()
    expected = theirs(model, x, np.array([250, 750]), text, size)
    assert_close(jax.jit(module.apply)(variables, x, t, text, size), expected)


@pytest.mark.parametrize(
    "side, count, options",
    [
        (64, 610_856_096, dict()),
        (128, 611_349_152, dict(size_conditioning=True)),
        (128, 610_856_096, dict()),  # as PixArt-Σ
    ],
)
def test_published_sizes_have_as_many_parameters(side, count, options):
    module = pixart_xl(side, **options)

    def init():
        size = jnp.ones((1, 2)) if module.size_conditioning else None
        text = Text(jnp.zeros((1, 3, 4096)))
        return module.init(
            jax.random.key(0), jnp.zeros((1, side, side, 4)), jnp.zeros(1), text, size
        )

    shapes = jax.eval_shape(init)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count
    with torch.device("meta"):
        model = PixArtTransformer2DModel(
            sample_size=side,
            caption_channels=4096,
            use_additional_conditions=module.size_conditioning,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert (module.base_size, module.interpolation_scale) == (
        model.pos_embed.base_size,
        model.pos_embed.interpolation_scale,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without size")
    randomized(CONFIGURATIONS["without size"]).save_pretrained(folder)
    return folder


def test_the_published_class_name_is_known(folder, tmp_path):
    legacy = dict(num_vector_embeds=None, double_self_attention=False, use_linear_projection=False)
    former = with_entries(folder, tmp_path, _class_name="Transformer2DModel", **legacy)
    assert pretrained.load(former)[0] == pretrained.load(folder)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("caption_channels", None),
        ("norm_type", "ada_norm_zero"),
        ("norm_eps", 1e-5),
        ("cross_attention_dim", 17),
        ("attention_bias", False),
        ("unheard_of", 1),
    ],
)
def test_unsupported_entries_are_named(folder, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"cannot be read as PixArtTransformer2DModel: .*{name}"):
        pretrained.load(with_entries(folder, tmp_path, **{name: value}))


def test_what_diffusers_cannot_have_is_refused(tmp_path):
    variables = {"params": {"text_in": {"kernel": np.zeros((7, 1))}}}
    with pytest.raises(ValueError, match="mlp_ratio=3"):
        pretrained.save(tmp_path, pixart_xl(64, mlp_ratio=3.0), variables)
    with pytest.raises(ValueError, match="time_scale=1.0"):
        pretrained.save(tmp_path, pixart_xl(64, time_scale=1.0), variables)
