import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import RectifiedFlow, VarianceExploding, shift_time, to_domain, uniform_grid


def test_flux_shifts_four_steps_at_4096_tokens():
    grid = uniform_grid(RectifiedFlow(), 4, shift=float(np.exp(1.15)))
    np.testing.assert_allclose(grid, [1, 0.9045, 0.7595, 0.5128, 0], atol=5e-5)  # as printed
    np.testing.assert_array_equal(uniform_grid(RectifiedFlow(), 4), [1, 0.75, 0.5, 0.25, 0])


def test_shift_three_of_28_steps():
    grid = uniform_grid(RectifiedFlow(), 28, shift=3.0)
    np.testing.assert_allclose(grid[:-1], shift_time(jnp.linspace(1, 1 / 28, 28), 3.0), rtol=1e-5)
    np.testing.assert_allclose(grid[-3:], [0.1875, 0.1, 0], atol=5e-5)
    ends = shift_time(jnp.linspace(1, 1 / 1000, 28), 3.0)[-3:]
    np.testing.assert_allclose(ends, [0.1957, 0.1059, 0.0030], atol=5e-5)


def test_grids_fill_the_domain_from_the_noise_end():
    process = VarianceExploding(domain=(0.2, 0.7))
    np.testing.assert_allclose(to_domain(process, jnp.array([0.0, 0.5, 1.0])), [0.2, 0.45, 0.7], rtol=1e-6)
    grid = uniform_grid(process, 5)
    np.testing.assert_allclose(grid, [0.7, 0.6, 0.5, 0.4, 0.3, 0.2], rtol=1e-6)
    grid = uniform_grid(process, 5, shift=2.0)
    np.testing.assert_allclose(grid, 0.2 + 0.5 * shift_time(jnp.linspace(1, 0, 6), 2.0), rtol=1e-6)
    np.testing.assert_array_equal(uniform_grid(RectifiedFlow(), 1), [1, 0])


@pytest.mark.parametrize("num_steps", [0, -3])
def test_grids_refuse_no_steps(num_steps):
    with pytest.raises(ValueError, match=f"at least one step; got num_steps={num_steps}"):
        uniform_grid(RectifiedFlow(), num_steps)
