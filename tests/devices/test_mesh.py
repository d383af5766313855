from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from genjax.devices import make_mesh, state_sharding
from genjax.devices import mesh as module
from genjax.devices.mesh import _shares, abstract_mesh, process_rows


def test_minus_one_takes_all_devices():
    assert dict(make_mesh({"data": -1}, 8).shape) == {"data": 1}
    assert dict(make_mesh({"data": 1, "fsdp": -1}, 8).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"data": 2}, "needs 2 devices and this machine has 1: .* must multiply to 1, and"),
        ({"data": 2, "fsdp": -1}, "needs a multiple of 2 devices"),
        ({"data": -1, "fsdp": -1}, "one −1 at most"),
        ({"data": 0}, "must be positive"),
        ({"date": 1}, "has an axis 'date'; the axes are data, fsdp, tensor, context"),
    ],
)
def test_impossible_meshes(axes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(axes, 8)


def test_a_batch_divides_over_data_and_fsdp_alone():
    axes = {"data": 2, "fsdp": 3, "tensor": 5}
    assert abstract_mesh(axes, 12).size == 30
    words = r"a batch of 10 .* over 6 devices .*data 2 × fsdp 3\): a multiple of 6 does"
    with pytest.raises(ValueError, match=words):
        abstract_mesh(axes, 10)


def test_the_first_axes_go_over_slices():
    assert _shares({"data": 2, "fsdp": 8}, 4) == [2, 2] and _shares({"data": 8}, 4) == [4]
    with pytest.raises(ValueError, match="does not divide over 3 slices"):
        _shares({"data": 2, "fsdp": 8}, 3)


def test_a_state_is_split_by_the_names_and_shapes_of_its_arrays():
    """`fsdp` leaves small arrays whole, and so does the axis over which layers are scanned."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
    layers = {"mlp_in": {"kernel": shape(64, 8, 32), "bias": shape(64, 32)}}
    state = ({"blocks": layers, "own": shape(100, 64)}, {"own": shape(63, 64)})
    found = state_sharding(state, abstract_mesh({"fsdp": 4, "tensor": 2}, 8))
    split = {"kernel": PartitionSpec(None, "fsdp", "tensor"), "bias": PartitionSpec(None, "tensor")}
    expected = (
        {"blocks": {"mlp_in": split}, "own": PartitionSpec("fsdp")},
        {"own": PartitionSpec()},
    )
    assert jax.tree.map(lambda each: each.spec, found) == expected


def test_a_process_reads_each_of_its_rows_once_and_in_order(monkeypatch):
    """Its three devices hold two parts of a batch of six: two of them compute the same part."""
    parts = dict(enumerate([(slice(4, 6),), (slice(0, 2),), (slice(4, 6),)]))
    sharding = SimpleNamespace(addressable_devices_indices_map=lambda shape: parts)
    monkeypatch.setattr(module, "batch_sharding", lambda mesh: sharding)
    np.testing.assert_array_equal(process_rows(make_mesh({"data": -1}, 6), 6), [0, 1, 4, 5])
