"""What a step needs and sends on devices that are not there, by the rules of its shardings."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from genjax.training.collectives import Collective
from genjax.training.cost import array_bytes, inner_jaxprs
from genjax.training.devices import Device
from genjax.training.mesh import BATCH_AXES, COLUMNS, CONTEXT, ROWS, SCANNED, TENSOR, partition_spec


def tpu_topology(device: Device, count: int) -> list[jax.Device]:
    """So many TPU chips to compile for.

    Raises:
        ImportError: the TPU compiler is not installed.
        ValueError: no topology of so many chips.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"TPU programs are compiled by libtpu ({error}), whose version is to fit JAX's: pip install 'jax[tpu]'"
        ) from error
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a cloud which machine this is
    family, dimensions = device.topology
    shape = torus(count, dimensions)
    host = [min(side, 2) for side in shape[:2]] + [1]  # one chip or two are part of a host
    return list(
        topologies.get_topology_desc(
            f"{family}:{'x'.join(map(str, shape))}", "tpu", chips_per_host_bounds=host
        ).devices
    )


def torus(count: int, dimensions: int) -> list[int]:
    """Sides of a torus of `count` chips, as equal as powers of two can be.

    Raises:
        ValueError: `count` is no power of two.
    """
    if count & (count - 1):
        raise ValueError(f"slices of TPUs have a power of two of chips; the mesh has {count}")
    sides = [1] * dimensions
    while math.prod(sides) < count:
        sides[sides.index(min(sides))] *= 2
    return sorted(sides, key=lambda side: (side == 1, side))  # as 2×2×1, of one host


def shard_bytes(tree: Any) -> int:
    """Of all arrays, what one device holds."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


class Layer(NamedTuple):
    """A linear layer of a program that is traced: shapes over all devices, and which layers have the same input."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: jnp.dtype
    input_id: int


def traced_layers(function: Callable, *args: Any) -> dict[str, Layer]:
    """The linear layers of the networks that `function(*args)` calls, by the paths of their parameters; nothing is computed."""
    layers, kept = {}, []

    def look(layer, inputs, options, context):
        outputs = layer(*inputs, **options)
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            path = "/".join(context.module.path)
            layers[path] = Layer(inputs[0].shape, outputs.shape, outputs.dtype, id(inputs[0]))
            kept.append(inputs[0])  # so that no other gets its id
        return outputs

    with nn.intercept_methods(look):
        jax.eval_shape(lambda *args: function(*args), *args)  # another function: traces are cached
    return layers


def size_on_device(
    state: Any, layers: Mapping[str, Layer], mesh: Mesh | AbstractMesh
) -> Callable[[Any], int]:
    """Of the arrays of a program that is traced with the examples of one device: the bytes of each which that device holds.

    What has the shape of an array of the state, as gradients do and copies in another type, is split as that is. In networks
    with layers that `tensor` splits, all else is split over `context`, and over `tensor` where its features are not those that
    such layers take, which every device has.

    Args:
        state: arrays with shardings.
    """
    like_state = {a.shape: math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(state)}
    whole = {layer.inputs[-1] for path, layer in layers.items() if COLUMNS.search(f"{path}/kernel")}
    axis = lambda name: mesh.shape.get(name, 1) if whole else 1

    def size(array: Any) -> int:
        if array.shape in like_state:
            return like_state[array.shape] * array.dtype.itemsize
        features = array.shape[-1] if array.shape else 1
        return array_bytes(array) // axis(CONTEXT) // (1 if features in whole else axis(TENSOR))

    return size


class _Sent(Counter):
    """Counts and bytes of collectives, by kind and axes."""

    def add(
        self, mesh: Mesh | AbstractMesh, kind: str, axes: Sequence[str], size: int, times: int = 1
    ) -> None:
        if axes := tuple(name for name in mesh.shape if name in axes and mesh.shape[name] > 1):
            self[kind, axes, "count"] += times
            self[kind, axes, "bytes"] += times * size

    def all(self) -> list[Collective]:
        keys = sorted({key[:2] for key in self})
        return [Collective(*key, self[*key, "count"], self[*key, "bytes"]) for key in keys]


def parameter_collectives(
    params: Any,
    layers: Mapping[str, Layer],
    mesh: Mesh | AbstractMesh,
    passes: int = 1,
    *,
    backward: bool = True,
) -> list[Collective]:
    """What a step, or with `backward` False an evaluation, has to send of parameters by the rules of `partition_spec`.

    In each of `passes` an array split over `fsdp` is gathered, those of scanned layers for the forward and again for the
    backward pass, and its gradient summed, each device keeping its part, which is then summed over `data` and `context`.
    What is not split has its gradient summed over all. Kernels and their gradients are sent in the type of their product.
    """
    sent = _Sent()
    for name, a in _by_name(params):
        layer = layers.get(name.removesuffix("/kernel"))
        spec = partition_spec(name, a.shape, mesh)
        size = a.size * (layer.dtype if layer else a.dtype).itemsize
        size //= mesh.shape[TENSOR] if TENSOR in spec else 1
        if "fsdp" in spec:
            again = backward and SCANNED.search(name)
            sent.add(mesh, "all-gather", ("fsdp",), size, passes * (2 if again else 1))
        if backward and "fsdp" in spec:
            size_of_part = size // mesh.shape["fsdp"]
            sent.add(mesh, "reduce-scatter", ("fsdp",), size_of_part, passes)
            sent.add(mesh, "all-reduce", ("data", CONTEXT), size_of_part)
        elif backward:
            sent.add(mesh, "all-reduce", (*BATCH_AXES, CONTEXT), size)
    return sent.all()


def tensor_collectives(
    params: Any, layers: Mapping[str, Layer], mesh: Mesh | AbstractMesh, forward: int = 1, backward: int = 1
) -> list[Collective]:
    """What is sent over `tensor` for layers that it splits (Shoeybi et al. 2019, section 3).

    The outputs of `ROWS` are summed in a forward pass and the gradients of what `COLUMNS` take in a backward one; modulations,
    which are columns that all devices need, are gathered.

    Args:
        forward: how often a forward pass is computed; 2 with rematerialisation.
    """
    sent, axis = _Sent(), lambda name: mesh.shape.get(name, 1)
    shards, summed = math.prod(map(axis, BATCH_AXES)), set()

    def local(shape: tuple[int, ...], dtype: jnp.dtype) -> int:
        return math.prod(shape) * dtype.itemsize // shards // (axis(CONTEXT) if len(shape) > 2 else 1)

    for name, a in _by_name(params):
        path = name.removesuffix("/kernel")
        if path == name or path not in layers or TENSOR not in partition_spec(name, a.shape, mesh):
            continue
        layer, times = layers[path], math.prod(a.shape[:-2])
        if ROWS.search(name):
            sent.add(mesh, "all-reduce", (TENSOR,), local(layer.outputs, layer.dtype), forward * times)
            continue
        if name.endswith("modulation/dense/kernel"):
            sent.add(mesh, "all-gather", (TENSOR,), local(layer.outputs, layer.dtype), forward * times)
        if layer.input_id not in summed:
            summed.add(layer.input_id)
            sent.add(mesh, "all-reduce", (TENSOR,), local(layer.inputs, layer.dtype), backward * times)
    return sent.all()


_KINDS = {
    "ppermute": "collective-permute",
    "all_to_all": "all-to-all",
    "all_gather": "all-gather",
    "psum": "all-reduce",
    "reduce_scatter": "reduce-scatter",
}


def context_collectives(function: Callable, *args: Any) -> list[Collective]:
    """What attention sends over `context` in `function(*args)`, traced on the mesh in use: blocks that go round, heads for
    tokens, and keys that every device gets all of."""
    mesh, sent = jax.sharding.get_abstract_mesh(), _Sent()
    size = lambda variables: sum(var.aval.size * var.aval.dtype.itemsize for var in variables)

    def visit(jaxpr: Any, times: int) -> None:
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            name, params = equation.primitive.name, equation.params
            if kind := _KINDS.get(name):
                axes = params.get("axes", params.get("axis_name"))
                axes = axes if isinstance(axes, tuple) else (axes,)
                sent.add(mesh, kind, axes, size(equation.outvars), times)
            if name == "shard_map" and _keys_are_whole(equation):
                keys_and_values = params["jaxpr"].invars[1:3]
                sent.add(mesh, "all-gather", (CONTEXT,), size(keys_and_values) // 2, 2 * times)
            for inner in inner_jaxprs(params):
                visit(inner, times * (params["length"] if name == "scan" else 1))

    visit(jax.make_jaxpr(function)(*args), 1)
    return sent.all()


def _keys_are_whole(equation: Any) -> bool:
    """Of a `jax.shard_map`: whether it is attention of some queries, `[batch length heads features]`, to all keys."""
    shapes = [var.aval.shape for var in equation.invars[:3]]
    specs = [tuple(spec) for spec in equation.params["in_specs"][:3]]
    split = [any(CONTEXT in axes for axes in map(str, spec)) for spec in specs]
    return split == [True, False, False] and len(shapes[1]) == 4 and shapes[1] == shapes[2]


def _by_name(params: Any) -> Iterator[tuple[str, Any]]:
    for path, a in jax.tree.leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), a


def collective_seconds(each: Collective, mesh: Mesh | AbstractMesh, device: Device) -> float:
    """Of a collective alone, by rings: every device sends (n − 1)/n of the whole, and twice that to reduce and gather it.

    Rings through several nodes enter and leave each by the network cards of all of their devices in it.
    """
    n = math.prod(mesh.shape[name] for name in each.axes)
    places = [list(mesh.shape).index(name) for name in each.axes]
    sizes = list(mesh.shape.values())
    span, stride = math.prod(sizes[min(places) :]), math.prod(sizes[max(places) + 1 :])
    rate = device.link
    if device.node and span > device.node:
        rate = min(rate, device.network * min(n, max(1, device.node // stride)))
    parts = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
    return each.bytes * parts.get(each.kind, (n - 1) / n) / rate


def roofline(
    device: Device,
    mesh: Mesh | AbstractMesh,
    operations: int,
    useful: int,
    moved: int,
    sent: Sequence[Collective],
) -> dict[str, Any]:
    """The seconds that each part takes at least, the largest of them, and the share of the peak that is then of use.

    Args:
        operations, useful: of all devices.
        moved: bytes read and written of one device's memory.
    """
    terms = {"arithmetic": operations / mesh.size / device.operations, "memory": moved / device.bandwidth}
    for each in sent:
        over = f"links of {' × '.join(each.axes)}"
        terms[over] = terms.get(over, 0.0) + collective_seconds(each, mesh, device)
    largest = max(terms, key=terms.get)
    seconds = terms[largest]
    share = useful / mesh.size / device.operations / seconds
    return dict(terms=terms, largest=largest, seconds=seconds, utilisation=share)
