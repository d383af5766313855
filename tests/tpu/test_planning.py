"""Steps compiled by the TPU's own compiler, for chips that are not there."""

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from configs import imagenet256_latent_flow
from experiments.plan import plan
from genjax.training import make_mesh
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
        for count in (1, 2, 16):
            devices = tpu_topology(DEVICES[name], count)
            assert len(devices) == count and {device.device_kind for device in devices} == {kind}


def test_memory_is_the_state_and_what_the_compiler_adds(plans):
    for found in plans.values():
        held = sum(found["memory"][field] for field in ("params", "optimizer_state", "averages"))
        assert found["compiled"] and held > 4 * 4 * found["parameters"] / 8
        workspace = found["memory"]["gradients, activations and workspace"]
        # batch and metrics beside them; arrays padded to tiles
        assert held + workspace <= found["peak"] < 1.2 * (held + workspace)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "context": 4}])
def test_the_account_for_gpus_is_near_the_compilers(axes):
    """Of networks that TPUs pad little: what is live at once, shared by the rules of shardings, where nothing is fused."""
    config = small(6)
    config.model.num_heads = 4
    config.data.image_shape = (64, 64, 4)  # 1,024 tokens
    compiled, accounted = (plan(config, axes, device)["memory"] for device in ("v5p", "h100"))
    working = accounted["gradients"] + accounted["activations and workspace"]
    assert 0.8 < working / compiled["gradients, activations and workspace"] < 1.2


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
    assert [(each["form"], each["query"]) for each in found["attention"]] == [("splash", (8, 1024, 2, 128))]
    assert jax.default_backend() == "cpu"


def test_sampling_is_shared_by_all_chips():
    """A chip's workspace is that of a chip alone with its examples, and not of all; weights gathered for each step."""
    config = small(2)
    config.sampling.num_steps = 10
    found = {}
    for axes, batch_size in (({"fsdp": 8}, 128), ({"data": 1}, 16)):
        config.batch_size = batch_size
        found[batch_size] = plan(config, axes, "v5p", "sample")
    shared, alone = found[128], found[16]
    # A factor 2 is for how the compiler schedules gathers; all examples on one chip take 13 times as much.
    assert 0.5 < shared["memory"]["workspace"] / alone["memory"]["workspace"] < 2
    assert [each["query"] for each in shared["attention"]] == [(32, 256, 2, 128)]
    sent = sum(each["bytes"] for each in shared["collectives"])
    weights = shared["parameters"]
    assert 10 * 2 * weights / 2 < sent < 10 * 2 * 4 * weights


@pytest.mark.parametrize(
    ("axes", "over_slices"),
    [
        ({"data": 2, "fsdp": 8}, ("data",)),
        ({"fsdp": 8, "context": 2}, ("fsdp",)),
        ({"data": 1, "fsdp": 16}, ("fsdp",)),
    ],
)
def test_the_first_axes_go_over_slices(axes, over_slices):
    devices = topologies.get_topology_desc("v5e:2x4", "tpu", num_slices=2).devices
    mesh = make_mesh(axes, 16, devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    changing = [name for i, name in enumerate(axes) if np.any(np.diff(slices, axis=i))]
    assert tuple(changing) == over_slices
    assert (
        np.sum(np.diff(slices, axis=list(axes).index(*over_slices))) == 16 // axes[over_slices[0]]
    )  # once each


def test_slices_that_do_not_divide():
    devices = topologies.get_topology_desc("v5e:2x4", "tpu", num_slices=3).devices
    with pytest.raises(ValueError, match="does not divide over 3 slices"):
        make_mesh({"fsdp": 16}, 16, [*devices[:6], *devices[8:13], *devices[16:21]])


def test_an_axis_may_be_part_of_the_torus():
    mesh = make_mesh({"fsdp": 32, "tensor": 2}, 64, tpu_topology(DEVICES["v5p"], 64))
    assert dict(mesh.shape) == {"fsdp": 32, "tensor": 2}
    (first, second), *_ = mesh.devices
    assert sum(a != b for a, b in zip(first.coords, second.coords, strict=True)) == 1  # next to one another
