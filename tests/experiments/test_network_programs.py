"""Test what a derivative and a mean-flow step cost beside a forward pass and a flow step."""

import functools

import jax
import pytest

from configs import digits_distillation, digits_flow, digits_vae
from experiments.benchmark import measure
from experiments.speed.programs import cost_of, program_of
from genjax.devices import make_mesh

MESH = make_mesh({"data": 1}, 64)


def operations(config, name):
    return cost_of(program_of(name, config, MESH), MESH).operations


@functools.cache
def operations_of_flow():
    return operations(digits_flow.get_config(), "train")


@pytest.mark.parametrize("policy", [None, "nothing_saveable"])
def test_a_derivative_adds_one_forward_pass_and_nothing_backward(policy):
    """The products of a training step are a forward pass, and two of its size backward.

    Rematerialisation computes the blocks' forward pass again, but not their derivative. Tangents of
    attention, which has two products where other layers have one, are the rest.
    """
    flow, mean_flow = digits_flow.get_config(), digits_distillation.get_config("MeanFlow")
    mean_flow.method.guidance_scale = 1.0
    for config in (flow, mean_flow):
        config.model.update(unroll=1, remat_policy=policy)
    assert 2 <= operations(flow, "jvp") / operations(flow, "forward") <= 2.05
    passes = 3 if policy is None else 4
    ratio = operations(mean_flow, "train") / operations(flow, "train")
    assert ratio == pytest.approx((passes + 1) / passes, rel=0.03)


def test_an_improved_mean_flow_calls_the_network_once_more():
    config = digits_distillation.get_config("ImprovedMeanFlow")
    config.method.guidance_scale = 1.0
    assert operations(config, "train") / operations_of_flow() == pytest.approx(5 / 3, rel=0.03)


@pytest.mark.parametrize(("method", "passes"), [("MeanFlow", 5), ("ImprovedMeanFlow", 6)])
def test_guidance_calls_the_network_once_more(method, passes):
    """The configs of the digits learn guidance. A step of flow matching is three passes."""
    config = digits_distillation.get_config(method)
    assert config.method.guidance_scale > 1
    assert operations(config, "train") / operations_of_flow() == pytest.approx(passes / 3, rel=0.03)


def test_a_row_of_the_derivative_counts_what_xla_counts(monkeypatch):
    """XLA also counts what is elementwise, of which a narrow network has much."""
    monkeypatch.setattr("experiments.benchmark.measured_device", lambda: None)
    config = digits_flow.get_config()
    config.model.update(width=32, depth=1, num_heads=2, unroll=1)
    config.batch_size = 8
    row = measure(config, "jvp", steps=2)
    assert row["program"] == "jvp" and row["queued_seconds"] > 0
    assert 1 < row["xla_ratio"] < 1.6


def test_other_tasks_have_no_such_program():
    with pytest.raises(
        ValueError, match="only runs of diffusion can do this; digits_vae_elbo is a"
    ):
        program_of("jvp", digits_vae.get_config(), jax.sharding.AbstractMesh((1,), ("data",)))
