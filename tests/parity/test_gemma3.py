"""Small random text models of Gemma 3, saved by transformers and loaded here, and back.

Measured: states differ by at most 2e-6 of the largest.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from genjax import pretrained
from genjax.models.encoders import gemma3
from genjax.pretrained.gemma3 import GEMMA3

from .libraries import assert_opens, with_entries

VOCABULARY, LENGTH, WINDOW = 23, 13, 4
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=12,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=20,
    sliding_window=WINDOW,
    query_pre_attn_scalar=5,
)
VISION = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
STRETCHED = dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000.0))


def with_pictures(**sizes):
    return transformers.Gemma3Config(
        text_config=sizes, vision_config=VISION | dict(image_size=8, patch_size=4)
    )


MODELS = {
    "text": (transformers.Gemma3TextModel, transformers.Gemma3TextConfig, {}),
    "stretched": (
        transformers.Gemma3TextModel,
        transformers.Gemma3TextConfig,
        dict(rope_parameters=STRETCHED, layer_types=["sliding_attention", "full_attention"])
        | dict(num_hidden_layers=2),
    ),
    "head": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, {}),
    "pictures": (transformers.Gemma3ForConditionalGeneration, with_pictures, {}),
}


@functools.cache
def create(name):
    """Return a model with active norms, whose activations keep their scale."""
    kind, config, entries = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**SIZES | entries)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            deviation = 0.3 if "norm" in path else parameter.shape[-1] ** -0.5
            parameter.copy_(deviation * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(1, VOCABULARY, (2, LENGTH), np.int32)


def run(model, tokens, mask=None):
    inputs = {} if mask is None else dict(attention_mask=torch.tensor(mask).int())
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor(tokens).long(), output_hidden_states=True, **inputs)
    return torch.stack(outputs.hidden_states).numpy()


def assert_close(ours, theirs):
    # A few layers in float32, each rounded by about 1e-7 relative.
    assert ours.shape == theirs.shape and theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_embeddings_scale_has_the_type_of_the_weights(tokens, tmp_path):
    """transformers rounds √12 to 3.46875 in bfloat16; a folder's type is chosen as it is read."""
    theirs = copy.deepcopy(create("stretched")).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    module, variables = pretrained.load(tmp_path, param_dtype=jnp.bfloat16)
    ours = module.apply(variables, jnp.asarray(tokens))[0]
    with torch.no_grad():
        expected = theirs.get_input_embeddings()(torch.tensor(tokens)).float().numpy()
    np.testing.assert_array_equal(ours.astype(jnp.bfloat16).astype(jnp.float32), expected)


@pytest.mark.parametrize("name", MODELS)
def test_all_states_agree_also_beyond_the_window_and_after_padding(name, tokens, tmp_path):
    theirs = create(name)
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    module, variables = pretrained.load(tmp_path)
    mask, apply = np.arange(LENGTH) >= np.array([[9], [2]]), jax.jit(module.apply)
    assert_close(apply(variables, tokens), run(theirs, tokens))
    ours = np.asarray(apply(variables, tokens, mask))
    assert_close(ours[:, mask], run(theirs, tokens, mask)[:, mask])
    assert np.isfinite(ours).all()


@pytest.mark.parametrize(
    "changed", [dict(window=LENGTH), dict(theta=100.0), dict(global_theta=10.0)], ids=str
)
def test_what_the_two_kinds_of_layers_have_of_their_own_matters(changed, tokens, tmp_path):
    theirs = create("text")
    theirs.save_pretrained(tmp_path)
    module, variables = pretrained.load(tmp_path)
    other = jax.jit(module.clone(**changed).apply)(variables, tokens)
    assert np.abs(other - run(theirs, tokens)).max() > 1e-3


@pytest.mark.parametrize("name", ["text", "stretched"])
def test_what_is_saved_opens_in_transformers(name, tokens, tmp_path):
    theirs = create(name)
    theirs.save_pretrained(tmp_path / "theirs")
    again = assert_opens(theirs, *pretrained.load(tmp_path / "theirs"), tmp_path / "ours")
    np.testing.assert_array_equal(run(again, tokens), run(theirs, tokens))


@pytest.mark.parametrize("build", [gemma3.Gemma3_1B, gemma3.Gemma3_4B, gemma3.Gemma3_12B])
def test_published_sizes_have_transformers_parameters(build):
    module = build()
    config = transformers.Gemma3TextConfig(**GEMMA3.write(module, {}))
    with torch.device("meta"):
        theirs = transformers.Gemma3TextModel(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(GEMMA3.shapes(module, {})))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(layer_types=["full_attention"]), "layer_types has 1 values; num_hidden_layers=7"),
        (dict(layer_types=["chunked"] * 7), "layer_types='chunked' is not supported; only"),
        (
            dict(rope_parameters=dict(full_attention=dict(rope_type="yarn"))),
            "rope_type='yarn' is not supported; only 'default', 'linear'",
        ),
        (
            dict(rope_parameters=None, rope_scaling=dict(type="linear", factor=8.0)),
            r"has {'type'}; only factor, rope_theta, rope_type",
        ),
        (dict(rope_parameters=dict(rope_theta=1.0)), "rope_parameters='rope_theta' is not supp"),
        (dict(use_bidirectional_attention=True), "use_bidirectional_attention=True is not supp"),
    ],
)
def test_faults_are_named(entries, message, tmp_path):
    create("text").save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(tmp_path / "theirs", tmp_path / "ours", **entries))
