import json

import jax
import numpy as np
import pytest
from conftest import program
from experiments.launch.opening import build
from test_tasks import small_config

from experiments.likelihood import held_out_bits
from genjax.data import load_dataset, to_float


def test_bits_of_a_network_that_answers_zero():
    """With velocity 0 the flow moves nothing: p is N(0, I). In the bound ‖z − ẑ‖² = (1 − t)²‖x − z‖², and
    ½∫ −λ' (1 − t)² dt = −log ε − 1 + ε from the clean end ε on, where levels are told apart."""
    config = small_config()
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))  # zero-initialised
    ode, bound = held_out_bits(task, state, config, 17, 100, 0, 1e-3)
    assert ode.shape == bound.shape == (100,)
    images = to_float(
        load_dataset("digits", "test").source[np.random.default_rng(0).permutation(360)[:100]]["image"]
    )
    square, width = np.mean(images.astype(float) ** 2), 2 / 16
    expected = (square + width**2 / 12 + np.log(2 * np.pi)) / 2 / np.log(2) - np.log2(width)
    # The mean square of 6,400 pixels with uniform noise has standard error 2·.85·.036/80 = 8e-4; four of them, in bits.
    np.testing.assert_allclose(ode.mean(), expected, atol=2.5e-3)
    # A hundred strata of t, and the noise of each: a repetition with other seeds varies by 0.4 %.
    np.testing.assert_allclose(bound.mean(), (np.log(1e3) - 0.999) * (square + 1) / np.log(2), rtol=0.02)


@pytest.mark.slow
def test_likelihood_writes_what_it_prints(small_run):
    result = program("likelihood", f"--workdir={small_run[0]}", "--levels=17", "--count=20", "--probes=1")
    assert result.returncode == 0, result.stderr
    report = json.loads((small_run[0] / "likelihood.json").read_text())
    assert (report["images"], report["levels"], report["steps"]) == (20, 17, 40)
    for name in ("ode_bits_per_dimension", "bound_bits_per_dimension"):
        assert f"{report[name]:.4f}" in result.stdout and 0 < report[name] < 50
