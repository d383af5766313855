"""The programs that are compiled for TPUs beside other libraries: their sizes by hand."""

import jax
import pytest

from experiments.tpu_bounds import PEERS, PROGRAMS, row_of
from genjax.devices import make_mesh
from genjax.devices.cost import multiply_adds


@pytest.mark.parametrize("batch_size", [1, 4])
def test_flux_has_six_blocks_of_its_width(batch_size):
    function, args = PROGRAMS[f"flux_forward_{batch_size}"](make_mesh({"data": 1}, 1))
    width, image, text = 24 * 128, 4096, 512
    tokens = image + text
    blocks = 6 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    modulations = (2 * 12 + 4 * 3 + 2) * width**2
    embeddings = (image * 64 + text * 4096 + 256 + 768) * width + 2 * width**2
    by_hand = blocks + modulations + embeddings + image * width * 64
    assert multiply_adds(function, *args) == batch_size * by_hand


@pytest.mark.parametrize(
    ("name", "frames"), [("wan_decode", 17), ("wan_decode_by_chunks", 17), ("wan_chunk", 4)]
)
def test_wan_decodes_480_by_832(name, frames):
    function, args = PROGRAMS[name](make_mesh({"data": 1}, 1))
    video, *_ = jax.tree.leaves(jax.eval_shape(function, *args))
    assert video.shape == (1, frames, 480, 832, 3)


def test_a_row_in_the_units_of_its_peers():
    of = lambda seconds, moved: dict(seconds=seconds, bytes=moved)
    found = dict(
        program="dit_step",
        peak=31.9e9,
        total=of(0.208, 384e9),
        categories={"products": of(0.096, 75e9)},
    )
    row = row_of(found)
    assert (row.bound, row.products, row.kernels) == pytest.approx((208, 96, 0))
    assert (row.moved, row.peak) == pytest.approx((384, 31.9))
    assert {peer.program for peer in PEERS} <= PROGRAMS.keys()
