"""Plans a program on accelerators that are not there: what it needs, what it sends, how fast it can be at most.

    python -m experiments.plan --config=configs/imagenet256_latent_flow.py --mesh=fsdp:64 --device=v5p
    python -m experiments.plan --config=configs/text_to_image.py:flux,latents --mesh=fsdp:64 --device=h100 --program=sample

The program is a training step, or, with --program=sample, the sampling of `config.batch_size` images at once by the config's
sampler, steps, guidance and weights; latents are not decoded where the data are latents.

For TPUs (pip install '.[tpu]') the sharded program is compiled by the TPU's own compiler, and memory and collectives are what that
says. For GPUs they are an account: the state, or of sampling the weights, by the sharding rules, beside it the most that the
traced program of a device's examples has live at once where what is elementwise is fused, and each weight of an fsdp axis gathered for
the forward and the backward pass and its gradient scattered, or of sampling gathered for each evaluation of the network.
The time is a roofline, the largest of what arithmetic, memory and each axis' links take at least at the rates of the data sheets
(genjax/training/devices.py), so it is a bound for a program that moves this much, and no prediction of what a program reaches.
Weights are taken to be gathered in the type of their products. Over tensor the outputs of a block's two halves are summed, and over
context keys or heads are sent as the traced attention sends them; what one device moves is taken to be its equal part.
Attention is that of the device planned for; without a GPU on this machine, the account for one stores what chunks store in its
kernel's place.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, use_abstract_mesh
from ml_collections import config_flags

from experiments.benchmark import sampling_arguments, without_decoder
from experiments.configuration import build, check_diffusion
from experiments.datasets import abstract_batch
from experiments.runtime import run_program, user_errors
from experiments.sampling import POSTHOC, evaluation_times, sampling_program, time_grid
from genjax.nn import as_written, attention_choices
from genjax.nn.sharding import CONTEXT, TENSOR
from genjax.training import Task, abstract_state, make_mesh
from genjax.training.collectives import Collective, collectives
from genjax.training.cost import multiply_adds, product_bytes, working_bytes
from genjax.training.devices import DEVICES
from genjax.training.loop import compile_update
from genjax.training.mesh import BATCH_AXES, abstract_frozen, abstract_mesh
from genjax.training.planning import (
    context_collectives,
    parameter_collectives,
    roofline,
    shard_bytes,
    size_on_device,
    tensor_collectives,
    tpu_topology,
    traced_layers,
)

PROGRAMS = ("train", "sample")


class Program(NamedTuple):
    """What is planned: a function, its arguments, and those of one device's examples.

    Attributes:
        jitted: makes the program that runs, on a mesh of devices.
        held: bytes of what one device holds throughout, by name.
        updated: bytes of what is read and written beside matrix products, likewise of one device.
        account: on a mesh of devices that do not compile here, the bytes of all else, by name, and what is sent.
    """

    function: Callable
    jitted: Callable[[], Callable]
    args: tuple
    local: tuple
    held: dict[str, int]
    updated: int
    account: Callable[[], tuple[dict[str, int], list[Collective]]]


def _shards(mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def _parts(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices the tokens and features of an example are split."""
    return mesh.shape.get(TENSOR, 1) * mesh.shape.get(CONTEXT, 1)


def _alone(mesh: Mesh | AbstractMesh) -> AbstractMesh:
    """One such device."""
    device = getattr(mesh, "abstract_mesh", mesh).abstract_device
    return AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)


def _unsharded(arguments: tuple) -> tuple:
    """For traces on one device: JAX takes no sharding there over others."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)


def _training_step(config: Any, task: Task, mesh: Mesh | AbstractMesh) -> Program:
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    batch, key = abstract_batch(config, task, mesh), jax.eval_shape(lambda: jax.random.key(0))
    local = {
        name: jax.ShapeDtypeStruct((a.shape[0] // _shards(mesh), *a.shape[1:]), a.dtype)
        for name, a in batch.items()
    }
    inputs, params = _unsharded((state, local, key, *frozen)), getattr(state, "params", state)
    held = {field: shard_bytes(getattr(state, field)) for field in vars(state)}
    held = {field: size for field, size in held.items() if size >= 1e3}
    if frozen:
        held["frozen"] = shard_bytes(frozen)

    def account():
        with use_abstract_mesh(mesh):
            layers = traced_layers(task.update, state, batch, key, *frozen)
            over_context = context_collectives(task.update, state, batch, key, *frozen)
        size = size_on_device(state, layers, mesh)
        with use_abstract_mesh(_alone(mesh)), attention_choices():  # which are not the plan's
            working = working_bytes(task.update, *inputs, size=size, in_place=True)
        gradients = shard_bytes(params)
        memory = {"gradients": gradients, "activations and workspace": max(working - gradients, 0)}
        # Other policies keep what products give, sums over tensor included.
        passes, again = config.accumulation_steps, config.model.get("remat_policy") == "nothing_saveable"
        over_tensor = tensor_collectives(params, layers, mesh, (1 + again) * passes, passes)
        return memory, [*parameter_collectives(params, layers, mesh, passes), *over_tensor, *over_context]

    return Program(
        function=task.update,
        jitted=lambda: compile_update(task, state, mesh, frozen),
        args=(state, batch, key, *frozen),
        local=inputs,
        held=held,
        updated=2 * shard_bytes(state),
        account=account,
    )


def _sampling(config: Any, task: Task, mesh: Mesh | AbstractMesh) -> Program:
    """Raises ValueError if the task is no diffusion."""
    check_diffusion(config)
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    weights = config.sampling.weights
    weights = "params" if weights.startswith(POSTHOC) else weights  # which are as large
    inputs = sampling_arguments(task, config, {}, frozen)

    def arguments(count):
        indices = jax.ShapeDtypeStruct((count,), jnp.int32)
        return state, jax.eval_shape(lambda: jax.random.key(0)), indices, indices, *inputs

    generate = lambda *args: task.as_data(task.generate(*args, weights=weights))
    local = _unsharded(arguments(config.batch_size // _shards(mesh)))
    held = {"params": shard_bytes(state.params)}
    if frozen:
        held["frozen"] = shard_bytes(frozen)

    def account():
        with use_abstract_mesh(mesh):
            layers = traced_layers(generate, *arguments(config.batch_size))
            over_context = context_collectives(generate, *arguments(config.batch_size))
        size = size_on_device((), layers, mesh)  # weights are gathered whole
        with use_abstract_mesh(_alone(mesh)), attention_choices():  # which are not the plan's
            working = working_bytes(generate, *local, size=size)
        times = time_grid(task.process, config.sampling)
        evaluations = len(evaluation_times(task.sampler, task.process, times))
        gathers = parameter_collectives(state.params, layers, mesh, evaluations, backward=False)
        over_tensor = tensor_collectives(state.params, layers, mesh, evaluations, 0)
        return {"activations and workspace": working}, [*gathers, *over_tensor, *over_context]

    return Program(
        function=generate,
        jitted=lambda: sampling_program(task, weights, False, mesh),
        args=arguments(config.batch_size),
        local=local,
        held=held,
        updated=0,
        account=account,
    )


def parse_mesh(text: str) -> dict[str, int]:
    """Raises ValueError if it isn't NAME:SIZE,…"""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and pair[1].isdecimal() and int(pair[1]) for pair in pairs):
        raise ValueError(f"--mesh={text} must be names and sizes, as data:2,fsdp:32")
    return {name: int(size) for name, size in pairs}


def plan(config: Any, axes: Mapping[str, int], name: str, program: str = "train") -> dict[str, Any]:
    """The account of one of the `PROGRAMS`; sizes in bytes and times in seconds, per device.

    Raises:
        ValueError, ImportError: as of `build`, `make_mesh` and `tpu_topology`.
    """
    device, count = DEVICES[name], math.prod(axes.values())
    built = without_decoder(config)
    task = build(built)
    examples = config.batch_size // (config.accumulation_steps if program == "train" else 1)
    if device.topology:
        mesh = make_mesh(axes, examples, tpu_topology(device, count))
    else:
        mesh = abstract_mesh(axes, examples).update(
            abstract_device=AbstractDevice(device.kinds[0], None, "gpu")
        )
    planned = (_training_step if program == "train" else _sampling)(config, task, mesh)
    everything = _unsharded(planned.args)
    with use_abstract_mesh(_alone(mesh)):
        operations = 2 * multiply_adds(planned.function, *everything)
    function = planned.function
    if program == "train" and built.model.get("remat_policy"):
        built.model.remat_policy = None
        function = build(built).update
    # What is computed again is no use, and kernels keep on the chip what chunks read again.
    with as_written(True):
        useful = 2 * multiply_adds(function, *everything)
        moved = product_bytes(planned.function, *planned.local) // _parts(mesh) + planned.updated

    memory = planned.held
    with attention_choices() as choices:
        if device.topology:
            with jax.set_mesh(mesh):
                compiled = planned.jitted().lower(*planned.args).compile()
            analysis = compiled.memory_analysis()
            temporary = analysis.temp_size_in_bytes
            peak = analysis.argument_size_in_bytes + temporary + analysis.output_size_in_bytes
            peak -= analysis.alias_size_in_bytes
            memory["gradients, activations and workspace" if program == "train" else "workspace"] = temporary
            sent = collectives(compiled, mesh)
        else:
            more, sent = planned.account()
            memory |= more
            peak = sum(memory.values())
    bound = roofline(device, mesh, operations, useful, moved, sent)
    seconds = bound["seconds"]
    found = dict(
        experiment=config.experiment,
        program=program,
        mesh=dict(mesh.shape),
        device=name,
        parameters=sum(a.size for a in jax.tree.leaves(planned.args[0].params)),
        compiled=bool(device.topology),
        attention=[choice._asdict() | {"words": str(choice)} for choice in sorted(choices)],
        memory=memory,
        peak=peak,
        capacity=device.memory,
        multiply_adds=operations // 2,
        useful_multiply_adds=useful // 2,
        collectives=[each._asdict() for each in sent],
        **bound,
        batch_size=config.batch_size,
        images_per_second=config.batch_size / seconds,
    )
    if program == "train":
        training = config.num_steps * seconds
        found |= dict(steps=config.num_steps, days=training / 86400, device_hours=training * count / 3600)
    return found


def advice(found: Mapping[str, Any]) -> list[str]:
    """What to change, in sentences."""
    sentences = []
    if found["peak"] > found["capacity"]:
        less = {
            "train": "the state; config.model.remat_policy='nothing_saveable' and config.accumulation_steps take less of activations",
            "sample": "the weights; a smaller config.batch_size takes less of activations",
        }
        sentences.append(
            f"It does not fit: {found['peak'] / 1e9:.1f} GB of {found['capacity'] / 1e9:.0f} GB. More devices on the fsdp axis "
            f"take less each of {less[found['program']]}."
        )
    if found["largest"].startswith("links"):
        grows = TENSOR in found["largest"] or CONTEXT in found["largest"]
        less = (
            "What it sends grows with the batch: make that axis smaller and one of data and fsdp larger"
            if grows
            else "A larger batch for each device sends as much for more arithmetic"
        )
        sentences.append(
            f"It waits for {found['largest']}: {found['utilisation']:.0%} of the arithmetic at most. {less}; an axis within a node "
            "sends faster: name it last in --mesh."
        )
    if found["largest"] == "memory":
        sentences.append("It waits for memory: a larger batch for each device reads each weight for more.")
    return sentences


def show(found: Mapping[str, Any]) -> None:
    count, training = math.prod(found["mesh"].values()), found["program"] == "train"
    what = "a training step" if training else f"sampling {found['batch_size']:,} images"
    print(
        f"{found['experiment']}, {found['parameters']:,} parameters, {what} on {count} × {found['device']}, {found['mesh']}"
    )
    print("\nbytes per device" + (", by its own compiler" if found["compiled"] else ", accounted"))
    for name, size in found["memory"].items():
        print(f"  {name:40} {size / 1e9:10.3f} GB")
    print(f"  {'peak':40} {found['peak'] / 1e9:10.3f} GB of {found['capacity'] / 1e9:.0f} GB")
    if found["attention"]:
        print("\nattention, what a device has of it")
    for choice in found["attention"]:
        print(f"  {choice['words']}")
    print("\ncollectives, bytes of one device's results")
    for each in found["collectives"]:
        print(
            f"  {each['kind']:20} over {' × '.join(each['axes']):14} {each['count']:6} times "
            f"{each['bytes'] / 1e9:10.3f} GB"
        )
    again = (
        f", {found['useful_multiply_adds'] / 1e12:.2f} T without what is computed again" if training else ""
    )
    print(f"\n{found['multiply_adds'] / 1e12:.2f} T multiply-adds{again}; they take at least, in ms")
    for name, value in found["terms"].items():
        print(f"  {name:40} {1e3 * value:10.3f}{'   the largest' if name == found['largest'] else ''}")
    rate = f"{found['images_per_second']:,.4g} examples a second"
    print(f"\nof use at most {found['utilisation']:.1%} of the peak, {rate}", end="")
    if training:
        print(
            f"; {found['steps']:,} steps in {found['days']:.2f} days, {found['device_hours']:,.0f} device-hours",
            end="",
        )
    print(", at least" if training else "")
    for sentence in advice(found):
        print(sentence)


def main() -> None:
    # JAX keeps what is compiled for TPUs that are not there, but fails to read it, with a warning.
    jax.config.update("jax_enable_compilation_cache", False)
    with user_errors():
        found = plan(CONFIG.value, parse_mesh(MESH.value), DEVICE.value, PROGRAM.value)
        if OUT.value:
            Path(OUT.value).write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
    MESH = flags.DEFINE_string("mesh", None, "Its axes and their sizes: data:2,fsdp:32.", required=True)
    DEVICE = flags.DEFINE_enum("device", None, sorted(DEVICES), "What each of the devices is.", required=True)
    PROGRAM = flags.DEFINE_enum("program", "train", PROGRAMS, "A training step, or sampling a batch.")
    OUT = flags.DEFINE_string("out", None, "JSON file to write, if any.")
    flags.mark_flag_as_required("config")
    run_program(main)
