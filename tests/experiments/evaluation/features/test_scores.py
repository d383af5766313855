"""Measures of the literature, of a stand-in's features; and of small DINOv2 and CLIP with random weights."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from conftest import ROOT
from experiments.evaluation.features.features import (
    FeatureNetwork,
    evaluate_features,
    evaluate_prompt_features,
    given_features,
    load_network,
    reference_statistics,
)
from experiments.launch.opening import Config, build
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from configs import digits_flow, digits_gan, digits_vae, emoji_text, gaussians_gan, video_autoencoder
from experiments.evaluation import feature_evaluation
from experiments.evaluation import images as evaluation
from experiments.evaluation.images import Reference
from genjax import pretrained
from genjax.data import Dataset, InMemory, load_dataset, to_float
from genjax.models.encoders.clip import CLIP, CLIPText, CLIPVision, resize_and_crop
from genjax.models.encoders.dinov2 import Dinov2, dinov2_features
from genjax.models.encoders.inception import Inception

WIDTH, SHAPE = 5, (4, 4, 1)
MATRIX = np.random.default_rng(7).normal(size=(16, WIDTH))


def stand_in(images):
    """Features and logits of bytes, in float64."""
    pixels = images.reshape(len(images), -1) / 127.5 - 1
    features = pixels @ MATRIX
    return features, 3 * features


def network_of(**changes):
    matrix = jnp.asarray(MATRIX, jnp.float32)

    def apply(matrix, images):
        features = to_float(images).reshape(len(images), -1) @ matrix
        return features, 3 * features

    fields = dict(
        description="a stand-in", resizing="not at all", weights="abc", variables=matrix, apply=apply
    )
    return FeatureNetwork(**(fields | changes))


def not_to_be_called(*_):
    raise AssertionError("features are computed again")


def pictures(count, seed, low=0, high=256, shape=SHAPE):
    return np.random.default_rng(seed).integers(low, high, (count, *shape)).astype(np.uint8)


def dataset_of(images, split="train"):
    return Dataset("mine", split, InMemory({"image": images}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_evaluation, "BATCH", 16)
    feature_evaluation._reference.cache_clear()


@pytest.fixture
def splits(monkeypatch):
    """Data sets in place of those there are, by split."""
    splits = {"train": dataset_of(pictures(61, 0)), "test": dataset_of(pictures(43, 1, 50), "test")}
    monkeypatch.setattr(feature_evaluation, "load_dataset", lambda name, split, directory: splits[split])
    monkeypatch.setattr(feature_evaluation, "load_network", lambda name, path: network_of())
    return splits


@pytest.fixture
def config():
    config = digits_flow.get_config()
    config.evaluation.features.inception = "weights.npz"
    return config


def frechet_by_square_root(a, b):
    """As published: Heusel et al. 2017."""
    roots = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * roots)


def kernel_by_loops(a, b):
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3
    within = lambda x: np.mean([kernel(p, q) for p, q in itertools.permutations(x, 2)])
    return within(a) + within(b) - 2 * np.mean([kernel(p, q) for p, q in itertools.product(a, b)])


def share_within_balls(a, b):
    """Of a, in balls around b that reach to its third neighbour."""
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
    (a, logits), (b, _) = stand_in(images), stand_in(reference)
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
    ("named", "split", "expected"), [(None, None, "train"), ("test", "train", "test"), (None, "test", "test")]
)
def test_all_measures_agree_with_their_formulas(named, split, expected, splits, config):
    """On numbers of images that are no multiple of a batch, with the split that is named."""
    config.evaluation.reference.split = named
    images = pictures(37, 2, 0, 200)
    report = evaluate_features(images, config, split=split)
    reference = splits[expected]
    assert {name: report[name] for name in report if "protocol" not in name} == close(
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


def test_dinov2_has_names_of_its_own(splits, config, monkeypatch):
    config.evaluation.features = dict(inception=None, dinov2="folder", clip=None)
    apply = network_of().apply
    without_logits = network_of(apply=lambda *arguments: (apply(*arguments)[0], None))
    monkeypatch.setattr(feature_evaluation, "load_network", lambda name, path: without_logits)
    report = evaluate_features(pictures(20, 2), config)
    names = {"fd_dinov2", "kd_dinov2", "dinov2_precision", "dinov2_recall", "dinov2_protocol"}
    assert report.keys() == names
    features = [stand_in(images)[0] for images in (pictures(20, 2), pictures(61, 0))]
    assert report["fd_dinov2"] == close(frechet_by_square_root(*features))


def test_without_weights_nothing_is_said(config):
    config.evaluation.features.inception = None
    assert evaluate_features(pictures(20, 2), config) == {}
    del config.evaluation["features"], config.evaluation["reference"]  # as runs of old have it
    assert evaluate_features(pictures(20, 2), config) == {}


def test_statistics_are_of_all_images_and_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_evaluation, "REFERENCE_FEATURES", 40)
    images = np.sort(pictures(200, 0), axis=0)  # the first are the darkest
    computed = reference_statistics(network_of(), dataset_of(images))
    features, _ = stand_in(images)
    np.testing.assert_allclose(computed.mean, features.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(computed.covariance, np.cov(features.T), rtol=1e-4, atol=1e-6)
    # a draw, without repetition
    distances = np.linalg.norm(computed.features[:, None] - features, axis=-1)
    drawn = distances.argmin(1)
    assert len(set(drawn)) == 40 and distances.min(1).max() < 1e-5
    assert drawn.min() < 50 and drawn.max() > 150
    (path,) = (tmp_path / "cache/genjax").iterdir()  # nothing unfinished is left
    assert path == computed.path
    stored = reference_statistics(network_of(apply=not_to_be_called), dataset_of(images))
    for name in ("mean", "covariance", "features"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(computed, name))
    assert stored.protocol == computed.protocol
    # of another protocol another file
    other = reference_statistics(network_of(weights="def"), dataset_of(images))
    assert other.path != path and len(list((tmp_path / "cache/genjax").iterdir())) == 2


def test_statistics_of_another_protocol_are_refused(tmp_path):
    path = tmp_path / "statistics/mine.npz"
    images = pictures(30, 0)
    reference_statistics(network_of(), dataset_of(images), path=path)
    assert (
        reference_statistics(network_of(apply=not_to_be_called), dataset_of(images), path=path).path == path
    )
    different = [
        (network_of(weights="def"), dataset_of(images), None, "weights' SHA-256: 'abc' there, 'def' now"),
        (network_of(resizing="up"), dataset_of(images), None, "resizing: 'not at all' there, 'up' now"),
        (network_of(), dataset_of(images[:29]), None, "number of images: 30 there, 29 now"),
        (network_of(), dataset_of(images, "test"), None, "split: 'train' there, 'test' now"),
        (network_of(), dataset_of(images[:, ::-1]), None, "SHA-256 of ten images"),
        (network_of(), dataset_of(images), 4, "preparation: 'none' there, 'shorter side to 4"),
    ]
    for network, dataset, size, difference in different:
        with pytest.raises(ValueError, match=f"another protocol:\n(.*\n)*  {difference}"):
            reference_statistics(network, dataset, size, path)
    np.savez(tmp_path / "other.npz", mean=np.zeros(WIDTH))
    with pytest.raises(ValueError, match="other.npz holds mean; statistics are mu and sigma"):
        reference_statistics(network_of(), dataset_of(images), path=tmp_path / "other.npz")


@pytest.mark.parametrize("with_images", [False, True])
def test_published_statistics(with_images, splits, config, tmp_path):
    """Moments as they stand; what needs features is of the images in the file, or left out."""
    path, images, published = tmp_path / "published.npz", pictures(37, 2), pictures(50, 5, 100)
    features, _ = stand_in(pictures(400, 4, 20))
    arrays = dict(mu=features.mean(0), sigma=np.cov(features.T), mu_s=np.zeros(3))
    np.savez(path, **arrays, **({"arr_0": published} if with_images else {}))
    config.evaluation.reference.inception = str(path)
    report = evaluate_features(images, config)
    assert report["fid"] == close(frechet_by_square_root(stand_in(images)[0], features))
    assert "do not say of which images" in report["inception_protocol"]
    if with_images:
        expected = expected_measures(images, published)
        for name in ("kid", "inception_precision", "inception_recall"):
            assert report[name] == close(expected[name])
        assert "50 reference images" in report["inception_protocol"]
    else:
        assert report.keys() == {"fid", "inception_score", "inception_score_deviation", "inception_protocol"}


def test_images_of_latents_are_prepared_as_they_were_encoded(splits, config):
    """Resized and cropped; samples of another size are refused."""
    config.data.name = "latents"
    config.encoding = dict(name="mine", train_split="train", directory=None, size=4)
    large = pictures(30, 0, shape=(8, 12, 1)) // 2 + 60
    splits["train"] = dataset_of(large)
    box = large.reshape(30, 4, 2, 6, 2, 1).mean((2, 4))[:, :, 1:5]  # rounded to bytes
    report = evaluate_features(pictures(25, 3), config)
    exact = frechet_by_square_root(stand_in(pictures(25, 3))[0], stand_in(box)[0])
    assert report["fid"] == pytest.approx(exact, rel=0.01)
    assert "prepared: shorter side to 4, middle 4×4" in report["inception_protocol"]
    with pytest.raises(
        ValueError, match=r"samples have shape \(8, 8, 1\), reference images of mine .train. \(4, 4, 1\)"
    ):
        evaluate_features(pictures(25, 3, shape=(8, 8, 1)), config)


def random_variables(module, *inputs):
    """Of which what is the same for all pictures is a small part."""
    shapes = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)
    random = np.random.default_rng(0)

    def draw(path, leaf):
        same = any(word in jax.tree_util.keystr(path) for word in ("class_", "position", "bias"))
        return (0.05 if same else 1.0) * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, shapes)


def test_dinov2_of_a_folder(tmp_path):
    module = Dinov2(width=8, depth=1, num_heads=2, image_size=28)
    variables = random_variables(module, jnp.zeros((1, 28, 28, 3)))
    pretrained.save(tmp_path, module, variables)
    network, images = load_network("dinov2", str(tmp_path)), pictures(3, 0, shape=(6, 6, 1))
    assert network.weights == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    features, logits = feature_evaluation.features_of(network, images)
    assert logits is None
    expected = jax.jit(lambda v, x: dinov2_features(module, v, x))(variables, to_float(images))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 0.02  # pictures differ by more than the tolerance


def test_inception_of_a_file(tmp_path):
    """Zeros, which are compressed to nothing; what they say is for tests/parity."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
    names = dict(kernel="weight", scale="weight", mean="running_mean", var="running_var")
    tensors = {}
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        *words, name = (key.key for key in keys[1:])
        shape = leaf.shape if leaf.ndim < 2 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
        tensors[".".join([*words, names.get(name, name)])] = np.zeros(shape, np.float32)
    np.savez_compressed(tmp_path / "fid.npz", **tensors)
    network = load_network("inception", str(tmp_path / "fid.npz"))
    outputs = jax.eval_shape(network.apply, network.variables, jax.ShapeDtypeStruct((3, 8, 8, 1), np.uint8))
    assert [(a.shape, a.dtype) for a in outputs] == [((3, 2048), np.float32), ((3, 1008), np.float32)]
    assert network.weights == hashlib.sha256((tmp_path / "fid.npz").read_bytes()).hexdigest()


def test_torchvisions_inception_gives_no_fid(config, monkeypatch):
    monkeypatch.setattr(feature_evaluation.inception, "load", lambda path: (Inception(1000, fid=False), {}))
    with pytest.raises(
        ValueError, match="weights.npz holds an Inception of 1000 classes; FID is of the one of 1008"
    ):
        build(config)


SHARDED = """
import jax, numpy as np
from experiments.evaluation.features.features import in_batches
devices = []
def apply(scale, x, y):
    jax.debug.inspect_array_sharding(x, callback=lambda sharding: devices.append(len(sharding.device_set)))
    return x * scale, {"y": x - y}
x = np.arange(2 * 601.0, dtype=np.float32).reshape(601, 2)
out = list(in_batches(apply, np.float32(2), lambda part: (x[part], x[part] / 4), 601))
np.testing.assert_array_equal(np.concatenate([a for a, _ in out]), 2 * x)
np.testing.assert_array_equal(np.concatenate([b["y"] for _, b in out]), x * 0.75)
assert [len(a) for a, _ in out] == [256, 256, 89] and set(devices) == {4}, (out, devices)
"""


def test_batches_are_split_over_devices():
    options = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, env=options, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


PROMPTS = ("red apple", "blue book", "green car", "blue apple", "red car")


@pytest.fixture
def clip_folder(tmp_path):
    words = ["[END]", *"red blue green apple book car".split(), "[UNK]"]
    library = Library(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    shared = dict(width=8, depth=1, num_heads=2, shared_features=6)
    text = CLIPText(**shared, vocabulary_size=8, max_length=4, end_token=0)
    module = CLIP(text, CLIPVision(**shared, patch_size=4, image_size=8))
    variables = random_variables(module, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4), int))
    pretrained.save(tmp_path / "clip", module, variables)
    library.save(str(tmp_path / "clip/tokenizer.json"))
    (tmp_path / "clip/tokenizer_config.json").write_text(json.dumps(dict(pad_token="[END]")))
    return tmp_path / "clip", module, variables


def test_clip_score(clip_folder, config):
    folder, module, variables = clip_folder
    config.evaluation.features = dict(inception=None, dinov2=None, clip=str(folder))
    count, images = 23, pictures(23, 0, shape=(1, 1, 3)).repeat(12, axis=1).repeat(8, axis=2)
    prompts = [PROMPTS[i % 5] for i in range(count)]
    report = evaluate_features(images, config, prompts)
    tokens = [
        ["", "red", "blue", "green", "apple", "book", "car"].index(word) for word in " ".join(prompts).split()
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
    grey = evaluate_features(images[..., :1], config, prompts)["clip_score"]
    assert grey == evaluate_features(np.repeat(images[..., :1], 3, -1), config, prompts)["clip_score"]


def test_prompts_are_asked_for_in_parts_with_seeds_of_their_own(monkeypatch, config):
    """Samples are in the order of their prompts, which begin again where they end; parts have one shape."""
    calls = []

    def sample_images(task, state, labels, sampling):
        calls.append((task, sampling.seed))
        return np.array([hash((task[i], sampling.seed)) % 2**16 for i in labels])

    monkeypatch.setattr(feature_evaluation, "sample_images", sample_images)
    monkeypatch.setattr(feature_evaluation, "PROMPTS", 4)
    monkeypatch.setattr(
        feature_evaluation,
        "evaluate_features",
        lambda images, config, prompts: dict(images=images, prompts=prompts),
    )
    config.evaluation.num_samples, config.sampling.seed = 11, 6
    report = evaluate_prompt_features(SimpleNamespace(asked=tuple), None, config, PROMPTS)
    assert report["prompts"] == [PROMPTS[i % 5] for i in range(11)]
    assert report["images"].tolist() == [hash((PROMPTS[i % 5], 6 + i // 4)) % 2**16 for i in range(11)]
    assert [(len(task), seed) for task, seed in calls] == [(4, 6), (4, 7), (4, 8)]
    assert report["features_prompts"] == "5 held-out prompts for 11 samples"
    config.evaluation.features.inception = None
    assert evaluate_prompt_features(None, None, config, PROMPTS) == {}


@pytest.mark.parametrize("run", [digits_flow, digits_gan, digits_vae])
def test_samples_of_every_task_are_measured(run, monkeypatch):
    """On the digits; training ones are nearer to training ones than held-out ones are to them."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(64, 12)) / 8, jnp.float32)

    def apply(matrix, images):
        features = to_float(images).reshape(len(images), -1) @ matrix
        return features, features

    network = network_of(variables=matrix, apply=apply)
    monkeypatch.setattr(feature_evaluation, "load_network", lambda name, path: network)
    monkeypatch.setattr(feature_evaluation, "BATCH", 500)
    monkeypatch.setitem(feature_evaluation.LOADERS, "inception", lambda path: network)
    config = json.loads(run.get_config().to_json_best_effort(), object_hook=Config)
    config.evaluation.num_samples = 300
    feature_evaluation.set_features(config, ["inception=weights.npz"])
    task, reference, fids = SimpleNamespace(describe_sampling=lambda sampling: {}), Reference(config), {}
    for split in ("train", "test"):
        images = load_dataset("digits", split).source[:300]["image"]
        monkeypatch.setattr(evaluation, "sample_images", lambda *_, images=images: images)
        report, _ = evaluation.evaluate_images(task, None, config, reference)
        assert (
            report["num_samples"] == 300 and "1437 images of digits (train)" in report["inception_protocol"]
        )
        fids[split] = report["fid"]
    assert 0 < fids["train"] < fids["test"]


@pytest.mark.parametrize(("run", "what"), [(gaussians_gan, "points"), (video_autoencoder, "video")])
def test_what_is_no_picture_is_not_measured(run, what):
    config = run.get_config()
    config.evaluation.features = dict(inception="weights.npz")
    with pytest.raises(ValueError, match=f"inception.* measure pictures; the data of .* are {what} of shape"):
        feature_evaluation.require_features(config)


def test_what_is_missing_is_said_before_training(config, tmp_path):
    config.evaluation.features.inception = str(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build(config)
    config.evaluation.features = dict(inception=None, dinov2=None, clip=str(tmp_path))
    with pytest.raises(ValueError, match="features.clip scores pictures by their prompts.*leave it out"):
        build(config)
    prompted = emoji_text.get_config("cross_attention,pixels")
    prompted.evaluation.features.clip = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json"):
        build(prompted)


def test_a_tower_alone_gives_no_score(clip_folder, tmp_path, config):
    _, module, variables = clip_folder
    pretrained.save(tmp_path / "text", module.text, {"params": variables["params"]["text"]})
    with pytest.raises(ValueError, match="holds a CLIPText alone"):
        load_network("clip", str(tmp_path / "text"))


def test_weights_can_be_given_to_a_run_that_was_trained_without(tmp_path):
    data = Config(image_shape=SHAPE)
    config = Config(evaluation=Config(num_samples=10), data=data)
    with pytest.raises(
        ValueError, match="--features=resnet=x must be NAME=PATH, with a name of inception, dinov2, clip"
    ):
        feature_evaluation.set_features(config, ["resnet=x"])
    with pytest.raises((ValueError, FileNotFoundError), match="absent"):
        feature_evaluation.set_features(config, [f"dinov2={tmp_path}/absent"])
    assert given_features(config) == {"dinov2": f"{tmp_path}/absent"}
