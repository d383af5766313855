"""Grids against published numbers, NumPy and closed forms, and errors at the border.

parity/ compares them with diffusers.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingCosine,
    VariancePreservingTable,
    adaptive,
    align_your_steps_grid,
    beta_grid,
    beta_sigma_grid,
    ddim,
    exponential_grid,
    floored_grid,
    grids,
    invert,
    karras_grid,
    leading_grid,
    linspace_grid,
    resolution_shift,
    scaled_linear_betas,
    shift_time,
    stable_diffusion_3_grid,
    to_domain,
    trailing_grid,
    uniform_grid,
)
from genjax.diffusion.samplers.tables import check_grid

FLOW = RectifiedFlow()
STABLE_DIFFUSION = VariancePreservingTable(betas=scaled_linear_betas())
IN_TIME = [uniform_grid, floored_grid, stable_diffusion_3_grid, beta_grid]
IN_LEVELS = [karras_grid, exponential_grid, beta_sigma_grid]
OF_TABLES = [trailing_grid, leading_grid, linspace_grid]
PUBLISHED = functools.partial(align_your_steps_grid, levels=grids.STABLE_DIFFUSION_LEVELS)
named = lambda grid: getattr(grid, "__name__", "align_your_steps_grid")


def levels(process, times):
    """Return sigma/alpha in the domain, without the clean end."""
    times = times[times > process.clean_end]
    return np.asarray(process.sigma(times) / process.alpha(times))


def test_edm_table():
    """The grid is that of Karras et al. 2022, equation 5, to all printed digits."""
    printed = """80 57.586 40.786 28.375 19.352 12.910 8.4009 5.3152 3.2568 1.9233 1.0882
                 .58535 .29644 .13952 .059947 .022935 .0075280 .002 0""".split()
    grid = karras_grid(EDM(), 18)
    assert len(grid) == 19
    for value, digits in zip(grid, printed, strict=True):
        half_of_the_last_digit = 0.5 * 10.0 ** -len(digits.partition(".")[2])
        # The last digit is rounded, and float32 has 24 bits.
        np.testing.assert_allclose(
            value, float(digits), atol=half_of_the_last_digit * 1.001, rtol=1e-7
        )
    # 0.002 in float32 is above 0.002, and is the same end of the domain.
    given = karras_grid(EDM(), 18, sigma_min=0.002, sigma_max=80.0)
    np.testing.assert_allclose(given, grid, rtol=1e-6)


def test_flux_shifts_four_steps_at_4096_tokens():
    np.testing.assert_allclose(
        np.log([resolution_shift(n) for n in (256, 1024, 4096)]), [0.5, 0.63, 1.15]
    )
    grid = uniform_grid(FLOW, 4, shift=resolution_shift(4096))
    np.testing.assert_allclose(grid, [1, 0.9045, 0.7595, 0.5128, 0], atol=5e-5)  # as printed
    np.testing.assert_array_equal(uniform_grid(FLOW, 4), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("num_steps", "shift", "rows", "printed"),
    [
        # FLUX.3, distilled to 16 steps
        (
            16,
            6.93,
            slice(None),
            [1, 0.990472, 0.979802, 0.967773, 0.954107, 0.938446, 0.920319, 0.899092, 0.873897]
            + [0.843506, 0.806126, 0.759036, 0.697885, 0.615271, 0.497487, 0.316005, 0],
        ),
        # HunyuanVideo, 50 steps
        (50, 7.0, [0, 1, 2, -3, -2, -1], [1, 0.997093, 0.994083, 0.225806, 0.125, 0]),
        # Self-Forcing: a shift of 5, of 1000 noise levels
        (4, 5.0, slice(None), [1, 0.9375, 0.83333, 0.625, 0]),
    ],
)
def test_shifted_grids_of_published_models(num_steps, shift, rows, printed):
    grid = uniform_grid(FLOW, num_steps, shift=shift)
    np.testing.assert_allclose(
        np.asarray(grid)[rows],
        printed,
        atol=5e-6 if num_steps == 4 else 6e-7,  # as printed
    )


@pytest.mark.parametrize(
    "grid, ends",
    [
        (stable_diffusion_3_grid, [0.1998, 0.1109, 0.0089, 0]),
        (functools.partial(uniform_grid, shift=3.0), [0.1875, 0.1, 0]),
        (functools.partial(floored_grid, shift=3.0), [0.1957, 0.1059, 0.0030, 0]),
    ],
    ids=["stable_diffusion_3", "uniform", "floored"],
)
def test_endings_of_28_steps_at_shift_three(grid, ends):
    times = grid(FLOW, 28)
    assert len(times) == 29 and times[0] == 1
    np.testing.assert_allclose(times[-len(ends) :], ends, atol=5e-5)  # as printed


def test_uniform_grids_fill_the_domain_from_the_noise_end():
    process = VarianceExploding(domain=(0.2, 0.7))
    np.testing.assert_allclose(
        to_domain(process, jnp.array([0.0, 0.5, 1.0])), [0.2, 0.45, 0.7], rtol=1e-6
    )
    grid = uniform_grid(process, 5)
    np.testing.assert_allclose(grid, [0.7, 0.6, 0.5, 0.4, 0.3, 0.2], rtol=1e-6)
    grid = uniform_grid(process, 5, shift=2.0)
    np.testing.assert_allclose(grid, 0.2 + 0.5 * shift_time(jnp.linspace(1, 0, 6), 2.0), rtol=1e-6)
    np.testing.assert_array_equal(uniform_grid(FLOW, 1), [1, 0])
    for grid in (uniform_grid, functools.partial(karras_grid, rho=1.0)):  # equal steps in sigma
        np.testing.assert_allclose(grid(EDM(), 3), [80, 40.001, 0.002, 0], rtol=1e-6)


# The level of step i of `last`, from `low` to `high`, by NumPy and SciPy.
def karras_level(i, last, low, high):
    return (high ** (1 / 7) + i / last * (low ** (1 / 7) - high ** (1 / 7))) ** 7


def exponential_level(i, last, low, high):
    return np.exp(np.log(high) + i / last * (np.log(low) - np.log(high)))


def beta_sigma_level(i, last, low, high):
    return low + scipy.stats.beta(0.6, 0.6).ppf(1 - i / last) * (high - low)


@pytest.mark.parametrize(
    "grid, level",
    list(zip(IN_LEVELS, [karras_level, exponential_level, beta_sigma_level], strict=True)),
    ids=named,
)
def test_levels_against_numpy(grid, level, float64):
    """The domain holds its clean end or not, and none, one or both levels are given."""
    n = 7
    for process, options, low, high, last in (
        (EDM(), {}, 0.002, 80.0, n - 1),
        (EDM(), dict(sigma_min=0.1, sigma_max=10.0), 0.1, 10.0, n - 1),
        (VarianceExploding(), {}, 0.01, 50.0, n),
        (VarianceExploding(), dict(sigma_min=0.1), 0.1, 50.0, n - 1),
        (VarianceExploding(), dict(sigma_min=0.01, sigma_max=5.0), 0.01, 5.0, n),
    ):
        times = grid(process, n, **options)
        expected = level(np.arange(last + 1), last, low, high)
        found = np.asarray(process.sigma(times))[: last + 1]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert len(times) == n + 1 and times[-1] == process.clean_end
        assert "sigma_max" in options or times[0] == process.domain[1]


@pytest.mark.parametrize(
    "process", [FLOW, VariancePreservingCosine()], ids=lambda p: type(p).__name__
)
def test_infinite_ends_stay_in_the_grid(process, float64):
    """The levels are 0.002 to 80, with the noise end in place of 80, and then the clean end."""
    for grid, level in ((karras_grid, karras_level), (exponential_grid, exponential_level)):
        times = grid(process, 6, sigma_min=0.002, sigma_max=80.0)
        assert len(times) == 7 and times[0] == 1 and times[-1] == 0
        expected = level(np.arange(6), 5, 0.002, 80.0)[1:]
        np.testing.assert_allclose(levels(process, times)[1:], expected, rtol=1e-11)
        np.testing.assert_array_equal(grid(process, 1, sigma_min=0.002, sigma_max=80.0), [1, 0])


def test_exponential_grid_is_uniform_in_log_snr(float64):
    for process, inner in ((VarianceExploding(), slice(None)), (EDM(), slice(0, -1))):
        log_snr = np.asarray(process.log_snr(exponential_grid(process, 9)[inner]))
        np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr).mean(), rtol=1e-11)
    # Variance exploding is already geometric in t.
    np.testing.assert_allclose(
        exponential_grid(VarianceExploding(), 9), uniform_grid(VarianceExploding(), 9), atol=1e-14
    )


def test_beta_grid_in_t_and_in_sigma(float64):
    for a, b in ((0.6, 0.6), (1.0, 2.0)):
        expected = scipy.stats.beta(a, b).ppf(np.linspace(1, 0, 11))
        np.testing.assert_allclose(
            beta_grid(FLOW, 10, alpha=a, beta=b), expected, rtol=1e-12, atol=1e-15
        )
        in_sigma = beta_sigma_grid(EDM(), 11, alpha=a, beta=b)[:-1]
        np.testing.assert_allclose(in_sigma, 0.002 + 79.998 * expected, rtol=1e-12)
    np.testing.assert_allclose(
        beta_grid(FLOW, 10, alpha=1.0, beta=1.0), uniform_grid(FLOW, 10), atol=1e-15
    )
    np.testing.assert_array_equal(beta_grid(FLOW, 10), beta_grid(FLOW, 10, alpha=0.6, beta=0.6))


def test_spacings_of_ten_steps_of_a_table_of_1000():
    """The spacings are those of Lin et al. 2024, table 2."""
    rows = {
        leading_grid: [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
        linspace_grid: [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
        trailing_grid: [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    }
    for grid, steps in rows.items():
        times = np.asarray(grid(STABLE_DIFFUSION, 10), np.float64)
        np.testing.assert_allclose(1000 * times, [*steps, 0], rtol=1e-6)
    np.testing.assert_allclose(
        1000 * leading_grid(STABLE_DIFFUSION, 10, offset=1)[-2], 2, rtol=1e-6
    )
    for grid, steps in ((leading_grid, [3, 1]), (linspace_grid, [4, 1]), (trailing_grid, [4, 2])):
        np.testing.assert_array_equal(4 * grid(FLOW, 2, table_size=4), [*steps, 0])


@pytest.mark.parametrize("grid", OF_TABLES, ids=named)
def test_spacings_stay_in_the_table(grid):
    for n in (2, 3, 7, 28, 333, 1000):
        steps = 1000 * np.asarray(grid(STABLE_DIFFUSION, n), np.float64)
        assert len(steps) == n + 1 and steps[-1] == 0 and np.all(np.diff(steps) < 0)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        assert steps[-2] > 0.5 and steps[0] < 1000.5


@pytest.mark.parametrize("grid", [leading_grid, linspace_grid], ids=named)
def test_one_step_from_the_least_noise_is_refused(grid):
    """diffusers' DDIM evaluates at timestep 0 then, and returns noise."""
    with pytest.raises(ValueError, match=f"num_steps=1 of {grid.__name__} starts from .* noise"):
        grid(STABLE_DIFFUSION, 1)
    np.testing.assert_allclose(trailing_grid(STABLE_DIFFUSION, 1), [1, 0])


@pytest.mark.parametrize("grid", [karras_grid, exponential_grid], ids=named)
def test_one_step_starts_from_sigma_max(grid):
    np.testing.assert_allclose(grid(EDM(), 1, sigma_max=10.0), [10, 0], rtol=1e-6)


def test_align_your_steps():
    """The grid has the published levels, and Stable Diffusion's published integer timesteps."""
    grid = PUBLISHED(STABLE_DIFFUSION, 10)
    assert grid[0] == 1 and grid[-1] == 0
    # The end is that of the table, whose levels have five digits in float32.
    np.testing.assert_allclose(
        levels(STABLE_DIFFUSION, grid), grids.STABLE_DIFFUSION_LEVELS[:-1], rtol=1e-4
    )
    published = {
        grids.STABLE_DIFFUSION_LEVELS: [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        grids.STABLE_DIFFUSION_XL_LEVELS: [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    for numbers, timesteps in published.items():
        times = align_your_steps_grid(STABLE_DIFFUSION, 10, numbers)
        # A level has three digits.
        np.testing.assert_allclose(1000 * times[:-1] - 1, timesteps, atol=1)


def test_align_your_steps_in_other_numbers(float64):
    """Twenty steps contain every level, and geometric means between them."""
    process, numbers = EDM(domain=(0.002, 700.0)), np.asarray(grids.STABLE_VIDEO_DIFFUSION_LEVELS)
    grid = align_your_steps_grid(process, 20, grids.STABLE_VIDEO_DIFFUSION_LEVELS)
    np.testing.assert_allclose(grid[:-1:2], numbers[:-1], rtol=1e-12)
    np.testing.assert_allclose(grid[1::2], np.sqrt(numbers[:-1] * numbers[1:]), rtol=1e-12)
    assert len(grid) == 21 and grid[-1] == 0


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_grids_of_all_processes_fall_from_end_to_end(every_process, n):
    process = every_process
    least, most = grids._level(process, process.domain[0]), grids._level(process, process.domain[1])
    given = dict(sigma_min=0.02 if least == 0 else None, sigma_max=40.0 if most == np.inf else None)
    for grid in [*IN_TIME, *(functools.partial(grid, **given) for grid in IN_LEVELS), PUBLISHED]:
        times = grid(process, n)
        assert len(times) == n + 1 and times.dtype == jnp.float32
        assert np.all(np.diff(times) < 0), (grid, times)
        np.testing.assert_allclose(times[0], process.domain[1], rtol=1e-6)
        assert times[-1] == process.clean_end
        check_grid(process, times)


def test_grids_are_constants_under_jit_and_a_shift_may_be_traced():
    for grid in (karras_grid, PUBLISHED):
        np.testing.assert_array_equal(jax.jit(lambda grid=grid: grid(EDM(), 5))(), grid(EDM(), 5))
    for grid in (uniform_grid, floored_grid, stable_diffusion_3_grid):
        traced = jax.jit(lambda shift, grid=grid: grid(FLOW, 5, shift))(2.5)
        np.testing.assert_allclose(traced, grid(FLOW, 5, 2.5), rtol=1e-6)


@pytest.mark.parametrize("grid", [*IN_TIME, *IN_LEVELS, *OF_TABLES, PUBLISHED], ids=named)
def test_grids_refuse_steps_that_are_no_positive_integer(grid):
    options = dict(sigma_min=0.1, sigma_max=10.0) if grid in IN_LEVELS else {}
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"at least 1; got num_steps={steps}"):
            grid(FLOW, steps, **options)
    # In tests, the run-time check of annotations would refuse 2.5 first. It also does so where one
    # grid calls another.
    if grid not in (PUBLISHED, stable_diffusion_3_grid):
        with pytest.raises(ValueError, match="whole number, at least 1.*num_steps=2.5"):
            inspect.unwrap(grid)(FLOW, 2.5, **options)


@pytest.mark.parametrize("grid", IN_LEVELS, ids=named)
def test_levels_are_given_where_the_process_has_none_and_lie_in_its_domain(grid):
    for given in (
        {},
        dict(sigma_min=0.002),
        dict(sigma_max=80.0),
        dict(sigma_min=0.0, sigma_max=80.0),
    ):
        with pytest.raises(
            ValueError, match="RectifiedFlow has noise levels .* give sigma_min above 0"
        ):
            grid(FLOW, 5, **given)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.001, 1.0), (0.1, 81.0), (np.nan, 1.0)):
        with pytest.raises(
            ValueError,
            match="sigma_min is below sigma_max, and for EDM both lie between 0.002 and 80",
        ):
            grid(EDM(), 5, sigma_min=low, sigma_max=high)


def test_other_borders():
    for grid in OF_TABLES:
        with pytest.raises(
            ValueError, match="at most the size of the table, 1000; got num_steps=1001"
        ):
            grid(STABLE_DIFFUSION, 1001)
        with pytest.raises(ValueError, match="EDM, whose domain is 0.002 to 80"):
            grid(EDM(), 5)
    with pytest.raises(ValueError, match="got steps 2 to 1001"):
        leading_grid(STABLE_DIFFUSION, 1000, offset=1)
    with pytest.raises(ValueError, match="got steps 1 to 2000"):
        linspace_grid(STABLE_DIFFUSION, 5, table_size=2000)
    for floor in (0.0, 1.0):
        with pytest.raises(ValueError, match="floor is a fraction"):
            floored_grid(FLOW, 5, floor=floor)
    for bad in ((1.0,), (1.0, 1.0), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="levels are two or more falling"):
            align_your_steps_grid(FLOW, 5, bad)
    with pytest.raises(ValueError, match="are not all among EDM's noise levels, 0.002 to 80"):
        align_your_steps_grid(EDM(), 5, (500.0, 100.0, 1.0, 0.01))


@pytest.mark.parametrize(
    "times, message",
    [
        (jnp.ones((3, 2)), r"shape \[steps \+ 1\].*got shape \(3, 2\)"),
        (jnp.asarray([1.0]), r"got shape \(1,\)"),
        (jnp.asarray([1.0, 0.5, -0.1]), "runs from -0.1 to 1.*RectifiedFlow has times from 0 to 1"),
        (jnp.asarray([1.1, 0.5, 0.0]), "runs from 0 to 1.1"),
        (jnp.asarray([1.0, np.nan, 0.0]), "runs from nan to nan"),
    ],
    ids=["shape", "one time", "below", "above", "nan"],
)
def test_samplers_refuse_grids_of_wrong_shape_or_outside_the_domain(times, message):
    with pytest.raises(ValueError, match=message):
        # Annotations, checked only in tests, would refuse the shape first.
        inspect.unwrap(check_grid)(FLOW, times)
    if times.ndim == 1:
        with pytest.raises(ValueError, match=message):
            ddim(lambda x, t: None, FLOW, jnp.zeros((1, 2)), times)


@pytest.mark.parametrize("times", [[1.0, 0.5, 0.0], np.array([1, 0]), 1.0], ids=str)
def test_samplers_refuse_times_that_are_no_array_of_floats(times, unchecked_annotations):
    arguments = (lambda x, t: None, FLOW, jnp.zeros((1, 2)), times)
    calls = [
        lambda: ddim(*arguments),
        lambda: ddim.table(FLOW, times),
        lambda: adaptive(*arguments),
        lambda: invert(ddim, *arguments),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"times are an array of floats .* jnp.asarray"):
            call()


def test_samplers_take_a_domain_and_its_clean_end():
    check_grid(EDM(), jnp.asarray([80.0, 0.0]))
    check_grid(FLOW, jnp.asarray([0.0, 1.0]))  # inversion
    check_grid(FLOW, jnp.asarray([1 + 5e-7, 0.0]))  # rounding
    jax.jit(lambda times: check_grid(FLOW, times))(
        jnp.asarray([2.0, 0.0])
    )  # traced: no values to check
