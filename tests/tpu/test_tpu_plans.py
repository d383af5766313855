"""Test plans that the TPU's compiler compiles, without any TPU."""

import importlib

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import imagenet256_latent_flow
from experiments.plan import advice, plan
from experiments.speed.programs import program_of
from genjax.devices import make_mesh
from genjax.devices.cost import multiply_adds_written
from genjax.devices.mesh import compiler_options
from genjax.devices.planning import tpu_topology
from genjax.devices.specifications import DEVICES
from genjax.training.log import Metrics

pytest.importorskip("libtpu", reason="the TPU's compiler is not installed (CONTRIBUTING.md)")

shares_plans = pytest.mark.xdist_group("plans")  # one worker compiles them

# Weights of attention's and the feed-forward products. The modulation has half as many.
LAYER = 12 * 256**2


def small(depth):
    config = imagenet256_latent_flow.get_config()
    config.model.update(name="DiT", width=256, depth=depth, num_heads=2)
    config.space.shape = (32, 32, 4)
    config.batch_size = 32
    return config


@pytest.fixture(scope="module")
def plans():
    return {depth: plan(small(depth), {"fsdp": 8}, "v5p", by_operation=True) for depth in (2, 6)}


def test_chips_are_those_asked_for():
    for name, kind in {"v4": "TPU v4", "v5p": "TPU v5", "v6e": "TPU v6 lite"}.items():
        for count in (1, 2, 16):
            devices = tpu_topology(DEVICES[name], count)
            assert len(devices) == count and {device.device_kind for device in devices} == {kind}
    slices = [device.slice_index for device in tpu_topology(DEVICES["v6e"], 512)]
    assert (len(slices), set(slices)) == (512, {0, 1})
    with pytest.raises(ValueError, match="does not take 1 × v99:2x2"):
        tpu_topology(DEVICES["v6e"]._replace(topology=("v99", 2, 256)), 4)


@shares_plans
def test_memory_is_that_of_a_step_compiled_by_hand(plans):
    """The plan's memory is that of a step whose state is sharded by hand, as "fully sharded" says.

    Each device has an eighth of every large array, along the largest side that eight divides. The
    dimension of scanned layers is never split.
    """
    found, mesh = plans[2], make_mesh({"fsdp": 8}, 32, tpu_topology(DEVICES["v5p"], 8))
    task = program_of("train", small(2), mesh).task

    def placed(path, a):
        sides = list(a.shape)
        if any(getattr(key, "key", None) == "blocks" for key in path):
            sides[0] = 0
        divides = [side if side % 8 == 0 else 0 for side in sides]
        large = a.size >= 4096 and any(divides)
        spec = [None] * a.ndim
        if large:
            spec[divides.index(max(divides))] = "fsdp"
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, P(*spec)))

    state = jax.tree.map_with_path(placed, jax.eval_shape(task.init, jax.random.key(0)))
    of = lambda *shape, dtype: jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, P("fsdp"))
    )
    batch = {"image": of(32, 32, 32, 4, dtype=np.float32), "label": of(32, dtype=np.int32)}

    def update(state, batch, key):
        new, metrics = task.update(state, batch, jax.random.fold_in(key, state.step))
        return new, Metrics.pack(metrics)

    step = jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda a: a.sharding, state), None),
        compiler_options=compiler_options(mesh),
    )
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        analysis = step.lower(state, batch, key).compile().memory_analysis()
    workspace = found["memory"]["gradients, activations and workspace"]
    assert workspace == pytest.approx(analysis.temp_size_in_bytes, rel=0.01)
    peak = (
        analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
    )
    assert found["peak"] == pytest.approx(peak - analysis.alias_size_in_bytes, rel=0.01)

    held = lambda tree: sum(
        a.size * a.dtype.itemsize // (8 if any(a.sharding.spec) else 1)
        for a in jax.tree.leaves(tree)
    )
    for field in ("params", "optimizer_state", "averages"):
        assert found["memory"][field] == held(getattr(state, field))


def test_arithmetic_is_what_the_compiler_counts():
    """The compiler counts the operations of one chip, and a loop's body once.

    The compiler also counts elementwise operations. It could not see into attention's kernel, but
    these sequences are too short for the kernel.
    """
    config, axes = small(2), {"fsdp": 2, "tensor": 2, "context": 2}
    config.model.remat_policy = None
    config.space.shape = (16, 16, 4)
    mesh = make_mesh(axes, 32, tpu_topology(DEVICES["v5p"], 8))
    program = program_of("train", config, mesh)
    with jax.set_mesh(mesh):
        operations = program.jitted().lower(*program.args).compile().cost_analysis()["flops"]
    written = 2 * multiply_adds_written(program.function, *program.local) * mesh.shape["fsdp"]
    assert 1 < 8 * operations / written < 1.3


def test_the_estimate_for_gpus_is_near_the_compilers(monkeypatch):
    """The planner's estimate of memory is within 20 % of the TPU's compiler.

    The network is one that TPUs pad little, and attention's kernel takes heads in its own order.
    The estimate sums the arrays that are live at once, split by the sharding rules, without fusion.
    """
    dispatch = importlib.import_module("genjax.nn.attention.dispatch")
    monkeypatch.setattr(dispatch, "query_block", lambda *sizes: None)
    config, axes = small(6), {"fsdp": 2, "tensor": 2, "context": 2}
    config.model.num_heads = 4
    config.space.shape = (64, 64, 4)  # 1,024 tokens
    compiled, estimated = (plan(config, axes, device)["memory"] for device in ("v5p", "h100"))
    working = estimated["gradients"] + estimated["activations and workspace"]
    assert 0.8 < working / compiled["gradients, activations and workspace"] < 1.2


@shares_plans
def test_collectives_in_loops_count_for_every_layer(plans):
    """Each layer's weights are gathered twice and their gradients are summed, in bfloat16.

    Gradients of products go round in nine pieces, where eight would be enough. For the modulation,
    the chips gather the factors of the gradient instead of summing the gradient.
    """
    total = lambda found, kind: sum(
        each["bytes"] for each in found["collectives"] if each["kind"] == kind
    )
    of_a_layer = lambda kind: (total(plans[6], kind) - total(plans[2], kind)) / 4
    assert of_a_layer("collective-permute") == 2 * LAYER * 9 / 8
    assert of_a_layer("all-gather") == pytest.approx(2 * 2 * LAYER * 3 / 2, rel=0.05)  # and biases
    assert of_a_layer("all-reduce") + of_a_layer("all-to-all") < 0.01 * 2 * LAYER * 9
    assert all(
        each["axes"] == ("fsdp",) for found in plans.values() for each in found["collectives"]
    )


@shares_plans
def test_products_in_loops_count_for_every_layer(plans):
    """Each layer adds its products once forward and twice backward.

    A chip has 4 examples of 256 tokens. Attention's kernel is not counted. The tolerance of 2 % is
    for gradients of modulations, which are products of vectors gathered from all chips.
    """
    operations = lambda depth: plans[depth]["breakdown"]["categories"]["products"]["operations"]
    by_hand = 2 * 3 * 4 * (256 * LAYER + LAYER / 2)
    assert (operations(6) - operations(2)) / 4 == pytest.approx(by_hand, rel=0.02)


def test_what_does_not_fit_is_told_what_to_do():
    """The compiler refuses a program that is too large, and says how many bytes it would take."""
    config = small(2)
    config.model.update(width=1024, num_heads=8, remat_policy=None)
    config.space.shape, config.batch_size = (64, 64, 4), 1024
    found = plan(config, {"data": 8}, "v5e")
    assert not found["compiled"] and not found["fits"]
    # A device with enough memory needs about as many bytes.
    fitting = plan(config, {"data": 8}, "v5p")
    assert fitting["compiled"] and fitting["fits"]
    workspace = lambda found: found["memory"]["gradients, activations and workspace"]
    assert 0.8 < workspace(found) / workspace(fitting) < 1.25
    assert found["capacity"] < 16 * 2**30 < found["peak"]
    assert any(sentence.startswith("It does not fit") for sentence in advice(found))


def test_slices_are_joined_by_a_slower_network(monkeypatch):
    """Each chip of a slice sums its part of the gradients with the other slice's, in bfloat16.

    The sums cover at least the gradients of products, and at most all gradients. Gradients of
    modulations may be computed from gathered vectors instead.
    """
    monkeypatch.setitem(DEVICES, "v5e", DEVICES["v5e"]._replace(topology=("v5e", 2, 8)))
    found = plan(small(2), {"data": 2, "fsdp": 8}, "v5e")
    assert found["slices"] == 2
    (sent,) = [
        each["bytes"]
        for each in found["collectives"]
        if (each["kind"], each["axes"]) == ("all-reduce", ("slices",))
    ]
    assert 2 * 2 * LAYER / 8 < sent < 2 * found["parameters"] / 8
    assert found["terms"]["links of slices"] >= sent / 3.125e9


def test_attention_is_the_kernel_of_tpus():
    """The program stores no array as large as the logits.

    A chip has 8 examples of 1,024 tokens and two heads.
    """
    config = small(2)
    config.space.shape = (64, 64, 4)
    found = plan(config, {"data": 4}, "v5p")
    logits = 4 * 8 * 2 * 1024**2
    assert found["memory"]["gradients, activations and workspace"] < 4 * logits
    assert [(each["form"], each["query"]) for each in found["attention"]] == [
        ("short", (8, 1024, 2, 128))
    ]
    assert jax.default_backend() == "cpu"


def test_sampling_is_shared_by_all_chips():
    """A chip's workspace does not grow with the number of chips, and each step gathers weights.

    The comparison is a single chip with as many examples as each of eight chips.
    """
    config = small(2)
    config.sampling.update(sampler=dict(name="euler"), num_steps=10)
    found = {}
    for axes, batch_size in (({"fsdp": 8}, 128), ({"data": 1}, 16)):
        config.batch_size = batch_size
        found[batch_size] = plan(config, axes, "v5p", "sample")
    shared, alone = found[128], found[16]
    # The compiler's schedule of gathers may change the workspace by a factor of 2. All examples on
    # one chip would take 13 times as much.
    assert 0.5 < shared["memory"]["workspace"] / alone["memory"]["workspace"] < 2
    assert [each["query"] for each in shared["attention"]] == [(32, 256, 2, 128)]
    # Each step gathers two layers' weights in bfloat16, in nine pieces where eight would be enough.
    # The few weights outside of the layers are gathered too.
    sent, weights = sum(each["bytes"] for each in shared["collectives"]), 2 * LAYER * 3 / 2
    assert 1 < sent / (10 * 2 * weights) < 1.4


@pytest.mark.parametrize(
    ("axes", "over_slices"),
    [
        ({"data": 2, "fsdp": 8}, ("data",)),
        ({"fsdp": 8, "context": 2}, ("fsdp",)),
        ({"data": 1, "fsdp": 16}, ("fsdp",)),
    ],
)
def test_the_first_axes_go_over_slices(axes, over_slices):
    devices = topologies.get_topology_desc("v5e:2x4", "tpu", num_slices=2).devices
    mesh = make_mesh(axes, 16, devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    changing = [name for i, name in enumerate(axes) if np.any(np.diff(slices, axis=i))]
    assert tuple(changing) == over_slices
    # Each line of devices along the axis changes its slice once.
    assert (
        np.sum(np.diff(slices, axis=list(axes).index(*over_slices))) == 16 // axes[over_slices[0]]
    )


def test_slices_that_do_not_divide():
    devices = topologies.get_topology_desc("v5e:2x4", "tpu", num_slices=3).devices
    with pytest.raises(ValueError, match="does not divide over 3 slices"):
        make_mesh({"fsdp": 16}, 16, [*devices[:6], *devices[8:13], *devices[16:21]])


def test_an_axis_may_be_part_of_the_torus():
    mesh = make_mesh({"fsdp": 32, "tensor": 2}, 64, tpu_topology(DEVICES["v5p"], 64))
    assert dict(mesh.shape) == {"fsdp": 32, "tensor": 2}
    (first, second), *_ = mesh.devices
    # The two chips are neighbours, because one coordinate differs.
    assert sum(a != b for a, b in zip(first.coords, second.coords, strict=True)) == 1
