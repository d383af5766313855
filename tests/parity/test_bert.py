"""BERT compared with transformers': small random networks in saved folders, and the real MiniLM.

Measured: states and pooled vectors differ by less than 8e-7 of their largest value, and MiniLM's
similarities by less than 2e-7.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from genjax import pretrained
from genjax.models.encoders.bert import bert_base, bert_large, sentence_embedding
from genjax.pretrained.minilm import load_minilm, minilm_folder

from .libraries import assert_opens, with_entries

TINY = dict(
    vocab_size=23, hidden_size=12, num_attention_heads=3, num_hidden_layers=2, intermediate_size=20
)
CONFIGS = {
    "pooler": TINY | dict(max_position_embeddings=9, type_vocab_size=3, layer_norm_eps=1e-3),
    "no pooler": TINY
    | dict(num_hidden_layers=1, num_attention_heads=1, hidden_size=7, intermediate_size=5),
}
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def create(name):
    """Return a network with all parameters random, also norms and biases."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**CONFIGS[name]), add_pooling_layer=name == "pooler").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return model


def assert_close(ours, theirs):
    theirs = theirs.numpy()
    assert theirs.std() > 0.1 and ours.dtype == jnp.float32
    # float32 on both sides: a few layers, each rounded by about 1e-7
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    theirs, folder = create(request.param), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return request.param, theirs, *pretrained.load(folder)


def test_agrees(saved):
    name, theirs, module, variables = saved
    ids = torch.randint(TINY["vocab_size"], (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    types = torch.randint(theirs.config.type_vocab_size, (3, 7))
    apply = quick_jit(module.apply)
    for arguments in [(ids,), (ids, mask, types)] if name == "pooler" else [(ids, mask)]:
        with torch.no_grad():
            expected = theirs(*arguments)
        text = apply(variables, *(a.numpy() != 0 if a is mask else a.numpy() for a in arguments))
        assert_close(text.tokens, expected.last_hidden_state)
        if name == "pooler":
            assert_close(text.pooled, expected.pooler_output)
        else:
            assert text.pooled is None and expected.pooler_output is None


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
@pytest.mark.parametrize("former", [False, True], ids=["new names", "former names"])
def test_a_head_is_left_out(kind, former, tmp_path):
    """Published files of BERT: the earliest have TensorFlow's names of norms, also in the head."""
    torch.manual_seed(0)
    theirs = kind(BertConfig(**TINY)).eval()
    theirs.save_pretrained(tmp_path)
    theirs.bert.save_pretrained(tmp_path / "alone")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if former:
        norms = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in norms.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        save_file(tensors, path, metadata=dict(format="pt"))
    module, variables = pretrained.load(tmp_path)
    assert module.pooler == (kind is BertForPreTraining)
    expected = pretrained.load(tmp_path / "alone")
    assert module == expected[0]
    jax.tree.map(np.testing.assert_array_equal, variables, expected[1])
    save_file(tensors | {"bert.other": np.ones(1)}, path)
    with pytest.raises(ValueError, match=r"extra: bert.other \(1,\)$"):
        pretrained.load(tmp_path)


def test_what_is_saved_opens_in_transformers(saved, tmp_path):
    name, theirs, module, variables = saved
    again = assert_opens(theirs, module, variables, tmp_path, add_pooling_layer=name == "pooler")
    assert pretrained.load(tmp_path)[0] == module
    ids = torch.randint(TINY["vocab_size"], (2, 5))
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, theirs(ids).last_hidden_state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooler")
    create("pooler").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_act="relu"), "hidden_act='relu' is not supported; only 'gelu'"),
        (dict(is_decoder=True), "is_decoder=True"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key'"),
        (dict(new_entry=1), "entries that are not known here: {'new_entry': 1}"),
        (
            dict(architectures=["BertLMHeadModel"]),
            "describes 'BertLMHeadModel'; known are .*BertModel",
        ),
        (dict(num_hidden_layers=3), "missing: encoder.layer.2"),
        (dict(num_hidden_layers=1), "extra: encoder.layer.1"),
    ],
)
def test_faults(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(folder, tmp_path, **change))


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (bert_base, {}),
        (
            bert_large,
            dict(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
            ),
        ),
    ],
)
def test_published_sizes(build, sizes):
    with torch.device("meta"):
        theirs = BertModel(BertConfig(**sizes))
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(build().init, jax.random.key(0), ids)
    count = sum(a.size for a in jax.tree.leaves(variables))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


SENTENCES = [
    "a cat",
    "a kitten",
    "an airplane",
    "A red apple lies on the wooden table, and nobody eats it.",
    "grinning face with smiling eyes",
    "Zürich — naïve café, 東京!",
]


def test_minilm():
    """With the published weights, tokens, states and similarities of sentences agree."""
    module, variables, tokenizer = load_minilm()
    ids, mask = tokenizer.encode(SENTENCES, 24)
    theirs = AutoTokenizer.from_pretrained(minilm_folder())(
        SENTENCES, padding="max_length", max_length=24, return_tensors="pt"
    )
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])

    @quick_jit
    def apply(variables, ids, mask):
        text = module.apply(variables, ids, mask)
        return text, sentence_embedding(text)

    text, embeddings = apply(variables, ids, mask)
    with torch.no_grad():
        expected = BertModel.from_pretrained(minilm_folder()).eval()(**theirs)
        states, weights = expected.last_hidden_state, theirs["attention_mask"][:, :, None]
        mean = (states * weights).sum(1) / weights.sum(1)
        mean = torch.nn.functional.normalize(mean, dim=1)
    # No token attends to states at padding. These states are so sensitive that float32 errs by
    # 5e-5.
    assert_close(text.tokens[mask], states[mask])
    np.testing.assert_allclose(text.pooled, expected.pooler_output, atol=1e-5)
    # float32 on both sides
    np.testing.assert_allclose(embeddings @ embeddings.T, mean @ mean.T, atol=1e-6)
