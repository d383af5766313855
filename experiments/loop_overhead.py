"""Time what the training loop around an image-diffusion experiment's step costs, with its data.

    python -m experiments.loop_overhead --config=configs/digits_flow.py

The program first prints how fast images are read from memory and, stored one by one, from disk. It
measures three rates in turns: (a) the compiled step alone, on one batch already on the devices;
(b) the whole loop with its data, metrics, progress and log; (c) `experiments.speed.plain_flax`, if
images are 8×8. The loop's overhead is the median of 1 − b/a over the rounds. The program also
prints the share of time that the loop waited for batches, and what sampling with guidance costs
beyond its network calls. Run it on an otherwise idle machine. `experiments.benchmark` times the
programs of any experiment, without data.
"""

import contextlib
import functools
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.configuration.runs import build, check_diffusion, mesh_axes
from experiments.launch.config_flag import define_config
from experiments.launch.runtime import run_program, user_errors
from genjax.data import Batches, InMemory, load_dataset, reading_rate
from genjax.devices import make_mesh
from genjax.devices.mesh import batch_sharding, replicated
from genjax.training import Checkpoints, abstract_state, place_frozen, train
from genjax.training.log import read_metrics
from genjax.training.loop import compile_update
from genjax.training.workdir import device_name

CONFIG = define_config("The experiment.")
STEPS = flags.DEFINE_integer("steps", 300, "Steps of each measurement.", lower_bound=10)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Measurements of each, in turns; medians are printed.", lower_bound=1
)


def plain_loop(config) -> Callable[[int], float]:
    """Return a function that measures the seconds of so many steps of `plain_flax`.

    `experiments.speed.plain_flax` runs in a process of its own.
    """
    sizes = [config.batch_size, config.model.width, config.model.depth, config.model.num_heads]

    def measure(steps: int) -> float:
        command = [sys.executable, "-m", "experiments.speed.plain_flax", *map(str, [steps, *sizes])]
        return steps / float(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )

    return measure


def bare_step(config, task, mesh, batches) -> Callable[[int], float]:
    """Return a function that measures the seconds of so many compiled updates.

    All updates take one batch, which is on the devices already.
    """
    abstract = abstract_state(task, jax.random.key(0), mesh)
    frozen = place_frozen(task, mesh)
    update = compile_update(task, abstract, mesh, frozen)
    state = jax.jit(task.init, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))(
        jax.random.key(0)
    )
    batch, key = jax.device_put(batches[0], batch_sharding(mesh)), jax.random.key(1)

    def measure(steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = update(state, batch, key, *frozen)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    return measure


def whole_loop(config, task, mesh, batches, waits: list[float]) -> Callable[[int], float]:
    """Return a function that measures the seconds of so many steps of `train`.

    Compilation and the final checkpoint do not count. The function adds to `waits` the share of the
    seconds that was spent waiting for batches.
    """

    def measure(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            log = Path(folder) / "metrics.jsonl"
            train(
                task,
                batches.iterate,
                num_steps=2 * steps,
                seed=config.seed,
                mesh=mesh,
                checkpoints=Checkpoints(Path(folder) / "checkpoints"),
                checkpoint_every=2 * steps,
                log_path=log,
                log_every=steps,
            )
            last = read_metrics(log)[-1]
            waits.append(last["input_wait"])
            return steps / last["steps_per_second"]

    return measure


def guided_sampling(config, task, mesh) -> dict[str, Callable[[], float]]:
    """Return functions that time sampling a batch with guidance, and its network calls alone.

    Guidance calls the network on twice the batch.
    """
    state = jax.jit(task.init, out_shardings=replicated(mesh))(jax.random.key(0))
    batch_size, evaluations = config.batch_size, task.num_evaluations(config.sampling)
    labels, indices = np.arange(batch_size) % task.condition.num_rows, np.arange(batch_size)
    sampling_inputs = task.sampling_inputs(config.sampling)
    generate = jax.jit(lambda *args: task.generate(state, jax.random.key(1), *args))
    network = jax.jit(lambda *args: task.network.apply({"params": state.params}, *args))
    x, t = jnp.zeros((2 * batch_size, *task.space.shape)), jnp.zeros(2 * batch_size)
    inputs, guided = (x, t, np.repeat(labels, 2)), (labels, indices, *sampling_inputs)
    calls = {
        f"{config.sampling.num_steps} guided steps": lambda: generate(*guided),
        "as many network calls": lambda: [network(*inputs) for _ in range(evaluations)],
    }

    def seconds(call):
        began = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - began

    return {name: functools.partial(seconds, call) for name, call in calls.items()}


def main() -> None:
    config = CONFIG.value
    with user_errors():
        check_diffusion(config)
        mesh = make_mesh(mesh_axes(config), config.batch_size)
        task = build(config)
        data = config.data.name, config.data.train_split, config.data.directory
        sizes, shape = (config.batch_size, config.seed), dict(image_shape=task.space.shape)
        batches, stored = (
            Batches(load_dataset(*data, **options), *sizes, **shape)
            for options in ({}, {"preload_bytes": 0})
        )

    print(f"{config.experiment} on {device_name()}")
    print(f"batches hold {reading_rate(batches, STEPS.value):,.0f} images a second", end="")
    if not isinstance(stored.dataset.source, InMemory):
        print(f"; read from disk and decoded one by one, {reading_rate(stored, 20):,.0f}", end="")
    print(flush=True)

    waits: list[float] = []
    measures = {
        "compiled step alone": bare_step(config, task, mesh, batches),
        "whole loop": whole_loop(config, task, mesh, batches, waits),
    }
    if task.space.shape == (8, 8, 1):
        measures["plain Flax loop"] = plain_loop(config)
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for round_number in range(ROUNDS.value + 1):  # the first compiles and is not counted
        for name, measure in measures.items():
            seconds = measure(STEPS.value)
            if round_number:
                rates[name].append(STEPS.value / seconds)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    for name, rate in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(
            f"{name:20} {rate:8.1f} steps/s ({low:.1f} … {high:.1f})  {1e3 / rate:7.2f} ms a step"
        )
    overheads = 1 - np.array(rates["whole loop"]) / rates["compiled step alone"]
    low, middle, high = np.quantile(overheads, [0.25, 0.5, 0.75])
    print(f"the loop's overhead  {middle:8.1%} of a step (quartiles {low:.1%} … {high:.1%})")
    print(f"waiting for batches  {np.median(waits):8.1%} of the loop's time")
    sampling = guided_sampling(config, task, mesh)
    times = {name: [] for name in sampling}
    for round_number in range(4 * ROUNDS.value + 1):  # short, so more of them
        for name, measure in sampling.items():
            seconds = measure()
            if round_number:
                times[name].append(seconds)
    for name, values in times.items():
        print(f"{name:22} {1e3 * np.median(values):8.1f} ms for {config.batch_size} samples")
    steps, calls = map(np.array, times.values())
    low, middle, high = np.quantile(steps / calls - 1, [0.25, 0.5, 0.75])
    print(f"guided sampling costs  {middle:8.1%} more (quartiles {low:.1%} … {high:.1%})")


if __name__ == "__main__":
    run_program(main)
