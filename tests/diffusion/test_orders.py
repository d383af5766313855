"""Errors and orders of whole samplers on a mixture of Gaussians, against its exact monotone map."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import quantiles_at, quick_jit, states_of, tabulate, tabulate_together

from genjax import diffusion
from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    VariancePreservingCosine,
    VariancePreservingLinear,
    adams_bashforth,
    ddim,
    deis,
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
    dpm_solver_pp_3m,
    dpm_solver_pp_3s,
    edm_heun,
    euler,
    graded_start,
    heun,
    lms,
    midpoint,
    rk4,
    sa_solver,
    uniform_grid,
    unipc,
)

FLOW = RectifiedFlow()
INTERVALS = {
    FLOW: (0.9, 0.1),
    VariancePreservingCosine(): (0.9, 0.1),
    VariancePreservingLinear(): (0.9, 0.1),
    EDM(): (9.0, 0.1),
}


def grid(process, num_steps):
    """Return a grid on an interval of finite log-SNR, even in t or for EDM in its cube root."""
    power = 1 / 3 if isinstance(process, EDM) else 1
    start, end = INTERVALS[process]
    return np.linspace(start**power, end**power, num_steps + 1) ** (1 / power)


compiled_graded_start = quick_jit(graded_start, static_argnames="order")


def error(sampler, process, times, **options):
    return error_of(process, times, tabulate(sampler, process, jnp.asarray(times), **options))


def error_of(process, times, table):
    start, end = float(times[0]), float(times[-1])
    samples = states_of(process, jnp.asarray(quantiles_at(process, start)), table)[-1]
    return np.abs(samples - quantiles_at(process, end)).max()


@pytest.mark.parametrize(
    "sampler, coarse, fine",
    [
        (euler, 0.31651, 0.022581),
        (heun, 0.015001, 5.397e-5),
        (midpoint, 0.008188, 3.376e-5),
        (adams_bashforth, 0.03085, 1.1425e-4),
        (rk4, 3.497e-5, 4.857e-10),
    ],
)
def test_errors_of_the_whole_flow(float64, sampler, coarse, fine):
    """The errors are known independently, for 16 and 256 uniform steps from t = 1 to exactly 0."""
    for num_steps, expected in ((16, coarse), (256, fine)):
        found = error(sampler, FLOW, np.linspace(1.0, 0.0, num_steps + 1))
        np.testing.assert_allclose(found, expected, rtol=2e-4)  # half a unit of the last digit


ORDERS = [
    # Sampler, options, order of the method, order of the whole from an even start.
    (euler, {}, 1, 1),
    (ddim, {}, 1, 1),
    (midpoint, {}, 2, 2),
    (heun, {}, 2, 2),
    (edm_heun, {}, 2, 2),
    (rk4, {}, 4, 4),
    (adams_bashforth, {"order": 2}, 2, 2),
    (adams_bashforth, {"order": 3}, 3, 2),
    (adams_bashforth, {"order": 4}, 4, 2),
    (lms, {"order": 2}, 2, 2),
    (lms, {"order": 3}, 3, 2),
    (lms, {"order": 4}, 4, 2),
    (deis, {"order": 2}, 2, 2),
    (deis, {"order": 3}, 3, 2),
    (dpm_solver_pp_2m, {}, 2, 2),
    (dpm_solver_pp_2m, {"form": "heun"}, 2, 2),
    (dpm_solver_pp_3m, {}, 3, 2),
    (dpm_solver_pp_3m, {"curvature": 0.5}, 2, 2),
    (unipc, {"order": 1}, 2, 2),
    (unipc, {"order": 2}, 3, 3),
    (unipc, {"order": 2, "variant": "bh1"}, 3, 3),
    (unipc, {"order": 3}, 4, 3),
    (unipc, {"order": 2, "corrector": False}, 2, 2),
    (unipc, {"order": 3, "corrector": False}, 3, 2),
    (unipc, {"order": 2, "lower_order_final": True}, 2, 2),
    (dpm_solver_1, {}, 1, 1),
    (dpm_solver_2, {}, 2, 2),
    (dpm_solver_2, {"on_grid": True}, 2, 2),
    (dpm_solver_3, {}, 3, 3),
    (dpm_solver_pp_2s, {}, 2, 2),
    (dpm_solver_pp_3s, {}, 3, 3),
    (sa_solver, {"tau": 0.0, "corrector_order": 3}, 3, 3),
]
as_parameters = lambda rows: [
    pytest.param(*row, id="-".join([row[0].__name__, *(str(value) for value in row[1].values())]))
    for row in rows
]


def slope(sampler, process, num_steps, make_grid, **options):
    """Return −d log(error)/d log(N), by doubling the steps."""
    grids = [(process, make_grid(n)) for n in (num_steps, 2 * num_steps)]
    tables = tabulate_together(sampler, grids, **options)
    coarse, fine = (error_of(*pair, table) for pair, table in zip(grids, tables, strict=True))
    return np.log2(coarse / fine)


# Tables see a process only through its alpha and sigma, of which rectified flow, a preserving and
# an exploding process have the three kinds. The linear schedule inverts its log-SNR in another way,
# which only methods with times inside their steps need.
INSIDE = (dpm_solver_2, dpm_solver_3, dpm_solver_pp_2s, dpm_solver_pp_3s)


@pytest.mark.parametrize("sampler, options, order, whole", as_parameters(ORDERS))
def test_order(float64, sampler, options, order, whole):
    """Multistep methods of order above 2 reach their order from a graded start."""
    two, many = (
        (midpoint, heun, edm_heun, dpm_solver_2, dpm_solver_pp_2s),
        (rk4, dpm_solver_3, dpm_solver_pp_3s),
    )
    # The step counts give equal numbers of evaluations.
    steps = 128 if sampler in two else 64 if sampler in many else 256
    grids = [
        (process, grid(process, n))
        for process in INTERVALS
        if sampler in INSIDE or not isinstance(process, VariancePreservingLinear)
        for n in (steps, 2 * steps)
    ]
    if order > whole:
        grids = [(p, np.asarray(compiled_graded_start(times, order))) for p, times in grids]
    tables = tabulate_together(sampler, grids, **options)
    errors = [error_of(*pair, table) for pair, table in zip(grids, tables, strict=True)]
    found = np.log2(np.divide(errors[::2], errors[1::2]))
    np.testing.assert_allclose(found, order, atol=0.15, err_msg=str([p for p, _ in grids[::2]]))


@pytest.mark.parametrize(
    "sampler, options, order, whole", as_parameters([row for row in ORDERS if row[2] > row[3]])
)
def test_order_of_the_whole_from_an_even_start(float64, sampler, options, order, whole):
    """Euler's first step, with a local error of order 2, gives order 2, and 3 with a corrector."""
    process = VariancePreservingCosine()
    found = slope(sampler, process, 256, lambda n: grid(process, n), **options)
    np.testing.assert_allclose(found, whole, atol=0.15)


def test_order_of_dpm_solver_pp_2m(float64):
    """The order is 2 for uniform log-SNRs, and about 1.8 for uniform times down to 0.

    The log-SNR is infinite at 0.
    """
    even_in_log_snr = lambda n: FLOW.time_at(
        jnp.linspace(*FLOW.log_snr(jnp.array([0.9, 0.1])), n + 1)
    )
    np.testing.assert_allclose(slope(dpm_solver_pp_2m, FLOW, 64, even_in_log_snr), 2, atol=0.05)
    coarse, fine = (error(dpm_solver_pp_2m, FLOW, uniform_grid(FLOW, n)) for n in (16, 256))
    np.testing.assert_allclose(np.log2(coarse / fine) / 4, 1.8, atol=0.05)


def test_the_table_of_the_guide_to_samplers(float64):
    """The table of errors with 16 evaluations is right to all digits.

    The least error of a row is bold.
    """
    lines = (Path(__file__).parents[2] / "docs/guides/own_algorithm.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| process | grid |"))
    _, _, *methods = [name.strip(" `") for name in lines[first].strip("|").split("|")]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in lines[first + 2 : first + 6]
    ]
    grids = []
    for process, grid, *_ in rows:
        process = getattr(diffusion, process)()
        grids.append((process, np.asarray(getattr(diffusion, grid)(process, 16), float)))
    tables = [tabulate_together(getattr(diffusion, name), grids) for name in methods]
    for pair, (_, _, *cells), of_row in zip(grids, rows, zip(*tables, strict=True), strict=True):
        found = [error_of(*pair, table) for table in of_row]
        for value, cell in zip(found, cells, strict=True):
            digits = len(cell.strip("*").lstrip("0.").replace(".", ""))
            np.testing.assert_allclose(
                value, float(cell.strip("*")), rtol=0.6 * 10.0 ** (1 - digits)
            )
        assert [cell.startswith("**") for cell in cells] == [value == min(found) for value in found]
