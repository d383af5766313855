"""Prompts: encoded once, and in batches, networks and dropped conditions what they should be."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import emoji_text
from experiments.configuration.runs import build
from experiments.inputs import conditions
from genjax.data import Batches, load_dataset
from genjax.models.encoders.bert import sentence_embedding
from genjax.nn import Text
from genjax.pretrained.minilm import load_minilm
from tests.experiments import few_emoji

pytestmark = pytest.mark.slow

CHOICES = ("cross_attention", "joint_attention", "in_context")


def small(choice="cross_attention", **changes) -> ConfigDict:
    config = emoji_text.get_config(f"{choice},pixels")
    config.model.unroll = 1
    if choice == "in_context":
        config.model.update(num_single_blocks=1, num_heads=2, rotary_features=(4, 4, 8))
    else:
        config.model.update(width=32, depth=1, num_heads=2)
    config.batch_size = 4
    config.condition.update(changes)
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def dataset():
    return few_emoji.load("train")


def perturbed(task):
    """Return parameters away from the start, where the head and the modulation are zero."""
    random, params = np.random.default_rng(0), jax.jit(task.init)(jax.random.key(0)).params
    return jax.tree.map(lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), params)


def test_batches_hold_the_states_of_their_captions(dataset):
    condition = build(small(first_caption=1.0)).condition
    batch = Batches(dataset, 4, 0, transform=condition.transform(dataset))[3]
    module, variables, tokenizer = load_minilm()
    ids, mask = tokenizer.encode([dataset.captions[i][0] for i in batch["index"]], 16)
    text = jax.jit(module.apply)(variables, ids, mask)
    np.testing.assert_array_equal(batch["mask"], mask)
    # other batches of the encoder: float32 sums in another order
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(batch["tokens"], np.where(mask[..., None], text.tokens, 0))
    close(batch["pooled"], sentence_embedding(text))


def test_an_example_has_its_first_caption_as_often_as_the_config_says(dataset):
    condition = build(small(first_caption=0.5)).condition
    transform, index = condition.transform(dataset), 3
    captions = dataset.captions[index]
    embeddings, used = condition.embeddings(captions), dict.fromkeys(captions, 0)
    for seed in range(100):
        pooled = transform({"index": np.asarray(index)}, np.random.default_rng(seed))["pooled"]
        used[captions[[np.array_equal(each, pooled) for each in embeddings].index(True)]] += 1
    assert 30 < used[captions[0]] < 70  # 50 ± 5
    assert len(captions) > 2 and all(used.values())


def test_no_prompt_is_encoded_twice(dataset, monkeypatch):
    task = build(small())
    task.condition.transform(dataset), task.frozen()
    monkeypatch.setattr(conditions, "_text_encoder", None)
    task.condition.transform(dataset), task.frozen()


@pytest.mark.parametrize("choice", CHOICES)
def test_the_prompt_and_not_its_padding_reaches_the_network(choice):
    task = build(small(choice))
    (frozen,) = task.frozen()
    params, random = perturbed(task), np.random.default_rng(0)
    x, t = jnp.asarray(random.standard_normal((1, 32, 32, 3), np.float32)), jnp.array([0.6])
    network = jax.jit(lambda text: task.network.apply({"params": params}, x, t, text))
    apple, heart = (
        jax.tree.map(lambda a, i=i: jnp.asarray(a[i : i + 1]), frozen["prompts"]) for i in (3, 1)
    )
    padded = apple.replace(tokens=jnp.where(apple.mask[..., None], apple.tokens, 7.0))
    assert not np.array_equal(padded.tokens, apple.tokens)
    np.testing.assert_array_equal(network(padded), network(apple))
    assert np.abs(network(heart) - network(apple)).max() > 0.05
    # by its tokens, and not by the pooled state alone
    tokens = Text(heart.tokens, apple.pooled, heart.mask)
    assert np.abs(network(tokens) - network(apple)).max() > 0.02


def test_a_dropped_condition_is_the_empty_prompt(dataset):
    """With every prompt dropped the loss is that of empty prompts, and no other."""
    config = small()
    config.conditioning_dropout = 1.0
    task, key = build(config), jax.random.key(0)
    (frozen,) = task.frozen()
    state = jax.jit(task.init)(key).replace(params=perturbed(task))
    batch = Batches(dataset, 4, 0, transform=task.condition.transform(dataset))[0]
    loss = jax.jit(lambda batch, frozen: task.update(state, batch, key, frozen)[1]["loss"])
    empty = {
        name: np.repeat(getattr(frozen["empty"], name)[None], 4, 0)
        for name in ("tokens", "pooled", "mask")
    }
    assert loss(batch | empty, frozen) == loss(batch, frozen)
    apple = jax.tree.map(lambda a: a[3], frozen["prompts"])
    assert loss(batch, frozen | {"empty": apple}) != loss(batch, frozen)


def test_labels_stand_for_prompts():
    task = build(small())
    given = task.with_prompts(["green apple", "red heart"])
    (frozen,) = given.frozen()
    expected = replace(task.condition, prompts=("red heart",)).frozen()["prompts"]
    of_labels = given.condition.of_labels(np.array([1]), frozen)
    np.testing.assert_array_equal(of_labels.tokens, expected.tokens)
    np.testing.assert_array_equal(of_labels.pooled, expected.pooled)
    assert given.condition.num_rows == 2 and given == task  # no program is compiled again


def test_config_errors():
    config = small()
    config.model.name = "VGG16"
    with pytest.raises(ValueError, match="config.model.name is 'VGG16'"):
        build(config)
    digits = load_dataset("digits", "train")
    with pytest.raises(ValueError, match="digits has no captions"):
        build(small()).condition.transform(digits)


def letters(length):
    """A text encoder: a state of a prompt is the code of a letter, `pooled` their sum."""

    def encode(prompts):
        codes = np.array(
            [[ord(letter) for letter in prompt[:length].ljust(length)] for prompt in prompts]
        )
        tokens = codes[..., None].astype(np.float32)
        return Text(tokens, tokens.sum(1), np.ones(codes.shape, bool))

    return encode


def test_an_encoder_of_ones_own_is_a_dotted_path():
    own = dict(encoder=f"{__name__}.letters", length=3, features=1, pooled_features=1)
    condition = build(small(**own)).condition
    condition = replace(condition, prompts=("ab", "zzz"))
    prompts = condition.frozen()["prompts"]
    np.testing.assert_array_equal(prompts.tokens[..., 0], [[97, 98, 32], [122, 122, 122]])
    np.testing.assert_array_equal(prompts.pooled[:, 0], [227, 366])
    message = "config.condition.encoder is 'miniln'; did you mean 'minilm'"
    with pytest.raises(ValueError, match=message):
        replace(condition, encoder="miniln", prompts=("new",)).frozen()
