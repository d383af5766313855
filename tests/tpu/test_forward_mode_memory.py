"""Test the memory of attention under `jax.jvp` as the TPU's compiler plans it, without any TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genjax.devices import make_mesh
from genjax.devices.planning import tpu_topology
from genjax.devices.specifications import DEVICES
from genjax.nn import attention, attention_choices, forward_mode
from genjax.nn.attention.chunked import CHUNK_BYTES
from genjax.nn.attention.dispatch import plain_attention

pytest.importorskip("libtpu", reason="the TPU's compiler is not installed (CONTRIBUTING.md)")

SHAPE = (1, 4096, 16, 64)  # of DiT-XL/2 at 1,024 pixels: 1 GiB of logits in float32


def workspace(form):
    """The bytes of temporary arrays of a mean flow's loss and gradient, the network attention."""
    mesh = make_mesh({"data": 1}, 1, tpu_topology(DEVICES["v5p"], 1))
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=whole)] * 3

    def loss(primals, tangents):
        u, change = jax.jvp(form, primals, tangents)
        return jnp.sum(jnp.square(u - jax.lax.stop_gradient(u - change)).astype(jnp.float32))

    with jax.set_mesh(mesh), forward_mode(True):
        compiled = jax.jit(jax.value_and_grad(loss)).lower(arrays, arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_derivative_is_that_of_a_few_chunks():
    """As on CPUs: logits, weights and tangents of 512 keys are there at once, not of 4,096."""
    bound = 6 * CHUNK_BYTES
    with attention_choices() as choices:
        assert workspace(lambda *inputs: attention(*inputs)) < bound
    assert [choice.form for choice in choices] == ["chunked"]
    assert workspace(plain_attention) > bound
