"""Number types in a sampler: coefficients and times are float32 for any state and prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import mixture_denoiser, quantiles_of, quick_jit

from genjax.diffusion import (
    Prediction,
    RectifiedFlow,
    adaptive,
    sample_keys,
    samplers,
    uniform_grid,
)

FLOW = RectifiedFlow()
BFLOAT16 = jnp.bfloat16


@pytest.fixture
def starts():
    return jnp.asarray(quantiles_of(0.0, 1.0), jnp.float32)


@pytest.mark.parametrize("name", ["euler", "rk4"])
def test_a_bfloat16_state_is_rounded_once_a_step_and_nothing_else_is(name, starts):
    """The rounding of bfloat16 adds up to about .05 in 50 steps.

    It rounds a state of order 2 by up to .008, and the roundings form a random walk. With rounded
    coefficients the error would be .1 for Euler and .44 for rk4.
    """
    times = uniform_grid(FLOW, 50)
    sample = quick_jit(lambda x: getattr(samplers, name)(mixture_denoiser(FLOW), FLOW, x, times))
    found = sample(starts.astype(BFLOAT16))
    assert found.dtype == BFLOAT16
    assert np.abs(found.astype(jnp.float32) - sample(starts)).max() < 0.08


def test_times_are_float32_beside_a_bfloat16_state():
    """1,000 steps have 1,000 times, and bfloat16 would have 506 for them."""
    seen = []

    def denoiser(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return Prediction(x, x)

    quick_jit(lambda x: samplers.euler(denoiser, FLOW, x, uniform_grid(FLOW, 1000)))(
        jnp.ones(1, BFLOAT16)
    )
    jax.effects_barrier()
    assert len(set(seen)) == 1000


@pytest.mark.parametrize("name", ["ddpm", "edm_stochastic", "rk4", "unipc"])
@pytest.mark.parametrize(
    "state, answer", [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16",) * 2]
)
def test_any_type_of_prediction_goes_with_any_state(name, state, answer, starts):
    """Samples have the state's type, and equal those of float32 up to the rounding of bfloat16.

    This includes the noise.
    """
    keys, times = sample_keys(jax.random.key(0), jnp.arange(64)), uniform_grid(FLOW, 8)

    def sample(noise, answer):
        def denoiser(x, t):
            prediction = mixture_denoiser(FLOW)(x.astype(jnp.float32), t)
            return jax.tree.map(lambda a: a.astype(answer), prediction)

        return getattr(samplers, name)(denoiser, FLOW, noise, times, keys=keys)

    found, expected = quick_jit(lambda x: (sample(x.astype(state), answer), sample(x, "float32")))(
        starts
    )
    assert found.dtype == state
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.15)


def test_adaptive_takes_a_bfloat16_denoiser_and_state(starts):
    """Its times and its integration within the tolerance are float32 too."""

    def sample(x, answer):
        def denoiser(x, t):
            prediction = mixture_denoiser(FLOW)(x.astype(jnp.float32), t)
            return jax.tree.map(lambda a: a.astype(answer), prediction)

        return adaptive(denoiser, FLOW, x, jnp.array([1.0, 0.5]), rtol=1e-2, atol=1e-2)

    expected, *found = quick_jit(
        lambda x: (sample(x, "float32"), sample(x, BFLOAT16), sample(x.astype(BFLOAT16), BFLOAT16))
    )(starts)
    assert [a.dtype for a in found] == [jnp.float32, BFLOAT16]
    for a in found:
        np.testing.assert_allclose(a.astype(jnp.float32), expected, atol=0.05)
