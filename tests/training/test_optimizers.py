import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training import make_optimizer
from genjax.training.optimizers import kernels_only

NUMBERS = dict(name="adamw", learning_rate=0.1, num_steps=100, warmup_steps=10)


def test_schedule_warms_up_and_falls_as_a_half_cosine():
    _, schedule = make_optimizer(**NUMBERS)
    steps = np.array([0, 5, 10, 55, 100])
    np.testing.assert_allclose([schedule(s) for s in steps], [0, 0.05, 0.1, 0.05, 0], atol=1e-8)


def test_only_kernels_decay_even_when_layers_are_stacked():
    params = {"blocks": {"dense": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}}
    mask = kernels_only(params)
    assert mask == {"blocks": {"dense": {"kernel": True, "bias": False}}}
    optimizer, _ = make_optimizer(**{**NUMBERS, "warmup_steps": 0}, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    # without a gradient AdamW's update is −learning rate · decay · parameter
    np.testing.assert_allclose(updates["blocks"]["dense"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["blocks"]["dense"]["bias"], 0)


def test_clipping_bounds_the_global_norm():
    options = {**NUMBERS, "warmup_steps": 0, "b1": 0.0, "b2": 0.0, "eps": 1e6}
    optimizer, _ = make_optimizer(**options, clip_norm=1.0)
    # with eps far above the gradient, Adam's update is −learning rate · gradient / eps
    params = {"kernel": jnp.zeros(2)}
    updates, _ = optimizer.update({"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * np.array([0.6, 0.8]) / 1e6, rtol=1e-4)


def test_unknown_optimizer_and_long_warmup():
    with pytest.raises(ValueError, match="'admw'.*adamw"):
        make_optimizer(**{**NUMBERS, "name": "admw"})
    with pytest.raises(ValueError, match="warmup_steps=200.*num_steps=100"):
        make_optimizer(**{**NUMBERS, "warmup_steps": 200})
