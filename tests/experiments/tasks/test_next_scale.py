"""The task of next-scale prediction: its loss, its samples scale by scale and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import emoji_autoencoder
from experiments.configuration import base
from experiments.configuration.runs import build
from experiments.inputs import autoencoders
from experiments.inputs.conditions import Prompts
from genjax.data import load_dataset
from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.nn.quantizers import VectorQuantizer

SIZE, KEY, SIDES, CODES = 16, jax.random.key(1), (1, 2, 4), 8
LENGTH = 1 + 4 + 16


@functools.cache
def tokenizer(scales=True):
    """Return a tokenizer of digits with random weights, and its variables."""
    quantizer = MultiScaleQuantizer(CODES, 3, SIDES) if scales else VectorQuantizer(CODES, 3)
    module = VQModel(
        quantizer, encoder_channels=4, widths=(4, 4), blocks=0, groups=2, mid_attention=False,
        image_channels=1,
    )  # fmt: skip
    random = np.random.default_rng(0)
    draw = lambda a: (
        random.standard_normal(a.shape, np.float32) * max(np.prod(a.shape[:-1]), 1) ** -0.5
    )
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return module, jax.tree.map(draw, shapes)


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Let "scales" and "grid" be folders of published tokenizers."""
    monkeypatch.setattr(autoencoders, "_published", lambda name: tokenizer(name == "scales"))


def small_config():
    config = base.tokens("small", "NextScale", name="digits", image_shape=(8, 8, 1))
    config.space = base.tokenizer(published="scales")
    config.model = dict(name="VAR", width=16, depth=1, num_heads=2)
    config.batch_size = SIZE
    config.optimizer.update(schedule="constant", warmup=0.0, learning_rate=3e-2)
    config.sampling.guidance_scale = 2.0
    return config


def batch():
    digits = load_dataset("digits").source[np.arange(SIZE)]
    return {name: jnp.asarray(digits[name]) for name in ("image", "label")}


@functools.cache
def trained_a_little():
    """Return a small task, its state after twenty steps, and the metrics of each."""
    task = build(small_config())
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    rows = []
    for step in range(20):
        key = jax.random.fold_in(KEY, step)
        state, metrics = update(state, batch(), key, *task.frozen())
        rows.append(jax.device_get(metrics))
    return task, state, rows


generate = jax.jit(
    lambda task, state, *args, **options: task.generate(state, KEY, *args, **options),
    static_argnums=0,
    static_argnames=("weights", "trajectory"),
)


def inputs(**changes):
    config = small_config()
    config.sampling.update(changes)
    return build(config).sampling_inputs(config.sampling)


@pytest.mark.slow
def test_the_first_loss_is_that_of_equally_likely_codes_and_falls():
    """ln 8 nats a token, since logits are 0 at first."""
    _, _, rows = trained_a_little()
    assert rows[0]["loss"] == pytest.approx(np.log(CODES), rel=1e-5)
    assert rows[-1]["loss"] < 0.8 * np.log(CODES)


@pytest.mark.slow
def test_a_token_depends_on_coarser_maps_and_its_class_alone():
    """Change the tokens of one map: the probabilities of it and of coarser ones stay."""
    task, state, _ = trained_a_little()
    tokens = np.random.default_rng(0).integers(0, CODES, (1, LENGTH))
    changed = np.repeat(tokens, 4, axis=0)
    starts = [0, 1, 5, LENGTH]
    for row, (start, end) in enumerate(zip(starts, starts[1:], strict=False), 1):
        changed[row, start:end] = (changed[row, start:end] + 1) % CODES
    probabilities = jax.jit(task.log_probability)
    nats = np.asarray(probabilities(state.params, changed, np.zeros(4, int), *task.frozen()))
    for row, (start, end) in enumerate(zip(starts, starts[1:], strict=False), 1):
        np.testing.assert_allclose(nats[row, :start], nats[0, :start], atol=1e-6)
        assert np.all(np.abs(nats[row, end:] - nats[0, end:]) > 1e-6)


@pytest.mark.slow
def test_samples_depend_on_their_own_index_and_their_film_is_that_of_sums_of_maps():
    task, state, _ = trained_a_little()
    options = inputs()
    images = np.asarray(generate(task, state, jnp.arange(3), jnp.arange(3), *options))
    others = jnp.array([9, 1, 0]), jnp.array([7, 1, 0])
    film = np.asarray(generate(task, state, *others, *options, trajectory=True))
    assert images.shape == (3, 8, 8, 1) and film.shape == (3, 3, 8, 8, 1)
    np.testing.assert_allclose(film[-1, 1], images[1], atol=1e-5)
    assert np.abs(images[0] - images[2]).max() > 1e-2


@pytest.mark.slow
def test_greedy_samples_are_the_most_likely_tokens_of_guided_logits():
    """The uncached network agrees on these tokens, with scales 1, 1.5 and 2 of the three maps."""
    task, state, _ = trained_a_little()
    module, variables = tokenizer()
    labels = jnp.array([3, 5])
    film = generate(task, state, labels, jnp.arange(2), *inputs(temperature=0.0), trajectory=True)
    apply = jax.jit(functools.partial(task.network.apply, {"params": state.params}))
    of_quantizer = lambda method, *args: module.apply(
        variables, *args, method=lambda m, *args: getattr(m.quantizer, method)(*args)
    )
    tokens = jnp.zeros((2, LENGTH), int)
    for start, end, scale in ((0, 1, 1.0), (1, 5, 1.5), (5, LENGTH, 2.0)):
        seen = of_quantizer("inputs", tokens)
        conditional, null = (apply(seen, label) for label in (labels, jnp.full(2, 10)))
        best = jnp.argmax(null + scale * (conditional - null), axis=-1)
        tokens = tokens.at[:, start:end].set(best[:, start:end])
    for frame, total in zip(film, of_quantizer("sums", tokens), strict=True):
        expected = module.apply(variables, total, method="decode")
        np.testing.assert_allclose(frame, expected, atol=1e-5)


@pytest.mark.slow
def test_at_a_scale_of_0_no_map_sees_the_class():
    task, state, _ = trained_a_little()
    sample = lambda label: generate(
        task, state, jnp.full(8, label), jnp.arange(8), *inputs(guidance_scale=0.0)
    )
    np.testing.assert_allclose(sample(3), sample(5), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(space=dict(name="Pixels")), "'Pixels', which has no codes; take 'Tokens'"),
        (dict(space__published="grid"), r"has codes of one grid \(4, 4\), and a NextScale task"),
        (dict(model__name="VARR"), "config.model.name is 'VARR'.*VAR"),
        (dict(model__sides=(1, 4)), "sides"),
        (dict(model__num_heads=3), "num_heads is 3 and config.model.width 16"),
        (dict(sampling__temperature=-1.0), "temperature is at least 0"),
        (dict(sampling__top_k=9), "top_k is from 1 to the vocabulary's 8 tokens; got 9"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    config = small_config()
    for path, value in changes.items():
        *part, field = path.split("__")
        (config[part[0]] if part else config)[field] = value
    with pytest.raises(ValueError, match=words):
        build(config)


def test_a_quantizer_whose_last_side_is_not_its_latents_is_named():
    config = emoji_autoencoder.get_config("scales_adversarial")
    config.model.quantizer.sides = (1, 2, 4)
    with pytest.raises(ValueError, match=r"takes latents \(4, 4, 8\); got \(8, 8, 8\)"):
        build(config)


def test_captions_condition_samples(monkeypatch):
    """Encoded prompts are random here; the samples of two prompts differ, those of one do not."""
    monkeypatch.setattr(Prompts, "frozen", random_prompts)
    config = small_config()
    config.model.of_text, config.sampling.temperature = True, 0.0
    config.condition = dict(name="Prompts", encoder="minilm", length=3, first_caption=1.0)
    config.condition.update(features=4, pooled_features=5, prompts=("a cat", "a dog"))
    task = build(config)
    frozen = task.frozen()[0]
    texts = jax.tree.map(lambda a: jnp.resize(a, (SIZE, *a.shape[1:])), frozen["prompts"])
    encoded = dict(tokens=texts.tokens, pooled=texts.pooled, mask=texts.mask)
    state, update = jax.jit(task.init)(KEY), jax.jit(task.update)
    for step in range(3):
        state, _ = update(state, batch() | encoded, jax.random.key(step), frozen)
    labels, inputs = np.array([0, 1, 0]), task.sampling_inputs(config.sampling)
    images = jax.jit(task.generate)(state, KEY, labels, np.arange(3), *inputs)
    np.testing.assert_array_equal(images[0], images[2])
    assert np.abs(images[0] - images[1]).max() > 1e-3


def random_prompts(prompts):
    """Return what encoded prompts would be, of random states."""
    random, shape = np.random.default_rng(0), (len(prompts.prompts),)
    text = jax.tree.map(
        lambda a: random.standard_normal((*shape, *a.shape[1:]), np.float32), prompts.example()
    )
    text = text.replace(mask=np.ones((*shape, prompts.length), bool))
    return {"empty": jax.tree.map(lambda a: 0 * a[0], text), "prompts": text}
