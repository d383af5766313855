"""Measures of the literature, of a stand-in's features; and of a small CLIP with random weights."""

import hashlib
import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from configs import (
    digits_flow,
    digits_gan,
    digits_vae,
    emoji_text,
    gaussians_gan,
    video_autoencoder,
)
from experiments.evaluation.context import Context
from experiments.evaluation.features import networks, scores
from experiments.evaluation.features.scores import PretrainedFeatures
from experiments.inputs.conditions import Classes, Prompts
from experiments.inputs.datasets import Data
from experiments.launch.experiment import Experiment
from genjax import pretrained
from genjax.data import load_dataset, to_float
from genjax.models.encoders.clip import CLIP, CLIPText, CLIPVision, resize_and_crop
from genjax.training.workdir import Config
from tests.experiments.stand_in import (
    MATRIX,
    SHAPE,
    WIDTH,
    dataset_of,
    features_and_logits,
    network_of,
    pictures,
    random_variables,
)

DATA = Data("mine", "train", "test", None, SHAPE)
CONTEXT = Context(DATA, None, Classes(10), 100)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(networks, "BATCH", 16)
    scores._reference.cache_clear()


@pytest.fixture
def load(monkeypatch):
    """Puts a network in the place of those that are read from files."""

    def load(network, name="inception"):
        monkeypatch.setattr(scores, "load_network", lambda name, path: network)
        monkeypatch.setitem(scores.LOADERS, name, lambda path: network)

    return load


@pytest.fixture
def splits(monkeypatch, load):
    """Data sets in place of those there are, by split."""
    splits = {"train": dataset_of(pictures(61, 0)), "test": dataset_of(pictures(43, 1, 50), "test")}
    monkeypatch.setattr(scores, "load_dataset", lambda name, split, directory: splits[split])
    load(network_of())
    return splits


def frechet_by_square_root(a, b):
    """As published: Heusel et al. 2017."""
    roots = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * roots)


def kernel_by_loops(a, b):
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3
    within = lambda x: np.mean([kernel(p, q) for p, q in itertools.permutations(x, 2)])
    return within(a) + within(b) - 2 * np.mean([kernel(p, q) for p, q in itertools.product(a, b)])


def share_within_balls(a, b):
    """The share of a in balls around b that reach to the third neighbour in b."""
    distances = lambda x, y: np.linalg.norm(x[:, None] - y, axis=-1)
    radii = np.sort(distances(b, b), axis=1)[:, 3]
    return (distances(a, b) <= radii).any(axis=1).mean()


def scores_by_probabilities(logits):
    scores = []
    for i in range(10):
        p = np.exp(logits[i * len(logits) // 10 : (i + 1) * len(logits) // 10])
        p /= p.sum(1, keepdims=True)
        scores.append(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    return np.mean(scores), np.std(scores)


def expected_measures(images, reference):
    (a, logits), (b, _) = features_and_logits(images), features_and_logits(reference)
    return {
        "fid": frechet_by_square_root(a, b),
        "kid": kernel_by_loops(a, b),
        "inception_precision": share_within_balls(a, b),
        "inception_recall": share_within_balls(b, a),
        "inception_score": scores_by_probabilities(logits)[0],
        "inception_score_deviation": scores_by_probabilities(logits)[1],
    }


# Features are float32, of order 1, and what is compared is of order 1 to 100.
close = lambda expected: pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("named", "split", "expected"),
    [(None, None, "train"), ("test", "train", "test"), (None, "test", "test")],
)
def test_all_measures_agree_with_their_formulas(named, split, expected, splits):
    """On numbers of images that are no multiple of a batch, with the split that is named."""
    images = pictures(37, 2, 0, 200)
    measure = PretrainedFeatures(
        CONTEXT, inception="weights.npz", reference={"split": named} if named else {}
    )
    report = measure.measure(images, split=split)
    reference = splits[expected]
    measured = {name for name in report if not name.endswith(("_protocol", "_extrapolated"))}
    assert {name: report[name] for name in measured} == close(
        expected_measures(images, reference.source.arrays["image"])
    )
    protocol = report["inception_protocol"]
    for fact in (
        "a stand-in",
        "SHA-256 abc",
        "37 samples of 4×4×1, rounded to bytes",
        "not at all",
        "10 parts",
        "3 neighb",
    ):
        assert fact in protocol
    assert f"all {len(reference.source)} images of mine ({reference.split})" in protocol
    assert "(x·y/5 + 1)³, unbiased, over all pairs" in protocol


def test_dinov2_has_names_of_its_own(splits, load):
    apply = network_of().apply
    load(network_of(apply=lambda *arguments: (apply(*arguments)[0], None)), "dinov2")
    report = PretrainedFeatures(CONTEXT, dinov2="folder").measure(pictures(20, 2))
    names = {"fd_dinov2", "kd_dinov2", "dinov2_precision", "dinov2_recall", "dinov2_protocol"}
    assert report.keys() == names | {"fd_dinov2_extrapolated"}
    features = [features_and_logits(images)[0] for images in (pictures(20, 2), pictures(61, 0))]
    assert report["fd_dinov2"] == close(frechet_by_square_root(*features))


def test_a_reference_of_another_name_is_refused():
    """Nothing would read it, and the training split would be the reference."""
    with pytest.raises(ValueError, match="reference has inceptoin; expected split, inception, "):
        PretrainedFeatures(CONTEXT, reference={"inceptoin": "published.npz", "split": "test"})


def test_without_weights_nothing_is_measured():
    assert PretrainedFeatures(CONTEXT).measure(pictures(20, 2)) == {}


@pytest.mark.parametrize("with_images", [False, True])
def test_published_statistics(with_images, splits, tmp_path):
    """Moments as they stand; what needs features is of the images in the file, or left out."""
    path, images, published = tmp_path / "published.npz", pictures(37, 2), pictures(50, 5, 100)
    features, _ = features_and_logits(pictures(400, 4, 20))
    arrays = dict(mu=features.mean(0), sigma=np.cov(features.T), mu_s=np.zeros(3))
    np.savez(path, **arrays, **({"arr_0": published} if with_images else {}))
    measure = PretrainedFeatures(
        CONTEXT, inception="weights.npz", reference={"inception": str(path)}
    )
    report = measure.measure(images)
    assert report["fid"] == close(frechet_by_square_root(features_and_logits(images)[0], features))
    assert "do not say of which images" in report["inception_protocol"]
    if with_images:
        expected = expected_measures(images, published)
        for name in ("kid", "inception_precision", "inception_recall"):
            assert report[name] == close(expected[name])
        assert "50 reference images" in report["inception_protocol"]
    else:
        assert report.keys() == {
            "fid",
            "fid_extrapolated",
            "inception_score",
            "inception_score_deviation",
            "inception_protocol",
        }


def test_distances_at_infinitely_many_samples_have_no_bias(splits, tmp_path):
    """Statistics are the exact moments of the uniform pixels that samples have."""
    path, variance = tmp_path / "published.npz", (256**2 - 1) / 12 / 127.5**2
    np.savez(path, mu=np.zeros(WIDTH), sigma=variance * MATRIX.T @ MATRIX)
    options = dict(inception="weights.npz", reference={"inception": str(path)}, resamples=100)
    report = PretrainedFeatures(CONTEXT, **options).measure(pictures(400, 2))
    assert abs(report["fid_extrapolated"]) < report["fid"] / 2
    low, high = report["fid_interval"]
    assert low < report["fid_extrapolated"] < high and low < 0 < high < 3 * report["fid"]
    with pytest.raises(ValueError, match="an interval of 5 features needs 20 samples; .* is 19"):
        PretrainedFeatures(replace(CONTEXT, num_samples=19), **options)
    few = PretrainedFeatures(CONTEXT, **options | dict(resamples=0)).measure(pictures(19, 2))
    assert "fid_extrapolated" not in few


def test_images_that_are_resized_are_prepared_for_the_reference_too(splits):
    """Resized and cropped; samples of another size are refused."""
    large = pictures(30, 0, shape=(8, 12, 1)) // 2 + 60
    splits["train"] = dataset_of(large)
    box = large.reshape(30, 4, 2, 6, 2, 1).mean((2, 4))[:, :, 1:5]  # rounded to bytes
    context = replace(CONTEXT, data=replace(DATA, resize=True))
    measure = PretrainedFeatures(context, inception="weights.npz")
    report = measure.measure(pictures(25, 3))
    exact = frechet_by_square_root(
        features_and_logits(pictures(25, 3))[0], features_and_logits(box)[0]
    )
    assert report["fid"] == pytest.approx(exact, rel=0.01)
    assert "prepared: shorter side to 4, middle 4×4" in report["inception_protocol"]
    message = r"samples have shape \(8, 8, 1\), reference images of mine .train. \(4, 4, 1\)"
    with pytest.raises(ValueError, match=message):
        measure.measure(pictures(25, 3, shape=(8, 8, 1)))


PROMPTS = ("red apple", "blue book", "green car", "blue apple", "red car")
PROMPTED = replace(CONTEXT, condition=Prompts("minilm", 16, 384, 384, 1.0, PROMPTS))


@pytest.fixture
def clip_folder(tmp_path):
    words = ["[END]", *"red blue green apple book car".split(), "[UNK]"]
    library = Library(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    shared = dict(width=8, depth=1, num_heads=2, shared_features=6)
    text = CLIPText(**shared, vocabulary_size=8, max_length=4, end_token=0)
    module = CLIP(text, CLIPVision(**shared, patch_size=4, image_size=8))
    variables = random_variables(module, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4), int))
    pretrained.save(tmp_path / "clip", module, variables)
    library.save(str(tmp_path / "clip/tokenizer.json"))
    (tmp_path / "clip/tokenizer_config.json").write_text(json.dumps(dict(pad_token="[END]")))
    return tmp_path / "clip", module, variables


def test_clip_score(clip_folder):
    folder, module, variables = clip_folder
    measure = PretrainedFeatures(PROMPTED, clip=str(folder))
    count, images = 23, pictures(23, 0, shape=(1, 1, 3)).repeat(12, axis=1).repeat(8, axis=2)
    prompts = [PROMPTS[i % 5] for i in range(count)]
    report = measure.measure(images, prompts)
    tokens = [
        ["", "red", "blue", "green", "apple", "book", "car"].index(word)
        for word in " ".join(prompts).split()
    ]
    tokens = jnp.pad(jnp.array(tokens).reshape(count, 2), ((0, 0), (0, 2)))

    @jax.jit
    def embedded(variables, images):
        resized = resize_and_crop(to_float(images), 8)
        both = (("embed_images", resized), ("embed_text", tokens))
        return [module.apply(variables, x, method=method) for method, x in both]

    of_images, of_text = map(np.float64, embedded(variables, images))
    cosines = (of_images * of_text).sum(1)
    assert cosines.min() < -0.1 and cosines.max() > 0.1  # clipping matters
    assert report["clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), rel=1e-4)
    others = 100 * np.maximum((of_images * np.roll(of_text, 1, 0)).sum(1), 0).mean()
    assert abs(report["clip_score"] - others) > 0.05  # each is scored by its own
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for fact in (digest, "23 samples", "max(100·cosine, 0)", "nothing before"):
        assert fact in report["clip_protocol"]
    grey = measure.measure(images[..., :1], prompts)["clip_score"]
    assert grey == measure.measure(np.repeat(images[..., :1], 3, -1), prompts)["clip_score"]


class Drawer:
    """A model that draws numbers, each from its prompt and the seed."""

    sampling = Config(seed=6)

    def __init__(self):
        self.calls = []

    def sample(self, labels, prompts, seed):
        self.calls.append((len(prompts), seed))
        return np.array([hash((prompts[i], seed)) % 2**16 for i in labels])


def test_prompts_are_sampled_in_parts_with_seeds_of_their_own(monkeypatch):
    """Samples are in the order of their prompts, which repeat; parts have one shape."""
    monkeypatch.setattr(scores, "PROMPTS", 4)
    captioned = replace(
        dataset_of(pictures(5, 0), "test"), captions=[(prompt, "a synonym") for prompt in PROMPTS]
    )
    monkeypatch.setattr(Data, "held_out", lambda data: captioned)
    monkeypatch.setattr(
        PretrainedFeatures,
        "measure",
        lambda self, images, prompts: dict(images=images, prompts=prompts),
    )
    model, order = Drawer(), np.random.default_rng(0).permutation(5)
    report = PretrainedFeatures(replace(PROMPTED, num_samples=11))(model)
    assert report["prompts"] == [PROMPTS[order[i % 5]] for i in range(11)]
    expected = [hash((prompt, 6 + i // 4)) % 2**16 for i, prompt in enumerate(report["prompts"])]
    assert report["images"].tolist() == expected
    assert model.calls == [(4, 6), (4, 7), (4, 8)]
    assert report["features_prompts"] == "5 held-out prompts for 11 samples"


def with_features(config, **weights):
    config.evaluation.measures.features = dict(name="PretrainedFeatures", **weights)
    return config


@pytest.mark.parametrize("run", [digits_flow, digits_gan, digits_vae])
def test_samples_of_every_task_are_measured(run, monkeypatch, load):
    """On the digits; training ones are nearer to training ones than held-out ones are to them."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(64, 12)) / 8, jnp.float32)

    def apply(matrix, images):
        features = to_float(images).reshape(len(images), -1) @ matrix
        return features, features

    load(network_of(variables=matrix, apply=apply))
    monkeypatch.setattr(networks, "BATCH", 500)
    config = with_features(run.get_config(), inception="weights.npz")
    config.evaluation.num_samples = 300
    measures = {
        measure.name: measure.evaluator for measure in Experiment.from_config(config).measures
    }
    fids = {}
    for split in ("train", "test"):
        images = load_dataset("digits", split).source[:300]["image"]
        model = Config(sample=lambda labels, images=images: images[: len(labels)])
        report = measures["features"](model)
        assert "300 samples" in report["inception_protocol"]
        assert "1437 images of digits (train)" in report["inception_protocol"]
        fids[split] = report["fid"]
    assert 0 < fids["train"] < fids["test"]


@pytest.mark.parametrize(
    ("run", "what"),
    [(gaussians_gan, r"'image' and .*image_shape \(2,\)"), (video_autoencoder, "'video' and")],
)
def test_what_is_no_picture_is_not_measured(run, what):
    config = with_features(run.get_config(), inception="weights.npz")
    words = f"inception, which measure pictures; config.data.feature is {what}"
    with pytest.raises(ValueError, match=words):
        Experiment.from_config(config)


def test_what_is_missing_is_an_error_before_training(tmp_path):
    config = with_features(
        digits_flow.get_config(), inception=str(tmp_path / "nowhere.safetensors")
    )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Experiment.from_config(config)
    with pytest.raises(
        ValueError, match="has clip, which scores pictures by their prompts.*leave it out"
    ):
        Experiment.from_config(with_features(digits_flow.get_config(), clip=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="config.json"):
        Experiment.from_config(
            with_features(emoji_text.get_config("cross_attention,pixels"), clip=str(tmp_path))
        )


def test_a_tower_alone_gives_no_score(clip_folder, tmp_path):
    _, module, variables = clip_folder
    pretrained.save(tmp_path / "text", module.text, {"params": variables["params"]["text"]})
    with pytest.raises(ValueError, match="holds a CLIPText alone"):
        networks.load_network("clip", str(tmp_path / "text"))
