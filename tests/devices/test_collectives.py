"""Test how collectives are read from programs, on lines that XLA has printed.

XLA writes groups of devices in several ways. Each way has a line here.
"""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from genjax.devices.collectives import Collective, _axes, collectives


@pytest.mark.parametrize(
    ("attributes", "axes"),
    [
        ("%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", ("fsdp",)),
        ("%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add", ("data",)),
        ("%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}", ("fsdp",)),
        ("%x), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", ("data",)),
        (
            "%x), channel_id=1, replica_groups=[1,8]<=[8], use_global_device_ids=true",
            ("data", "fsdp"),
        ),
        ("%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}", ("fsdp",)),
        ("%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}", ("data",)),
        (
            "%x), replica_groups=mesh['axis_0'=4,'axis_1'=2], "
            "device_ids=([2,4]T(1,0)) {'axis_0'}, d",
            ("fsdp",),
        ),
        (
            "%x), replica_groups=mesh['axis_0'=4,'axis_1'=2], "
            "device_ids=([2,4]T(1,0)) {'axis_1'}, d",
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


PROGRAM = """
HloModule jit_step

%body (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(STEP), metadata={op_name="x"}
  %p = (f32[8]{0}, /*index=1*/u32[]) parameter(0)
  %get-tuple-element.0 = f32[8]{0} get-tuple-element(%p), index=0
  %get-tuple-element.1 = u32[]{:T(128)} get-tuple-element(%p), index=1
  %all-reduce.1 = f32[8]{0} all-reduce(%get-tuple-element.0), \
replica_groups={{0,1},{2,3}}, to_apply=%sum
  %add.1 = u32[]{:T(128)} add(%get-tuple-element.1, %constant.2), metadata={op_name="y"}
  ROOT %tuple.1 = (f32[8]{0}, /*index=1*/u32[]{:T(128)}) tuple(%all-reduce.1, /*index=1*/%add.1)
}

%condition (p: (f32[8], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(7)
  %p.1 = (f32[8]{0}, u32[]) parameter(0)
  %get-tuple-element.2 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %compare.1 = pred[] compare(%get-tuple-element.2, %constant.1), direction=LT
}

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.2 = f32[] add(%x, %y)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %send.1 = (bf16[2,4]{1,0}, u32[], token[]) send(%x, %y), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_GATHER"}
  %while.1 = (f32[8]{0}, u32[]) while(%tuple.0), condition=%condition, body=%body
}
"""


STARTED = """
HloModule jit_step

ENTRY %main (a: f32[2]) -> f32[8] {
  %a = f32[2]{0} parameter(0)
  %gather = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %whole = f32[8]{0} all-gather-done(%gather)
  %pass = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%whole), \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %passed = f32[8]{0} collective-permute-done(%pass)
}
"""


def test_a_collective_that_only_starts_counts_by_what_it_makes():
    """Its results are also its operand and, of a permutation, two counters."""
    found = collectives(SimpleNamespace(as_text=lambda: STARTED), AbstractMesh((4,), ("fsdp",)))
    assert found == [
        Collective(kind, ("fsdp",), 1, 4 * 8) for kind in ("all-gather", "collective-permute")
    ]


@pytest.mark.parametrize(("step", "times"), [(1, 7), (2, 4)])
def test_loops_that_count_by_steps_and_what_goes_between_slices(step, times):
    """The TPU's compiler unrolls loops that send weights in pieces, so their counters step by 2."""
    text = PROGRAM.replace("STEP", str(step))
    chips = np.array([SimpleNamespace(slice_index=i // 2) for i in range(4)]).reshape(2, 2)
    mesh = Mock(spec=Mesh, devices=chips, shape={"data": 2, "fsdp": 2})
    within, between = collectives(SimpleNamespace(as_text=lambda: text), mesh)[::-1]
    assert within == Collective("all-reduce", ("fsdp",), times, times * 4 * 8)
    assert between == Collective("all-gather", ("slices",), 1, 2 * 2 * 8)
    text = text.replace("ALL_GATHER", "REDUCE_SCATTER")  # of which a slice keeps half
    scattered = collectives(SimpleNamespace(as_text=lambda: text), mesh)[1]
    assert scattered == Collective("reduce-scatter", ("slices",), 1, 2 * 8 // 2)
