"""LTX-2's connectors compared with diffusers', through folders, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from genjax import pretrained
from genjax.models.encoders.ltx2_connectors import ltx_2_0_connectors, ltx_2_3_connectors
from genjax.pretrained.safetensors_io import open_tensors

from .libraries import assert_opens, entries_of, with_entries
from .test_ltx2 import randomized

LENGTH, STATES, FEATURES = 12, 3, 12
OF_BOTH = dict(num_attention_heads=2, attention_head_dim=6, num_layers=2, num_learnable_registers=4)
SIZES = {f"{s}_connector_{name}": n for s in ("video", "audio") for name, n in OF_BOTH.items()} | (
    dict(caption_channels=FEATURES, text_proj_in_factor=STATES, rope_type="split")
)
GATED = dict.fromkeys(
    ("video_gated_attn", "audio_gated_attn", "per_modality_projections", "proj_bias"), True
)
VERSIONS = {
    "2.0": dict(video_connector_attention_head_dim=6),
    "2.3": dict(video_connector_attention_head_dim=8, video_hidden_dim=16, audio_hidden_dim=12)
    | GATED,
}


@pytest.fixture(scope="module", params=VERSIONS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = randomized(LTX2TextConnectors(**SIZES | VERSIONS[request.param]))
    model.save_pretrained(folder)
    module, variables = pretrained.load(folder)
    return folder, model, module, variables


def test_texts_agree_and_depend_on_padding_alone_by_its_length(saved):
    _, model, module, variables = saved
    random = np.random.default_rng(0)
    states = 1 + random.standard_normal((3, LENGTH, STATES, FEATURES), np.float32)
    mask = np.arange(LENGTH) >= np.array([[0], [5], [9]])  # padding comes before a text
    with torch.no_grad():
        stacked = torch.from_numpy(states).transpose(2, 3).flatten(2)
        *expected, seen = model(stacked, torch.from_numpy(mask).long(), padding_side="left")
    assert seen.all()
    apply = jax.jit(module.apply)
    outputs = apply(variables, states, mask)
    for name, theirs in zip(("video", "audio"), expected, strict=True):
        ours, theirs = outputs[name].tokens, theirs.numpy()
        assert outputs[name].mask is None and ours.dtype == jnp.float32
        assert ours.shape == theirs.shape and theirs.std() > 0.5
        # float32 on both sides; angles up to 15,708 are rounded to 5e-4.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    others = apply(variables, np.where(mask[..., None, None], states, 7), mask)
    for name in outputs:
        np.testing.assert_array_equal(others[name].tokens, outputs[name].tokens)


def test_saving_what_was_loaded_changes_no_bit(saved, tmp_path):
    folder, model, module, variables = saved
    back = assert_opens(model, module, variables, tmp_path)
    before, after = open_tensors(folder), open_tensors(tmp_path)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name, strict=True)
    assert entries_of(back) == entries_of(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rope_type", "interleaved"), ("proj_bias", None), ("audio_connector_num_layers", 3)]
    + [("connector_rope_base_seq_len", 2048), ("video_connector_num_learnable_registers", 6)],
)
def test_unsupported_entries_are_named(saved, tmp_path, name, value):
    value = not saved[2].gated if value is None else value
    name_in_error = name.replace("video_connector_num_l", "audio_connector_num_l")
    message = f"cannot be read as LTX2TextConnectors: .*{name_in_error}"
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(saved[0], tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("build", "count"),
    [(ltx_2_0_connectors, 1_431_475_200), (ltx_2_3_connectors, 3_172_227_584)],
)
def test_published_sizes_have_as_many_parameters(build, count):
    module = build()
    states, mask = jnp.zeros((1, 128, 49, 3840)), jnp.ones((1, 128), bool)
    shapes = jax.eval_shape(module.init, jax.random.key(0), states, mask)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count


def test_texts_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="take a multiple of num_registers=128"):
        jax.eval_shape(
            ltx_2_0_connectors().init,
            jax.random.key(0),
            jnp.zeros((1, 100, 49, 3840)),
            jnp.ones((1, 100), bool),
        )
