"""XLA writes groups of devices in several ways; each of these lines is one that it has printed."""

import pytest

from genjax.training.collectives import _axes, _bytes


@pytest.mark.parametrize(
    ("attributes", "axes"),
    [
        ("%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", ("fsdp",)),
        ("%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add", ("data",)),
        ("%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}", ("fsdp",)),
        ("%x), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", ("data",)),
        ("%x), channel_id=1, replica_groups=[1,8]<=[8], use_global_device_ids=true", ("data", "fsdp")),
        ("%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}", ("fsdp",)),
        ("%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}", ("data",)),
        (
            "%x), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, d",
            ("fsdp",),
        ),
        (
            "%x), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, d",
            ("data",),
        ),
        ("%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", ("fsdp",)),
        ("%x), source_target_pairs={{0,0},{1,5},{4,4},{5,1}}, channel_id=3", ("data",)),
        ("%x), source_target_pairs={{0,0},{1,4}}", ("data", "fsdp")),
        ("%x), replica_groups={}, to_apply=%add", ("data", "fsdp")),
    ],
)
def test_axes_of_a_group(attributes, axes):
    assert _axes(attributes, {"data": 2, "fsdp": 4}) == axes


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (("f32", "32,96"), 12288),
        (("bf16", "8"), 16),
        (("pred", "3"), 3),
        (("f32", ""), 4),
        (("s64", "2"), 16),
    ],
)
def test_bytes_of_an_array(array, size):
    assert _bytes(array) == size
