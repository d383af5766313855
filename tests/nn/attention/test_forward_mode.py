"""Attention under `jax.jvp`: its memory at 4,096 tokens, and its forms over several devices."""

import functools

import jax
import jax.numpy as jnp
import pytest

from genjax.nn import attention, attention_choices, forward_mode
from genjax.nn.attention.chunked import CHUNK_BYTES
from genjax.nn.attention.dispatch import choose_attention, plain_attention
from tests import virtual_devices

HEADS = (1, 4096, 16, 64)  # of DiT-XL/2 at 1,024 pixels; 1 GiB of logits


def mean_flow_loss(form, primals, tangents):
    """The loss of a mean flow whose network is attention: no gradient passes the derivative."""
    u, change = jax.jvp(form, primals, tangents)
    return jnp.sum(jnp.square(u - jax.lax.stop_gradient(u - change)))


def workspace(form):
    """The bytes of temporary arrays that the compiler plans for the loss and its gradient."""
    arrays = [jax.ShapeDtypeStruct(HEADS, jnp.float32)] * 3
    loss = functools.partial(mean_flow_loss, form)
    with forward_mode(True):
        compiled = jax.jit(jax.value_and_grad(loss)).lower(arrays, arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_derivative_is_that_of_a_few_chunks():
    """Logits, weights and tangents of a chunk are there at once; of the plain form, of all keys.

    A chunk is 512 keys here, so the plain form has arrays of eight times the size.
    """
    bound = 6 * CHUNK_BYTES
    with attention_choices() as choices:
        assert workspace(lambda *inputs: attention(*inputs)) < bound
    assert [choice.form for choice in choices] == ["chunked"]
    assert workspace(plain_attention) > 4 * bound


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "gpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_platform_takes_chunks_where_logits_exceed_one(platform, dtype):
    choose = functools.partial(choose_attention, platform, forward_mode=True)
    assert choose(HEADS, HEADS, dtype) == "chunked"
    short = (16, 256, 16, 64)  # 64 MiB
    assert choose(short, short, dtype) == "plain"


PROGRAM = """
import functools
import jax, jax.numpy as jnp, numpy as np
from genjax.nn import attention, attention_choices, forward_mode
from genjax.nn.attention.dispatch import plain_attention

mesh = jax.make_mesh((8,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
for heads in (8, 3):
    shape = (1, 1024, heads, 8)
    draw = lambda key: jax.random.normal(key, shape)
    keys = jax.random.split(jax.random.key(heads), 6)
    primals, tangents = tuple(map(draw, keys[:3])), tuple(map(draw, keys[3:]))
    derivative = lambda form, *arrays: jax.jvp(form, arrays[:3], arrays[3:])
    with jax.set_mesh(mesh), forward_mode(True), attention_choices() as choices:
        by_mesh = functools.partial(derivative, lambda *arrays: attention(*arrays))
        found = jax.jit(by_mesh)(*primals, *tangents)
    print(sorted(choice.form for choice in choices))
    expected = jax.jit(functools.partial(derivative, plain_attention))(*primals, *tangents)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()))
"""


@pytest.mark.slow
def test_sequences_split_over_devices_have_the_plain_derivative():
    """Eight heads are exchanged for the parts of the sequence; of three, keys go round a ring."""
    printed = virtual_devices.run(["-c", PROGRAM], 8).splitlines()
    assert printed == ["['all_to_all', 'plain']", "['ring']"]
