"""The records and the table of a sweep, with given images in place of samples."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from einops import reduce, repeat

from configs import digits_flow, emoji_text
from experiments.configuration.runs import build
from experiments.evaluation import sampling_sweep
from experiments.evaluation.images import draw
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.sampling_sweep import (
    VERDICTS,
    check,
    describe,
    describe_verdicts,
    distance_name,
    markdown,
    measure,
    sweep_guidance,
)
from experiments.inputs import autoencoders
from experiments.inputs.conditions import Prompts
from experiments.pages.heat_maps import draw_heat_maps
from genjax.data import load_dataset
from genjax.training.sampling import sample
from tests.experiments import few_emoji

RECORD = dict(
    workdir="runs/a", experiment="flow", sampler="euler", num_steps=5, frechet_distance=1.25
)


@pytest.mark.parametrize(
    ("condition", "labels", "expected"),
    [
        (dict(name="Classes", num_classes=10), "balanced", {"class_accuracy", "frechet_distance"}),
        (dict(name="Classes", num_classes=10), "none", {"frechet_distance"}),
        (dict(name="Unconditional"), "balanced", {"frechet_distance"}),
    ],
)
def test_class_accuracy_is_measured_of_classes_alone(monkeypatch, condition, labels, expected):
    config = digits_flow.get_config()
    config.condition, config.evaluation.labels = condition, labels
    images = load_dataset("digits").source[:50]["image"]
    monkeypatch.setattr(sampling_sweep, "sample", lambda *_: images)
    run = SimpleNamespace(folder="runs/a", step=1, config=config, task=build(config))
    record = measure(run, None, 50, num_steps=4)
    assert record.keys() & {"class_accuracy", "frechet_distance"} == expected
    assert record["num_steps"] == 4
    assert (record["samples_per_distance"], record["labels"]) == (50, config.evaluation.labels)
    assert record["features"]["pixels"]["rounding"] == "uint8"


class BlockMeans(nn.Module):
    """An autoencoder of images: means over 4×4 pixels."""

    factor = 4
    latent_mean, latent_deviation = (0.0,) * 3, (1.0,) * 3

    def __call__(self, images):
        return self.decode(self.encode(images))

    def encode(self, images):
        return reduce(images, "b (h f) (w g) c -> b h w c", "mean", f=4, g=4)

    def decode(self, latents):
        return repeat(latents, "b h w c -> b (h f) (w g) c", f=4, g=4)


def test_a_run_of_prompts_on_latents_is_measured_by_vgg16(monkeypatch, tmp_path):
    """Samples have the captions of the held-out images, from the first again beyond the last."""
    word = lambda text: {"tokens": np.full((1, 6), len(text), np.float32), "pooled": np.ones(6)}
    monkeypatch.setattr(Prompts, "_encode", lambda self, prompts: list(map(word, prompts)))
    monkeypatch.setattr(autoencoders, "_published", lambda folder: (BlockMeans(), {}))
    config = emoji_text.get_config()
    config.data.name = "tests.experiments.few_emoji.load"
    config.space = dict(name="Latents", published="block_means")
    config.condition.update(encoder="words", features=6, pooled_features=6, directory=str(tmp_path))
    config.model.update(width=16, depth=1, num_heads=2, unroll=1)
    task, seen = build(config), []
    run = SimpleNamespace(folder="runs/a", step=0, config=config, task=task)
    run.check_guidance = lambda: None

    def spied(task, state, labels, sampling):
        seen.append([task.condition.prompts[label] for label in labels])
        return sample(task, state, labels, sampling)

    means = SimpleNamespace(distance=lambda images: float(images.shape[-1]))
    monkeypatch.setattr(sampling_sweep, "sample", spied)
    monkeypatch.setattr(sampling_sweep, "originals_of", lambda data, count: means)
    monkeypatch.setattr(sampling_sweep, "require_lpips", lambda: None)
    monkeypatch.setattr(sampling_sweep, "vgg16_protocol", lambda: dict(vgg16=FeatureProtocol("")))
    check(run, vgg16=True)
    record = measure(run, jax.jit(task.init)(jax.random.key(0)), 70, True, num_steps=1)
    held_out = few_emoji.load("test")
    captions = [held_out.captions[row][0] for row in draw(60, 60)]
    assert seen == [[*captions, *captions[:10]]]
    assert record["num_samples"] == 70 and record["frechet_distance"] > 0
    assert (record["samples_per_distance"], record["labels"]) == (60, None)
    assert record["features"].keys() == {"pixels", "vgg16"}
    assert record["fd_vgg16"] == 3.0 and distance_name(record) == "fd_vgg16"


def test_a_sweep_by_vgg16_finds_the_best_by_vgg16(monkeypatch):
    """Distances of pixels would take the other one."""

    def measured(run, state, num_samples, vgg16, guidance_scale=1.0, **changes):
        distances = dict(frechet_distance=guidance_scale, fd_vgg16=9 / guidance_scale)
        assert vgg16
        return RECORD | changes | distances | dict(guidance_scale=guidance_scale, weights="ema")

    monkeypatch.setattr(sampling_sweep, "measure", measured)
    monkeypatch.setattr(sampling_sweep, "posthoc_state", lambda run, width: None)
    seed = SimpleNamespace(sampling=SimpleNamespace(seed=0))
    own = SimpleNamespace(config=seed, state=None)
    found = list(sweep_guidance(own, own, [0.1], [1.0, 1.5, 3.0], [(0.0, 1.0)], 10, vgg16=True))
    verdicts = {each["verdict"]: each for each in found if "verdict" in each}
    assert verdicts["best"]["guidance_scale"] == 3 and verdicts["worst"]["guidance_scale"] == 1
    header, _, best, *_ = describe_verdicts(found).splitlines()
    assert "FD-VGG16" in header and "| 3 (" in best
    assert markdown([verdicts["best"]]).splitlines()[-1] == "| flow | euler | 3 |"
    assert draw_heat_maps(found).width > 100


def test_a_red_frame_marks_the_lowest_distance():
    """Of two widths, one below the other, and three guidance scales."""
    distances = {(f"posthoc_{w}", s): 1 + w + s for w in (0.1, 0.2) for s in (1.0, 2.0, 3.0)}
    distances["posthoc_0.2", 1.0] = 0.5
    records = [
        dict(guidance_interval=[0.0, 1.0], weights=w, guidance_scale=s, frechet_distance=value)
        for (w, s), value in distances.items()
    ]
    pixels = np.asarray(draw_heat_maps(records), int)
    rows, columns = np.nonzero((pixels == (255, 0, 0)).all(-1))
    middle = rows.mean() / pixels.shape[0], columns.mean() / pixels.shape[1]
    assert middle[0] > 0.5 > middle[1]  # below, and to the left of the middle


@pytest.mark.parametrize("accuracy", [{}, {"class_accuracy": 0.5}])
def test_the_table_has_accuracy_where_there_is_one(accuracy):
    record = dict(weights="ema", guidance_scale=1.0, frechet_distance=2.0) | accuracy
    seeds = [record | {"verdict": verdict} for verdict in VERDICTS for _ in range(2)]
    header, rule, *rows = describe_verdicts([record, *seeds]).splitlines()
    assert ("accuracy" in header) == bool(accuracy)
    assert {line.count("|") for line in (header, rule, *rows)} == {6 + len(accuracy)}
    assert all((" 50.0 % " in row) == bool(accuracy) for row in rows)


def test_figures_without_class_accuracy_are_shown():
    assert describe(RECORD) == "runs/a euler 5: 1.250"
    assert describe(RECORD | {"class_accuracy": 0.5}) == "runs/a euler 5: 0.500 1.250"
    assert markdown([RECORD]).splitlines()[-1] == "| flow | euler | 1.25 |"


def test_runs_of_one_experiment_have_rows_of_their_own():
    """As the runs of two seeds: the table names the experiment and the folder."""
    other = RECORD | dict(workdir="runs/b", frechet_distance=1.5)
    another = RECORD | dict(workdir="runs/c", experiment="v", frechet_distance=2.0)
    assert markdown([RECORD, other, another]).splitlines()[2:] == [
        "| flow (runs/a) | euler | 1.25 |",
        "| flow (runs/b) | euler | 1.5 |",
        "| v | euler | 2 |",
    ]
