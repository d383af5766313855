"""Policies of pi-Flow at the Gaussian oracle, which knows the data's prediction along the ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import S, exact_map, rho

from genjax.diffusion import RectifiedFlow
from genjax.diffusion.processes import expand, shift_time
from genjax.distillation.policies import policy_map

FLOW = RectifiedFlow()
X = jax.random.normal(jax.random.key(0), (4, 3))
T, ENDS = jnp.array([1.0, 0.9, 0.7, 0.4]), jnp.array([0.4, 0.0, 0.1, 0.4])


def oracle(points, shift):
    """The network that predicts x̂ exactly at the points of the segments from T to ENDS."""

    def apply(x_t, t):
        start, end = shift_time(t, 1 / shift), shift_time(ENDS, 1 / shift)
        shares = jnp.linspace(0, 1, points)
        times = shift_time(end[:, None] + shares * (start - end)[:, None], shift)
        x = x_t[:, None] * expand(rho(FLOW, times) / rho(FLOW, t)[:, None], x_t[:, None])
        gain = FLOW.alpha(times) * S**2 / rho(FLOW, times) ** 2
        return (x_t[:, None] - gain[..., None] * x) / expand(t, x_t[:, None])

    return apply


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_policy_that_knows_the_data_follows_the_ode(shift, float64):
    """Euler's error falls with the step. A jump of no length changes nothing."""
    x, t, s = (a.astype(jnp.float64) for a in (X, T, ENDS))
    exact = exact_map(FLOW)(x, t, s)
    errors = [
        float(
            jnp.abs(policy_map(oracle(65, shift), shift=shift, substeps=n)(x, t, s) - exact).max()
        )
        for n in (256, 1024)
    ]
    assert errors[1] < 2e-3 and 3 < errors[0] / errors[1] < 5
    found = policy_map(oracle(65, shift), shift=shift)(x, t, s)
    np.testing.assert_array_equal(found[3], x[3])


def test_a_policy_of_one_guess_is_a_straight_line():
    """All points predict the same x̂, of which one step or many of DDIM are the same."""
    guess = jnp.sin(X)
    apply = lambda x, t: jnp.stack([(x - guess) / t[:, None]] * 4, axis=1)
    found = policy_map(apply, substeps=16)(X, T, ENDS)
    np.testing.assert_allclose(found, guess + (ENDS / T)[:, None] * (X - guess), atol=1e-6)


def test_a_jump_to_its_own_time_stays():
    times = jnp.array([0.0, 0.5, 1.0])
    jump = policy_map(lambda x, t: jnp.stack([x, 0 * x], 1), substeps=4)
    np.testing.assert_array_equal(jump(X[:3], times, times), X[:3])


def test_states_of_bfloat16_are_walked_in_float32():
    jump = policy_map(oracle(2, 1.0), substeps=8)
    x_s = jump(X.astype(jnp.bfloat16), T, ENDS)
    assert x_s.dtype == jnp.float32
    np.testing.assert_allclose(x_s, jump(X, T, ENDS), atol=0.05)
