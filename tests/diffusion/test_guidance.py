import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import Prediction, drop_conditioning, guide

BATCH, SHAPE, NULL = 3, (4, 2), 7


@pytest.fixture
def calls():
    return []


@pytest.fixture
def denoiser(calls):
    """Something nonlinear that depends on all of its arguments, example by example."""

    def denoise(x_t, t, labels):
        calls.append((x_t, t, labels))
        clean = jnp.sin(x_t + t[:, None, None] * labels[:, None, None])
        return Prediction(clean, jnp.cos(x_t) * labels[:, None, None])

    return denoise


@pytest.fixture
def inputs():
    x_t = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, *SHAPE)), jnp.float32)
    return x_t, jnp.array([0.2, 0.5, 0.9]), jnp.array([0, 3, 5])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_both_conventions(denoiser, inputs, scale):
    x_t, t, labels = inputs
    conditional, unconditional = denoiser(x_t, t, labels), denoiser(x_t, t, jnp.full(BATCH, NULL))
    result = guide(denoiser, labels, NULL, scale)(x_t, t)
    w = scale - 1  # of papers that write (1 + w)·c − w·u
    for guided, c, u in zip(result[:2], conditional[:2], unconditional[:2], strict=True):
        np.testing.assert_allclose(guided, u + scale * (c - u), atol=1e-5)
        np.testing.assert_allclose(guided, (1 + w) * c - w * u, atol=1e-5)
    for expected, at in ((unconditional, 0.0), (conditional, 1.0)):
        if scale == at:
            np.testing.assert_allclose(result.clean, expected.clean, atol=1e-6)
            np.testing.assert_allclose(result.noise, expected.noise, atol=1e-6)


def test_one_call_on_twice_the_batch(denoiser, calls, inputs):
    x_t, t, labels = inputs
    guide(denoiser, labels, NULL, 2.0)(x_t, t)
    ((both_x, both_t, both_labels),) = calls
    np.testing.assert_array_equal(both_x, np.repeat(x_t, 2, axis=0))
    np.testing.assert_array_equal(both_t, np.repeat(t, 2))
    np.testing.assert_array_equal(both_labels, [0, NULL, 3, NULL, 5, NULL])
    assert both_labels.dtype == labels.dtype


def test_conditioning_may_be_a_tree(inputs):
    x_t, t, labels = inputs
    text = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, *SHAPE)), jnp.float32)
    null_text = jnp.full(SHAPE, 0.5)

    def denoise(x_t, t, conditioning):
        clean = conditioning["text"] * conditioning["label"][:, None, None]
        return Prediction(clean, x_t)

    conditioning, null = {"text": text, "label": labels}, {"text": null_text, "label": NULL}
    result = guide(denoise, conditioning, null, 3.0)(x_t, t)
    conditional, unconditional = text * labels[:, None, None], null_text * NULL
    expected = unconditional + 3 * (conditional - unconditional)
    np.testing.assert_allclose(result.clean, expected, rtol=1e-5)
    np.testing.assert_allclose(result.noise, x_t, rtol=1e-5)


DATA_PARALLEL = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from genjax.diffusion import Prediction, guide

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

def sample(x, t, labels, weight):
    denoiser = lambda x, t, labels: Prediction(jnp.tanh(x @ weight) + labels[:, None], x * t[:, None])
    return guide(denoiser, labels, 7, 2.0)(x, t)

arguments = [jnp.ones((8, 6)), jnp.ones(8), jnp.zeros(8, int), jnp.ones((6, 6))]
with jax.set_mesh(mesh):
    shardings = [jax.NamedSharding(mesh, P(*axes)) for axes in (["data"], ["data"], ["data"], [])]
    compiled = jax.jit(sample, in_shardings=shardings).lower(*arguments).compile()
text = compiled.as_text()
assert "tanh" in text
for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
    assert collective not in text, collective
"""


def test_no_collective_where_the_batch_is_sharded():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-W", "error", "-c", DATA_PARALLEL], check=True, env=environment)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_dropped_at_the_rate(rate):
    labels = jnp.arange(20_000)
    result = np.asarray(drop_conditioning(jax.random.key(0), labels, -1, rate))
    dropped = result == -1
    np.testing.assert_array_equal(result[~dropped], np.asarray(labels)[~dropped])
    error = np.sqrt(rate * (1 - rate) / labels.size)  # binomial
    assert abs(dropped.mean() - rate) <= 4 * error
    assert result.dtype == labels.dtype


def test_whole_examples_are_dropped_and_all_leaves_together():
    conditioning = {
        "label": jnp.arange(1, 65),
        "text": jnp.ones((64, 5, 3)) * jnp.arange(1, 65)[:, None, None],
    }
    null = {"label": 0, "text": -jnp.arange(3.0) - 1}  # broadcast over tokens
    result = drop_conditioning(jax.random.key(0), conditioning, null, 0.5)
    dropped = np.asarray(result["label"]) == 0
    assert 0 < dropped.sum() < 64
    expected = np.where(dropped[:, None, None], null["text"], conditioning["text"])
    np.testing.assert_array_equal(result["text"], expected)
