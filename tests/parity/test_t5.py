"""Small random encoders of T5 and UMT5, saved by transformers and loaded here, and back.

Measured: states differ by at most 2e-6 of the largest.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
    UMT5Config,
    UMT5EncoderModel,
    UMT5ForConditionalGeneration,
    UMT5Model,
)
from transformers.models.t5.modeling_t5 import T5Attention

from genjax import pretrained
from genjax.models.encoders.t5 import relative_buckets

from .libraries import assert_opens, with_entries

VOCABULARY, LENGTH = 23, 37
SIZES = dict(
    vocab_size=VOCABULARY,
    d_model=20,
    d_kv=6,
    d_ff=28,
    num_layers=3,
    num_heads=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
)
T5, UMT5 = (T5EncoderModel, T5Config), (UMT5EncoderModel, UMT5Config)
MODELS = {
    "T5": (*T5, dict(feed_forward_proj="relu", layer_norm_epsilon=1e-3)),
    "T5 version 1.1": (*T5, dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "T5 with SiLU": (*T5, dict(feed_forward_proj="gated-silu", tie_word_embeddings=False)),
    "UMT5": (*UMT5, dict(d_kv=8, num_layers=2)),
    "UMT5 with ReLU": (*UMT5, dict(feed_forward_proj="relu", d_kv=4)),
}
# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def create(kind, config, entries):
    """Return a network whose weights keep activations in scale, with active norms and biases."""
    torch.manual_seed(0)
    model = kind(config(**SIZES | entries)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "norm" in name else 0.0
            deviation = parameter.shape[-1] ** -0.5
            if "norm" in name:
                deviation = 0.3
            elif "relative_attention_bias" in name or "shared" in name:
                deviation = 1.0
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH), np.int32)


def run(model, tokens, mask=None):
    inputs = {} if mask is None else dict(attention_mask=torch.tensor(mask).int())
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), **inputs).last_hidden_state


def assert_close(ours, theirs):
    # A few layers in float32, each rounded by about 1e-7 relative.
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape and theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", MODELS)
def test_agrees(name, tokens, tmp_path):
    theirs = create(*MODELS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs")
    mask, apply = np.arange(LENGTH) < np.array([[4], [30]]), quick_jit(module.apply)
    assert_close(apply(variables, tokens), run(theirs, tokens))
    assert_close(apply(variables, tokens, mask), run(theirs, tokens, mask))
    again = assert_opens(theirs, module, variables, tmp_path / "ours")
    torch.testing.assert_close(run(again, tokens, mask), run(theirs, tokens, mask), rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind", [T5Model, T5ForConditionalGeneration, UMT5Model, UMT5ForConditionalGeneration]
)
def test_the_encoder_of_a_whole_model(kind, tokens, tmp_path):
    encoder, config = T5 if kind.__name__.startswith("T5") else UMT5
    theirs = create(kind, config, dict(num_layers=1, num_decoder_layers=1))
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs")
    if kind.__name__.endswith("Generation"):  # both kinds have the same encoder
        assert_close(quick_jit(module.apply)(variables, tokens), run(theirs.encoder, tokens))
    pretrained.save(tmp_path / "ours", module, variables)
    again = encoder.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(run(again, tokens), run(theirs.encoder, tokens), rtol=0, atol=0)


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 20), (64, 256)])
def test_buckets_agree(num_buckets, max_distance):
    relative = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    expected = T5Attention._relative_position_bucket(
        relative, num_buckets=num_buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(relative_buckets(600, num_buckets, max_distance), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    create(*MODELS["T5"]).save_pretrained(folder)
    return folder


def test_either_name_of_the_embeddings_or_both(folder, tmp_path):
    _, expected = pretrained.load(folder)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    path, tensors = tmp_path / "model.safetensors", load_file(folder / "model.safetensors")
    both = tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}
    other = {name: tensor for name, tensor in both.items() if name != "shared.weight"}
    for names in (both, other):
        save_file(names, path, metadata={"format": "pt"})
        jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path)[1], expected)
    both["encoder.embed_tokens.weight"] = 2 * tensors["shared.weight"]
    save_file(both, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError,
        match=r"unusable: shared.weight \(23, 20\) and 1 more.*: copy 1 differs from copy 0",
    ):
        pretrained.load(tmp_path)


def test_bfloat16_weights_are_kept_bitwise(tokens, tmp_path):
    theirs = create(*MODELS["T5 version 1.1"]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs", param_dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype(ml_dtypes.bfloat16)}
    again = assert_opens(theirs, module, variables, tmp_path / "ours")
    assert again.dtype == torch.bfloat16
    # Both sides compute in float32 with bfloat16 weights.
    assert_close(quick_jit(module.apply)(variables, tokens), run(theirs.float(), tokens))


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"architectures": ["GPT2Model"]}, "describes 'GPT2Model'; known are .*T5EncoderModel, "),
        ({"rotary": 2}, r"entries that are not known here: \{'rotary': 2\}"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh' is not supported"),
        ({"dense_act_fn": "silu"}, "dense_act_fn='silu' is not supported; only None, 'relu'"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"num_layers": 4}, "missing: encoder.block.3.layer.0.SelfAttention.k.weight"),
        (
            {"architectures": ["UMT5EncoderModel"]},
            "missing: encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
    ],
)
def test_faults_are_named(entries, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **entries))


def test_decoders_are_extra_in_an_encoder(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors") | {"decoder.x": np.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"extra: decoder.x \(2,\)"):
        pretrained.load(tmp_path)
