"""Eight virtual devices, each with a part of the sequence, compute what one computes with plain attention."""

import json

import pytest

from tests import virtual_devices

PREAMBLE = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxtyping import install_import_hook
with install_import_hook("genjax.nn", "beartype.beartype"):
    from genjax.nn import all_to_all_attention, attention, attention_over_mesh, ring_attention
from genjax.nn.attention.dispatch import plain_attention
from genjax.devices.collectives import collectives

all_to_all = functools.partial(all_to_all_attention, attention=plain_attention)
random = np.random.default_rng(0)
normal = lambda shape, dtype=jnp.float32: jnp.asarray(random.standard_normal(shape), dtype)

def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))

def inputs(batch, queries, keys, heads, features=8, dtype=jnp.float32):
    return [normal((batch, length, heads, features), dtype) for length in (queries, keys, keys)]

def value_and_gradients(function, *arguments):
    output, backward = jax.vjp(function, *arguments)
    return output, *backward(jnp.cos(jnp.arange(output.size)).reshape(output.shape).astype(output.dtype))

def check(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(c, np.float64) for c in (a, b))
        assert a.shape == b.shape and abs(a - b).max() < tolerance * abs(b).max(), abs(a - b).max() / abs(b).max()
"""

# 2e-6: float32 rounds by 6e-8, and sums of some hundred terms are taken in another order. 0.02: bfloat16 rounds by .002,
# and gradients are rounded once for each of eight blocks.
EQUAL = """
def compare(form, mesh, arguments, mask=None, bias=None, tolerance=2e-6):
    function = lambda form: lambda q, k, v, bias: form(q, k, v, mask, bias)
    over_mesh = function(functools.partial(attention_over_mesh, form, mesh=mesh))
    actual = jax.jit(functools.partial(value_and_gradients, over_mesh))(*arguments, bias)
    check(actual, value_and_gradients(function(plain_attention), *arguments, bias), tolerance)

context = mesh_of(context=8)
three = mesh_of(data=2, context=2, tensor=2)
lower = lambda queries, keys: jnp.tril(jnp.ones((queries, keys), bool), keys - queries)[None, None]
for form in (ring_attention, all_to_all):
    compare(form, context, inputs(2, 64, 64, 8))
    compare(form, context, inputs(1, 64, 64, 8, dtype=jnp.bfloat16), tolerance=0.02)
    padding = jnp.arange(53) < jnp.array([29, 53])[:, None]
    compare(form, context, inputs(2, 37, 53, 8), mask=padding[:, None, None])  # neither length divides by 8
    compare(form, three, inputs(2, 37, 53, 4), lower(37, 53), normal((1, 4, 37, 53)))
    per_head = jnp.asarray(random.random((2, 4, 38, 38)) < 0.6).at[..., 5].set(True)
    compare(form, three, inputs(2, 38, 38, 4), per_head, normal((2, 4, 1, 38)))
    compare(form, mesh_of(fsdp=4, context=2), inputs(3, 16, 16, 2))  # 4 does not divide a batch of 3

try:
    compare(all_to_all, context, inputs(1, 64, 64, 6))
    raise AssertionError
except ValueError as error:
    assert "6 heads cannot be split over 8 devices" in str(error)
try:
    compare(ring_attention, mesh_of(data=8), inputs(8, 64, 64, 6))
    raise AssertionError
except ValueError as error:
    assert "context" in str(error)

mask = lower(64, 64)
ring = functools.partial(ring_attention, forward_mode=True)
ring = jax.jit(functools.partial(attention_over_mesh, ring, mesh=context, mask=mask))
primals, tangents = inputs(2, 64, 64, 3), inputs(2, 64, 64, 3)
check(jax.jvp(ring, primals, tangents), jax.jvp(lambda *a: plain_attention(*a, mask), primals, tangents), 2e-6)
"""

# Bytes of what a device receives. Of 8 devices each has 2·8·8·16 = 2,048 numbers of each of query, key, value and output.
BYTES = """
mesh = mesh_of(context=8)
part = 2 * 8 * 8 * 16

def sent(form, gradient, **options):
    function = lambda *parts: attention_over_mesh(form, *parts, mesh=mesh, **options)
    if gradient:
        function = functools.partial(value_and_gradients, function)
    whole = jax.ShapeDtypeStruct((2, 64, 8, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "context")))
    compiled = jax.jit(function).lower(whole, whole, whole).compile()
    return {(c.kind, c.axes): c.bytes for c in collectives(compiled, mesh)}

# A device's own keys and values go to 7 others; for the gradients once more, and theirs go round to where they began.
assert sent(ring_attention, False) == {("collective-permute", ("context",)): 7 * 2 * part * 4}
assert sent(ring_attention, True) == {("collective-permute", ("context",)): (7 + 7 + 8) * 2 * part * 4}
# Query, key, value and output are exchanged, and so are their gradients.
assert sent(all_to_all, False) == {("all-to-all", ("context",)): 4 * part * 4}
assert sent(all_to_all, True) == {("all-to-all", ("context",)): 8 * part * 4}
# Whole keys and values are gathered, and their gradients summed.
assert sent(plain_attention, False, split_keys=False) == {("all-gather", ("context",)): 2 * 8 * part * 4}
assert sent(plain_attention, True, split_keys=False) == {
    ("all-gather", ("context",)): 2 * 8 * part * 4,
    ("all-reduce", ("context",)): 2 * 8 * part * 4,
}
"""

MEMORY = """
mesh = mesh_of(context=8)
whole = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32, sharding=NamedSharding(mesh, P(None, "context")))
loss = lambda *parts: jnp.sum(jnp.square(attention_over_mesh(ring_attention, *parts, mesh=mesh)))
compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(whole, whole, whole).compile()
logits = 2 * 512 * 4096 * 4  # of a device's queries, in all eight blocks; a block has an eighth, of which four are there
assert compiled.memory_analysis().temp_size_in_bytes < 0.7 * logits, compiled.memory_analysis().temp_size_in_bytes / logits
"""

CHOSEN = """
mask = jnp.arange(1024)[None, None, None] < 1000

def kinds(arguments, **axes):
    mesh = mesh_of(**axes)
    sharding = NamedSharding(mesh, P("data" if "data" in axes else None, "context"))
    placed = [jax.device_put(a, sharding) for a in arguments]
    masked = lambda form: lambda *parts: form(*parts, mask[..., : parts[1].shape[1]])
    with jax.set_mesh(mesh):
        compiled = jax.jit(functools.partial(value_and_gradients, masked(attention))).lower(*placed).compile()
    check(compiled(*placed), value_and_gradients(masked(plain_attention), *arguments), 2e-6)
    return {c.kind for c in collectives(compiled, mesh)}

assert kinds(inputs(2, 1024, 1024, 4), data=2, context=4) == {"all-to-all"}
assert kinds(inputs(2, 1024, 1024, 3), data=2, context=4) == {"collective-permute"}
assert kinds(inputs(2, 1024, 64, 4), data=2, context=4) == {"all-gather", "all-reduce"}  # each device gets the few keys

# Inside a `jax.shard_map` over some axes the others are used.
arguments = inputs(2, 1024, 1024, 3)
with jax.set_mesh(mesh_of(data=2, context=4)):
    form = lambda *parts: attention(*parts, mask)
    form = jax.shard_map(form, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
    check(jax.jit(form)(*arguments), plain_attention(*arguments, mask), 2e-6)
"""


PROGRAMS = {"equal": EQUAL, "bytes": BYTES, "memory": MEMORY, "chosen": CHOSEN}

RUN = f"""
import json, traceback

failures = {{}}
for name, program in {PROGRAMS!r}.items():
    try:
        exec(program, dict(globals()))
    except Exception:
        failures[name] = traceback.format_exc()
print(json.dumps(failures))
"""


@pytest.fixture(scope="module")
def failures():
    """By program, how it failed; all run in one process, which imports JAX once."""
    return json.loads(virtual_devices.run(["-W", "error", "-c", PREAMBLE + RUN], num_devices=8))


@pytest.mark.parametrize("program", PROGRAMS)
def test_on_eight_devices(failures, program):
    assert program not in failures, failures[program]
