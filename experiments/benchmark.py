"""Times the training step of an image-diffusion experiment, and what the loop around it costs.

    python -m experiments.benchmark --config=configs/digits_flow.py

Prints the rates of (a) the compiled step alone, on one batch already on the devices, (b) the whole loop with
its data, metrics, progress and log, and (c) a plain Flax loop of the same model as a first script would write
it, measured in turns; and the host overhead, 1 − b/a. Run it on an otherwise idle machine.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import config_flags

from experiments.configuration import build
from experiments.runtime import run_program, user_errors
from genjax.data import Batches, load_dataset
from genjax.nn import patchify, sincos_positions, sinusoidal_embedding, unpatchify
from genjax.training import Checkpoints, abstract_state, make_mesh, train
from genjax.training.cost import multiply_adds
from genjax.training.log import read_metrics
from genjax.training.loop import compile_update
from genjax.training.mesh import place_batch
from genjax.training.workdir import device_name

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
STEPS = flags.DEFINE_integer("steps", 300, "Steps of each measurement.", lower_bound=10)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Measurements of each, in turns; medians are printed.", lower_bound=1
)
flags.mark_flag_as_required("config")


class PlainDiT(nn.Module):
    """The model of genjax.models.dit as Flax's own layers make it, a Python loop over blocks."""

    like: nn.Module

    @nn.compact
    def __call__(self, x, t, labels):
        width, patch = self.like.width, self.like.patch_size
        height, columns, channels = x.shape[1:]
        tokens = nn.Dense(width)(patchify(x, patch)) + sincos_positions(
            height // patch, columns // patch, width
        )
        time = nn.Dense(width)(nn.silu(nn.Dense(width)(sinusoidal_embedding(1000 * t, 256))))
        conditioning = nn.silu(time + nn.Embed(self.like.num_classes + 1, width)(labels))

        def modulation(parts):
            dense = nn.Dense(parts * width, kernel_init=nn.initializers.zeros)
            return jnp.split(dense(conditioning)[:, None], parts, axis=-1)

        norm = lambda h, shift, scale: nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift
        for _ in range(self.like.depth):
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation(6)
            attention = nn.MultiHeadDotProductAttention(self.like.num_heads)
            tokens = tokens + gate * attention(norm(tokens, shift, scale))
            hidden = nn.gelu(nn.Dense(int(width * self.like.mlp_ratio))(norm(tokens, mlp_shift, mlp_scale)))
            tokens = tokens + mlp_gate * nn.Dense(width)(hidden)
        out = nn.Dense(patch**2 * channels)(norm(tokens, *modulation(2)))
        return unpatchify(out, patch, height, columns)


def plain_loop(config, task) -> Callable[[int], float]:
    """Seconds for so many steps of a rectified flow on `PlainDiT`, reading each loss as it comes."""
    network = PlainDiT(task.network)
    images = (
        np.random.default_rng(0).uniform(-1, 1, (config.batch_size, *task.image_shape)).astype(np.float32)
    )
    labels = np.zeros(config.batch_size, np.int32)
    params = network.init(jax.random.key(0), images, jnp.ones(len(images)), labels)
    state = params, task.optimizer.init(params["params"]), params

    @jax.jit
    def update(state, images, labels, key):
        params, optimizer_state, ema = state
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t = jax.nn.sigmoid(jax.random.normal(time_key, labels.shape))
        noise = jax.random.normal(noise_key, images.shape)
        x_t = (1 - t)[:, None, None, None] * images + t[:, None, None, None] * noise
        labels = jnp.where(
            jax.random.bernoulli(dropout_key, 0.5, labels.shape), task.network.null_label, labels
        )
        loss_of = lambda p: jnp.mean((network.apply(p, x_t, t, labels) - (noise - images)) ** 2)
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, optimizer_state = task.optimizer.update(
            gradients["params"], optimizer_state, params["params"]
        )
        params = {"params": optax.apply_updates(params["params"], updates)}
        ema = jax.tree.map(lambda e, p: 0.999 * e + 0.001 * p, ema, params)
        return (params, optimizer_state, ema), loss

    def measure(steps: int) -> float:
        nonlocal state
        key = jax.random.key(1)
        began = time.perf_counter()
        for _ in range(steps):
            key, step_key = jax.random.split(key)
            state, loss = update(state, images, labels, step_key)
            float(loss)
        return time.perf_counter() - began

    return measure


def bare_step(config, task, mesh, batches) -> Callable[[int], float]:
    """Seconds for so many compiled updates on one batch that lies on the devices."""
    abstract = abstract_state(task, jax.random.key(0), mesh)
    update = compile_update(task, abstract, mesh)
    state = jax.jit(task.init, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))(jax.random.key(0))
    batch, key = place_batch(batches[0], mesh), jax.random.key(1)

    def measure(steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = update(state, batch, key)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    return measure


def whole_loop(config, task, mesh, batches) -> Callable[[int], float]:
    """Seconds for so many steps of `train`, compilation and the final checkpoint apart."""

    def measure(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
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
            return steps / read_metrics(log)[-1]["steps_per_second"]

    return measure


def main() -> None:
    config = CONFIG.value
    with user_errors():
        mesh = make_mesh(config.mesh, config.batch_size)
        task = build(config)
        dataset = load_dataset(config.data.name, config.data.train_split, config.data.directory)
        batches = Batches(dataset, config.batch_size, config.seed, image_shape=task.image_shape)

    abstract = abstract_state(task, jax.random.key(0), mesh)
    inputs = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [((1, *task.image_shape), jnp.float32), ((1,), jnp.float32), ((1,), jnp.int32)]
    ]
    forward = multiply_adds(
        lambda params, *args: task.network.apply({"params": params}, *args), abstract.params, *inputs
    )
    parameters = sum(a.size for a in jax.tree.leaves(abstract.params))
    print(f"{config.experiment} on {device_name()}")
    print(f"{parameters:,} parameters, {forward / 1e6:.2f} M multiply-adds per image forward")

    measures = {
        "compiled step alone": bare_step(config, task, mesh, batches),
        "whole loop": whole_loop(config, task, mesh, batches),
        "plain Flax loop": plain_loop(config, task),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for round_number in range(ROUNDS.value + 1):  # the first compiles and is not counted
        for name, measure in measures.items():
            seconds = measure(STEPS.value)
            if round_number:
                rates[name].append(STEPS.value / seconds)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    for name, rate in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{name:20} {rate:8.1f} steps/s ({low:.1f} … {high:.1f})  {1e3 / rate:7.2f} ms a step")
    overhead = 1 - medians["whole loop"] / medians["compiled step alone"]
    print(f"host overhead        {overhead:8.1%} of a step")
    # A forward and a backward pass take three times the forward's multiply-adds; two operations each.
    operations = 6 * forward * config.batch_size * medians["compiled step alone"]
    print(f"{operations / 1e9:.1f} G operations a second in matrix products")


if __name__ == "__main__":
    run_program(main)
