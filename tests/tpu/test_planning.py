"""Steps compiled by the TPU's own compiler, for chips that are not there."""

import jax
import pytest

from configs import imagenet256_latent_flow
from experiments.plan import plan
from genjax.training.devices import DEVICES
from genjax.training.planning import tpu_topology


def small(depth):
    config = imagenet256_latent_flow.get_config()
    config.model.update(name="DiT", width=256, depth=depth, num_heads=2)
    config.data.image_shape = (32, 32, 4)
    config.batch_size = 32
    return config


@pytest.fixture(scope="module")
def plans():
    return {depth: plan(small(depth), {"fsdp": 8}, "v5p") for depth in (2, 6)}


def test_chips_are_those_asked_for():
    for name, kind in {"v5p": "TPU v5", "v6e": "TPU v6 lite"}.items():
        devices = tpu_topology(DEVICES[name], 16)
        assert len(devices) == 16 and {device.device_kind for device in devices} == {kind}


def test_memory_is_the_state_and_what_the_compiler_adds(plans):
    for found in plans.values():
        held = sum(found["memory"][field] for field in ("params", "optimizer_state", "averages"))
        assert found["compiled"] and held > 4 * 4 * found["parameters"] / 8
        workspace = found["memory"]["gradients, activations and workspace"]
        # batch and metrics beside them; arrays padded to tiles
        assert held + workspace <= found["peak"] < 1.2 * (held + workspace)


def test_collectives_in_loops_count_for_every_layer(plans):
    """Each layer's weights are gathered twice and their gradients summed, in bfloat16 or float32, whole or in pieces."""
    total = lambda found: sum(each["bytes"] for each in found["collectives"])
    (few, some), layers = (total(plans[depth]) for depth in (2, 6)), 4
    weights = 256 * 256 * (12 + 6)  # of a layer, its modulation included
    assert 2 * 2 * weights < (some - few) / layers < 2 * 4 * weights + 2 * 4 * weights
    assert all(each["axes"] == ("fsdp",) for found in plans.values() for each in found["collectives"])


def test_attention_is_the_kernel_of_tpus():
    """Nothing of the size of logits is stored: 8 examples a chip of 1,024 tokens, two heads."""
    config = small(2)
    config.data.image_shape = (64, 64, 4)
    found = plan(config, {"data": 4}, "v5p")
    logits = 4 * 8 * 2 * 1024**2
    assert found["memory"]["gradients, activations and workspace"] < 4 * logits
    assert jax.default_backend() == "cpu"
