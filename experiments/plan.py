"""Plan a program on accelerators that are not there: what it needs, what it sends, how fast it is.

    python -m experiments.plan --config=configs/imagenet256_latent_flow.py --mesh=fsdp:64 \\
        --device=v5p
    python -m experiments.plan --config=configs/text_to_image.py:flux,latents --mesh=fsdp:64 \\
        --device=h100 --program=sample
    python -m experiments.plan --config=configs/imagenet256_latent_flow.py \\
        --config.batch_size=64 --mesh=data:1 --device=v5p --breakdown

The program is a training step. With --program=sample it is the sampling of `config.batch_size`
images at once by the config's sampler, steps, guidance and weights. Latents are not decoded if the
data are latents. Tokens that are decoded one after another take an evaluation each. Their caches
are part of the workspace, split by head over the mesh axis tensor.

For TPUs (pip install '.[tpu]') their own compiler compiles the sharded program and gives its memory
and collectives. If it refuses a program as too large, it still gives the memory, and collectives
are counted as for GPUs. More chips than a slice has (256 for v5e or v6e) form several slices. The
first axes of the mesh then go over slices, by a slower network. With --breakdown a plan shows what
each operation costs (genjax/devices/breakdown.py).

For GPUs memory and collectives are estimates. They have the state, or the weights for sampling, by
the sharding rules. The memory adds the most that the traced program of a device's examples has live
at once, where elementwise operations are fused. Over fsdp each weight is gathered for the forward
and the backward pass, and its gradient is scattered. Sampling gathers each weight for each
evaluation of the network. Weights are gathered in the type of their products. Over tensor the
outputs of a block's two halves are summed. Over context keys or heads are sent as the traced
attention sends them. One device moves its equal part. Attention is that of the planned device.
Without a GPU on this machine, the estimate stores what attention in chunks stores.

The time is a roofline: the longest of arithmetic, memory and each axis' links at the rates of the
data sheets (genjax/devices/specifications.py). So it is a bound for a program that moves this
much, and no prediction.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, use_abstract_mesh

from experiments.configuration.runs import examples_at_once
from experiments.launch.config_flag import define_config
from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.speed.breakdown import show_breakdown
from experiments.speed.programs import PROGRAMS, Program, alone, cost_of, program_of
from genjax.devices import make_mesh
from genjax.devices.breakdown import breakdown
from genjax.devices.collectives import Collective, collectives, num_slices
from genjax.devices.cost import working_bytes
from genjax.devices.mesh import BATCH_AXES, abstract_mesh
from genjax.devices.planning import (
    Layer,
    check_axes,
    compiled_bytes,
    context_collectives,
    parameter_collectives,
    refused_bytes,
    roofline,
    shard_bytes,
    size_on_device,
    tensor_collectives,
    tpu_topology,
    traced_layers,
)
from genjax.devices.specifications import DEVICES, Device
from genjax.nn import attention_choices
from genjax.nn.attention.dispatch import Choice
from genjax.nn.sharding import CONTEXT, TENSOR
from genjax.training.placement import abstract_frozen

# Tasks whose sampling evaluates one network again and again, each time on as many tokens.
SAMPLED = ("Diffusion", "DiscreteDiffusion", "MaskedTokens", "TokenAutoregression")


def _held(name: str, program: Program, frozen: tuple) -> dict[str, int]:
    """Return the bytes of what one device holds throughout, by name."""
    state = program.args[0]
    held = {
        field: shard_bytes(getattr(state, field))
        for field in (vars(state) if name == "train" else ("params",))
    }
    held = {field: size for field, size in held.items() if size >= 1e3}
    return held | ({"frozen": shard_bytes(frozen)} if frozen else {})


def _estimate(
    config: Any, name: str, program: Program, layers: Sequence[Layer], mesh: Mesh | AbstractMesh
) -> tuple[dict[str, int], list[Collective]]:
    """Estimate what a program that is not compiled takes: working bytes, and collectives."""
    training, params = name == "train", program.args[0].params
    size = size_on_device(program.args[0], layers, mesh, gathered=not training)
    with use_abstract_mesh(alone(mesh)):
        working = working_bytes(program.function, *program.local, size=size, in_place=training)
    over_context = []
    if mesh.shape.get(CONTEXT, 1) > 1:
        with use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
            over_context = context_collectives(program.function, *program.args)
    if training:
        gradients, passes = shard_bytes(params), config.accumulation_steps
        memory = {"gradients": gradients, "activations and workspace": max(working - gradients, 0)}
        # Other policies keep what products give, sums over tensor included.
        again = config.model.get("remat_policy") == "nothing_saveable"
        of_parameters = parameter_collectives(params, layers, mesh, passes)
        over_tensor = tensor_collectives(params, layers, mesh, (1 + again) * passes, passes)
    else:
        memory = {"activations and workspace": working}
        evaluations = program.task.num_evaluations(config.sampling)
        of_parameters = parameter_collectives(params, layers, mesh, evaluations, backward=False)
        over_tensor = tensor_collectives(params, layers, mesh, evaluations, 0)
    return memory, [*of_parameters, *over_tensor, *over_context]


def _less_activations(
    config: Any, name: str, program: Program, mesh: Mesh | AbstractMesh
) -> list[str]:
    """Return the changes to a config that would lessen its activations and are not made yet."""
    task, shards = program.task, math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    found = []
    if name == "train":
        if getattr(task.network, "remat_policy", "nothing_saveable") != "nothing_saveable":
            found.append("config.model.remat_policy='nothing_saveable'")
        if hasattr(task, "optimization") and examples_at_once(config) > shards:
            found.append("a larger config.accumulation_steps")
    return found or ["a smaller config.batch_size"]


def parse_mesh(text: str) -> dict[str, int]:
    """Return a mesh's sizes by axis from "NAME:SIZE,…"; raise ValueError for any other text."""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and pair[1].isdecimal() and int(pair[1]) for pair in pairs):
        raise ValueError(f"--mesh={text} must be names and sizes, as data:2,fsdp:32")
    axes = {name: int(size) for name, size in pairs}
    if len(axes) < len(pairs):
        raise ValueError(f"--mesh={text} names an axis twice; give each once")
    return axes


def _mesh(device: Device, axes: Mapping[str, int], examples: int) -> Mesh | AbstractMesh:
    """Return a mesh of TPUs that their compiler knows, or of GPUs without devices."""
    if device.topology:
        return make_mesh(axes, examples, tpu_topology(device, math.prod(axes.values())))
    return abstract_mesh(axes, examples).update(
        abstract_device=AbstractDevice(device.kinds[0], None, "gpu")
    )


def _compile(program: Program, mesh: Mesh) -> tuple[Any, str]:
    """Return the compiled program, or None and the message that refuses it as too large."""
    try:
        with jax.set_mesh(mesh):
            return program.jitted().lower(*program.args).compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return None, str(error)


class _Needs(NamedTuple):
    """Bytes of one device, and what is sent. They are estimates if `compiled` is None."""

    memory: dict[str, int]
    peak: int
    capacity: float
    fits: bool
    compiled: Any
    sent: list[Collective]


def _needs(
    config: Any,
    name: str,
    program: Program,
    layers: Sequence[Layer],
    device: Device,
    mesh: Mesh | AbstractMesh,
) -> _Needs:
    compiled, refusal = _compile(program, mesh) if device.topology else (None, "")
    memory, capacity = _held(name, program, abstract_frozen(program.task, mesh)), device.memory
    by_compiler = "gradients, activations and workspace" if name == "train" else "workspace"
    if compiled:
        memory[by_compiler], peak = compiled_bytes(compiled)
        return _Needs(
            memory, peak, capacity, peak <= capacity, compiled, collectives(compiled, mesh)
        )
    more, sent = _estimate(config, name, program, layers, mesh)
    if numbers := refused_bytes(refusal, sum(memory.values())):
        more, capacity = {by_compiler: numbers[0]}, numbers[1]
    peak = sum(memory.values()) + sum(more.values())
    return _Needs(memory | more, peak, capacity, not refusal and peak <= capacity, None, sent)


def _check(config: Any, name: str, training: bool, by_operation: bool) -> None:
    if not training and config.task not in SAMPLED:
        raise ValueError(
            f"--program=sample plans the sampling of {', '.join(SAMPLED)}, and the task of "
            f"{config.experiment} is {config.task}; take --program=train"
        )
    if by_operation and not DEVICES[name].topology:
        tpus = ", ".join(each for each in DEVICES if DEVICES[each].topology)
        raise ValueError(
            f"--breakdown reads what the TPU compiler makes, and {name} is a GPU; "
            f"take one of {tpus}"
        )


def _trace(program: Program, mesh: Mesh | AbstractMesh) -> tuple[list[Layer], list[Choice]]:
    """Return a program's layers, and the attention that one device of the mesh chooses."""
    with use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)), attention_choices() as choices:
        layers = traced_layers(program.function, *program.args)
    return layers, sorted(choices)


def _num_tokens(choices: Collection[Choice]) -> int:
    """Return the length of a program's longest sequence, with joined sequences as one.

    Self-attention has this length. Cross-attention of grouped heads has the tokens of each group as
    further queries, so it counts only in a program without self-attention.
    """
    lengths = [each.query[1] for each in choices if each.query[1] == each.key[1]]
    return max(lengths or [each.query[1] for each in choices])


def _whole_training(num_steps: int, seconds: float, devices: int) -> dict[str, float]:
    """Return what all steps take, in days and in hours of all devices."""
    days = num_steps * seconds / 86400
    return dict(steps=num_steps, days=days, device_hours=num_steps * seconds * devices / 3600)


def plan(
    config: Any,
    axes: Mapping[str, int],
    name: str,
    program: str = "train",
    *,
    by_operation: bool = False,
) -> dict[str, Any]:
    """Return the plan of one of the `PROGRAMS`; sizes in bytes and times in seconds, per device.

    Args:
        by_operation: adds a `breakdown` of what TPUs would run, as of `genjax.devices.breakdown`,
            or None where their compiler refuses the program.

    Raises:
        ValueError: `by_operation` of a GPU's program, sampling of a task that is not among
            `SAMPLED`, or an axis of the mesh that splits nothing of the program's work.
        ValueError, ImportError: as of `build`, `make_mesh` and `tpu_topology`.
    """
    device, training = DEVICES[name], program == "train"
    _check(config, name, training, by_operation)
    mesh = _mesh(device, axes, examples_at_once(config) if training else config.batch_size)
    planned = program_of(program, config, mesh)
    with attention_choices() as whole:
        cost = cost_of(planned, mesh)
        chosen = list(whole)  # `_needs` may add more
        layers, choices = _trace(planned, mesh)
        sequences = check_axes(layers, [choice.query for choice in chosen], mesh)
        # Within `whole`, so that the estimate takes the trace that `cost_of` made.
        needs = _needs(config, program, planned, layers, device, mesh)
    bound = roofline(device, mesh, *cost, needs.sent)
    found = dict(
        experiment=config.experiment,
        program=program,
        mesh=dict(mesh.shape),
        device=name,
        parameters=sum(a.size for a in jax.tree.leaves(planned.args[0].params)),
        slices=num_slices(mesh),
        compiled=needs.compiled is not None,
        attention=[choice._asdict() | {"words": str(choice)} for choice in choices],
        memory=needs.memory,
        peak=needs.peak,
        capacity=needs.capacity,
        fits=needs.fits,
        less_activations=_less_activations(config, program, planned, mesh),
        multiply_adds=cost.operations // 2,
        useful_multiply_adds=cost.useful // 2,
        collectives=[each._asdict() for each in needs.sent],
        **bound,
        batch_size=config.batch_size,
        images_per_second=config.batch_size / bound["seconds"],
        sequences=sequences,
    )
    if by_operation:
        found["breakdown"] = breakdown(needs.compiled, device) if needs.compiled else None
    if sequences:
        # Attention of space and time in turn sees a part of the tokens at once.
        num_tokens = max(_num_tokens(chosen), *sequences)
        found["tokens_per_second"] = num_tokens * found["images_per_second"]
    if training:
        found |= _whole_training(config.num_steps, bound["seconds"], math.prod(axes.values()))
    return found


def advice(found: Mapping[str, Any]) -> list[str]:
    """Return sentences that say what to change."""
    sentences, axes, node = [], list(found["mesh"]), DEVICES[found["device"]].node
    if not found["fits"]:
        sentences.append(
            f"It does not fit: {found['peak'] / 1e9:.1f} GB of {found['capacity'] / 1e9:.0f} GB. "
            "With more devices on the fsdp axis, each holds less of the "
            f"{'state' if found['program'] == 'train' else 'weights'}. "
            f"For fewer activations, take {' or '.join(found['less_activations'])}."
        )
    if found["largest"].startswith("links"):
        grows = TENSOR in found["largest"] or CONTEXT in found["largest"]
        less = (
            "What it sends grows with the batch: "
            "make that axis smaller and one of data and fsdp larger"
            if grows
            else "A larger batch for each device sends as much for more arithmetic"
        )
        nearer = ""
        if node and math.prod(found["mesh"].values()) > node and axes[-1] not in found["largest"]:
            nearer = (
                f"; an axis within the {node} devices of a node sends faster: "
                "name it last in --mesh"
            )
        sentences.append(
            f"It waits for {found['largest']}: "
            f"{found['utilisation']:.0%} of the arithmetic at most. {less}{nearer}."
        )
    if uneven := [
        length for length in found["sequences"] if length % found["mesh"].get(CONTEXT, 1)
    ]:
        sentences.append(
            f"{CONTEXT} does not divide sequences of {' and '.join(map(str, uneven))} tokens: "
            "each of its devices computes all of these, for which no time is counted."
        )
    if found["largest"] == "memory":
        sentences.append(
            "It waits for memory: a larger batch for each device reads each weight for more."
        )
    return sentences


def show(found: Mapping[str, Any]) -> None:
    count, training = math.prod(found["mesh"].values()), found["program"] == "train"
    slices = f" in {found['slices']} slices" if found["slices"] > 1 else ""
    what = "a training step" if training else f"sampling {found['batch_size']:,} images"
    print(
        f"{found['experiment']}, {found['parameters']:,} parameters, {what} on "
        f"{count} × {found['device']}{slices}, {found['mesh']}"
    )
    refuses = (
        "estimated"
        if DEVICES[found["device"]].topology is None
        else "which its own compiler refuses"
    )
    print(f"\nbytes per device, {'by its own compiler' if found['compiled'] else refuses}")
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
        f", {found['useful_multiply_adds'] / 1e12:.2f} T without what is computed again"
        if training
        else ""
    )
    print(
        f"\n{found['multiply_adds'] / 1e12:.2f} T multiply-adds{again}; they take at least, in ms"
    )
    for name, value in found["terms"].items():
        print(
            f"  {name:40} {1e3 * value:10.3f}{'   the largest' if name == found['largest'] else ''}"
        )
    rate = f"{found['images_per_second']:,.4g} examples a second"
    if "tokens_per_second" in found:
        tokens = found["tokens_per_second"]
        rate += (
            f" of {tokens / found['images_per_second']:,.0f} tokens, {tokens:,.4g} tokens a second"
        )
    print(f"\nof use at most {found['utilisation']:.1%} of the peak, {rate}", end="")
    if training:
        print(
            f"; {found['steps']:,} steps in {found['days']:.2f} days, "
            f"{found['device_hours']:,.0f} device-hours",
            end="",
        )
    print(", at least" if training else "")
    for sentence in advice(found):
        print(sentence)
    if found.get("breakdown"):
        show_breakdown(found["breakdown"])


def main() -> None:
    # JAX keeps what is compiled for TPUs that are not there, but fails to read it, with a warning.
    jax.config.update("jax_enable_compilation_cache", False)
    with user_errors():
        check_out(OUT.value)
        found = plan(
            CONFIG.value,
            parse_mesh(MESH.value),
            DEVICE.value,
            PROGRAM.value,
            by_operation=BREAKDOWN.value,
        )
        if OUT.value:
            Path(OUT.value).write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    CONFIG = define_config("The experiment.")
    MESH = flags.DEFINE_string(
        "mesh", None, "Its axes and their sizes: data:2,fsdp:32.", required=True
    )
    DEVICE = flags.DEFINE_enum(
        "device", None, sorted(DEVICES), "What each of the devices is.", required=True
    )
    PROGRAM = flags.DEFINE_enum(
        "program", "train", PROGRAMS, "A training step, or sampling a batch."
    )
    BREAKDOWN = flags.DEFINE_bool(
        "breakdown", False, "What each operation of a TPU's program costs."
    )
    OUT = flags.DEFINE_string("out", None, "JSON file to write, if any.")
    run_program(main)
