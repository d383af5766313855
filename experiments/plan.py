"""Plans a training step on accelerators that are not there: what it needs, what it sends, how fast it can be at most.

    python -m experiments.plan --config=configs/imagenet256_latent_flow.py --mesh=fsdp:64 --device=v5p
    python -m experiments.plan --config=configs/text_to_image.py:flux,latents --mesh=fsdp:64 --device=h100

For TPUs (pip install '.[tpu]') the sharded step is compiled by the TPU's own compiler, and memory and collectives are what that says.
For GPUs they are an account: the state by its sharding rules, activations as the traced step stores them, each weight of an
fsdp axis gathered for the forward and the backward pass and its gradient scattered. The step time is a roofline, the largest
of what arithmetic, memory and each axis' links take at least at the rates of the data sheets (genjax/training/devices.py), so it
is a bound that no program beats, and no prediction of what a program reaches.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from experiments.configuration import build
from experiments.datasets import abstract_batch
from experiments.runtime import run_program, user_errors
from genjax.training import abstract_state, make_mesh
from genjax.training.collectives import Collective, collectives
from genjax.training.cost import multiply_adds, product_bytes, saved_arrays
from genjax.training.devices import DEVICES, Device
from genjax.training.loop import compile_update
from genjax.training.mesh import BATCH_AXES, abstract_frozen, abstract_mesh, partition_spec

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
MESH = flags.DEFINE_string("mesh", None, "Its axes and their sizes: data:2,fsdp:32.", required=True)
DEVICE = flags.DEFINE_enum("device", None, sorted(DEVICES), "What each of the devices is.", required=True)
OUT = flags.DEFINE_string("out", None, "JSON file to write, if any.")
flags.mark_flag_as_required("config")


def parse_mesh(text: str) -> dict[str, int]:
    """Raises ValueError if it isn't NAME:SIZE,…"""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and pair[1].isdecimal() and int(pair[1]) for pair in pairs):
        raise ValueError(f"--mesh={text} must be names and sizes, as data:2,fsdp:32")
    return {name: int(size) for name, size in pairs}


def topology(device: Device, count: int) -> list[jax.Device]:
    """So many TPU chips to compile for.

    Raises:
        ImportError: the TPU compiler is not installed.
        ValueError: no topology of so many chips.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(f"TPU programs are compiled by libtpu ({error}): pip install libtpu") from error
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a cloud which machine this is
    family, dimensions = device.topology
    shape = torus(count, dimensions)
    return list(topologies.get_topology_desc(f"{family}:{'x'.join(map(str, shape))}", "tpu").devices)


def torus(count: int, dimensions: int) -> list[int]:
    """Sides of a torus of `count` chips, as equal as powers of two can be, the smallest first.

    Raises:
        ValueError: `count` is no power of two.
    """
    if count & (count - 1):
        raise ValueError(f"slices of TPUs have a power of two of chips; the mesh has {count}")
    sides = [1] * dimensions
    while math.prod(sides) < count:
        sides[sides.index(min(sides))] *= 2
    return sorted(sides)


def shard_bytes(tree: Any) -> int:
    """Of all arrays, what one device holds."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def saved_bytes(saved: list[jax.ShapeDtypeStruct], mesh: Mesh, examples: int) -> int:
    """What one device holds of activations: those of its examples, and its parts of weights stored in another type."""
    shards = math.prod(mesh.shape.get(name, 1) for name in BATCH_AXES)
    fsdp = mesh.shape.get("fsdp", 1)
    parts = (shards if a.ndim > 1 and a.shape[1] % examples == 0 else fsdp for a in saved)
    return sum(a.size * a.dtype.itemsize // part for a, part in zip(saved, parts, strict=True))


def account(params: Any, mesh: Mesh, passes: int) -> list[Collective]:
    """What data parallelism has to send in a step, by the rules of `partition_spec`: weights of an fsdp axis are gathered twice
    in each of `passes`, and gradients summed over the axes, each device keeping its part."""
    found: Counter = Counter()

    def add(kind: str, axes: tuple[str, ...], size: int, times: int = 1) -> None:
        if axes := tuple(name for name in axes if mesh.shape.get(name, 1) > 1):
            found[kind, axes, "count"] += times
            found[kind, axes, "bytes"] += times * size

    for path, a in jax.tree.leaves_with_path(params):
        size, fsdp = a.size * a.dtype.itemsize, mesh.shape.get("fsdp", 1)
        if fsdp > 1 and partition_spec(jax.tree_util.keystr(path, simple=True, separator="/"), a.shape, mesh):
            add("all-gather", ("fsdp",), size, 2 * passes)
            add("reduce-scatter", ("fsdp",), size // fsdp, passes)
            add("all-reduce", ("data",), size // fsdp)
        else:
            add("all-reduce", BATCH_AXES, size)
    keys = sorted({key[:2] for key in found})
    return [Collective(*key, found[*key, "count"], found[*key, "bytes"]) for key in keys]


def seconds_of(each: Collective, mesh: Mesh, device: Device) -> float:
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


def plan(config: Any, axes: Mapping[str, int], name: str) -> dict[str, Any]:
    """The account of one training step; sizes in bytes and times in seconds, per device.

    Raises:
        ValueError, ImportError: as of `build`, `make_mesh` and `topology`.
    """
    device, count = DEVICES[name], math.prod(axes.values())
    built = config.copy_and_resolve_references()
    if config.data.name == "latents":  # the step reads latents; what decodes samples need not be there
        built.data.name, built.autoencoder.run, built.autoencoder.published = "arrays", None, None
    task = build(built)
    examples = config.batch_size // config.accumulation_steps
    if device.topology:
        mesh = make_mesh(axes, examples, topology(device, count))
    else:
        mesh = abstract_mesh(axes, examples)
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    batch, key = abstract_batch(config, task, mesh), jax.eval_shape(lambda: jax.random.key(0))
    args = state, batch, key, *frozen
    operations, saved = 2 * multiply_adds(task.update, *args), saved_arrays(task.update, *args)
    compiled = None
    if device.topology:
        with jax.set_mesh(mesh):
            compiled = compile_update(task, state, mesh, frozen).lower(*args).compile()

    shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    local = {k: jax.ShapeDtypeStruct((a.shape[0] // shards, *a.shape[1:]), a.dtype) for k, a in batch.items()}
    moved = product_bytes(lambda *args: task.update(*args), state, local, key, *frozen)
    params = getattr(state, "params", state)
    memory = {field: shard_bytes(getattr(state, field)) for field in vars(state)}
    memory = {field: size for field, size in memory.items() if size >= 1e3}
    if frozen:
        memory["frozen"] = shard_bytes(frozen)
    gradients = shard_bytes(params)
    if compiled:
        analysis = compiled.memory_analysis()
        peak = (
            analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        ) - analysis.alias_size_in_bytes
        memory |= {"gradients, activations and workspace": analysis.temp_size_in_bytes}
        sent = collectives(compiled, mesh)
    else:
        memory |= {"gradients": gradients, "activations": saved_bytes(saved, mesh, examples)}
        peak, sent = sum(memory.values()), account(params, mesh, config.accumulation_steps)
    terms = {
        "arithmetic": operations / count / device.operations,
        "memory": (moved + 2 * shard_bytes(state)) / device.bandwidth,
    }
    for each in sent:
        over = f"links of {' × '.join(each.axes)}"
        terms[over] = terms.get(over, 0.0) + seconds_of(each, mesh, device)
    largest = max(terms, key=terms.get)
    step = terms[largest]
    return dict(
        experiment=config.experiment,
        mesh=dict(mesh.shape),
        device=name,
        parameters=sum(a.size for a in jax.tree.leaves(params)),
        compiled=compiled is not None,
        memory=memory,
        peak=peak,
        capacity=device.memory,
        multiply_adds=operations // 2,
        collectives=[each._asdict() for each in sent],
        terms=terms,
        largest=largest,
        step_seconds=step,
        utilisation=terms["arithmetic"] / step,
        images_per_second=config.batch_size / step,
        steps=config.num_steps,
        days=config.num_steps * step / 86400,
        device_hours=config.num_steps * step * count / 3600,
    )


def advice(found: Mapping[str, Any]) -> list[str]:
    """What to change, in sentences."""
    sentences = []
    if found["peak"] > found["capacity"]:
        sentences.append(
            f"It does not fit: {found['peak'] / 1e9:.1f} GB of {found['capacity'] / 1e9:.0f} GB. More devices on the fsdp axis "
            "take less each of the state; config.model.remat_policy='nothing_saveable' and config.accumulation_steps take "
            "less of activations."
        )
    if found["largest"].startswith("links"):
        sentences.append(
            f"It waits for {found['largest']}: {found['utilisation']:.0%} of the arithmetic at most. A larger batch for each device "
            "sends as much for more arithmetic; an axis within a node sends faster: name it last in --mesh."
        )
    if found["largest"] == "memory":
        sentences.append("It waits for memory: a larger batch for each device reads each weight for more.")
    return sentences


def show(found: Mapping[str, Any]) -> None:
    count = math.prod(found["mesh"].values())
    print(
        f"{found['experiment']}, {found['parameters']:,} parameters, on {count} × {found['device']}, {found['mesh']}"
    )
    print("\nbytes per device" + (", by its own compiler" if found["compiled"] else ", accounted"))
    for name, size in found["memory"].items():
        print(f"  {name:40} {size / 1e9:10.3f} GB")
    print(f"  {'peak':40} {found['peak'] / 1e9:10.3f} GB of {found['capacity'] / 1e9:.0f} GB")
    print("\ncollectives of a step, bytes of one device's results")
    for each in found["collectives"]:
        print(
            f"  {each['kind']:20} over {' × '.join(each['axes']):14} {each['count']:6} times "
            f"{each['bytes'] / 1e9:10.3f} GB"
        )
    print(f"\n{found['multiply_adds'] / 1e12:.2f} T multiply-adds a step; a step takes at least, in ms")
    for name, value in found["terms"].items():
        print(f"  {name:40} {1e3 * value:10.3f}{'   the largest' if name == found['largest'] else ''}")
    print(
        f"\nat most {found['utilisation']:.1%} of the peak, {found['images_per_second']:,.0f} examples a second; "
        f"{found['steps']:,} steps in {found['days']:.2f} days, {found['device_hours']:,.0f} device-hours, at least"
    )
    for sentence in advice(found):
        print(sentence)


def main() -> None:
    with user_errors():
        found = plan(CONFIG.value, parse_mesh(MESH.value), DEVICE.value)
        if OUT.value:
            Path(OUT.value).write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    run_program(main)
