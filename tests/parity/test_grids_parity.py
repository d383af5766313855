"""Grids compared with the schedules of diffusers."""

import functools

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers import AysSchedules

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VariancePreservingTable,
    beta_sigma_grid,
    exponential_grid,
    floored_grid,
    grids,
    karras_grid,
    leading_grid,
    linspace_grid,
    resolution_shift,
    scaled_linear_betas,
    stable_diffusion_3_grid,
    trailing_grid,
    uniform_grid,
)

# diffusers makes NumPy arrays of tensors; PyTorch here is older than NumPy's copy keyword.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)

FLOW = RectifiedFlow()
TABLE = VariancePreservingTable(betas=scaled_linear_betas())
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SPACINGS = dict(trailing=trailing_grid, leading=leading_grid, linspace=linspace_grid)


def timesteps(times):
    """Return the i of t = (i + 1)/1000, without the clean end."""
    return 1000 * np.asarray(times, np.float64)[:-1] - 1


@pytest.mark.parametrize("num_steps", [2, 5, 30])
@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize(
    "grid, flag",
    [
        (karras_grid, "use_karras_sigmas"),
        (exponential_grid, "use_exponential_sigmas"),
        (beta_sigma_grid, "use_beta_sigmas"),
    ],
    ids=["karras", "exponential", "beta"],
)
def test_levels_of_stable_diffusion(grid, flag, scheduler, num_steps):
    reference = scheduler(**BETAS, **{flag: True})
    reference.set_timesteps(num_steps)
    times = grid(TABLE, num_steps)
    found = np.asarray(TABLE.sigma(times) / TABLE.alpha(times))
    # Float32: diffusers multiplies 1000 factors, we add 1000 logarithms.
    np.testing.assert_allclose(found, reference.sigmas, rtol=1e-4, atol=1e-7)
    # The other scheduler rounds. Between two steps Euler's timesteps are linear in log(sigma).
    if scheduler is EulerDiscreteScheduler:
        np.testing.assert_allclose(timesteps(times), reference.timesteps, atol=0.1)


@pytest.mark.parametrize("grid, name", [(karras_grid, "karras"), (exponential_grid, "exponential")])
def test_levels_of_edm(grid, name):
    reference = EDMEulerScheduler(sigma_schedule=name)
    reference.set_timesteps(18)
    np.testing.assert_allclose(grid(EDM(), 18), reference.sigmas, rtol=2e-6)  # float32


@pytest.mark.parametrize("num_steps", [2, 3, 7, 10, 25, 28, 30, 50, 100, 333, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_of_ddim(spacing, num_steps):
    reference = DDIMScheduler(timestep_spacing=spacing)
    reference.set_timesteps(num_steps)
    found = timesteps(SPACINGS[spacing](TABLE, num_steps))
    # diffusers has integers, we have float32 times 1000.
    np.testing.assert_allclose(found, reference.timesteps, atol=1e-3)


def test_leading_with_the_offset_of_stable_diffusion():
    reference = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    reference.set_timesteps(50)
    np.testing.assert_allclose(
        timesteps(leading_grid(TABLE, 50, offset=1)), reference.timesteps, atol=1e-3
    )


def test_where_trailing_spacing_of_ddim_is_not_the_papers():
    """diffusers adds up the float N/n: some halves round wrongly, and timestep −1 may appear."""
    reference = DDIMScheduler(timestep_spacing="trailing")
    reference.set_timesteps(48)
    found = timesteps(trailing_grid(TABLE, 48))
    astray = np.abs(found - np.asarray(reference.timesteps)) > 0.5
    # 937.5 − 1 is rounded to even, and so on.
    np.testing.assert_allclose(found[astray], [937, 687, 437, 187], atol=1e-3)
    reference.set_timesteps(61)
    assert len(reference.timesteps) == 62 and reference.timesteps[-1] == -1
    np.testing.assert_allclose(
        timesteps(trailing_grid(TABLE, 61)), reference.timesteps[:-1], atol=1e-3
    )


def test_spacings_of_euler_and_of_dpm_solver():
    """Euler's linspace lies between tabulated steps; DPM-Solver's drops one extra last step."""
    n = 12
    reference = EulerDiscreteScheduler(**BETAS)
    reference.set_timesteps(n)
    np.testing.assert_allclose(timesteps(uniform_grid(TABLE, n)), reference.timesteps, atol=1e-3)
    for spacing in ("linspace", "leading"):
        reference = DPMSolverMultistepScheduler(**BETAS, timestep_spacing=spacing)
        reference.set_timesteps(n)
        found = timesteps(SPACINGS[spacing](TABLE, n + 1))[:-1]
        np.testing.assert_allclose(found, reference.timesteps, atol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 4, 28])
def test_flow_matching(num_steps):
    """Static and dynamic shifts agree, also with FLUX's sigmas, linspace(1, 1/n, n)."""
    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(num_steps)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-7)  # float32
    close(stable_diffusion_3_grid(FLOW, num_steps), reference.sigmas)
    mu, shift = np.log(resolution_shift(1024)), resolution_shift(1024)
    reference = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    reference.set_timesteps(num_steps, mu=mu)
    close(floored_grid(FLOW, num_steps, shift), reference.sigmas)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps), mu=mu)
    close(uniform_grid(FLOW, num_steps, shift), reference.sigmas)


def test_resolution_shift_of_flux():
    for tokens in (256, 1024, 2500, 4096, 6400):
        np.testing.assert_allclose(
            np.log(resolution_shift(tokens)), calculate_shift(tokens), rtol=1e-12
        )


def test_align_your_steps_levels():
    for name, levels in (
        ("StableDiffusionSigmas", grids.STABLE_DIFFUSION_LEVELS),
        ("StableDiffusionXLSigmas", grids.STABLE_DIFFUSION_XL_LEVELS),
        ("StableDiffusionVideoSigmas", grids.STABLE_VIDEO_DIFFUSION_LEVELS),
    ):
        assert tuple(AysSchedules[name][:-1]) == levels[:-1]
