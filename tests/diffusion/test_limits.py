"""Derivatives of samples by their grid's times, which a learned grid needs, against differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import DISTINCT, gradient_by_times, quantiles_of, states_of, tabulate

from genjax.diffusion import EDM, RectifiedFlow, process_diffusion, sample_keys, samplers
from genjax.diffusion.samplers.limits import clip, quotient, root

FLOW = RectifiedFlow()
CASES = {name: (sampler, {}) for name, sampler in DISTINCT.items()} | {
    "ddim, eta .5": (samplers.ddim, dict(eta=0.5)),
    "dpm_solver_pp_2m, eta 1": (samplers.dpm_solver_pp_2m, dict(eta=1.0)),
    "dpm_solver_pp_2s, on_grid": (samplers.dpm_solver_pp_2s, dict(on_grid=True)),
    "edm_stochastic, everywhere": (samplers.edm_stochastic, dict(s_min=0.0, s_max=np.inf)),
    "euler_maruyama, own diffusion": (samplers.euler_maruyama, dict(diffusion=process_diffusion)),
    "restart": (samplers.restart, dict(first=1, last=3)),
    "unipc, order 3": (samplers.unipc, dict(order=3)),
}
GRIDS = {
    "both ends infinite": (FLOW, [1.0, 0.72, 0.41, 0.17, 0.0]),
    "inside": (FLOW, [0.93, 0.72, 0.41, 0.17, 0.04]),
    "clean end outside the domain": (EDM(), [80.0, 4.0, 0.7, 0.1, 0.0]),
}


ON_EDM = ("ddpm", "dpm2_ancestral", "dpm_solver_2", "edm_heun", "heun", "lms", "unipc")
PAIRS = [
    (grid, case)
    for grid, (process, _) in GRIDS.items()
    for case in (CASES if process == FLOW else ON_EDM)
]


@pytest.mark.parametrize("grid, case", PAIRS)
def test_gradient_by_the_times(grid, case, float64):
    (process, times), (sampler, options) = GRIDS[grid], CASES[case]
    noise, times = (
        process.sigma(jnp.asarray(times[0])) * quantiles_of(0.0, 1.0)[::8],
        np.array(times),
    )
    keys = sample_keys(jax.random.key(0), jnp.arange(len(noise)))

    def total(times):
        table = tabulate(sampler, process, jnp.asarray(times), **options)
        return np.sin(states_of(process, jnp.asarray(noise), table, keys)[-1]).sum()

    gradient = gradient_by_times(
        sampler, process, jnp.asarray(noise), jnp.asarray(times), keys, **options
    )
    assert np.isfinite(gradient).all()
    compared = range(len(times)) if grid == "inside" else range(1, len(times) - 1)
    for i in compared:
        step = 1e-5 * times[i] * np.eye(len(times))[i]
        difference = (total(times + step) - total(times - step)) / (2e-5 * times[i])
        # The difference errs by step² and by 1e-16/step.
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-6, atol=1e-8)
    assert np.abs(gradient[1:-1]).max() > 1e-3


def test_guarded_functions_and_their_derivatives(float64):
    """Values and derivatives are exact where they exist, else 0 or the one-sided derivative."""
    slopes = lambda f, *arguments: jax.grad(f, tuple(range(len(arguments))))(
        *map(jnp.asarray, arguments)
    )
    assert quotient(jnp.asarray(3.0), jnp.asarray(4.0)) == 0.75
    np.testing.assert_allclose(slopes(quotient, 3.0, 4.0), [1 / 4, -3 / 16])
    for a, b in [(1.0, 0.0), (0.0, 0.0), (np.inf, np.inf), (np.inf, 2.0), (2.0, np.inf)]:
        assert quotient(jnp.asarray(a), jnp.asarray(b)) == 0
        np.testing.assert_array_equal(slopes(quotient, a, b), [0, 0])
    assert (
        root(jnp.asarray(0.0)) == 0 and slopes(root, 0.0) == (0,) and slopes(root, 4.0) == (1 / 4,)
    )
    assert np.isnan(root(jnp.asarray(np.nan))) and slopes(root, np.nan) == (0,)
    within = functools.partial(clip, first=0.0, last=1.0)
    assert [float(within(jnp.asarray(t))) for t in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0, 0, 0.5, 1, 1]
    assert [float(slopes(within, t)[0]) for t in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0, 1, 1, 1, 0]
