import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.configuration.runs import build
from experiments.evaluation.held_out_bits import held_out_bits
from genjax.data import load_dataset, to_float
from genjax.training import Checkpoints, record_config
from tests.experiments.launching import run
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import small_config

HERE = __name__


class Shift(nn.Module):
    """A multiple of x, which is NaN for every condition but 0."""

    @nn.compact
    def __call__(self, x, t, condition):
        known = jnp.where(condition == 0, 1.0, jnp.nan)[:, None, None, None]
        return x * self.param("shift", nn.initializers.zeros, ()) * known


def test_bits_of_a_network_that_answers_zero(tmp_path):
    """With velocity 0 the flow moves nothing, so p is N(0, I).

    In the bound, ‖z − ẑ‖² = (1 − t)²‖x − z‖². The integral starts at the clean end ε, where the
    levels are distinct: ½∫ −λ' (1 − t)² dt = −log ε − 1 + ε.
    """
    config = small_config()
    record_config(tmp_path, config.to_dict(), (), built_by="experiments.configuration.runs.build")
    state = jax.jit(build(config).init)(jax.random.key(0))  # zero-initialised
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(0, state)
    result = run("likelihood", f"--workdir={tmp_path}", "--levels=17", "--count=100")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "likelihood.json").read_text())
    images = to_float(
        load_dataset("digits", "test").source[np.random.default_rng(0).permutation(360)[:100]][
            "image"
        ]
    )
    square, width = np.mean(images.astype(float) ** 2), 2 / 16
    expected = (square + width**2 / 12 + np.log(2 * np.pi)) / 2 / np.log(2) - np.log2(width)
    # The mean square of 6,400 pixels with uniform noise has standard error 2·.85·.036/80 = 8e-4;
    # four of them, in bits.
    assert math.isclose(report["ode_bits_per_dimension"], expected, abs_tol=2.5e-3)
    # A hundred strata of t, and the noise of each: a repetition with other seeds varies by 0.4 %.
    bound = (np.log(1e3) - 0.999) * (square + 1) / np.log(2)
    assert math.isclose(report["bound_bits_per_dimension"], bound, rel_tol=0.02)
    assert report["images"] == 100


def test_bits_given_nothing_do_not_depend_on_the_labels_of_the_data(tmp_path):
    """A network that was trained on label 0 alone knows no others."""
    config = small_config(model=dict(name=f"{HERE}.Shift"))
    config.condition = dict(name="Unconditional")
    flags = f"--workdir={random_run(tmp_path / 'run', config)}", "--levels=17", "--count=2"
    result = run("likelihood", *flags, "--probes=1")
    assert result.returncode == 0 and "nan" not in result.stdout, result.stderr


class Pair(nn.Module):
    """A velocity of 0, and a second half that is no velocity."""

    num_classes: int
    out_channels: int = 2

    @nn.compact
    def __call__(self, x, t, condition):
        return jnp.concatenate([x * self.param("w", nn.initializers.zeros, ()), 5 + x], -1)


def test_bits_do_not_depend_on_a_learned_variance():
    """The velocity is 0, as in the first test."""
    config = small_config(model=dict(name=f"{HERE}.Pair"), loss=dict(name="hybrid_loss"))
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    exact, _ = held_out_bits(task, state, config, 17, 20, 1, 1e-3)
    source = load_dataset("digits", "test").source[np.random.default_rng(0).permutation(360)[:20]]
    square, width = np.mean(to_float(source["image"]).astype(float) ** 2), 2 / 16
    expected = (square + width**2 / 12 + np.log(2 * np.pi)) / 2 / np.log(2) - np.log2(width)
    # Four standard errors of the uniform noise of 1,280 pixels, which are 1.3e-3 bits.
    assert math.isclose(exact.mean(), expected, abs_tol=5e-3)


@pytest.mark.slow
def test_likelihood_writes_what_it_prints(small_run):
    result = run(
        "likelihood", f"--workdir={small_run[0]}", "--levels=17", "--count=20", "--probes=1"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((small_run[0] / "likelihood.json").read_text())
    assert (report["images"], report["levels"], report["steps"]) == (20, 17, 40)
    for name in ("ode_bits_per_dimension", "bound_bits_per_dimension"):
        assert f"{report[name]:.4f}" in result.stdout and 0 < report[name] < 50
