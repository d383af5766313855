"""Gradients at rounded copies of float32 parameters, against NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from configs import digits_flow, digits_gan
from experiments.configuration.runs import build
from genjax.training import at_rounded, value_and_gradient

RATE, STEPS = 0.05, 20


def loss(params, batch, key):
    error = jnp.tanh(batch["x"] @ params["w"].astype(jnp.float32)) - batch["y"]
    return jnp.mean(error**2), None


def in_bfloat16(a):
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def problem():
    random = np.random.default_rng(0)
    batch = {
        "x": random.standard_normal((12, 5), np.float32),
        "y": random.random((12, 3), np.float32),
    }
    return random.standard_normal((5, 3), np.float32), batch


def by_numpy(w, batch, steps, rate, microbatches):
    """Descend along rounded gradients at rounded weights, as a copy in bfloat16 must."""
    for _ in range(steps):
        gradient = np.zeros_like(w)
        for i in range(microbatches):
            x, y = (a[i::microbatches] for a in (batch["x"], batch["y"]))
            output = np.tanh(x @ in_bfloat16(w))
            by_output = 2 * (output - y) * (1 - output**2) / output.size
            gradient += in_bfloat16(x.T @ by_output) / microbatches
        w = w - rate * gradient
    return w


@pytest.mark.parametrize("microbatches", [1, 3])
def test_steps_against_numpy(microbatches):
    w, batch = problem()
    gradient_of = jax.jit(value_and_gradient(at_rounded(loss, "bfloat16"), microbatches))
    found = {"w": jnp.asarray(w)}
    for _ in range(STEPS):
        _, gradients = gradient_of(found, batch, jax.random.key(0))
        assert gradients["w"].dtype == jnp.float32
        found = jax.tree.map(lambda a, g: a - RATE * g, found, gradients)
    expected = by_numpy(w, batch, STEPS, RATE, microbatches)
    # A gradient near a border of bfloat16 may be rounded to either side: 2⁻⁹ of it, once or twice
    # in 20 steps.
    np.testing.assert_allclose(found["w"], expected, atol=2e-4)
    # which is less than what the rounding changes
    (_, _), exact = value_and_gradient(loss)({"w": jnp.asarray(w)}, batch, jax.random.key(0))
    _, rounded = gradient_of({"w": jnp.asarray(w)}, batch, jax.random.key(0))
    assert 1e-4 < np.abs(exact["w"] - rounded["w"]).max() < 0.01


def test_updates_below_the_resolution_add_up():
    """bfloat16 has no number between 1 and 1 − 2⁻⁸; a hundred steps of 2⁻¹² go past six of them."""
    slope = at_rounded(lambda params: jnp.sum(params["w"]), "bfloat16")
    w = {"w": jnp.ones(3)}
    for _ in range(100):
        w = jax.tree.map(lambda a, g: a - 2**-12 * g, w, jax.grad(slope)(w))
    np.testing.assert_array_equal(w["w"], np.full(3, 1 - 100 * 2**-12, np.float32))
    assert slope(w) == 3 * float(ml_dtypes.bfloat16(1 - 100 * 2**-12)) != 3
    stuck = jnp.bfloat16(1)
    assert stuck - jnp.bfloat16(2**-12) == stuck


def test_only_float32_is_rounded():
    seen = []
    at_rounded(lambda params: seen.append(jax.tree.map(lambda a: a.dtype, params)), "bfloat16")(
        dict(a=jnp.ones(2), b=jnp.ones(2, jnp.float16), c=jnp.ones(2, int))
    )
    assert seen == [dict(a=jnp.bfloat16, b=jnp.float16, c=jnp.int32)]
    assert at_rounded(loss, None) is loss


def small(params_dtype):
    config = digits_flow.get_config()
    config.model.update(width=32, depth=1, num_heads=2, unroll=1)
    config.params_dtype = params_dtype
    return config


def test_a_task_keeps_float32_and_computes_at_rounded_parameters():
    task, plain = build(small("bfloat16")), build(small(None))
    state = jax.jit(task.init)(jax.random.key(0))
    # as after some training, since modulation and head begin with zeros
    noise = lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape)
    state = state.replace(params=jax.tree.map(noise, state.params))
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (8, 8, 8, 1), np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    assert all(a.dtype != jnp.bfloat16 for a in jax.tree.leaves(after))
    update = jax.jit(plain.update)
    at = lambda params: update(state.replace(params=params), batch, jax.random.key(1))[1]
    copies = jax.tree.map(lambda a: jnp.asarray(in_bfloat16(np.asarray(a))), state.params)
    expected, exact = at(copies), at(state.params)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert abs(metrics["loss"] / exact["loss"] - 1) > 1e-5
    # of gradients that are rounded too, each by up to 2⁻⁹
    for part in ("total", "blocks", "head"):
        name = f"norm/gradient/{part}"
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2**-9)


def test_tasks_and_types_that_cannot():
    with pytest.raises(ValueError, match="params_dtype is 'float16'; take 'bfloat16'"):
        build(small("float16"))
    config = digits_gan.get_config()
    config.unlock()
    config.params_dtype = "bfloat16"
    with pytest.raises(ValueError, match="but a GAN is trained at its parameters themselves"):
        build(config)
