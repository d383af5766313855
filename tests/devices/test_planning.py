"""Test the planner's estimate of a step against counts by hand.

The estimate has the bytes of shards, the bytes that are live at once, the bytes that devices send,
and the seconds that sending takes.
"""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, use_abstract_mesh

from genjax.devices.collectives import Collective
from genjax.devices.cost import product_bytes, working_bytes
from genjax.devices.mesh import abstract_mesh
from genjax.devices.planning import (
    Layer,
    check_axes,
    collective_seconds,
    compiled_bytes,
    context_collectives,
    parameter_collectives,
    refused_bytes,
    roofline,
    shard_bytes,
    size_on_device,
    tensor_collectives,
    torus,
    traced_layers,
)
from genjax.devices.specifications import DEVICES, device_of
from genjax.models.transformers.dit import DiT
from genjax.nn import attention
from genjax.training.placement import abstract_state
from tests import virtual_devices

WIDTH, DEPTH, BATCH, TOKENS = 64, 5, 8, 16


def gradient_of(remat_policy, depth=DEPTH):
    """Return the gradient of a transformer's mean squared output, and its parameters' shapes."""
    network = DiT(
        patch_size=2,
        width=WIDTH,
        depth=depth,
        num_heads=4,
        num_classes=10,
        remat_policy=remat_policy,
    )
    inputs = jnp.zeros((BATCH, 8, 8, 4)), jnp.zeros(BATCH), jnp.zeros(BATCH, int)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    loss = lambda params: jnp.mean(network.apply(params, *inputs) ** 2)
    return jax.grad(loss), params


def test_each_layer_adds_what_rematerialisation_keeps_of_it():
    """A layer keeps its input alone, or all arrays that its backward pass needs.

    The gradient of the layer's parameters comes on top.
    """

    def a_layer(policy):
        few, many = (working_bytes(*gradient_of(policy, depth)) for depth in (DEPTH, 2 * DEPTH))
        return (many - few) / DEPTH

    blocks = gradient_of(None)[1]["params"]["blocks"]
    gradients = sum(a.size for a in jax.tree.leaves(blocks)) // DEPTH * 4
    assert a_layer("nothing_saveable") == 4 * BATCH * TOKENS * WIDTH + gradients
    # The products' operands are among it, with attention's weights of four heads.
    products = BATCH * TOKENS * (3 + 1 + 4 + 4) * WIDTH + BATCH * 4 * TOKENS**2
    assert a_layer(None) > 4 * products + gradients


def test_a_device_holds_its_part():
    """Sizes on one device of parameters, a layer's weights at work, and activations.

    Gradients and copies of parameters are split as the parameters are. The weights of a layer at
    work are split by `tensor` alone. Tokens are split by `context`. Features are split by `tensor`
    unless a layer that `tensor` splits takes them.
    """
    mesh = abstract_mesh({"fsdp": 2, "tensor": 4, "context": 2}, BATCH)
    shape_of = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    state = {
        "blocks": {"mlp_in": {"kernel": shape_of((3, 64, 256))}},
        "head": {"kernel": shape_of((64, 128))},
    }
    inner = Layer(
        "DiT", "blocks/mlp_in", (BATCH, TOKENS, 64), (BATCH, TOKENS, 256), jnp.dtype("bfloat16"), 0
    )
    of = lambda layers, shape, dtype=jnp.float32, **options: size_on_device(
        state, layers, mesh, **options
    )(shape_of(shape, dtype))
    assert of([inner], (3, 64, 256)) == 4 * 3 * 64 * 256 // 8
    assert of([inner], (3, 64, 256), jnp.bfloat16) == 2 * 3 * 64 * 256 // 8
    assert of([inner], (64, 256), jnp.bfloat16) == 2 * 64 * 256 // 4
    assert of([inner], (64, 128)) == 4 * 64 * 128 // 2
    assert of([inner], (64, 128), gathered=True) == 4 * 64 * 128
    assert of([inner], (3, BATCH, TOKENS, 64)) == 4 * 3 * BATCH * TOKENS * 64 // 2
    assert of([inner], (3, BATCH, TOKENS, 256)) == 4 * 3 * BATCH * TOKENS * 256 // (2 * 4)
    assert of([], (BATCH, 32, 32, 256)) == 4 * BATCH * 32 * 32 * 256  # convolutions


def test_axes_that_split_nothing_are_refused():
    layer = lambda path, length: Layer(
        "DiT", path, (BATCH, length, 64), (BATCH, length, 256), jnp.dtype("float32"), 0
    )
    layers = [
        layer("blocks/mlp_in", 256),
        layer("text_blocks/mlp_in", 77),
        layer("middle/query", 1000),
    ]
    check = lambda layers, heads, **axes: check_axes(
        layers, [(BATCH, 256, number, 64) for number in heads], abstract_mesh(axes, BATCH)
    )
    assert check(layers, (1, 6), tensor=3, context=4) == [77, 256]
    for refused in (lambda: check(layers, (1, 6), tensor=4), lambda: check(layers, (), tensor=2)):
        with pytest.raises(ValueError, match="tensor splits heads"):
            refused()
    for refused in (
        lambda: check(layers, (6,), context=5),
        lambda: check(layers[2:], (6,), context=2),
    ):
        with pytest.raises(ValueError, match="context splits the sequences"):
            refused()


def test_what_the_tpu_compiler_says_when_it_refuses():
    of_all = (
        "RESOURCE_EXHAUSTED: … memory space hbm. Used 63.80G of 30.75G hbm. "
        "Exceeded hbm capacity by …"
    )
    beside = (
        "RESOURCE_EXHAUSTED: … the total memory required for HLO temporaries (512.00M) "
        "exceeds available HBM (15.75G)."
    )
    assert refused_bytes(of_all, 2**30) == (int(62.8 * 2**30), int(30.75 * 2**30))
    assert refused_bytes(beside, 2**30) == (2**29, int(15.75 * 2**30))
    assert refused_bytes("RESOURCE_EXHAUSTED: of something else", 0) is None


def test_products_read_their_operands_and_write_their_result():
    a, b = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.bfloat16)
    assert product_bytes(lambda a, b: a @ b.astype(jnp.float32), a, b) == 4 * (15 + 35 + 21)
    # Axes are batch, tokens, heads and features. Logits are larger, but they stay on the chip. So
    # attention reads queries, keys and values, and writes its output.
    heads = jax.ShapeDtypeStruct((2, 64, 3, 8), jnp.float32)
    assert product_bytes(attention, heads, heads, heads) == 4 * (2 + 2) * 2 * 64 * 3 * 8
    # One query reads all keys and values, and its logits are smaller than these.
    one = jax.ShapeDtypeStruct((2, 1, 3, 8), jnp.float32)
    single = 4 * 2 * (2 * 64 * 3 * 8 + 2 * 3 * 64 + 2 * 3 * 8)
    assert product_bytes(attention, one, heads, heads) == single
    x = jax.ShapeDtypeStruct((6, 3, 5), jnp.float32)
    once = 4 * (15 + 25 + 15)
    w = jax.ShapeDtypeStruct((5, 5), jnp.float32)
    scanned = lambda x, w: jax.lax.scan(
        lambda total, each: (total + (each @ w).sum(), None), 0.0, x
    )
    assert product_bytes(scanned, x, w) == 6 * once


def test_what_is_live_at_once():
    x = jax.ShapeDtypeStruct((100,), jnp.float32)

    # The cosine is fused into the product, so only `a` and the product are live.
    def two(x):
        a = jnp.sin(x)
        return a * jnp.cos(a) + jnp.broadcast_to(1.0, x.shape)

    assert working_bytes(two, x) == 2 * 400
    # A chain of elementwise operations keeps only its end. A sort is not fused, so its input and
    # output are live at once. In a loop both are live beside the carry.
    assert working_bytes(lambda x: jnp.sin(jnp.sin(jnp.sin(x))), x) == 400
    chain = lambda x: jax.lax.sort(jax.lax.sort(jax.lax.sort(x)))
    assert working_bytes(chain, x) == 2 * 400
    looped = lambda length: (
        lambda x: jax.lax.scan(lambda x, _: (chain(x), None), x, length=length)[0]
    )
    assert working_bytes(looped(2), x) == working_bytes(looped(1000), x) == 3 * 400
    # A view keeps its array alive.
    assert (
        working_bytes(
            lambda x: jnp.vdot(jnp.sin(x).reshape(10, 10), jax.lax.sort(x).reshape(10, 10)), x
        )
        == 804
    )
    # A loop holds one layer at a time of weights that are an argument. It holds all of its stacked
    # outputs.
    weights = jax.ShapeDtypeStruct((7, 100, 100), jnp.float32)
    layers = lambda weights, x: jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]
    assert working_bytes(layers, weights, x) == 40_000 + 2 * 400
    stacked = lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x), x), x, length=7)[1]
    assert 8 * 400 <= working_bytes(stacked, x) <= 10 * 400
    # Results in the place of arguments cost nothing. `size` decides how large an array is.
    both = lambda x: (jnp.sin(x), jnp.cos(x))
    assert (working_bytes(both, x), working_bytes(both, x, in_place=True)) == (2 * 400, 0)
    assert working_bytes(two, x, size=lambda a: a.size) == 2 * 100


class Toy:
    def init(self, key):
        del key
        block = lambda *shape: jnp.zeros(shape)
        return {
            "blocks": {"kernel": block(3, 128, 256), "bias": block(3, 8)},
            "head": {"kernel": block(256, 64)},
        }


KERNEL, BIAS, HEAD = 4 * 3 * 128 * 256, 4 * 3 * 8, 4 * 256 * 64


def test_a_product_of_axes_gathers_over_one_and_sums_over_both():
    mesh = abstract_mesh({"data": 2, "fsdp": 4}, BATCH)
    state = abstract_state(Toy(), jax.random.key(0), mesh)
    assert shard_bytes(state) == (KERNEL + HEAD) // 4 + BIAS
    sent = {(each.kind, each.axes): each for each in parameter_collectives(state, [], mesh)}
    assert sent.pop(("all-gather", ("fsdp",))).bytes == 2 * KERNEL + HEAD
    assert sent.pop(("reduce-scatter", ("fsdp",))).bytes == (KERNEL + HEAD) // 4
    assert sent.pop(("all-reduce", ("data",))).bytes == (KERNEL + HEAD) // 4
    assert sent.pop(("all-reduce", ("data", "fsdp"))).bytes == BIAS
    assert not sent
    (whole,) = parameter_collectives(state, [], abstract_mesh({"data": 8}, BATCH))
    assert whole == Collective("all-reduce", ("data",), 3, KERNEL + BIAS + HEAD)


ACCUMULATED = """
import json
import jax, jax.numpy as jnp
from genjax.devices import make_mesh
from genjax.devices.collectives import collectives
from genjax.devices.mesh import batch_sharding, replicated
from genjax.devices.planning import parameter_collectives
from genjax.training import value_and_gradient

def loss(params, x, key):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["blocks"])
    return jnp.mean((h @ params["head"]) ** 2), None

mesh, key = make_mesh({"data": 4}, 16), jax.random.key(0)
shardings = replicated(mesh), batch_sharding(mesh), replicated(mesh)
array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
params, x = {"blocks": array(3, 16, 16), "head": array(16, 8)}, array(64, 16)
for passes in (1, 2, 4):
    with jax.set_mesh(mesh):
        gradient = jax.jit(value_and_gradient(loss, passes), in_shardings=shardings)
        compiled = gradient.lower(params, x, key).compile()
    sent = (collectives(compiled, mesh), parameter_collectives(params, [], mesh, passes))
    print(json.dumps([[(c.kind, c.bytes) for c in each] for each in sent]))
"""


@pytest.mark.slow
def test_every_microbatch_sums_its_gradients_over_devices():
    """As four devices of a CPU do, which also sum the loss: 4 bytes for each microbatch."""
    lines = virtual_devices.run(["-c", ACCUMULATED], num_devices=4).splitlines()
    for passes, line in zip((1, 2, 4), lines, strict=True):
        ((kind, compiled),), (counted,) = json.loads(line)
        assert [kind, compiled - 4 * passes] == counted
        assert counted == ["all-reduce", passes * 4 * (3 * 16 * 16 + 16 * 8)]


def network_and_inputs(**mesh):
    network = DiT(patch_size=2, width=WIDTH, depth=DEPTH, num_heads=4, num_classes=10)
    inputs = jnp.zeros((BATCH, 8, 8, 4)), jnp.zeros(BATCH), jnp.zeros(BATCH, int)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    loss = lambda params: jnp.mean(network.apply({"params": params}, *inputs) ** 2)
    return loss, params, abstract_mesh(mesh, BATCH)


def test_tensor_sums_twice_a_layer_forward_and_twice_backward():
    """Two devices of a CPU send the same sums (tests/training/test_sharded_training.py)."""
    loss, params, mesh = network_and_inputs(data=2, tensor=2, context=2)
    with use_abstract_mesh(mesh):
        sent = tensor_collectives(params, traced_layers(loss, params), mesh, forward=2)
    by_kind = {each.kind: each for each in sent}
    assert {each.axes for each in sent} == {("tensor",)}
    tokens, vector = 4 * BATCH // 2 * TOKENS // 2 * WIDTH, 4 * BATCH // 2 * WIDTH
    # The forward pass runs twice. The backward pass sums gradients of the inputs of attention, of
    # the feed-forward layer and of the modulations.
    of_layers = DEPTH * (2 * 2 * tokens + 2 * tokens + vector)
    assert by_kind["all-reduce"].bytes == of_layers + vector
    assert by_kind["all-gather"].bytes == 2 * (DEPTH * 6 * vector + 2 * vector)


def test_parameters_are_sent_in_the_type_of_their_products():
    mesh = abstract_mesh({"fsdp": 2, "tensor": 2}, BATCH)
    kernel = jax.ShapeDtypeStruct((3, 128, 256), jnp.float32)
    params = {"blocks": {"mlp_in": {"kernel": kernel}}}
    layer = Layer(
        "DiT", "blocks/mlp_in", (BATCH, 4, 128), (BATCH, 4, 256), jnp.dtype(jnp.bfloat16), 0
    )
    size = 3 * 128 * 256 * 2 // 2  # bfloat16; half of the columns
    sent = {each.kind: each.bytes for each in parameter_collectives(params, [layer], mesh)}
    assert sent == {"all-gather": 2 * size, "reduce-scatter": size // 2}
    (gathered,) = parameter_collectives(params, [layer], mesh, 10, backward=False)
    assert gathered == Collective("all-gather", ("fsdp",), 10, 10 * size)


def test_a_state_of_several_networks_calls_each_by_a_name():
    """Each network has its own layers, even with equal paths and shapes.

    The traffic of `tensor` is counted for a single network only.
    """
    mesh = abstract_mesh({"fsdp": 2, "tensor": 2}, BATCH)
    layer = lambda network, path, dtype: Layer(
        network, path, (BATCH, 4, 128), (BATCH, 4, 256), jnp.dtype(dtype), 0
    )
    kernel = lambda *shape: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    inner = {"mlp_in": kernel(3, 128, 256)}
    one = {"generator": {"blocks": inner, "map_out": kernel(128, 256)}}
    both = one | {"discriminator": {"blocks": inner, "head": kernel(128, 256)}}
    layers = [layer("Generator", path, jnp.bfloat16) for path in ("blocks/mlp_in", "map_out")]
    layers += [layer("Discriminator", path, jnp.float32) for path in ("blocks/mlp_in", "head")]
    sent = {each.kind: each.bytes for each in parameter_collectives(both, layers, mesh)}
    # Each of two passes gathers half of the blocks' columns. Two single layers come on top.
    assert sent["all-gather"] == (2 + 4) * (2 * 3 * 128 * 256 // 2 + 128 * 256)
    (summed,) = tensor_collectives(one, layers, mesh)
    # Gradients of three layers' inputs, in bfloat16.
    assert summed.bytes == 3 * 2 * BATCH // 2 * 4 * 128
    with pytest.raises(ValueError, match="of one network .* trains Discriminator and Generator"):
        tensor_collectives(both, layers, mesh)


def test_short_keys_are_gathered_and_their_gradients_summed():
    loss, params, mesh = network_and_inputs(data=2, context=4)
    with use_abstract_mesh(mesh):
        sent = context_collectives(jax.grad(loss), params)
    keys = 4 * BATCH // 2 * TOKENS * WIDTH
    assert sent == [
        Collective("all-gather", ("context",), 2 * DEPTH, 2 * DEPTH * keys),
        Collective("all-reduce", ("context",), 2 * DEPTH, 2 * DEPTH * keys),
    ]


@pytest.mark.parametrize(("heads", "kind"), [(3, "collective-permute"), (4, "all-to-all")])
def test_long_keys_go_round_or_heads_are_exchanged(heads, kind):
    length, examples, mesh = 1024, 2, abstract_mesh({"data": 2, "context": 4}, 4)
    a = jax.ShapeDtypeStruct((2 * examples, length, heads, 8), jnp.bfloat16)

    def loss(query, key, value):
        layer = lambda h, _: (attention(h, h + key, h + value), None)
        return jax.lax.scan(layer, query, None, 5)[0].sum()

    with use_abstract_mesh(mesh):
        (forward,) = context_collectives(loss, a, a, a)
        (both,) = context_collectives(jax.grad(loss, (0, 1, 2)), a, a, a)
    block = 2 * examples * length // 4 * heads * 8
    if kind == "all-to-all":  # queries, keys, values and the output; backward, their gradients
        assert forward == Collective(kind, ("context",), 5 * 4, 5 * 4 * block)
        assert both == Collective(kind, ("context",), 5 * 8, 5 * 8 * block)
    else:  # Keys and values take three steps. Backward, their float32 gradients take a fourth.
        assert forward == Collective(kind, ("context",), 5 * 6, 5 * 6 * block)
        assert both == Collective(kind, ("context",), 5 * 20, 5 * (12 * block + 8 * 2 * block))


def test_seconds_of_rings_within_nodes_and_between():
    seconds = lambda kind, axes, **mesh: collective_seconds(
        Collective(kind, axes, 1, 8_000_000_000), abstract_mesh(mesh, 64), DEVICES["h100"]
    )
    within = seconds("all-gather", ("fsdp",), data=4, fsdp=8)
    assert within == pytest.approx(7 / 8 * 8e9 / 450e9)
    # An all-reduce goes round twice. A node has eight network cards of 50 GB/s.
    assert seconds("all-reduce", ("fsdp",), fsdp=16) == pytest.approx(2 * 15 / 16 * 8e9 / 400e9)
    # The group has one device of each node, so it uses one card.
    assert seconds("all-gather", ("data",), data=4, fsdp=8) == pytest.approx(3 / 4 * 8e9 / 50e9)
    assert seconds("reduce-scatter", ("fsdp",), fsdp=8) == pytest.approx(7 * 8e9 / 450e9)
    # Each group has one pair of devices in each of two nodes, and uses the pair's two cards.
    around = seconds("all-reduce", ("data", "context"), data=2, fsdp=4, context=2)
    assert around == pytest.approx(2 * 3 / 4 * 8e9 / 100e9)
    chips = np.array([SimpleNamespace(slice_index=i // 256) for i in range(512)])
    two_slices = Mock(spec=Mesh, devices=chips.reshape(2, 256), shape={"data": 2, "fsdp": 256})
    over_slices = Collective("all-reduce", ("slices",), 1, 8_000_000_000)
    assert collective_seconds(over_slices, two_slices, DEVICES["v6e"]) == pytest.approx(
        8e9 / 12.5e9
    )


def test_a_step_lasts_as_long_as_its_longest_part():
    """Four devices of 100 operations a second, and two all-reduces over the same links."""
    device = DEVICES["h100"]._replace(operations=100.0, bandwidth=10.0, link=6.0)
    sent = [Collective("all-reduce", ("data",), 1, 8), Collective("all-gather", ("data",), 1, 8)]
    mesh = abstract_mesh({"data": 4}, 4)
    bound = roofline(device, mesh, 800, 600, moved=25, sent=sent)
    # Links: 2·3/4·8 and 3/4·8 bytes, at 6 a second.
    terms = {"arithmetic": 2.0, "memory": 2.5, "links of data": 3.0}
    assert bound == dict(terms=terms, largest="links of data", seconds=3.0, utilisation=0.5)
    short = roofline(device, mesh, 800, 600, moved=25, sent=())
    assert (short["largest"], short["seconds"], short["utilisation"]) == ("memory", 2.5, 0.6)


def test_donated_memory_counts_once():
    """10 bytes of arguments, 7 of which are returned changed in their place, and 5 of workspace."""
    sizes = dict(argument=10, temp=5, output=7, alias=7)
    analysis = SimpleNamespace(**{f"{name}_size_in_bytes": n for name, n in sizes.items()})
    program = SimpleNamespace(memory_analysis=lambda: analysis)
    assert compiled_bytes(program) == (5, 15)


def test_toruses_are_as_cubic_as_can_be():
    assert torus(512, 3) == [8, 8, 8] and torus(16, 3) == [2, 2, 4] and torus(8, 2) == [2, 4]
    assert torus(4, 3) == [2, 2, 1]  # a host of TPU v4 has 2×2×1 chips
    with pytest.raises(ValueError, match="power of two"):
        torus(24, 3)


def test_devices_by_their_own_names():
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
    }
    for kind, name in names.items():
        assert device_of(kind) is DEVICES[name]
    others = (
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA GB200",
        "cpu",
    )
    assert [device_of(kind) for kind in others] == [None] * len(others)
