"""The scorer of pairs of picture and name: what it finds of real pairs, and of wrong ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import digits_flow, emoji_text
from experiments.configuration.kinds import CONDITION
from experiments.evaluation.prompts import Pairs
from experiments.inputs.datasets import Data
from experiments.launch.experiment import Experiment


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
        ValueError, match="PromptMatch, which is of networks told prompts; .* is Classes"
    ):
        Experiment.from_config(config)


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
