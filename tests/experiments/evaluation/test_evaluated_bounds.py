"""The evaluation of a variational autoencoder: bounds against the likelihood, and collapse."""

import functools
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from scipy.stats import logistic

from experiments.configuration.runs import build
from experiments.evaluation import autoencoders
from experiments.evaluation.autoencoders import Bounds
from experiments.evaluation.bounds import BoundBits, noisy_process
from experiments.evaluation.context import Context, Model
from experiments.launch.experiment import split_pictures
from experiments.launch.reports import alarms
from genjax.diffusion import EDM, RectifiedFlow
from genjax.training.workdir import Config
from tests.experiments.small_vae import initial, small_config

HELD_OUT = np.random.default_rng(0).integers(0, 17, (53, 8, 8, 1)).astype(np.float32) / 8 - 1


@functools.cache
def evaluated(blind):
    """Return the report of 53 images, their log-likelihoods by SciPy, and the task.

    The number of images is no multiple of a batch. Log-likelihoods are None unless the network is
    blind. A blind network's posterior is the prior for every image, and its decoder ignores the
    latents.
    """
    config = small_config("elbo")
    config.sampling.weights = "params"
    task = build(config)
    state = initial(task)
    params = jax.device_get(state.params)
    random = np.random.default_rng(1)
    if blind:
        nothing = lambda name: jax.tree.map(np.zeros_like, params[name])
        outputs = np.stack([random.uniform(-1, 1, (8, 8)), random.uniform(-4, -1, (8, 8))], -1)
        head = nothing("head") | {"bias": outputs.astype(np.float32).ravel()}
        params = params | {"moments": nothing("moments"), "head": head}
    context = Context(None, task.space, task.condition, len(HELD_OUT))
    reference = SimpleNamespace(examples=(None, (HELD_OUT, None)))
    with mock.patch.object(autoencoders, "image_reference", lambda data, count: reference):
        report = Bounds(context, num_importance_samples=7)(
            Model(task, state.replace(params=params), Config(config.sampling))
        )
    if not blind:
        return report, None, task
    mean, scale = outputs[..., :1], np.exp(outputs[..., 1:])
    upper = np.where(HELD_OUT > 0.99, np.inf, (HELD_OUT + 1 / 16 - mean) / scale)
    lower = np.where(HELD_OUT < -0.99, -np.inf, (HELD_OUT - 1 / 16 - mean) / scale)
    # of the upper tail where that is the smaller one
    mass = np.where(
        lower > 0,
        logistic.sf(lower) - logistic.sf(upper),
        logistic.cdf(upper) - logistic.cdf(lower),
    )
    return report, np.log(mass).sum((1, 2, 3)), task


def test_where_latents_say_nothing_both_bounds_are_the_likelihood():
    report, log_likelihood, _ = evaluated(blind=True)
    for bound in ("elbo", "importance_weighted_bound"):  # float32 sums of 64
        np.testing.assert_allclose(report[bound], log_likelihood.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        report["elbo_error"], log_likelihood.std(ddof=1) / np.sqrt(53), rtol=1e-4
    )
    np.testing.assert_allclose(
        report["bits_per_dimension"], -log_likelihood.mean() / (64 * np.log(2)), rtol=1e-5
    )
    assert report["num_importance_samples"] == 7 and report["num_units"] == 4


class Numbered:
    """A source of 30 images whose label is their number; it notes how many are read at once."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 30

    def __getitem__(self, rows):
        self.read.append(len(rows))
        return {"image": np.zeros((len(rows), 2, 2, 1), np.uint8), "label": rows}


def test_images_of_a_bound_are_read_batch_by_batch():
    """All at once could be larger than the memory."""
    source = Numbered()
    data = SimpleNamespace(feature="image", held_out=lambda: SimpleNamespace(source=source))
    context = Context(data, SimpleNamespace(shape=(2, 2, 1)), None, 1)
    bound = lambda images, labels, indices: -4 * np.log(2) * np.where(labels == indices, labels, 0)
    measure = BoundBits(context, num_images=25, batch_size=10)
    report = measure(SimpleNamespace(functions={"bound": bound}))
    assert source.read == [10, 10, 5]
    np.testing.assert_allclose(report["bits_per_dimension"], np.mean(range(25)))
    np.testing.assert_allclose(report["bits_per_dimension_error"], np.std(range(25), ddof=1) / 5)
    assert report["likelihood_images"] == 25


def test_a_bound_of_no_samples_is_refused_before_training():
    with pytest.raises(ValueError, match="Bounds, whose num_importance_samples is 0; it is 1 or"):
        Bounds(None, num_importance_samples=0)


def test_a_collapsed_posterior_is_reported(tmp_path):
    report, _, task = evaluated(blind=True)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 3.0, "loss": 200.0, "steps_per_second": 1.0}\n'
    )
    figures, pictures = split_pictures(report)
    assert pictures.keys() == {"reconstructions"}
    expected = ["Posterior collapse: 0 of 4 latents depend on the images."]
    assert alarms(task, figures, tmp_path, 3) == expected
    seeing, _, task = evaluated(blind=False)
    assert seeing["active_units"] > 0 and task.alarms({"active_units": 4.0, "num_units": 4.0}) == []
    # The bound of more samples is the tighter one, of which the bits are.
    assert seeing["importance_weighted_bound"] > seeing["elbo"]
    bits = -seeing["importance_weighted_bound"] / np.log(2)
    assert seeing["bits_per_dimension"] == pytest.approx(bits / 64)


def test_a_bound_starts_where_there_is_noise():
    assert noisy_process(EDM(), 1e-3) == EDM()  # sigma is 0.002 there, and 0.08 at 0.001·80
    assert noisy_process(RectifiedFlow(), 1e-3) == RectifiedFlow(domain=(1e-3, 1.0))
    for clean_end in (-0.1, 0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"--clean_end={clean_end} is a part of the time"):
            noisy_process(RectifiedFlow(), clean_end)
