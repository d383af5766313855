"""Tasks over a tokenizer's codes: first losses, samples, guidance, probabilities, and refusals."""

import functools
import itertools
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments.configuration.runs import build
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import training_batches
from experiments.launch.encoding import write
from experiments.tasks.masked_tokens import MaskedTokens
from experiments.tasks.next_scale import NextScale
from experiments.tasks.token_autoregression import TokenAutoregression
from experiments.tasks.tokens import TokenTask
from genjax import autoregression
from genjax.data import load_dataset, to_float
from genjax.data.sets.latents import parts_of, write_latents, write_summary
from genjax.devices import make_mesh
from genjax.diffusion import sample_keys
from genjax.models.autoregressive.llamagen import LlamaGen
from tests.experiments.launching import ROOT, arrays_of, run
from tests.experiments.small_tokenizer import VOCABULARY, batch, save, small_config

KEY, LENGTH = jax.random.key(1), 4
CHOICES = ("vq_transformer", "maskgit", "masked_diffusion", "uniform_diffusion")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder)
    return folder


@functools.cache
def trained_a_little(choice, tokenizer):
    """Return a small task, its config, its state after a few steps, and its losses."""
    config = small_config(choice, tokenizer)
    task = build(config)
    frozen, losses = task.frozen(), []
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    for step in range(10):
        state, metrics = update(state, batch(), jax.random.fold_in(KEY, step), *frozen)
        losses.append(float(metrics["loss"]))
    return task, config, state, losses


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_the_first_loss_is_that_of_equally_likely_codes(choice, tokenizer):
    """ln 3 nats per token; then the loss falls. Diffusion's is too noisy to tell in few steps.

    MaskGIT's first logits are small but not 0. Stratified times of 16 examples of 4 tokens have a
    standard deviation of about 15 %.
    """
    _, _, _, losses = trained_a_little(choice, tokenizer)
    rtol = {"vq_transformer": 1e-5, "maskgit": 0.05}.get(choice, 0.5)
    assert losses[0] == pytest.approx(np.log(VOCABULARY), rel=rtol)
    if "diffusion" not in choice:
        assert np.mean(losses[-3:]) < 0.9 * np.log(VOCABULARY)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_samples_depend_on_their_own_index_and_their_film_ends_in_them(choice, tokenizer):
    task, config, state, _ = trained_a_little(choice, tokenizer)
    generate = jax.jit(task.generate, static_argnames=("weights", "trajectory"))
    inputs, labels = task.sampling_inputs(config.sampling), np.full(8, 3)
    film = lambda indices: np.asarray(
        generate(state, KEY, labels, indices, *inputs, weights="ema", trajectory=True)
    )
    frames = film(np.arange(8))
    assert frames.shape == (3 if choice == "vq_transformer" else 4, 8, 4, 4, 3)
    np.testing.assert_allclose(film(np.arange(7, -1, -1))[:, ::-1], frames, atol=1e-6)
    assert np.any(frames[-1] != frames[-1, :1])
    if choice != "uniform_diffusion":  # which starts from codes
        np.testing.assert_array_equal(frames[0], 0)
    if choice == "vq_transformer":
        np.testing.assert_array_equal(frames[1][:, 2:], 0)  # the second row of codes
        assert np.all(np.any(frames[1][:, :2] != 0, axis=(1, 2, 3)))


def of_classes(state):
    """Return the state with blocks and label embeddings that make classes differ much."""

    def enlarge(path, a):
        name = jax.tree_util.keystr(path)
        if "label_embedding" in name:
            return 30 * a
        return 5 * a if "blocks" in name and "kernel" in name else a

    return state.replace(params=jax.tree_util.tree_map_with_path(enlarge, state.params))


def two_calls(task, state, labels):
    """Return a function of tokens that gives conditional and unconditional logits."""
    network = jax.jit(lambda tokens, labels: task._apply(state.params)(tokens, labels))
    null = np.full_like(labels, task.condition.num_classes)
    return lambda tokens: (network(tokens, labels), network(tokens, null))


def sampling(config, **changes):
    config = config.copy_and_resolve_references()
    config.sampling.update(changes)
    return config.sampling


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_a_guided_causal_network_is_two_calls_without_a_cache(temperature, tokenizer):
    """With random weights, for which the filter once excluded the second most likely token."""
    config = small_config("vq_transformer", tokenizer)
    task, random = build(config), np.random.default_rng(0)
    state, options = jax.jit(task.init)(jax.random.key(0)), dict(temperature=temperature, top_k=2)
    disturb = lambda a: a + np.float32(0.3) * random.standard_normal(a.shape, np.float32)
    state = state.replace(params=jax.tree.map(disturb, state.params))
    labels, keys = np.arange(40) % 10, sample_keys(KEY, jnp.arange(40))
    law = task.token_sampler(sampling(config, guidance_scale=2.5, **options))
    null = task.condition.num_classes
    drawn = jax.jit(task.decode)(state.params, keys, jnp.asarray(labels), null, law)
    both, tokens = two_calls(task, state, labels), jnp.zeros((40, LENGTH), jnp.int32)
    for place in range(LENGTH):
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        c, u = (logits[:, place] for logits in both(tokens))
        token = autoregression.sample(folded, u + 2.5 * (c - u), temperature, top_k=2)
        tokens = tokens.at[:, place].set(token)
    np.testing.assert_array_equal(drawn, tokens)


def test_guided_masked_decoding_is_two_calls_with_a_scale_that_grows_from_1(tokenizer):
    task, config, state, _ = trained_a_little("maskgit", tokenizer)
    state, labels, indices = of_classes(state), np.arange(40) % 10, jnp.arange(40)
    options = sampling(config, guidance_scale=2.5, num_steps=3, temperature=0.7, top_k=2)
    both = two_calls(task, state, labels)
    inputs = task.sampling_inputs(options)
    images = jax.jit(task.generate)(state, KEY, labels, indices, *inputs)

    def predict(tokens, share):
        c, u = both(tokens)
        return u + (1 + 1.5 * share[:, None, None]) * (c - u)

    tokens = jax.jit(
        lambda keys, masks: autoregression.maskgit(
            keys, predict, masks, VOCABULARY,
            np.array([[0, 0, 1, 2, 3], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]]),  # of 4·cos(πk/6)
            4.5 * np.array([2 / 3, 1 / 3, 0]),
            functools.partial(autoregression.sample, temperature=0.7, top_k=2),
        )
    )(sample_keys(KEY, indices), jnp.full((40, LENGTH), VOCABULARY))  # fmt: skip
    expected = task.space.decode(task.space.layout.codes(tokens), *task.frozen())
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_masked_decoding_at_a_scale_of_0_is_unconditional_from_the_first_step_on(tokenizer):
    task, config, state, _ = trained_a_little("maskgit", tokenizer)
    inputs = task.sampling_inputs(sampling(config, guidance_scale=0.0))
    generate = jax.jit(task.generate)
    one, another = (
        generate(of_classes(state), KEY, jnp.full(40, label), jnp.arange(40), *inputs)
        for label in (3, 7)
    )
    np.testing.assert_allclose(one, another, atol=1e-5)


def test_reconstructions_are_of_the_nearest_codes(tokenizer):
    """Evaluators are given them; the tokenizer's own network makes them in one call."""
    task, config, state, _ = trained_a_little("vq_transformer", tokenizer)
    images, space = batch()["image"], task.space
    made = task.functions(state, config.sampling)["reconstruct"](images)
    network, variables = space.autoencoder.network, space.autoencoder.variables()
    expected = jax.jit(network.apply)(variables, to_float(images))
    np.testing.assert_allclose(made.astype(int), space.to_data(expected).astype(int), atol=1)


def test_probabilities_sum_to_1_and_samples_are_as_frequent(tokenizer):
    """All 81 sequences of 4 codes of 3. The chi-square test has a level of 0.1 %.

    Drawing equally likely sequences instead fails it with certainty.
    """
    task, config, state, _ = trained_a_little("vq_transformer", tokenizer)
    sequences = np.array(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    labels = jnp.full(81, 7)
    nats = jax.jit(task.log_probability)(state.params, sequences, labels)
    probabilities = np.exp(np.asarray(nats, np.float64).sum(axis=1))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    count = 8100
    keys, law = (
        sample_keys(KEY, jnp.arange(count)),
        task.token_sampler(sampling(config, guidance_scale=1.0)),
    )
    labels = jnp.full(count, 7)
    drawn = jax.jit(task.decode)(state.params, keys, labels, task.condition.num_classes, law)
    frequencies = np.bincount(np.asarray(drawn) @ VOCABULARY ** np.arange(3, -1, -1), minlength=81)
    chi_square = lambda p: np.sum((frequencies - count * p) ** 2 / (count * p))
    assert chi_square(probabilities) < 124.8  # of 80 degrees of freedom
    assert chi_square(1 / 81) > 1000


def test_probabilities_of_a_network_in_bfloat16_are_computed_in_float32():
    random = np.random.default_rng(0)
    logits = jnp.asarray(5 * random.standard_normal((2, 4, 1000)), jnp.bfloat16)
    tokens = jnp.asarray(random.integers(0, 1000, (2, 4)))
    network = SimpleNamespace(
        _apply=lambda params: lambda tokens, condition: logits,
        _of_quantizer=lambda frozen, method: lambda tokens: tokens,
    )
    exact = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    expected = np.take_along_axis(exact, np.asarray(tokens)[..., None], -1)[..., 0]
    for found in (
        TokenAutoregression.log_probability(network, None, tokens, None),
        NextScale.log_probability(network, None, tokens, None, None),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)  # bfloat16 has 3 digits


def test_the_loss_is_of_mirrored_examples_with_some_conditions_dropped():
    """A stand-in for mirroring changes the signs of codes. The share is within 4.5 deviations."""
    codes, labels, seen = jnp.arange(3000)[:, None], jnp.ones(3000, int), []

    def losses(params, key, tokens, condition, frozen):
        seen.extend((tokens, condition))
        return jnp.array([1.0, 2.0])

    task = SimpleNamespace(
        _mirrored=lambda batch, key: batch | {"image": -batch["image"]},
        condition=SimpleNamespace(of_batch=lambda batch: labels, null=lambda frozen: 9),
        space=SimpleNamespace(
            feature="image", encode=lambda x, frozen: x, layout=SimpleNamespace()
        ),
        dropout_rate=0.3,
        losses=losses,
    )
    task.space.layout.sequence = lambda codes: codes + 1
    loss, _ = TokenTask._loss(task, None, {"image": codes}, KEY, None)
    (tokens, condition), share = seen, np.mean(seen[1] == 9)
    assert loss == 1.5 and set(np.unique(condition)) == {1, 9}
    np.testing.assert_array_equal(tokens, 1 - codes)
    assert abs(share - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / 3000)


def test_masked_tokens_are_predicted_from_the_others():
    """The network's logits do not depend on tokens, so the masks that it sees tell the loss."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 3, (5, 8)))
    table, seen = jnp.asarray(np.random.default_rng(1).standard_normal((8, 3), np.float32)), []

    def network(tokens, condition):
        seen.append(np.asarray(tokens))
        return jnp.broadcast_to(table, (5, 8, 3))

    task = SimpleNamespace(
        network=SimpleNamespace(mask_token=3),
        _apply=lambda params: network,
        length=8,
        label_smoothing=0.1,
    )
    losses = MaskedTokens.losses(task, None, KEY, tokens, None)
    (seen,) = seen
    masked = seen == 3
    np.testing.assert_array_equal(seen[~masked], tokens[~masked])
    assert 1 <= masked.sum(1).min() and masked.sum(1).max() <= 8 and not masked.all()
    nats = scipy.special.log_softmax(table, axis=-1)
    target = 0.9 * np.eye(3)[tokens] + 0.1 / 3
    expected = [-(nats * t).sum(-1)[m].mean() for t, m in zip(target, masked, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_captions_condition_as_a_prefix(tokenizer, monkeypatch):
    """Encoded prompts are random here; the samples of two prompts differ, those of one do not."""
    monkeypatch.setattr(Prompts, "frozen", random_prompts)
    config = small_config("vq_transformer_text", tokenizer)
    config.sampling.temperature = 0.0
    task = build(config)
    frozen = task.frozen()[0]
    texts = jax.tree.map(lambda a: jnp.resize(a, (16, *a.shape[1:])), frozen["prompts"])
    encoded = dict(tokens=texts.tokens, pooled=texts.pooled, mask=texts.mask)
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    for step in range(3):
        state, metrics = update(state, batch() | encoded, jax.random.key(step), frozen)
    assert np.isfinite(metrics["loss"])
    apply = jax.jit(task._apply(state.params))
    tokens, first = jnp.zeros((10, LENGTH), jnp.int32), lambda a: a[:10]
    logits = apply(tokens, jax.tree.map(first, texts))
    assert np.any(np.abs(logits[0] - logits[1]) > 1e-3)
    inputs = task.sampling_inputs(config.sampling)
    labels = np.array([0, 1, 0])
    images = jax.jit(task.generate)(state, KEY, labels, np.arange(3), *inputs)
    np.testing.assert_array_equal(images[0], images[2])


def random_prompts(prompts):
    """Return what encoded prompts would be, of random states."""
    random, length = np.random.default_rng(0), len(prompts.prompts)
    text = jax.tree.map(
        lambda a: random.standard_normal((length, *a.shape[1:]), np.float32), prompts.example()
    )
    text = text.replace(mask=np.arange(prompts.length) < 3 + np.arange(length)[:, None])
    return {"empty": jax.tree.map(lambda a: a[0], text), "prompts": text}


class OtherGrid(LlamaGen):
    """A network whose maker sets the grid itself."""

    def __post_init__(self):
        self.grid = (3, 3)
        super().__post_init__()


class OneLogit(LlamaGen):
    """A network that returns one number for each token."""

    @nn.compact
    def __call__(self, tokens, condition):
        return tokens[..., None] * self.param("scale", nn.initializers.ones, ())


HERE = "tests.experiments.tasks.test_token_tasks"


@pytest.mark.parametrize(
    ("choice", "changes", "words"),
    [
        ("vq_transformer", dict(space__name="Pixels"), "'Pixels', which has no codes; take 'Tok"),
        ("vq_transformer", dict(model__name="MaskGIT"), "has no prefill and no step; a Sequence"),
        ("maskgit", dict(model__name="LlamaGen"), "which has no mask_token; a MaskedNetwork"),
        ("vq_transformer", dict(model__vocabulary=9), "model.vocabulary is set, which LlamaGen"),
        (
            "vq_transformer",
            dict(model__name=f"{HERE}.OtherGrid"),
            r"the tokenizer has grid \(2, 2\), and the OtherGrid \(3, 3\): set the network's grid",
        ),
        (
            "vq_transformer",
            dict(model__name=f"{HERE}.OneLogit"),
            r"OneLogit, which returns \[1, 4, 1\] of tokens \[1, 4\]; .* are \[1, 4, 3\]",
        ),
        ("vq_transformer", dict(sampling__temperature=-0.1), "temperature is at least 0"),
        ("vq_transformer", dict(sampling__top_k=4), "top_k is from 1 to the vocabulary's 3 tokens"),
        ("maskgit", dict(sampling__top_p=0.0), "top_p is above 0 and at most 1; got 0.0"),
        ("maskgit", dict(sampling__num_steps=5), "4 tokens are revealed in 1 to 4 steps; got num"),
        ("maskgit", dict(sampling__schedule="cos"), "sampling.schedule is 'cos'; .* cosine, linea"),
        ("vq_transformer_text", dict(prefix__length=8), "takes 8 states of a text; got 16"),
        ("vq_transformer_text", dict(condition__prompts=("cat", " ")), "prompts .* is empty; give"),
        ("vq_transformer_text", dict(condition__length=0), "condition.length is 0"),
        ("maskgit", dict(prefix__name="TextPrefix"), "MaskGIT, which cannot be applied to tokens"),
    ],
)
def test_mistakes_are_named_before_any_compute(choice, changes, words, tokenizer):
    config = small_config(choice, tokenizer)
    for path, value in changes.items():
        part, field = path.split("__")
        config[part].unlock()
        if part == "space":
            config.space = dict(name=value)
        else:
            config[part][field] = value
    with pytest.raises(ValueError, match=words):
        build(config)


def test_a_network_without_a_prefix_has_at_least_the_classes_of_the_condition(tokenizer):
    config = small_config("maskgit", tokenizer)
    config.model.update(name="HaltonMaskGIT", num_classes=9)
    with pytest.raises(ValueError, match="num_classes 9, .* 10: set config.model.num_classes"):
        build(config)
    config.model.num_classes = 10
    assert build(config).network.num_classes == 10


def test_an_empty_prompt_is_refused_when_sampling(tokenizer):
    task = build(small_config("vq_transformer_text", tokenizer))
    with pytest.raises(ValueError, match="prompts .'red apple', ''. is empty"):
        task.with_prompts(["red apple", ""])


@pytest.mark.parametrize("space", ["Tokens", "Latents"])
def test_codes_on_disk_of_another_vocabulary_are_refused(space, tokenizer, tmp_path):
    """Their grid may still be the tokenizer's, and codes are no latents."""
    config = small_config("vq_transformer", tokenizer)
    task = build(config)
    codes, labels = np.full((16, 2, 2), 4, np.int32), np.zeros(16, np.int32)
    list(write_latents(parts_of(tmp_path, "train", 16), lambda rows: (codes, labels)))
    facts = dict(shape=(2, 2), splits={"train": 16}, num_classes=10, class_names=[])
    write_summary(tmp_path, facts | dict(vocabulary=5))
    config.data.train_split = "train"
    own = VOCABULARY if space == "Tokens" else None
    task = replace(task, space=SimpleNamespace(directory=tmp_path, vocabulary=own))
    with pytest.raises(ValueError, match=f"a vocabulary of 5, and the autoencoder .* has {own}"):
        training_batches(config, task, None)


@pytest.mark.slow
def test_a_run_resumes_and_is_sampled_with_flags(tokenizer, tmp_path):
    """From a copy of a run as it was after two of its four steps."""
    fields = dict(
        {"data.name": "tests.experiments.few_emoji.load", "space.run": "", "num_steps": 4},
        **{"space.published": tokenizer, "model.width": 16, "model.depth": 1, "model.unroll": 1},
        **{"optimizer.schedule": "constant", "optimizer.warmup": 0, "batch_size": 8},
        **{"sampling.every": 0, "sampling.per_class": 1, "checkpoint.every": 2, "log_every": 1},
        **{"evaluation.num_samples": 20, "snapshot_every": 0},
    )

    def train(name, **changes):
        flags = [f"--config.{field}={value}" for field, value in (fields | changes).items()]
        config = f"--config={ROOT}/configs/emoji_tokens.py:maskgit"
        result = run("train", config, f"--workdir={tmp_path / name}", *flags)
        assert result.returncode == 0, result.stderr
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows if "loss" in row]

    losses = train("once", **{"evaluation.measures": {"samples": "Samples"}})
    copy = shutil.copytree(tmp_path / "once", tmp_path / "twice")
    shutil.rmtree(copy / "checkpoints/00000004")
    rows = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    two = [row for row in rows if json.loads(row)["step"] <= 2]
    (copy / "metrics.jsonl").write_text("".join(two))
    assert len(losses) == 4 and train("twice", **{"evaluation.measures": {}}) == losses
    report = json.loads((tmp_path / "once/report.json").read_text())
    assert {"frechet_distance", "schedule", "guidance_scale", "temperature"} <= report.keys()
    assert (tmp_path / "once/decoding.gif").exists()
    sample = functools.partial(run, "sample", f"--workdir={tmp_path / 'once'}", "--classes=3")
    greedy = sample("--temperature=0", "--num_steps=1", "--count=3", f"--out={tmp_path / 'a.npz'}")
    assert "temperature 0.0" in greedy.stdout, greedy.stderr
    images = arrays_of(tmp_path / "a.npz")["images"]
    np.testing.assert_array_equal(images[1:], images[:1].repeat(2, 0))
    refused = sample("--top_k=4")
    assert refused.returncode == 1 and "the vocabulary's 3 tokens; got 4" in refused.stderr


@pytest.mark.slow
def test_codes_on_disk_are_those_of_the_step(tokenizer, tmp_path):
    """They are of emoji and their mirror images. A step on them has the loss of one on images."""
    config = small_config("vq_transformer", tokenizer)
    config.data.update(image_shape=(32, 32, 3), flip=True, train_split="train[:64]")
    encoded = config.copy_and_resolve_references()
    encoded.space.directory = str(tmp_path / "codes")
    write(encoded)
    task, on_disk = build(config), build(encoded)
    (frozen,) = task.frozen()
    dataset, rows = load_dataset("emoji", "train[:64]"), np.arange(16)
    codes = load_dataset("latents", "train[:64]", tmp_path / "codes").source
    summary = json.loads((tmp_path / "codes/latents.json").read_text())
    assert summary["vocabulary"] == VOCABULARY and "mean" not in summary
    images = np.stack([dataset.source[int(row)]["image"] for row in rows])
    of_images = jax.jit(task.space.encode)(images, frozen)
    of_mirrored = jax.jit(task.space.encode)(images[:, :, ::-1], frozen)
    np.testing.assert_array_equal(codes[rows]["image"], of_images)
    np.testing.assert_array_equal(codes[64 + rows]["image"], of_mirrored)
    assert len(np.unique(of_images)) == VOCABULARY

    mesh = make_mesh({"data": 1}, 16)
    batch = training_batches(encoded, on_disk, mesh)[0]
    assert batch["image"].dtype == np.int32
    state = jax.jit(task.init)(jax.random.key(0))
    losses = [
        jax.jit(each.update)(state, batch, jax.random.key(1), frozen)[1]["loss"]
        for each, batch in (
            (on_disk, {"image": codes[rows]["image"], "label": rows % 10}),
            (replace(task, flip=False), {"image": images, "label": rows % 10}),
        )
    ]
    assert losses[0] == losses[1]
