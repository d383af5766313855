"""Test the layers of autoencoders as the TPU's compiler compiles them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genjax.devices import make_mesh
from genjax.devices.breakdown import breakdown
from genjax.devices.planning import tpu_topology
from genjax.devices.specifications import DEVICES
from genjax.nn.convolution import convolve_enlarged

pytest.importorskip("libtpu", reason="the TPU's compiler is not installed (CONTRIBUTING.md)")

V5P = DEVICES["v5p"]


def test_an_enlarging_convolution_stores_no_enlarged_image():
    """The convolution has 4/9 of the enlarged image's products, and moves its result three times.

    The result is written once, and then read and written once more in the caller's layout. A
    convolution of an enlarged image moves the result five times. Phases that are interleaved later
    move the result seven times.
    """
    batch, side, channels, features = 8, 128, 256, 128
    mesh = make_mesh({"data": 1}, 1, tpu_topology(V5P, 1))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = ((batch, side, side, channels), (3, 3, channels, features))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=whole) for shape in shapes]
    layout = ("NHWC", "HWIO", "NHWC")
    function = lambda x, kernel: convolve_enlarged(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout
    )
    found = breakdown(jax.jit(function).lower(*arrays).compile(), V5P)
    multiply_adds = 4 * 4 * batch * side**2 * channels * features  # of four phases by 2×2 taps
    # Pixels at the border have fewer neighbours.
    assert 0.98 < found["total"]["operations"] / (2 * multiply_adds) <= 1
    image, result = 2 * batch * side**2 * channels, 2 * batch * (2 * side) ** 2 * features
    # The image is read, and may be copied into another layout. It is half as large as the result.
    assert found["total"]["bytes"] < 1.02 * (3 * image + 3 * result)
