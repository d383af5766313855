"""Measure how many steps of a config a budget of time allows, and print the training command.

    python -m experiments.budget --config=configs/fashion_families.py:flow --seconds=600

A schedule of the learning rate ends with the last step, so a run needs its number of steps before
it starts. The budget is of training steps alone: compiling, saving and measuring come on top. The
steps are timed on random data, after the program has been compiled.
"""

import sys
import time
from typing import Any

import jax
from absl import flags

from experiments.benchmark import random_arrays, repeated
from experiments.configuration.runs import examples_at_once, mesh_axes
from experiments.launch.config_flag import define_config
from experiments.launch.runtime import run_program, user_errors
from experiments.speed.programs import program_of
from genjax.devices import make_mesh
from genjax.training import init_state


def seconds_per_step(config: Any, steps: int) -> float:
    """Return the mean time of so many training steps, dispatched and then waited for."""
    mesh = make_mesh(mesh_axes(config), examples_at_once(config))
    program = program_of("train", config, mesh)
    state = init_state(program.task, jax.random.key(0), mesh)
    args = state, *random_arrays(program.args[1:], program.task.condition.num_rows)
    with jax.set_mesh(mesh):
        step = repeated("train", program.jitted(), args)
        jax.block_until_ready(step())  # compiles
        jax.block_until_ready(step())
        began = time.perf_counter()
        for _ in range(steps):
            result = step()
        jax.block_until_ready(result)
    return (time.perf_counter() - began) / steps


def main() -> None:
    with user_errors():
        each = seconds_per_step(CONFIG.value, TIMED.value)
    steps = max(1, int(SECONDS.value / each))
    given = [argument for argument in sys.argv if argument.startswith("--config")]
    print(f"{1e3 * each:.1f} ms a step, {steps:,} steps in {SECONDS.value:g} s")
    print(
        f"python -m experiments.train {' '.join(given)} --config.num_steps={steps} "
        f"--workdir=runs/{CONFIG.value.experiment}"
    )


if __name__ == "__main__":
    CONFIG = define_config("The experiment.")
    SECONDS = flags.DEFINE_float("seconds", 600.0, "Time for all training steps.", lower_bound=0.0)
    TIMED = flags.DEFINE_integer("timed", 30, "Steps that are timed.", lower_bound=1)
    run_program(main)
