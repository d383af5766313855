"""Train and sample a small experiment on eight virtual devices; print planned and actual bytes.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.planned_run
"""

import json

import jax
import numpy as np

from configs.digits_flow import get_config
from experiments.configuration.runs import build
from experiments.plan import plan
from genjax.devices import make_mesh
from genjax.training import abstract_state, init_state
from genjax.training.loop import compile_update
from genjax.training.sampling import sampling_program

MESH, BATCH = {"data": 2, "fsdp": 4}, 32


def on_a_device(tree):
    return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))


def main():
    config = get_config()
    config.model.update(width=64, depth=2, num_heads=2, unroll=1)
    config.batch_size, config.sampling.num_steps = BATCH, 2
    planned = plan(config, MESH, "h100")["memory"]
    mesh, task, key = make_mesh(MESH, BATCH), build(config), jax.random.key(0)
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, BATCH, np.int32)
    batch = {"image": random.integers(0, 256, (BATCH, 8, 8, 1), np.uint8), "label": labels}
    state = init_state(task, key, mesh)
    with jax.set_mesh(mesh):
        update = (
            compile_update(task, abstract_state(task, key, mesh), mesh)
            .lower(state, batch, key)
            .compile()
        )
        state, _ = update(state, jax.device_put(batch, update.input_shardings[0][1]), key)
        sample = sampling_program(task, config.sampling.weights, False, mesh)
        args = state, key, labels, labels, *task.sampling_inputs(config.sampling)
        sample = sample.lower(*args).compile()
    fields = ("params", "optimizer_state", "averages")
    found = {
        "all_planned": planned,
        "temporaries": update.memory_analysis().temp_size_in_bytes,
        "planned": {field: planned[field] for field in fields},
        "held": {field: on_a_device(getattr(state, field)) for field in fields},
        "arguments": update.memory_analysis().argument_size_in_bytes,
        "batch": sum(a.nbytes for a in batch.values()) // mesh.size,
        "planned_for_sampling": plan(config, MESH, "h100", "sample")["memory"],
        "arguments_of_sampling": sample.memory_analysis().argument_size_in_bytes,
        "temporaries_of_sampling": sample.memory_analysis().temp_size_in_bytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
