"""Time the training step and the sampling program of configs on this machine's devices.

    python -m experiments.benchmark --config=configs/digits_flow.py
    python -m experiments.benchmark --config=configs/digits_vae.py --config=configs/digits_flow.py
    python -m experiments.benchmark --config=configs/digits_gan.py:stylegan2 --record
    python -m experiments.benchmark --config=configs/fashion_flow.py --config.batch_size=32

The benchmark needs no data. Batches, and all other inputs beside the state, are random arrays.
Several configs run one after the other, each in its own process. A --config.FIELD changes all of
them. The program prints one row for each config and program. --out merges the rows into a JSON
file, and --record into the device's file in experiments/speed/results. A row has these fields:

- `compile_seconds`: seconds of lowering and compiling, without a compilation cache.
- `step_seconds`: median and quartiles of the seconds of a call, when each call is waited for.
- `queued_seconds`: mean seconds of a call, when all calls are dispatched and then waited for.
  Training works in this way, so all rates use this field.
- `host_seconds`: median seconds until a call returns, which is the host's work for the call.
  `host_share` is `host_seconds` / `queued_seconds`. While the share is below 1, the device always
  has its next call, and the host costs nothing. On a CPU the same processor dispatches and
  computes, and it may compute before the call returns.
- `multiply_adds`: multiply-adds of the whole program on all devices (genjax/devices/cost.py).
  `useful_multiply_adds` leaves out recomputation by rematerialisation and in attention's gradient.
- `operations_per_second`: useful operations a second, with two operations a multiply-add.
  `peak_share` divides this rate by the peak rate of the devices for dense bfloat16 products. The
  peak is the same for programs that compute in other types. An unknown device has no `peak_share`.
- `least_seconds`: the planner's lower bound from the devices' data sheets (`experiments.plan`).
  `least_share` is `least_seconds` / `queued_seconds`, the part of a step that the planner foresees.
  A CPU has no data sheet, so `measured_device` measures the rates of a single CPU.
- `xla_operations`: XLA's count of operations of the compiled program on one device. `xla_ratio`
  divides it by our count. XLA counts a loop's body once, so our count for this ratio does the same.
  Elementwise operations lift the ratio above 1, because only XLA counts them. The ratio is lower
  where XLA leaves out a convolution's products with padding. It is also lower where a kernel hides
  its operations from XLA, such as cuDNN's attention.
- `breakdown`: on TPUs, lower bounds for each kind of operation, and the most expensive operations
  (genjax/devices/breakdown.py). The cycles are estimates of the compiler.
- `program_bytes`: bytes of the compiled program on one device, for arguments, results and temporary
  arrays. `device_bytes` is the device's peak since the process began, if the device reports one.

--program=forward times a diffusion network on a training batch. --program=jvp times the network
together with its derivative along x_t and t. Mean flows and other losses of `genjax.distillation`
take this derivative.

--budget=600 prints the training command whose steps take so many seconds, by `queued_seconds`. A
schedule of the learning rate ends with the last step, so a run needs its number of steps before it
starts. Compiling, saving, sampling and measuring come on top:

    python -m experiments.benchmark --config=configs/digits_flow.py --program=train --budget=600

The sampling program makes as many samples as a batch holds, with the config's sampler, steps and
guidance. An autoencoder makes reconstructions. If the data are latents, samples are not decoded.
"""

import argparse
import itertools
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import PyTree
from ml_collections import config_flags

from experiments.configuration.runs import examples_at_once, mesh_axes
from experiments.launch.config_flag import define_config
from experiments.launch.runtime import run_program, user_errors
from experiments.speed.programs import NETWORK_PROGRAMS, PROGRAMS, cost_of, program_of
from experiments.speed.records import merge, results_of, stamp
from genjax.devices import make_mesh
from genjax.devices.breakdown import breakdown
from genjax.devices.collectives import collectives
from genjax.devices.cost import multiply_adds_written
from genjax.devices.planning import compiled_bytes, roofline
from genjax.devices.specifications import Device, device_of
from genjax.training import init_state
from genjax.training.workdir import flatten

WARM_UP, TRACED = 2, 3  # calls


def random_arrays(arrays: PyTree, num_labels: int) -> PyTree:
    """Return random arrays in place of `jax.ShapeDtypeStruct`s, made on their devices.

    Shapes, types and shardings are those of the structs. Bytes are uniform, other integers are
    labels below `num_labels`, floats are normal, and booleans are True. Leaves that are arrays
    stay.
    """

    def draw(key, a):
        if a.dtype == bool:
            return jnp.ones(a.shape, bool)
        if jnp.issubdtype(a.dtype, jnp.integer):
            return jax.random.randint(
                key, a.shape, 0, 256 if a.dtype == jnp.uint8 else num_labels, a.dtype
            )
        return jax.random.normal(key, a.shape, a.dtype)

    leaves, structure = jax.tree.flatten(arrays)
    absent = [i for i, a in enumerate(leaves) if isinstance(a, jax.ShapeDtypeStruct)]
    make = lambda key: [draw(jax.random.fold_in(key, i), leaves[i]) for i in absent]
    made = jax.jit(make, out_shardings=[leaves[i].sharding for i in absent])(jax.random.key(0))
    for i, array in zip(absent, made, strict=True):
        leaves[i] = array
    return jax.tree.unflatten(structure, leaves)


def measured_device(rounds: int = 20) -> Device:
    """Measure rates of this machine's device, in place of a data sheet.

    The rate of operations is the best over float32 products of square matrices of three sizes. The
    memory's bandwidth is the best rate of reading and writing an array of 256 MiB in place.
    """

    def best(function, a):
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            a = jax.block_until_ready(function(a))
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])  # the first compiles

    matrices = [jnp.eye(size) for size in (512, 1024, 2048)]
    operations = max(2 * len(a) ** 3 / best(jax.jit(lambda a: a @ a), a) for a in matrices)
    long = jnp.zeros(2**26)
    size = long.nbytes
    bandwidth = 2 * size / best(jax.jit(lambda a: a + 1, donate_argnums=0), long)
    return Device(operations, math.inf, bandwidth, math.inf, None, math.inf, ())


def timed(call: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Return the seconds of a call, which dispatches work and returns arrays to wait for."""
    clock = time.perf_counter
    for _ in range(WARM_UP):
        jax.block_until_ready(call())
    host, whole = [], []
    for _ in range(steps):
        began = clock()
        result = call()
        host.append(clock() - began)
        jax.block_until_ready(result)
        whole.append(clock() - began)
    began = clock()
    for _ in range(steps):
        result = call()
    jax.block_until_ready(result)
    queued = (clock() - began) / steps
    low, middle, high = np.quantile(whole, [0.25, 0.5, 0.75]).tolist()
    host_seconds = float(np.median(host))
    return dict(
        steps=steps,
        step_seconds=dict(median=middle, quartiles=[low, high]),
        queued_seconds=queued,
        host_seconds=host_seconds,
        host_share=host_seconds / queued,
    )


def repeated(name: str, program: Callable, args: tuple) -> Callable[[], Any]:
    """Return a call of a compiled program that takes no arguments.

    Each training step takes the state of the step before.
    """
    if name != "train":
        return lambda: program(*args)
    state, *inputs = args

    def step():
        nonlocal state
        state, metrics = program(state, *inputs)  # the old state's memory is donated
        return state, metrics

    return step


def profile(call: Callable[[], Any], folder: str) -> None:
    """Write a profile of a few calls into the folder."""
    with jax.profiler.trace(folder):
        for _ in range(TRACED):
            jax.block_until_ready(call())


def measure(config: Any, name: str, steps: int, trace: str | None = None) -> dict[str, Any]:
    """Measure one of the `PROGRAMS` or `NETWORK_PROGRAMS` of a config, and return its row.

    `main` adds the config's path and the changed fields to the row.

    Args:
        steps: number of timed calls. They are timed twice: waiting for each call, and for all.
        trace: folder for a profile of a few more calls.

    Raises:
        ValueError, ImportError, OSError: raised by `program_of` and `make_mesh`.
    """
    mesh = make_mesh(mesh_axes(config), examples_at_once(config))
    program = program_of(name, config, mesh)
    cost = cost_of(program, mesh)
    state = init_state(program.task, jax.random.key(0), mesh)
    args = state, *random_arrays(program.args[1:], program.task.condition.num_rows)
    with jax.set_mesh(mesh):
        written, jitted = multiply_adds_written(program.function, *args), program.jitted()
        began = time.perf_counter()
        compiled = jitted.lower(*args).compile()
        compile_seconds = time.perf_counter() - began
        call = repeated(name, compiled, args)
        seconds = timed(call, steps)
        if trace:
            profile(call, trace)
    device, operations = mesh.local_devices[0], compiled.cost_analysis().get("flops")
    _, program_bytes = compiled_bytes(compiled)
    stats = device.memory_stats() or {}
    per_second = cost.useful / seconds["queued_seconds"]
    known = device_of(device.device_kind)
    sheet = known or (measured_device() if device.platform == "cpu" and mesh.size == 1 else None)
    least = sheet and roofline(sheet, mesh, *cost, collectives(compiled, mesh))["seconds"]
    return dict(
        experiment=config.experiment,
        program=name,
        device=device.device_kind,
        devices=mesh.size,
        cores=os.cpu_count(),
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        dtype=computed_in(config.model.to_dict()),
        parameters=sum(a.size for a in jax.tree.leaves(program.args[0].params)),
        compile_seconds=compile_seconds,
        **seconds,
        examples_per_second=config.batch_size / seconds["queued_seconds"],
        multiply_adds=cost.operations // 2,
        useful_multiply_adds=cost.useful // 2,
        operations_per_second=per_second,
        peak_share=per_second / (known.operations * mesh.size) if known else None,
        least_seconds=least,
        least_share=least and least / seconds["queued_seconds"],
        breakdown=breakdown(compiled, known) if known and known.topology else None,
        xla_operations=operations,
        xla_ratio=operations * mesh.size / (2 * written) if operations and written else None,
        program_bytes=program_bytes,
        device_bytes=stats.get("peak_bytes_in_use"),
        **stamp(),
    )


def computed_in(model: Mapping[str, Any]) -> str:
    """Return the types that a config's networks compute in, separated by spaces."""
    types = {value for name, value in flatten(model) if name.rpartition(".")[2] == "dtype"}
    return " ".join(sorted(types)) or "float32"


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table."""
    print(
        f"{'experiment':32} {'program':7} {'batch':>5} {'compile':>9} "
        f"{'a step, and its quartiles':>31} {'queued':>10} {'host':>6} {'examples/s':>10} "
        f"{'Tops/s':>8} {'of peak':>7} {'planned':>7} {'XLA/own':>7} {'memory':>9}"
    )
    for row in rows:
        low, high = row["step_seconds"]["quartiles"]
        share = "" if row["peak_share"] is None else f"{row['peak_share']:.1%}"
        planned = "" if row["least_share"] is None else f"{row['least_share']:.1%}"
        ratio = "" if row["xla_ratio"] is None else f"{row['xla_ratio']:.2f}"
        memory = row["device_bytes"] or row["program_bytes"]
        print(
            f"{row['experiment']:32} {row['program']:7} {row['batch_size']:5} "
            f"{row['compile_seconds']:7.1f} s {1e3 * row['step_seconds']['median']:8.1f} ms "
            f"({1e3 * low:7.1f} … {1e3 * high:7.1f}) {1e3 * row['queued_seconds']:7.1f} ms "
            f"{row['host_share']:6.1%} {row['examples_per_second']:10.1f} "
            f"{row['operations_per_second'] / 1e12:8.3f} {share:>7} {planned:>7} {ratio:>7} "
            f"{memory / 1e9:6.3f} GB",
            flush=True,
        )


def training_command(
    row: Mapping[str, Any], arguments: Sequence[str], budget: float
) -> tuple[int, str]:
    """Return how many steps take `budget` seconds, and the command that trains so many.

    Args:
        row: of the training program.
        arguments: of the benchmark. Those of the config also go into the training command.
    """
    steps = max(1, int(budget / row["queued_seconds"]))
    given = []
    for before, each in itertools.pairwise(["", *arguments]):
        if each.startswith("--config"):
            given.append(each)
        elif before.startswith("--config") and "=" not in before and not each.startswith("--"):
            given[-1] += f"={each}"  # a flag and its value as two words
    given += [f"--config.num_steps={steps}", f"--workdir=runs/{row['experiment']}"]
    return steps, f"python -m experiments.train {shlex.join(given)}"


def commands(arguments: Sequence[str]) -> list[list[str]]:
    """Split the arguments into one command's for each --config."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    found, rest = parser.parse_known_args(arguments)
    return [[f"--config={config}", *rest] for config in found.config]


def main() -> None:
    # With a compilation cache, `compile_seconds` would be the time of reading the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    (command,) = [each for each in sys.argv if each.startswith("--config=")]
    overrides = {
        name: value.to_dict() if hasattr(value, "to_dict") else value
        for name, value in config_flags.get_override_values(flags.FLAGS["config"]).items()
    }
    source = dict(config=command.removeprefix("--config="), overrides=overrides)
    rows = []
    with user_errors():
        if BUDGET.value and PROGRAM.value not in (None, "train"):
            raise ValueError(
                f"--budget={BUDGET.value:g} is of training, and --program={PROGRAM.value} is not: "
                "leave out one of them"
            )
        for name in PROGRAMS if PROGRAM.value is None else [PROGRAM.value]:
            trace = TRACE.value and str(Path(TRACE.value) / f"{CONFIG.value.experiment}_{name}")
            rows.append(source | measure(CONFIG.value, name, STEPS.value, trace))
        if jax.process_index() == 0:
            show(rows)
            if BUDGET.value:
                steps, line = training_command(rows[0], sys.argv[1:], BUDGET.value)
                print(f"{steps:,} steps in {BUDGET.value:g} s:\n{line}")
            if OUT.value:
                merge(Path(OUT.value), rows)
            if RECORD.value:
                merge(results_of(rows[0]["device"]), rows)


if __name__ == "__main__":
    each = commands(sys.argv[1:])
    if len(each) > 1:
        program = [sys.executable, "-m", "experiments.benchmark"]
        sys.exit(max(subprocess.run([*program, *command]).returncode for command in each))
    if each:
        sys.argv[1:] = each[0]
    CONFIG = define_config("The experiment; may be given several times.")
    PROGRAM = flags.DEFINE_enum(
        "program",
        None,
        PROGRAMS + NETWORK_PROGRAMS,
        f"Which of the programs; {' and '.join(PROGRAMS)} if not given.",
    )
    STEPS = flags.DEFINE_integer("steps", 20, "Calls that are timed, twice.", lower_bound=2)
    BUDGET = flags.DEFINE_float(
        "budget", None, "Seconds of training, for which to print the command.", lower_bound=0.0
    )
    OUT = flags.DEFINE_string("out", None, "JSON file to merge the rows into, if any.")
    RECORD = flags.DEFINE_bool("record", False, "Merge the rows into experiments/speed/results.")
    TRACE = flags.DEFINE_string(
        "trace", None, "Folder for a profile of some calls of each program, if any."
    )
    run_program(main)
