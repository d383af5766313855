"""A config's training step, sampling program and network, for plans and timings without data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, use_abstract_mesh
from jaxtyping import PyTree

from experiments.configuration.runs import build, check_diffusion
from experiments.inputs.datasets import abstract_batch
from genjax.devices.cost import multiply_adds, product_bytes
from genjax.devices.mesh import BATCH_AXES
from genjax.devices.planning import shard_bytes
from genjax.nn import as_written, forward_mode
from genjax.nn.sharding import CONTEXT, TENSOR
from genjax.training import abstract_state
from genjax.training.loop import compile_update
from genjax.training.placement import abstract_frozen
from genjax.training.sampling import POSTHOC, sampling_program
from genjax.training.task import GenerativeTask

PROGRAMS = ("train", "sample")
NETWORK_PROGRAMS = ("forward", "jvp")  # of a diffusion network alone, on a training batch


class Program(NamedTuple):
    """A function and its arguments, whose large arrays are shapes only.

    Attributes:
        task: the config's task. For data that are latents on disk, it does not decode samples.
        function: the function that the program computes.
        useful: the same function without rematerialisation.
        jitted: makes the jitted program for the mesh.
        args: arguments on the mesh; the first is the state.
        local: arguments with one device's share of the examples, as shapes without shardings.
        updated: bytes that one device reads and writes outside matrix products.
    """

    task: GenerativeTask
    function: Callable
    useful: Callable
    jitted: Callable[[], Callable]
    args: tuple
    local: tuple
    updated: int


def program_of(name: str, config: Any, mesh: Mesh | AbstractMesh) -> Program:
    """Return one of the `PROGRAMS` or `NETWORK_PROGRAMS` of a config.

    Samples of latents on disk are not decoded. Where the config says their shape, their autoencoder
    may be missing.

    Raises:
        ValueError, ImportError, OSError: raised by `build`.
        ValueError: the sampler chooses its number of steps while it runs; or a network program is
            requested of a task other than diffusion.
    """
    config = config.copy_and_resolve_references()
    config.unlock()
    if config.space.get("directory"):
        shape = config.space.get("shape") or build(config).space.shape
        config.data.image_shape, config.space = shape, dict(name="Points")
    if name in NETWORK_PROGRAMS:
        return _network(name, config, mesh)
    return (_training_step if name == "train" else _sampling)(config, build(config), mesh)


def _training_step(config: Any, task: GenerativeTask, mesh: Mesh | AbstractMesh) -> Program:
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    batch, key = abstract_batch(config, task, mesh), jax.random.key(1)
    # Python makes a method anew at each use, and JAX keeps traces by function.
    update = useful = lambda *args: task.update(*args)
    if config.model.get("remat_policy"):
        config.model.remat_policy = None
        useful = build(config).update
    return Program(
        task=task,
        function=update,
        useful=useful,
        jitted=lambda: compile_update(task, state, mesh, frozen),
        args=(state, batch, key, *frozen),
        local=_in_shapes((state, _of_one_device(batch, mesh), key, *frozen)),
        updated=2 * shard_bytes(state),
    )


def _sampling(config: Any, task: GenerativeTask, mesh: Mesh | AbstractMesh) -> Program:
    sampling = config.sampling
    if sampling.get("sampler", {}).get("name") == "adaptive":
        raise ValueError(
            "config.sampling.sampler.name is 'adaptive', whose number of steps is not known before "
            "it runs; take one of config.sampling.num_steps, such as 'heun'"
        )
    # Post-hoc averages are as large as the parameters.
    weights = "params" if sampling.weights.startswith(POSTHOC) else sampling.weights
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    batch, key = abstract_batch(config, task, mesh), jax.random.key(1)

    def arguments(batch):
        indices = np.arange(batch["label"].shape[0], dtype=np.int32)
        inputs = task.abstract_sampling_inputs(sampling, batch, frozen)
        return state, key, indices % task.condition.num_rows, indices, *inputs

    generate = lambda *args: task.space.to_data(task.generate(*args, weights=weights))
    return Program(
        task=task,
        function=generate,
        useful=generate,
        jitted=lambda: sampling_program(task, weights, False, mesh),
        args=arguments(batch),
        local=_in_shapes(arguments(_of_one_device(batch, mesh))),
        updated=0,
    )


def _network(name: str, config: Any, mesh: Mesh | AbstractMesh) -> Program:
    """Return the denoiser's program, or the program of the denoiser and its derivative.

    The derivative is along a direction in (x_t, t), as the losses of flow maps take it.
    """
    check_diffusion(config)
    task = build(config)
    state, frozen = abstract_state(task, jax.random.key(0), mesh), abstract_frozen(task, mesh)
    batch = abstract_batch(config, task, mesh)
    array = lambda *shape: jax.ShapeDtypeStruct(
        (config.batch_size, *shape), jnp.float32, sharding=batch["label"].sharding
    )
    inputs = {"x": array(*task.space.shape), "t": array(), **batch}

    def forward(state, inputs, *frozen):
        condition = task.condition.of_batch(inputs)
        return task.denoiser(state.params, *frozen)(inputs["x"], inputs["t"], condition)

    def jvp(state, inputs, *frozen):
        point = inputs["x"], inputs["t"]
        along = lambda x, t: forward(state, inputs | {"x": x, "t": t}, *frozen)
        with forward_mode(True):
            return jax.jvp(along, point, (inputs["x"], jnp.ones_like(inputs["t"])))

    function = jvp if name == "jvp" else forward
    return Program(
        task=task,
        function=function,
        useful=function,
        jitted=lambda: jax.jit(function),
        args=(state, inputs, *frozen),
        local=_in_shapes((state, _of_one_device(inputs, mesh), *frozen)),
        updated=0,
    )


def _of_one_device(
    batch: dict[str, Any], mesh: Mesh | AbstractMesh
) -> dict[str, jax.ShapeDtypeStruct]:
    shards = _devices(mesh, *BATCH_AXES)
    return {
        name: jax.ShapeDtypeStruct((a.shape[0] // shards, *a.shape[1:]), a.dtype)
        for name, a in batch.items()
    }


def _devices(mesh: Mesh | AbstractMesh, *axes: str) -> int:
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def _in_shapes(arguments: PyTree) -> PyTree:
    """Replace arrays by shapes without shardings.

    A trace on one device needs this, because JAX refuses shardings over other devices there.
    """
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)


def alone(mesh: Mesh | AbstractMesh) -> AbstractMesh:
    """Return the abstract mesh of a single device of the mesh's kind."""
    device = getattr(mesh, "abstract_mesh", mesh).abstract_device
    return AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)


class Cost(NamedTuple):
    """A program's costs, as `genjax.devices.planning.roofline` takes them.

    Attributes:
        operations: operations of the matrix products on all devices, two a multiply-add.
        useful: operations without those that rematerialisation or attention's gradient repeats.
        moved: bytes that one device reads from and writes to its memory.
    """

    operations: int
    useful: int
    moved: int


def cost_of(program: Program, mesh: Mesh | AbstractMesh) -> Cost:
    """Count a program's costs without compiling or running it."""
    with use_abstract_mesh(alone(mesh)):
        of_device = 2 * multiply_adds(program.function, *program.local)
        operations = of_device * _devices(mesh, *BATCH_AXES)
        with as_written(True):  # chunks read arrays again that a kernel keeps on the chip
            useful = 2 * multiply_adds(program.useful, *_in_shapes(program.args))
            moved = product_bytes(program.function, *program.local)
    moved //= _devices(mesh, TENSOR, CONTEXT)
    return Cost(operations, useful, moved + program.updated)
