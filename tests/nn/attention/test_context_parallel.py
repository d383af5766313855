"""Attention over a split sequence, on eight virtual devices, equals plain attention on one."""

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
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)

def inputs(batch, queries, keys, heads, features=8, dtype=jnp.float32):
    return [normal((batch, length, heads, features), dtype) for length in (queries, keys, keys)]

def value_and_gradients(function, *arguments):
    output, backward = jax.vjp(function, *arguments)
    cotangent = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
    return output, *backward(cotangent.astype(output.dtype))

def check(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(c, np.float64) for c in (a, b))
        assert a.shape == b.shape
        assert abs(a - b).max() < tolerance * abs(b).max(), abs(a - b).max() / abs(b).max()
"""

# Tolerance 2e-6: float32 rounds by 6e-8, and sums of some hundred terms have another order.
# Tolerance 0.02: bfloat16 rounds by 0.002, and gradients are rounded once for each of eight blocks.
EQUAL = """
def compare(form, mesh, arguments, mask=None, bias=None, tolerance=2e-6):
    function = lambda form: lambda q, k, v, bias: form(q, k, v, mask, bias)
    over_mesh = function(functools.partial(attention_over_mesh, form, mesh=mesh))
    actual = jax.jit(functools.partial(value_and_gradients, over_mesh))(*arguments, bias)
    expected = value_and_gradients(function(plain_attention), *arguments, bias)
    check(actual, expected, tolerance)

context = mesh_of(context=8)
three = mesh_of(data=2, context=2, tensor=2)

def lower(queries, keys):
    return jnp.tril(jnp.ones((queries, keys), bool), keys - queries)[None, None]

for form in (ring_attention, all_to_all):
    compare(form, context, inputs(2, 64, 64, 8))
    compare(form, context, inputs(1, 64, 64, 8, dtype=jnp.bfloat16), tolerance=0.02)
    padding = jnp.arange(53) < jnp.array([29, 53])[:, None]
    # Neither length is divisible by 8.
    compare(form, context, inputs(2, 37, 53, 8), mask=padding[:, None, None])
    compare(form, three, inputs(2, 37, 53, 4), lower(37, 53), normal((1, 4, 37, 53)))
    per_head = jnp.asarray(random.random((2, 4, 38, 38)) < 0.6).at[..., 5].set(True)
    compare(form, three, inputs(2, 38, 38, 4), per_head, normal((2, 4, 1, 38)))
    # A batch of 3 is not divisible by 4.
    compare(form, mesh_of(fsdp=4, context=2), inputs(3, 16, 16, 2))

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
expected = jax.jvp(lambda *a: plain_attention(*a, mask), primals, tangents)
check(jax.jvp(ring, primals, tangents), expected, 2e-6)
"""

# Bytes that a device receives. Each of 8 devices has 2·8·8·16 = 2,048 numbers of the query, and as
# many of the key, the value and the output.
BYTES = """
mesh = mesh_of(context=8)
part = 2 * 8 * 8 * 16

def sent(form, gradient, **options):
    function = lambda *parts: attention_over_mesh(form, *parts, mesh=mesh, **options)
    if gradient:
        function = functools.partial(value_and_gradients, function)
    sharding = NamedSharding(mesh, P(None, "context"))
    whole = jax.ShapeDtypeStruct((2, 64, 8, 16), jnp.float32, sharding=sharding)
    compiled = jax.jit(function).lower(whole, whole, whole).compile()
    return {(c.kind, c.axes): c.bytes for c in collectives(compiled, mesh)}

# The keys and values of a device go to 7 other devices, and once more in the backward pass. Their
# gradients make 8 steps, back to the device of the keys and values.
ring_step = 2 * part * 4
assert sent(ring_attention, False) == {("collective-permute", ("context",)): 7 * ring_step}
assert sent(ring_attention, True) == {
    ("collective-permute", ("context",)): (7 + 7 + 8) * ring_step
}
# Query, key, value and output are exchanged, and so are their gradients.
assert sent(all_to_all, False) == {("all-to-all", ("context",)): 4 * part * 4}
assert sent(all_to_all, True) == {("all-to-all", ("context",)): 8 * part * 4}
# Whole keys and values are gathered, and their gradients summed.
keys_and_values = 2 * 8 * part * 4
assert sent(plain_attention, False, split_keys=False) == {
    ("all-gather", ("context",)): keys_and_values,
}
assert sent(plain_attention, True, split_keys=False) == {
    ("all-gather", ("context",)): keys_and_values,
    ("all-reduce", ("context",)): keys_and_values,
}
"""

MEMORY = """
mesh = mesh_of(context=8)
sharding = NamedSharding(mesh, P(None, "context"))
whole = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32, sharding=sharding)
loss = lambda *parts: jnp.sum(jnp.square(attention_over_mesh(ring_attention, *parts, mesh=mesh)))
compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(whole, whole, whole).compile()
# Bytes of the logits of a device's queries to all eight blocks of keys. A block has an eighth of
# them, and four arrays of a block's size exist at once.
logits = 2 * 512 * 4096 * 4
workspace = compiled.memory_analysis().temp_size_in_bytes
assert workspace < 0.7 * logits, workspace / logits
"""

CHOSEN = """
mask = jnp.arange(1024)[None, None, None] < 1000

def kinds(arguments, **axes):
    mesh = mesh_of(**axes)
    sharding = NamedSharding(mesh, P("data" if "data" in axes else None, "context"))
    placed = [jax.device_put(a, sharding) for a in arguments]
    masked = lambda form: lambda *parts: form(*parts, mask[..., : parts[1].shape[1]])
    with jax.set_mesh(mesh):
        function = jax.jit(functools.partial(value_and_gradients, masked(attention)))
        compiled = function.lower(*placed).compile()
    check(compiled(*placed), value_and_gradients(masked(plain_attention), *arguments), 2e-6)
    return {c.kind for c in collectives(compiled, mesh)}

assert kinds(inputs(2, 1024, 1024, 4), data=2, context=4) == {"all-to-all"}
assert kinds(inputs(2, 1024, 1024, 3), data=2, context=4) == {"collective-permute"}
# Each device gets all of the few keys.
assert kinds(inputs(2, 1024, 64, 4), data=2, context=4) == {"all-gather", "all-reduce"}

# Attention inside a `jax.shard_map` over some axes uses the other axes.
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
    """Return the traceback of each failed program. One process runs all, to import JAX once."""
    return json.loads(virtual_devices.run(["-W", "error", "-c", PREAMBLE + RUN], num_devices=8))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_on_eight_devices(failures, program):
    assert program not in failures, failures[program]
