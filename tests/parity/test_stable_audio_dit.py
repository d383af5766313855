"""Stable Audio's transformer compared with diffusers', through folders, in both directions."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from genjax import pretrained
from genjax.models.transformers.stable_audio_dit import StableAudioDiT
from genjax.nn import Text
from genjax.pretrained.safetensors_io import open_tensors

from .libraries import entries_of, with_entries

FRAMES, TOKENS = 11, 7
SIZES = dict(num_layers=2, time_proj_dim=6, sample_size=16) | dict(
    global_states_input_dim=10, cross_attention_input_dim=5
)
CONFIGURATIONS = {
    "grouped": dict(num_attention_heads=4, num_key_value_attention_heads=2, attention_head_dim=8)
    | dict(in_channels=3, out_channels=3, cross_attention_dim=16),
    "equal": dict(num_attention_heads=3, num_key_value_attention_heads=3, attention_head_dim=16)
    | dict(in_channels=4, out_channels=2, cross_attention_dim=48),
}


def randomized(configuration):
    torch.manual_seed(0)
    model = diffusers.StableAudioDiTModel(**configuration, **SIZES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            offset = name.endswith("weight") and ".norm" in name
            parameter.copy_(offset + scale * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = randomized(CONFIGURATIONS[request.param])
    model.save_pretrained(folder)
    module, variables = pretrained.load(folder)
    return folder, model, module, variables, jax.jit(module.apply)


def inputs(channels, mask):
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal((2, *shape), np.float32))
    mask = jnp.arange(TOKENS) < jnp.array([[7], [4]]) if mask else None
    return (
        normal(FRAMES, channels),
        jnp.array([0.3, 0.95]),
        Text(normal(TOKENS, 5), normal(10), mask),
    )


def theirs(model, x, t, text):
    tensor = lambda a: torch.from_numpy(np.array(a))
    size = model.config.attention_head_dim // 2
    positions = dict(use_real=True, repeat_interleave_real=False)
    mask = None
    if text.mask is not None:
        mask = tensor(text.mask)[:, None].repeat(1, FRAMES + 1, 1)
    with torch.no_grad():
        (output,) = model(
            tensor(x).swapaxes(1, 2),
            tensor(t),
            tensor(text.tokens),
            tensor(text.pooled)[:, None],
            get_1d_rotary_pos_embed(size, FRAMES + 1, **positions),
            encoder_attention_mask=mask,
            return_dict=False,
        )
    return output.swapaxes(1, 2).numpy()


def assert_close(ours, theirs):
    assert theirs.std() > 0.1 and ours.shape == theirs.shape and ours.dtype == jnp.float32
    # float32 on both sides; measured 3e-6 of the largest value.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("mask", [True, False], ids=["masked", "whole"])
def test_outputs_agree(saved, mask):
    _, model, module, variables, apply = saved
    x, t, text = inputs(model.config.in_channels, mask)
    outputs = apply(variables, x, t, text)
    assert_close(outputs, theirs(model, x, t, text))
    # Every input matters, so that none can be left out on both sides.
    pooled, tokens = (text.replace(**{n: getattr(text, n)[::-1]}) for n in ("pooled", "tokens"))
    for other in ((x[:, ::-1], t, text), (x, t[::-1], text), (x, t, pooled), (x, t, tokens)):
        assert np.abs(apply(variables, *other) - outputs).max() > 1e-2


def test_saving_what_was_loaded_changes_no_bit(saved, tmp_path):
    folder, model, module, variables, _ = saved
    pretrained.save(tmp_path, module, variables, sample_size=16)
    again = type(model).from_pretrained(tmp_path)
    assert entries_of(again) == entries_of(model)
    before, after = open_tensors(folder), open_tensors(tmp_path)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name, strict=True)


def test_diffusers_opens_what_is_saved(tmp_path):
    sizes = dict(num_heads=4, num_kv_heads=1, text_width=8, time_features=4)
    module = StableAudioDiT(width=32, depth=1, **sizes)
    arguments, random = inputs(3, mask=False), np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    pretrained.save(tmp_path, module, variables)
    assert pretrained.load(tmp_path)[0] == module.clone(out_channels=3)
    model = diffusers.StableAudioDiTModel.from_pretrained(tmp_path).eval()
    assert_close(jax.jit(module.apply)(variables, *arguments), theirs(model, *arguments))


def test_unsupported_entries_are_named(saved, tmp_path):
    message = "cannot be read as StableAudioDiTModel: .*'rotary_embed_dim': 4"
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(saved[0], tmp_path, rotary_embed_dim=4))


def test_the_published_size_has_as_many_parameters():
    def init():
        text = Text(jnp.zeros((1, 3, 768)), jnp.zeros((1, 1536)))
        return StableAudioDiT().init(jax.random.key(0), jnp.zeros((1, 5, 64)), jnp.zeros(1), text)

    assert sum(a.size for a in jax.tree.leaves(jax.eval_shape(init))) == 1_056_939_136
