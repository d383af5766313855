"""The check of held-out sets before training, and the interval of figures from few examples."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import digits_flow, digits_gan, digits_vae
from experiments import train
from experiments.evaluation.few_examples import describe_few
from experiments.evaluation.prompts import PromptMatch
from experiments.launch.experiment import Experiment, Measure
from experiments.launch.held_out import check_held_out
from genjax.data import Dataset, InMemory
from tests.experiments.small_digits import small_config


def experiment(split, measured=True):
    config = digits_flow.get_config()
    config.data.held_out_split = split
    if not measured:
        config.evaluation.measures = {}
    return Experiment.from_config(config)


@pytest.mark.parametrize(("split", "count"), [("test[:6]", 6), ("test[:199]", 199)])
def test_few_held_out_examples_are_warned_of(split, count, capsys):
    assert check_held_out(experiment(split))
    message = capsys.readouterr().err
    assert message.startswith(f"warning: measures compare with only {count} examples of digits")
    assert message.count("\n") == 1


def test_a_nearest_neighbour_needs_another_example():
    """All of a GAN's samples would be near duplicates beside a single held-out image."""
    config = digits_gan.get_config("dcgan")
    config.data.held_out_split = "test[:1]"
    del config.evaluation.measures.samples
    with pytest.raises(ValueError, match="1 different examples, and .*discriminator needs 2"):
        check_held_out(Experiment.from_config(config))


def test_active_latents_need_another_image():
    """They are told by the variance of their means over images."""
    config = digits_vae.get_config("elbo")
    config.data.held_out_split = "test[:1]"
    del config.evaluation.measures.samples
    with pytest.raises(ValueError, match="1 different examples, and .*bounds needs 2"):
        check_held_out(Experiment.from_config(config))


@pytest.mark.slow
def test_a_training_warns_of_few_held_out_examples_once(tmp_path, capsys):
    config = small_config(num_steps=2)
    config.optimizer.warmup = 0.5
    config.data.held_out_split = "test[:20]"
    config.evaluation.num_samples = 20
    train.run(config, tmp_path / "run")
    printed = "".join(capsys.readouterr())
    assert "  num_samples " in printed  # the report is printed too
    assert printed.count("measures compare with only 20 examples") == 1


def test_enough_examples_are_not_warned_of(capsys):
    assert not check_held_out(experiment("test[:200]"))
    assert not check_held_out(experiment("test[:4]", measured=False))
    assert capsys.readouterr().err == ""


def test_pictures_of_one_name_count_once():
    """PromptMatch chooses among ten names, which twelve pictures of two names do not have."""
    captions = [("cat", "kitten")] * 6 + [("dog",)] * 6
    source = InMemory({"image": np.zeros((12, 2, 2, 3), np.uint8)})
    dataset = Dataset("pets", "test", source, captions=captions)
    data = SimpleNamespace(name="pets", held_out_split="test", held_out=lambda: dataset)
    evaluator = SimpleNamespace(
        least_held_out=PromptMatch.least_held_out,
        count_held_out=PromptMatch.count_held_out,
        context=SimpleNamespace(num_samples=12),
    )
    measures = [Measure("prompts", 0, evaluator)]
    message = (
        r"pets \(test\) has 2 different examples of 12, and "
        r"config.evaluation.measures.prompts needs 10"
    )
    with pytest.raises(ValueError, match=message):
        check_held_out(SimpleNamespace(data=data, measures=measures))


@pytest.mark.parametrize(("num_samples", "few"), [(199, True), (200, False)])
def test_as_many_examples_are_compared_as_there_are_samples(num_samples, few, capsys):
    source = InMemory({"image": np.zeros((300, 1, 1, 1), np.uint8)})
    data = SimpleNamespace(name="dots", held_out_split="test")
    data.held_out = lambda: Dataset("dots", "test", source)
    context = SimpleNamespace(num_samples=num_samples)
    measure = Measure("samples", 0, SimpleNamespace(least_held_out=2, context=context))
    assert check_held_out(SimpleNamespace(data=data, measures=[measure])) == few
    assert ("only 199 examples" in capsys.readouterr().err) == few
    context.num_samples = 1
    with pytest.raises(ValueError, match="num_samples is 1, and config.*samples needs 2"):
        check_held_out(SimpleNamespace(data=data, measures=[measure]))


def test_the_interval_of_few_examples_holds_95_percent_of_shares():
    """Simulated: a share of 1/2 among 50 examples, whose binomial law has no other spread."""
    half = int(describe_few("x", 50).partition("±")[2].partition(" ")[0]) / 100
    shares = np.random.default_rng(0).binomial(50, 0.5, 100_000) / 50
    # the law is discrete, in steps of 2 points, so coverage is not exactly 95 %
    assert 0.93 < np.mean(abs(shares - 0.5) <= half) < 0.97
