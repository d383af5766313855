"""The losses of flow maps under TrigFlow, and the derivatives that they take, by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import at, average_velocity, exact_map, exact_velocity, mean_gradient, perturbed

from genjax.diffusion import RectifiedFlow, TrigFlow, targets
from genjax.distillation import consistency, distances, flow_map_matching, flow_maps

KEY = jax.random.key(0)
TRIG, FLOW = TrigFlow(), RectifiedFlow()
PAIR = at(1.2, 0.4)


def member_map(theta):
    """The exact map, perturbed so that X(x, t, t) = x stays."""
    u = perturbed(average_velocity(TRIG), theta)
    return lambda x, t, s: x + (s - t)[:, None] * u(x, t, s)


OPTIONS = dict(process=TRIG, pairs=PAIR)
LOSSES = {
    "Lagrangian": lambda theta, x, z: flow_map_matching.lagrangian_loss(
        KEY, member_map(theta), exact_velocity(TRIG), x, noise=z, **OPTIONS
    ),
    "Eulerian": lambda theta, x, z: flow_map_matching.eulerian_loss(
        KEY, member_map(theta), exact_velocity(TRIG), x, noise=z, **OPTIONS
    ),
    "semigroup": lambda theta, x, z: flow_map_matching.semigroup_loss(
        KEY, member_map(theta), x, noise=z, **OPTIONS
    ),
    "consistency": lambda theta, x, z: consistency.consistency_loss(
        KEY, member_map(theta), x, teacher=exact_map(TRIG), noise=z, **OPTIONS
    ),
    "trajectory consistency": lambda theta, x, z: consistency.consistency_loss(
        KEY, member_map(theta), x, teacher=exact_map(TRIG), anywhere=True, noise=z, **OPTIONS
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_map_of_trigflow_is_where_the_gradient_vanishes(name, float64):
    loss = lambda theta, x, z: LOSSES[name](theta, x, z)[0]
    gradient = mean_gradient(loss)
    np.testing.assert_allclose(gradient(), 0, atol=1e-10)
    for direction in np.eye(3):
        assert np.abs(gradient(0.3 * direction)).max() > 1e-3, direction


@pytest.mark.parametrize("process", [FLOW, TRIG], ids=lambda p: type(p).__name__)
def test_the_exact_map_is_a_semigroup(process, float64):
    x = jax.random.normal(KEY, (5, 2), jnp.float64)
    t, r, s = (jnp.full(5, a) for a in (0.9, 0.5, 0.2))
    jump = exact_map(process)
    np.testing.assert_allclose(jump(jump(x, t, r), r, s), jump(x, t, s), rtol=1e-14)
    np.testing.assert_array_equal(jump(x, t, t), x)


@pytest.mark.parametrize("name", ["lagrangian", "eulerian"])
def test_losses_take_the_derivatives_that_differences_give(name, float64):
    """Of a map that is no solution: ∂X/∂s, and the change of X along the velocity in t and x_t."""
    x, z = jax.random.normal(KEY, (2, 5, 2), jnp.float64)
    t, s, step = jnp.full(5, 0.8), jnp.full(5, 0.3), 1e-5
    network = lambda x, t, s: jnp.sin(x) * (1 + t - 2 * s)[:, None]
    jump = flow_maps.flow_map(network, FLOW, targets.velocity)
    v = lambda x, t: jnp.cos(x) * t[:, None]
    x_t = FLOW.corrupt(x, z, t)
    if name == "lagrangian":
        change = (jump(x_t, t, s + step) - jump(x_t, t, s - step)) / (2 * step)
        residual = change - v(jump(x_t, t, s), s)
    else:
        along = lambda h: jump(x_t + h * v(x_t, t), t + h, s)
        residual = (along(step) - along(-step)) / (2 * step)
    loss = getattr(flow_map_matching, f"{name}_loss")
    found, _ = loss(KEY, jump, v, x, process=FLOW, pairs=at(0.8, 0.3), noise=z)
    np.testing.assert_allclose(found, distances.squared(residual), rtol=1e-7)
