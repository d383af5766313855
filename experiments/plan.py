"""Plans a training step on accelerators that are not there: what it needs, what it sends, how fast it can be at most.

    python -m experiments.plan --config=configs/imagenet256_latent_flow.py --mesh=fsdp:64 --device=v5p
    python -m experiments.plan --config=configs/text_to_image.py:flux,latents --mesh=fsdp:64 --device=h100

For TPUs (pip install '.[tpu]') the sharded step is compiled by the TPU's own compiler, and memory and collectives are what that says.
For GPUs they are an account: the state by its sharding rules, activations as the traced step stores them, each weight of an
fsdp axis gathered for the forward and the backward pass and its gradient scattered. The step time is a roofline, the largest
of what arithmetic, memory and each axis' links take at least at the rates of the data sheets (genjax/training/devices.py), so it
is a bound for a program that moves this much, and no prediction of what a program reaches. Weights are taken to be gathered in
the type they are stored in; one that converts them to bfloat16 before sends half.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from experiments.configuration import build
from experiments.datasets import abstract_batch
from experiments.runtime import run_program, user_errors
from genjax.training import abstract_state, make_mesh
from genjax.training.collectives import collectives
from genjax.training.cost import multiply_adds, product_bytes, saved_arrays
from genjax.training.devices import DEVICES
from genjax.training.loop import compile_update
from genjax.training.mesh import BATCH_AXES, abstract_frozen, abstract_mesh
from genjax.training.planning import (
    collective_seconds,
    data_parallel_collectives,
    saved_bytes,
    shard_bytes,
    tpu_topology,
)


def parse_mesh(text: str) -> dict[str, int]:
    """Raises ValueError if it isn't NAME:SIZE,…"""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and pair[1].isdecimal() and int(pair[1]) for pair in pairs):
        raise ValueError(f"--mesh={text} must be names and sizes, as data:2,fsdp:32")
    return {name: int(size) for name, size in pairs}


def plan(config: Any, axes: Mapping[str, int], name: str) -> dict[str, Any]:
    """The account of one training step; sizes in bytes and times in seconds, per device.

    Raises:
        ValueError, ImportError: as of `build`, `make_mesh` and `tpu_topology`.
    """
    device, count = DEVICES[name], math.prod(axes.values())
    built = config.copy_and_resolve_references()
    if config.data.name == "latents":  # the step reads latents; what decodes samples need not be there
        built.data.name, built.autoencoder.run, built.autoencoder.published = "arrays", None, None
    task = build(built)
    examples = config.batch_size // config.accumulation_steps
    if device.topology:
        mesh = make_mesh(axes, examples, tpu_topology(device, count))
    else:
        mesh = abstract_mesh(axes, examples)
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    batch, key = abstract_batch(config, task, mesh), jax.eval_shape(lambda: jax.random.key(0))
    args = state, batch, key, *frozen
    operations, saved = 2 * multiply_adds(task.update, *args), saved_arrays(task.update, *args)
    useful = operations
    if built.model.get("remat_policy"):  # what is computed again is no use
        built.model.remat_policy = None
        useful = 2 * multiply_adds(build(built).update, *args)
    compiled = None
    if device.topology:
        with jax.set_mesh(mesh):
            compiled = compile_update(task, state, mesh, frozen).lower(*args).compile()

    shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    local = {k: jax.ShapeDtypeStruct((a.shape[0] // shards, *a.shape[1:]), a.dtype) for k, a in batch.items()}
    moved = product_bytes(task.update, state, local, key, *frozen)
    params = getattr(state, "params", state)
    memory = {field: shard_bytes(getattr(state, field)) for field in vars(state)}
    memory = {field: size for field, size in memory.items() if size >= 1e3}
    if frozen:
        memory["frozen"] = shard_bytes(frozen)
    if compiled:
        analysis = compiled.memory_analysis()
        peak = (
            analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        ) - analysis.alias_size_in_bytes
        memory |= {"gradients, activations and workspace": analysis.temp_size_in_bytes}
        sent = collectives(compiled, mesh)
    else:
        memory |= {"gradients": shard_bytes(params), "activations": saved_bytes(saved, mesh, examples)}
        peak, sent = sum(memory.values()), data_parallel_collectives(params, mesh, config.accumulation_steps)
    terms = {
        "arithmetic": operations / count / device.operations,
        "memory": (moved + 2 * shard_bytes(state)) / device.bandwidth,
    }
    for each in sent:
        over = f"links of {' × '.join(each.axes)}"
        terms[over] = terms.get(over, 0.0) + collective_seconds(each, mesh, device)
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
        useful_multiply_adds=useful // 2,
        collectives=[each._asdict() for each in sent],
        terms=terms,
        largest=largest,
        step_seconds=step,
        utilisation=useful / count / device.operations / step,
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
    print(
        f"\n{found['multiply_adds'] / 1e12:.2f} T multiply-adds a step, "
        f"{found['useful_multiply_adds'] / 1e12:.2f} T without what is computed again; a step takes at least, in ms"
    )
    for name, value in found["terms"].items():
        print(f"  {name:40} {1e3 * value:10.3f}{'   the largest' if name == found['largest'] else ''}")
    print(
        f"\nof use at most {found['utilisation']:.1%} of the peak, {found['images_per_second']:,.0f} examples a second; "
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
    CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
    MESH = flags.DEFINE_string("mesh", None, "Its axes and their sizes: data:2,fsdp:32.", required=True)
    DEVICE = flags.DEFINE_enum("device", None, sorted(DEVICES), "What each of the devices is.", required=True)
    OUT = flags.DEFINE_string("out", None, "JSON file to write, if any.")
    flags.mark_flag_as_required("config")
    run_program(main)
