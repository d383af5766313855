"""Whole trainings on 25 Gaussians, of several seeds at once.

Each game has a test module, so that games run side by side.
"""

import jax
import jax.numpy as jnp
import numpy as np

from configs import gaussians_gan
from experiments.configuration.runs import build
from experiments.evaluation.gans import PlaneReference
from experiments.inputs.datasets import Data
from genjax import adversarial
from genjax.adversarial import diagnostics
from genjax.data import load_dataset


def train(choice, seeds, num_steps=None):
    """What there is to say of each seed's averaged generator after `num_steps`, by default all."""
    config = gaussians_gan.get_config(choice)
    task = build(config)
    points = jnp.asarray(load_dataset(config.data.name).source[:]["image"])

    def run(key):
        init_key, train_key, sample_key = jax.random.split(key, 3)

        def step(state, i):
            batch_key, update_key = jax.random.split(jax.random.fold_in(train_key, i))
            images = jax.random.choice(batch_key, points, (config.batch_size,))
            state, metrics = task.update(state, {"image": images}, update_key)
            return state, {
                name: metrics[name].total for name in ("loss/discriminator", "slope/generator")
            }

        state, metrics = jax.lax.scan(
            step, task.init(init_key), jnp.arange(num_steps or config.num_steps)
        )
        zeros = jnp.zeros(config.evaluation.num_samples, int)
        samples = task.generate(
            state, sample_key, zeros, jnp.arange(len(zeros)), jnp.float32(1), weights="ema"
        )
        return samples, jax.tree.map(lambda a: a[-1], metrics)

    # Optimized, unlike other tests' programs, which run for less time than optimizing takes.
    optimized = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    program = jax.jit(jax.vmap(run), compiler_options=optimized)
    samples, metrics = jax.device_get(program(jax.random.split(jax.random.key(0), seeds)))
    reference = PlaneReference(Data.from_config(config), config.evaluation.num_samples)
    # the generator's slope is summed over its updates in a step
    metrics["slope/generator"] = metrics["slope/generator"] / config.updates.generator
    found = [
        dict(
            modes_covered=float(
                diagnostics.modes_covered(modes := reference.modes(each), reference.num_modes)
            ),
            num_modes=float(reference.num_modes),
            high_quality=float(np.mean(modes >= 0)),
            duplicate_rate=diagnostics.duplicate_rate(each, reference.unseen),
        )
        | {name: float(values[seed]) for name, values in metrics.items()}
        for seed, each in enumerate(samples)
    ]
    print(choice, *found, sep="\n")  # what is seen when a bound is missed
    return found


def assert_all_modes_are_covered(choice, seeds=2):
    """By default for two of docs/results/gans.md's five seeds, since trainings take minutes."""
    for found in train(choice, seeds):
        assert found["modes_covered"] == 25
        assert found["high_quality"] >= 0.9
        assert adversarial.alarms(found) == []
