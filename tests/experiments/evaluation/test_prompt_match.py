"""The scorer of pairs of picture and name: what it finds of real pairs, and of wrong ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import animated_emoji_video, digits_flow, emoji_families, emoji_text
from experiments.configuration.kinds import CONDITION, EVALUATOR
from experiments.evaluation import prompts
from experiments.evaluation.context import Context
from experiments.evaluation.prompts import Pairs, PromptMatch
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import Data
from experiments.launch.experiment import Experiment
from genjax import metrics
from tests.experiments import few_emoji


@pytest.mark.slow
def test_the_scorer_knows_real_pairs(tmp_path, monkeypatch):
    """Figures of the closed form on the embedded emoji, of which no more than 400 are taken.

    Chance is .1. The accuracies are 1.0 and .565, and .684 for held-out names if 900 are fitted.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = emoji_text.get_config("cross_attention,pixels")
    config.data.name = "tests.experiments.few_emoji.load_more"
    pairs = Pairs(Data.from_config(config), CONDITION.bind(config.condition, "condition"))
    assert pairs.real["test"] > 0.55 and pairs.real["train"] > 0.99
    features, names = pairs.features["test"], pairs.names["test"]
    mixed = pairs.accuracy(np.roll(features, 1, axis=0), names)  # each beside another's name
    assert mixed < 0.15
    assert pairs.floor < pairs.distance(pairs.features_of(255 - pairs.images["train"][:100]))


def test_networks_without_prompts_are_not_scored_by_them():
    config = digits_flow.get_config()
    config.evaluation.measures.prompts = "PromptMatch"
    with pytest.raises(
        ValueError, match="PromptMatch, which needs a network with prompts; .* is Classes"
    ):
        Experiment.from_config(config)


@pytest.fixture
def without_weights(monkeypatch):
    """Means of 8×8 pixels in place of VGG16's features, and random embeddings of names."""

    def embeddings(condition, names):
        draw = lambda name: np.random.default_rng(list(name.encode())).normal(size=8)
        return np.stack([draw(name) for name in names])

    means = lambda images: images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48) / 255
    monkeypatch.setattr(prompts, "load_vgg16", lambda: (None, None))
    monkeypatch.setattr(prompts, "require_lpips", lambda: None)
    monkeypatch.setattr(prompts, "pairs_of", Pairs)
    monkeypatch.setattr(prompts, "_maps", lambda variables, images: means(images))
    monkeypatch.setattr(Pairs, "distance", lambda pairs, features: float(features.mean()))
    monkeypatch.setattr(Prompts, "embeddings", embeddings)
    monkeypatch.setattr(PromptMatch, "features", dict)  # of VGG16's weights


def measured_on_few(config, load="load", with_sound=False):
    """Return what PromptMatch finds of a model of black pictures, and its calls of `sample`."""
    config.data.name = f"tests.experiments.few_emoji.{load}"
    config.condition.update(dict(num_classes=10) if "num_classes" in config.condition else {})
    data = Data.from_config(config)
    condition = CONDITION.bind(config.condition, "condition")
    fields = config.evaluation.measures.prompts
    measure = EVALUATOR.bind(fields, "measures", context=Context(data, None, condition, 384))
    asked = []

    def sample(labels, names=None, **changes):
        asked.append((labels, names, changes))
        black = np.zeros((len(labels), *data.image_shape), np.uint8)
        return {"video": black, "sound": None} if with_sound else black

    return measure(SimpleNamespace(sampling=config.sampling, sample=sample, how={})), asked


def by_name(split):
    dataset = few_emoji.load(split)
    labels = dataset.source[np.arange(len(dataset.source))]["label"]
    return {captions[0]: label for captions, label in zip(dataset.captions, labels, strict=True)}


def test_networks_of_classes_are_asked_for_the_classes_of_the_names(without_weights):
    report, asked = measured_on_few(emoji_families.get_config("unet"))
    assert [changes for *_, changes in asked] == [{}, {}, *[{"guidance_scale": 1.0}] * 2]
    assert all(names is None for _, names, _ in asked)
    pairs = Pairs(few_data(), CONDITION.bind(emoji_families.NAMES, "captions"))
    for (labels, *_), split in zip(asked, ["train", "test"] * 2, strict=True):
        assert len(labels) == 60 and len(set(labels.tolist())) > 5
        known = by_name(split)
        assert labels.tolist() == [known[name] for name in pairs.names[split][:60]]
    assert report["num_samples"] == 60 and "held_out_accuracy_unguided" in report


def test_networks_of_nothing_are_scored_by_the_names_too(without_weights):
    report, asked = measured_on_few(emoji_families.get_config("vae"))
    assert len(asked) == 2  # there is no guidance
    assert "training_accuracy" in report and "training_accuracy_unguided" not in report


def test_networks_of_prompts_are_asked_for_the_names(without_weights):
    _, asked = measured_on_few(emoji_families.get_config("flow"))
    for (labels, names, _), split in zip(asked, ["train", "test"] * 2, strict=True):
        assert labels.tolist() == list(range(60)) and set(names) <= by_name(split).keys()


def test_fewer_training_names_than_held_out_ones_are_each_asked_for_once(without_weights):
    report, asked = measured_on_few(emoji_families.get_config("flow"), "load_fewer")
    for (labels, names, _), count in zip(asked, [40, 60] * 2, strict=True):
        assert labels.tolist() == list(range(count)) and len(names) == count
    assert report["num_samples"] == 40


def test_clips_are_scored_by_three_of_their_frames(without_weights):
    """Clips that show a still picture in these frames have the figures of the pictures.

    The clips of a network of sound and video do too.
    """
    config = animated_emoji_video.get_config()
    config.data.update(flip=False, image_shape=(5, 32, 32, 3))
    report, asked = measured_on_few(config, "load_clips", with_sound=True)
    stills, _ = measured_on_few(emoji_families.get_config("flow"))
    assert len(asked) == 4 and report["num_samples"] == 60
    for name in ("training_accuracy", "held_out_accuracy"):
        assert 0 < report[f"{name}_real"] == stills[f"{name}_real"]
        assert report[name] == stills[name] == report[f"{name}_unguided"]
    assert not {"fd_vgg16", "frechet_distance"} & report.keys() and "fd_vgg16" in stills
    assert report["held_out_prompts"].size == stills["held_out_prompts"].size
    moving = np.zeros((1, 17, 32, 32, 3), np.uint8)
    moving[:, [0, 8, 16]] = np.array([3, 30, 90], np.uint8)[:, None, None, None]
    pairs = Pairs.__new__(Pairs)
    pairs._vgg16 = None
    np.testing.assert_allclose(pairs.features_of(moving), 41 / 255, rtol=1e-6)


def test_sounds_are_refused():
    config = emoji_families.get_config("flow")
    config.data.feature = "audio"
    condition = CONDITION.bind(config.condition, "condition")
    with pytest.raises(ValueError, match="scores pictures and clips; .* is 'audio': leave it out"):
        PromptMatch(Context(Data.from_config(config), None, condition, 10))


def few_data():
    config = emoji_families.get_config("vae")
    config.data.name = "tests.experiments.few_emoji.load"
    return Data.from_config(config)


def test_the_distance_is_of_the_last_maps_means():
    """Means of all maps come first, and then maxima. Other features count for nothing."""
    random, pairs = np.random.default_rng(0), Pairs.__new__(Pairs)
    held_out, found = random.normal(size=(2, 20, 2 * (64 + 128 + 256 + 512 + 512)))
    last = slice(64 + 128 + 256 + 512, 64 + 128 + 256 + 512 + 512)
    found[:, last] = held_out[:, last] + 0.1
    pairs.held_out, pairs.features = "test", {"test": held_out}
    assert pairs.distance(found) == pytest.approx(512 * 0.1**2)
    shorter = metrics.frechet_distance(found[:9, last], held_out[:9, last])
    assert pairs.distance(found[:9]) == pytest.approx(shorter)


def test_pictures_of_one_name_are_scored_as_one():
    """A copy of a picture with its name changes nothing, where it would tie with the picture."""
    count, names = 12, tuple(f"name {i}" for i in range(12))
    pairs = Pairs.__new__(Pairs)
    pairs._condition = SimpleNamespace(
        embeddings=lambda names: np.stack([np.eye(count)[int(name.split()[1])] for name in names])
    )
    pairs._score = lambda features, embeddings: features @ embeddings.T
    features = np.eye(count)
    features[0] = 0  # the first picture says nothing, so all names tie, and a tie loses
    expected = 11 / 12
    assert pairs.accuracy(features, names) == pytest.approx(expected, abs=1e-12)
    doubled = np.concatenate([features, features[3:4]]), (*names, names[3])
    assert pairs.accuracy(*doubled) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="12 pictures have 3 different names; PromptMatch chooses"):
        pairs.accuracy(features, names[:3] * 4)
