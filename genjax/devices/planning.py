"""Compute what a step needs on devices that are not present, by the rules of its shardings."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from genjax.devices.collectives import SLICES, Collective, num_slices
from genjax.devices.cost import array_bytes, inner_jaxprs
from genjax.devices.mesh import BATCH_AXES, COLUMNS, CONTEXT, ROWS, SCANNED, TENSOR, partition_spec
from genjax.devices.specifications import Device


def tpu_topology(device: Device, count: int) -> list[jax.Device]:
    """Return `count` TPUs to compile for, in several slices if one slice has fewer.

    Raises:
        ImportError: the TPU compiler is not installed.
        ValueError: the devices do not fill their chips, or no topology has so many chips.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"TPU programs are compiled by libtpu ({error}), whose version is to fit JAX's: "
            "pip install 'jax[tpu]'"
        ) from error
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks a cloud for this machine
    family, dimensions, most = device.topology
    chips, left = divmod(count, device.per_chip)
    if left:
        raise ValueError(f"a chip of {family} is {device.per_chip} devices; the mesh has {count}")
    slices = 1 if chips % most else chips // most
    shape = torus(chips // slices, dimensions)
    name = f"{family}:{'x'.join(map(str, shape))}"
    options = dict(
        num_slices=slices, chips_per_host_bounds=[min(side, 2) for side in shape[:2]] + [1]
    )
    if dimensions == 3 and device.per_chip == 1:
        options |= dict(chip_config_name="megacore")  # JAX sees the two cores as one device
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler does not take {slices} × {name}: {error}") from error


def torus(count: int, dimensions: int) -> list[int]:
    """Return the most cubic torus shape with `count` chips.

    Raises:
        ValueError: `count` is no power of two.
    """
    if count & (count - 1):
        raise ValueError(f"slices of TPUs have a power of two of chips; the mesh has {count}")
    sides = [1] * dimensions
    while math.prod(sides) < count:
        sides[sides.index(min(sides))] *= 2
    return sorted(sides, key=lambda side: (side == 1, side))  # such as 2×2×1, one host's chips


def refused_bytes(message: str, held: int) -> tuple[int, int] | None:
    """Read the TPU compiler's refusal of a program that is too large.

    Returns:
        The bytes that the program needs in addition to `held`, and the bytes that the device has.
        None if the message is a different one.
    """
    number, sizes = r"\(?([\d.]+)([KMGT])\)?", dict(K=2**10, M=2**20, G=2**30, T=2**40)
    found = re.search(
        rf"(Used|temporaries) {number} (?:of|exceeds available HBM) {number}", message
    )
    if found is None:
        return None
    needed, available = (int(float(found[i]) * sizes[found[i + 1]]) for i in (2, 4))
    return (max(needed - held, 0) if found[1] == "Used" else needed), available


def compiled_bytes(compiled: Any) -> tuple[int, int]:
    """Return the bytes of a program's workspace, and the peak of bytes that one device needs."""
    analysis = compiled.memory_analysis()
    peak = (
        analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
    )
    return analysis.temp_size_in_bytes, peak - analysis.alias_size_in_bytes


def shard_bytes(tree: Any) -> int:
    """Return the bytes that one device holds of all arrays in a tree."""
    return sum(
        math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
    )


class Layer(NamedTuple):
    """A linear layer of a traced program.

    Attributes:
        network: the class of the network that has the layer.
        path: the layer's place in the network.
        inputs, outputs: shapes over all devices.
        dtype: type of the outputs.
        input_id: equal for layers with the same input.
    """

    network: str
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: jnp.dtype
    input_id: int


def traced_layers(function: Callable, *args: Any) -> list[Layer]:
    """Return the linear layers of networks that `function(*args)` calls; nothing is computed."""
    layers, kept, running = {}, [], []

    def look(method, inputs, options, context):
        # The first name is the network's, which its scanned parts do not know.
        running.append(type(context.module).__name__)
        outputs = method(*inputs, **options)
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            name, path = running[0], "/".join(context.module.path)
            shape = (*inputs[0].shape[:-1], context.module.features)
            dtype = jax.tree.leaves(outputs)[0].dtype
            layers[name, path] = Layer(name, path, inputs[0].shape, shape, dtype, id(inputs[0]))
            kept.append(inputs[0])  # so that no other array gets its id
        running.pop()
        return outputs

    with nn.intercept_methods(look):
        # JAX caches traces by function, so trace a new function.
        jax.eval_shape(lambda *args: function(*args), *args)
    return list(layers.values())


def layers_of(params: Any, layers: Sequence[Layer]) -> dict[str, Layer]:
    """Return the layer of each kernel, by the kernel's name.

    A name begins with that of its network if there are several networks.
    """
    found: dict[tuple[str, str], dict[str, Layer]] = {}
    for layer in layers:
        for name, a in _by_name(params):
            ending, shape = f"{layer.path}/kernel", (layer.inputs[-1], layer.outputs[-1])
            if f"/{name}".endswith(f"/{ending}") and a.shape[-2:] == shape:
                found.setdefault((name.removesuffix(ending), layer.network), {})[name] = layer
    # Networks may share a layer's path and shape, so take the network with the most layers.
    best: dict[str, dict[str, Layer]] = {}
    for (prefix, _), of_network in sorted(found.items()):
        best[prefix] = max(best.get(prefix, {}), of_network, key=len)
    return {
        name: layer
        for prefix in sorted(best, key=len, reverse=True)
        for name, layer in best[prefix].items()
    }


def size_on_device(
    state: Any, layers: Sequence[Layer], mesh: Mesh | AbstractMesh, *, gathered: bool = False
) -> Callable[[Any], int]:
    """Return a function from an array to the bytes of it that one device holds.

    The arrays are those of a program that is traced with the examples of one device. An array with
    the shape of a state's array, such as a gradient or a copy in another type, is split like that
    array. An array with the shape of one scanned layer's is split over `tensor` only, because
    scanned layers are gathered one by one. If `tensor` splits layers of the network, `context`
    splits all other arrays. `tensor` splits those whose features are not inputs of such layers,
    because every device has these inputs.

    Args:
        gathered: whether arrays of the state are whole on `fsdp` too, as in sampling.
    """
    like_state, over = {}, lambda spec, axis: mesh.shape[axis] if axis in spec else 1
    for name, a in _by_name(state):
        spec = partition_spec(name, a.shape, mesh)
        if SCANNED.search(name):
            like_state.setdefault(a.shape[1:], a.size // a.shape[0] // over(spec, TENSOR))
        like_state[a.shape] = (
            a.size // over(spec, TENSOR) // (1 if gathered else over(spec, "fsdp"))
        )
    whole = {layer.inputs[-1] for layer in layers if COLUMNS.search(f"{layer.path}/kernel")}
    axis = lambda name: mesh.shape.get(name, 1) if whole else 1

    def size(array: Any) -> int:
        if array.shape in like_state:
            return like_state[array.shape] * array.dtype.itemsize
        features = array.shape[-1] if array.shape else 1
        return array_bytes(array) // axis(CONTEXT) // (1 if features in whole else axis(TENSOR))

    return size


def check_axes(
    layers: Sequence[Layer], queries: Sequence[tuple[int, ...]], mesh: Mesh | AbstractMesh
) -> list[int]:
    """Return the lengths of the sequences that the scanned layers of a program take.

    Args:
        queries: shapes of attention's queries on one device, `[batch length heads features]`.

    Raises:
        ValueError: the axis `tensor` of the mesh does not divide the heads, or its axis `context`
            does not divide the sequences. The devices of the axis would all compute the same.
    """
    heads, size = sorted({shape[2] for shape in queries}), mesh.shape.get(TENSOR, 1)
    if size > 1 and all(number % size for number in heads):
        raise ValueError(
            f"{TENSOR} splits heads of attention, which here are "
            f"{', '.join(map(str, heads)) or 'none'}: {size} devices of it would all compute the "
            "same; take a divisor, or data or fsdp in its place"
        )
    # Without scanned layers, attention is a small part among convolutions, which are not split.
    in_blocks = (layer.inputs for layer in layers if SCANNED.search(layer.path))
    lengths = sorted({shape[1] for shape in in_blocks if len(shape) > 2})
    size = mesh.shape.get(CONTEXT, 1)
    if size > 1 and (not lengths or lengths[-1] % size):
        raise ValueError(
            f"{CONTEXT} splits the sequences of transformers, which here are "
            f"{f'{lengths[-1]:,} long' if lengths else 'none'}: {size} devices of it would all "
            "compute the same; take a divisor, or data or fsdp in its place"
        )
    return lengths


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
    layers: Sequence[Layer],
    mesh: Mesh | AbstractMesh,
    passes: int = 1,
    *,
    backward: bool = True,
) -> list[Collective]:
    """Return the collectives of parameters in a step, or in an evaluation if not `backward`.

    The collectives follow from the rules of `partition_spec`. Each of `passes` gathers the arrays
    that are split over `fsdp`. A backward pass gathers the arrays of scanned layers again. A
    gradient is summed over `fsdp`, and each device keeps its part of the sum. The parts are then
    summed over `data` and `context`. The gradient of an array that is not split is summed over all
    devices. XLA does so in each pass, before the passes are added up. Kernels and their gradients
    are sent in the type of their product.
    """
    sent, layer_of = _Sent(), layers_of(params, layers)
    for name, a in _by_name(params):
        layer = layer_of.get(name)
        spec = partition_spec(name, a.shape, mesh)
        size = a.size * (layer.dtype if layer else a.dtype).itemsize
        size //= mesh.shape[TENSOR] if TENSOR in spec else 1
        if "fsdp" in spec:
            again = backward and SCANNED.search(name)
            sent.add(mesh, "all-gather", ("fsdp",), size, passes * (2 if again else 1))
        if backward and "fsdp" in spec:
            size_of_part = size // mesh.shape["fsdp"]
            sent.add(mesh, "reduce-scatter", ("fsdp",), size_of_part, passes)
            sent.add(mesh, "all-reduce", ("data", CONTEXT), size_of_part, passes)
        elif backward:
            sent.add(mesh, "all-reduce", (*BATCH_AXES, CONTEXT), size, passes)
    return sent.all()


def tensor_collectives(
    params: Any,
    layers: Sequence[Layer],
    mesh: Mesh | AbstractMesh,
    forward: int = 1,
    backward: int = 1,
) -> list[Collective]:
    """Return the collectives over `tensor` of the layers that `tensor` splits.

    A forward pass sums the outputs of `ROWS`. A backward pass sums the gradients of the inputs of
    `COLUMNS` (Shoeybi et al. 2019, section 3). Modulations are columns that all devices need, so
    they are gathered.

    Args:
        forward: number of forward passes, 2 with rematerialisation.
        backward: number of backward passes.

    Raises:
        ValueError: the parameters are those of several networks, whose calls are not counted.
    """
    sent, axis = _Sent(), lambda name: mesh.shape.get(name, 1)
    shards, summed = math.prod(map(axis, BATCH_AXES)), set()

    def local(shape: tuple[int, ...], dtype: jnp.dtype) -> int:
        return (
            math.prod(shape) * dtype.itemsize // shards // (axis(CONTEXT) if len(shape) > 2 else 1)
        )

    layer_of = layers_of(params, layers)
    networks = sorted({layer.network for layer in layer_of.values()})
    if axis(TENSOR) > 1 and len(networks) > 1:
        raise ValueError(
            f"the estimate for GPUs counts what {TENSOR} sends of one network that is called once; "
            f"this program trains {' and '.join(networks)}. Take fsdp in its place, or a TPU, "
            "whose compiler counts"
        )
    for name, a in _by_name(params):
        if name not in layer_of or TENSOR not in partition_spec(name, a.shape, mesh):
            continue
        layer, times = layer_of[name], math.prod(a.shape[:-2])
        if ROWS.search(name):
            sent.add(
                mesh, "all-reduce", (TENSOR,), local(layer.outputs, layer.dtype), forward * times
            )
            continue
        if name.endswith("modulation/dense/kernel"):
            sent.add(
                mesh, "all-gather", (TENSOR,), local(layer.outputs, layer.dtype), forward * times
            )
        if layer.input_id not in summed:
            summed.add(layer.input_id)
            sent.add(
                mesh, "all-reduce", (TENSOR,), local(layer.inputs, layer.dtype), backward * times
            )
    return sent.all()


_KINDS = {
    "ppermute": "collective-permute",
    "all_to_all": "all-to-all",
    "all_gather": "all-gather",
    "psum": "all-reduce",
    "reduce_scatter": "reduce-scatter",
}


def context_collectives(function: Callable, *args: Any) -> list[Collective]:
    """Return the collectives of attention over `context` in `function(*args)`, on the mesh in use.

    Ring attention passes blocks round, all-to-all attention exchanges heads for tokens, and plain
    attention gathers keys and values.
    """
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
    """Return whether a `jax.shard_map` attends from a device's queries to all devices' keys."""
    shapes = [var.aval.shape for var in equation.invars[:3]]
    specs = [tuple(spec) for spec in equation.params["in_specs"][:3]]
    split = [any(CONTEXT in axes for axes in map(str, spec)) for spec in specs]
    return split == [True, False, False] and len(shapes[1]) == 4 and shapes[1] == shapes[2]


def _by_name(params: Any) -> Iterator[tuple[str, Any]]:
    for path, a in jax.tree.leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), a


def collective_seconds(each: Collective, mesh: Mesh | AbstractMesh, device: Device) -> float:
    """Return the seconds that a collective takes by itself, computed by rings.

    Each of n devices sends (n − 1)/n of the whole, or twice that to reduce and gather it. A ring
    through several nodes enters and leaves a node by the network cards of all its devices there.
    Between slices of TPUs every chip sends its part.
    """
    if each.axes == (SLICES,):
        n, rate = num_slices(mesh), device.network
    else:
        # The group of the first device stands for all.
        devices = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
        along = tuple(slice(None) if name in each.axes else 0 for name in mesh.shape)
        group, rate = devices[along], device.link
        n = group.size
        if device.node and (in_first_node := int((group < device.node).sum())) < n:
            rate = min(rate, device.network * in_first_node)
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
    """Return the least seconds of each part of a step, the longest part, and the utilisation.

    The longest part bounds the step's duration. The utilisation is the share of the devices' peak
    that useful operations take in this duration.

    Args:
        operations: number of operations of all devices.
        useful: number of the useful ones among them.
        moved: bytes that one device reads from its memory and writes to it.
        sent: collectives of the step.
    """
    terms = {
        "arithmetic": operations / mesh.size / device.operations,
        "memory": moved / device.bandwidth,
    }
    for each in sent:
        over = f"links of {' × '.join(each.axes)}"
        terms[over] = terms.get(over, 0.0) + collective_seconds(each, mesh, device)
    largest = max(terms, key=terms.get)
    seconds = terms[largest]
    share = useful / mesh.size / device.operations / seconds
    return dict(terms=terms, largest=largest, seconds=seconds, utilisation=share)
