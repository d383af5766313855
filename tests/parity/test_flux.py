"""FLUX.1 compared with diffusers', through folders, in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

from genjax import pretrained
from genjax.models.transformers.flux import Flux
from genjax.nn import Text
from genjax.pretrained.flux import FLUX
from genjax.pretrained.lora import apply_lora, load_lora
from genjax.pretrained.safetensors_io import open_tensors

from .libraries import assert_opens, entries_of, with_entries

BATCH, LENGTH, TEXT, POOLED = 2, 3, 12, 10
SMALL = dict(
    in_channels=12,
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=12,
    num_attention_heads=2,
    joint_attention_dim=TEXT,
    pooled_projection_dim=POOLED,
    axes_dims_rope=(2, 4, 6),
)
# As schnell; as dev; as Fill, whose input has more channels than its output; without one kind of
# blocks.
CONFIGURATIONS = {
    "schnell": SMALL,
    "dev": SMALL | dict(guidance_embeds=True, axes_dims_rope=(4, 4, 4)),
    "fill": SMALL | dict(in_channels=20, out_channels=8, num_layers=1, num_single_layers=1),
    "in_context": SMALL | dict(num_layers=0, num_attention_heads=3),
    "two_streams": SMALL | dict(num_single_layers=0),
}
SIDES = (6, 10)


def randomized(configuration):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**configuration).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_((".norm_" in name) + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return model


def inputs(configuration):
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal((BATCH, *shape), np.float32)
    x = normal(*SIDES, configuration["in_channels"] // 4)
    text = Text(jnp.asarray(normal(LENGTH, TEXT)), jnp.asarray(normal(POOLED)))
    guidance = jnp.array([1.0, 3.5]) if configuration.get("guidance_embeds") else None
    return jnp.asarray(x), jnp.array([0.3, 0.9]), text, guidance


def output_of_theirs(model, x, t, text, guidance):
    """Call the network as the pipeline does, with its packing and positions."""
    tensor = lambda a: None if a is None else torch.from_numpy(np.array(a))
    height, width, channels = x.shape[1:]
    latents = tensor(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        packed = model(
            FluxPipeline._pack_latents(latents, BATCH, channels, height, width),
            tensor(text.tokens),
            tensor(text.pooled),
            tensor(t),
            FluxPipeline._prepare_latent_image_ids(
                BATCH, height // 2, width // 2, "cpu", torch.float32
            ),
            torch.zeros(text.tokens.shape[1], 3),
            tensor(guidance),
        ).sample
    output = FluxPipeline._unpack_latents(packed, height * 8, width * 8, 8)
    return output.permute(0, 2, 3, 1).numpy()


def assert_close(ours, theirs):
    assert theirs.std() > 0.1 and ours.shape == theirs.shape and ours.dtype == jnp.float32
    # float32 on both sides. Sinusoids of angles up to 3500 err by 2e-4; the largest error is
    # 1.3e-5.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For a configuration: diffusers' network, its folder, and the module loaded from it."""

    @functools.cache
    def save(name):
        theirs, folder = randomized(CONFIGURATIONS[name]), tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return theirs, folder, *pretrained.load(folder)

    return save


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_theirs_through_ours_and_back(saved, tmp_path, name):
    theirs, folder, ours, variables = saved(name)
    arguments = inputs(CONFIGURATIONS[name])
    assert_close(jax.jit(ours.apply)(variables, *arguments), output_of_theirs(theirs, *arguments))

    back = assert_opens(theirs, ours, variables, tmp_path)
    before, after = open_tensors(folder), open_tensors(tmp_path)
    assert before.keys() == after.keys()
    for tensor in before:
        np.testing.assert_array_equal(before[tensor], after[tensor])
    assert entries_of(back) == entries_of(theirs)


def test_ours_through_theirs(tmp_path):
    ours = Flux(
        num_double_blocks=1,
        num_single_blocks=2,
        num_heads=3,
        rotary_features=(2, 2, 4),
        takes_guidance=True,
        out_channels=5,
    )
    arguments = inputs(SMALL | dict(guidance_embeds=True))
    variables = jax.eval_shape(ours.init, jax.random.key(0), *arguments)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), variables)
    pretrained.save(tmp_path, ours, variables)
    theirs = FluxTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    assert_close(jax.jit(ours.apply)(variables, *arguments), output_of_theirs(theirs, *arguments))
    again, same = pretrained.load(tmp_path)
    assert again == ours
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_masked_padding_changes_nothing(saved):
    theirs, _, ours, variables = saved("schnell")
    x, t, text, guidance = inputs(SMALL)
    mask = jnp.array([[True, True, False]] * BATCH)
    output = jax.jit(ours.apply)(variables, x, t, text.replace(mask=mask))
    short = text.replace(tokens=text.tokens[:, :2])
    assert_close(output, output_of_theirs(theirs, x, t, short, guidance))


def test_variables_have_the_given_types(saved):
    types = lambda expected: jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16 if a.ndim > 2 else a.dtype), expected
    )
    _, variables = FLUX.load(saved("schnell")[1], types)
    assert variables["params"]["double_blocks"]["image_mlp_in"]["kernel"].dtype == jnp.bfloat16
    assert variables["params"]["head"]["bias"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch_size=2), "patch_size=2 is not supported; only 1"),
        (dict(axes_dims_rope=[4, 4, 6]), "attention_head_dim=12 is not supported; only 14"),
        (dict(in_channels=14), "in_channels=14 is not a multiple of 4"),
        (dict(out_channels=6), "out_channels=6 is not a multiple of 4"),
        (dict(theta=1000), "not known here: {'theta': 1000}"),
        (dict(guidance_embeds=True), "missing: time_text_embed.guidance_embedder.linear_1.weight"),
        (dict(num_layers=1), "extra: transformer_blocks.1.attn.add_k_proj.bias"),
        (dict(_class_name="AuraFlowTransformer2DModel"), "describes 'AuraFlowTransformer2DModel'"),
    ],
)
def test_faults(saved, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(saved("schnell")[1], tmp_path, **change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(patch_size=1), "patch_size=1 is not supported; only 2"),
        (dict(time_scale=1.0), "time_scale=1.0 is not supported; only 1000.0"),
        ({}, "the class needs pooled text; got parameters of head, modulation, patch_embedding, "),
    ],
)
def test_what_diffusers_cannot_express_is_not_saved(tmp_path, fields, message):
    ours = Flux(
        num_double_blocks=0, num_single_blocks=1, num_heads=1, rotary_features=(2, 2, 2), **fields
    )
    x, t, text, _ = inputs(SMALL)
    text = text if fields else text.replace(pooled=None)
    variables = jax.eval_shape(ours.init, jax.random.key(0), x, t, text)
    with pytest.raises(
        ValueError, match=f"this Flux cannot be saved as FluxTransformer2DModel: {message}"
    ):
        pretrained.save(tmp_path / "ours", ours, variables)
    assert not (tmp_path / "ours").exists()


def test_adapters_are_added_to_the_weights(saved, tmp_path):
    """Low-rank adapters of every kind of layer equal their sum with diffusers' weights."""
    _, _, ours, variables = saved("schnell")
    theirs = randomized(SMALL)
    tensors = {}
    with torch.no_grad():
        for name, layer in theirs.named_modules():
            if isinstance(layer, torch.nn.Linear):
                a, b = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
                tensors |= {
                    f"transformer.{name}.lora_A.weight": a,
                    f"transformer.{name}.lora_B.weight": b,
                }
                layer.weight += 0.05 * b @ a
    save_file(tensors, tmp_path / "adapters.safetensors")
    adapters = load_lora(tmp_path / "adapters.safetensors", ours, variables)
    variables = apply_lora(variables, adapters, 0.05)
    arguments = inputs(SMALL)
    assert_close(jax.jit(ours.apply)(variables, *arguments), output_of_theirs(theirs, *arguments))
