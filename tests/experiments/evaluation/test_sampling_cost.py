"""The cost of a sample: parameters counted by hand, and the network's evaluations."""

from types import SimpleNamespace

import jax
import pytest

from configs import digits_autoregression, digits_flow, digits_gan
from experiments.configuration.runs import build
from experiments.evaluation import sampling_cost as module
from experiments.evaluation.context import Context, Model
from experiments.evaluation.sampling_cost import SamplingCost
from experiments.inputs.datasets import Data
from tests.experiments import small_vae


def measured(config, size=3):
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    context = Context(Data.from_config(config), task.space, task.condition, 6)
    return SamplingCost(context, batch_size=size)(Model(task, state, config.sampling))


def test_a_vae_decodes_once():
    """All layers of the narrow network, by hand: 64 → 8 → 2·4 and 4 → 8 → 2·64 values."""
    found = measured(small_vae.small_config("elbo"))
    layers = [(64, 8), (8, 2 * 4), (4, 8), (8, 2 * 64)]  # a logistic has a mean and a scale
    assert found["parameters"] == sum((inputs + 1) * outputs for inputs, outputs in layers)
    assert (found["evaluations"], found["decoder_parameters"]) == (1, 0)
    assert found["timed_batch"] == 3


def test_a_flow_evaluates_once_a_step_and_heun_twice():
    config = digits_flow.get_config()
    config.model.update(width=12, depth=1, num_heads=1, unroll=1)
    config.sampling.num_steps = 4
    assert measured(config)["evaluations"] == 4
    config.sampling.sampler.name = "heun"
    assert build(config).num_evaluations(config.sampling) == 8


def test_the_second_batch_is_timed(monkeypatch):
    """The first one compiles, and an equal request would share its samples."""
    made, clock = [], SimpleNamespace(now=0.0)

    def sample(*request, **options):
        if (new := repr((request, options))) not in made:
            clock.now += 0.5 if made else 60.0
            made.append(new)

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = SimpleNamespace(sample=sample, sampling=SimpleNamespace(seed=0))
    model.num_parameters = model.num_frozen_parameters = model.num_evaluations = 1
    context = SimpleNamespace(condition=SimpleNamespace(num_classes=10))
    assert SamplingCost(context, batch_size=4)(model)["milliseconds_per_sample"] == 125


@pytest.mark.parametrize(
    ("config", "evaluations"), [(digits_gan, 1), (digits_autoregression, 64)], ids=["GAN", "pixels"]
)
def test_evaluations_of_other_families(config, evaluations):
    config = config.get_config()
    assert build(config).num_evaluations(config.sampling) == evaluations
