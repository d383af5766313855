"""Tables in parts (cut, joined, and run one after another), trajectories, and the use of `jit`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import mixture_denoiser, quantiles_at, quantiles_of, quick_jit, states_of, tabulate

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    Table,
    cut,
    edm_heun,
    join,
    karras_grid,
    restart,
    run,
    sample_keys,
    samplers,
    scale_noise,
    uniform_grid,
)
from genjax.diffusion.samplers.tables import steps_of

FLOW, KEY = RectifiedFlow(), jax.random.key(0)
TIMES = [0.93, 0.72, 0.41, 0.17, 0.04]


@pytest.fixture
def starts(float64):
    return jnp.asarray(quantiles_of(0.0, 1.0))[::8]


def test_edm_heun_on_two_parts_of_a_grid_equals_the_whole(starts):
    times = jnp.array([1.0, *TIMES, 0.0])
    walk = lambda x, times, **options: states_of(
        FLOW, x, tabulate(edm_heun, FLOW, times, **options)
    )
    whole = walk(starts, times)
    half = walk(starts, times[:4], last_corrected=True)
    np.testing.assert_array_equal(np.concatenate([half, walk(half[-1], times[3:])[1:]]), whole)
    assert np.abs(walk(starts, times[:4])[-1] - half[-1]).max() > 1e-3


def test_edm_heun_with_a_corrected_last_step_has_order_two_from_data_to_noise(float64):
    """It goes from .1 to .9, against the exact map.

    An uncorrected last step alone would err by its length squared.
    """
    start, end = quantiles_at(FLOW, 0.1), quantiles_at(FLOW, 0.9)

    def error(num_steps):
        table = tabulate(edm_heun, FLOW, jnp.linspace(0.1, 0.9, num_steps + 1), last_corrected=True)
        return np.abs(states_of(FLOW, jnp.asarray(start), table)[-1] - end).max()

    np.testing.assert_allclose(np.log2(error(32) / error(64)), 2, atol=0.15)


@pytest.mark.parametrize(
    "sampler", [samplers.ddim, samplers.ddpm, samplers.edm_stochastic], ids=["ode", "ddpm", "churn"]
)
def test_scaled_noise_scales_the_deviation_of_a_gaussian_law(sampler, float64):
    """For the exact denoiser of N(m, s²) all is affine in the noise, and m is a fixed point."""
    m, s, count = 0.7, 0.3, 6
    times = jnp.array([*TIMES, 0.0])
    table = sampler.table(FLOW, times)
    noise, keys = jnp.asarray(quantiles_of(0.0, 1.0))[:count], sample_keys(KEY, jnp.arange(count))
    mean = FLOW.alpha(times[0]) * m

    def denoiser(x, t):
        alpha, sigma = FLOW.alpha(t), FLOW.sigma(t)
        gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
        clean = m + gain * (x - alpha * m)
        return Prediction(clean, (x - alpha * clean) / sigma, jnp.full_like(x, 0.3))

    at = quick_jit(
        lambda factor: run(
            denoiser, mean + factor * (noise - mean), scale_noise(table, factor), keys
        )
    )
    plain = at(1.0)
    assert np.std(plain) > 0.05
    for factor in (0.5, 0.0):
        np.testing.assert_allclose(at(factor) - m, factor * (plain - m), atol=1e-12)
    unscaled = quick_jit(lambda: run(denoiser, noise, table, keys))()
    np.testing.assert_allclose(plain, unscaled, rtol=1e-13)  # products fused in another way


PARTS = {
    "ddpm": samplers.ddpm,
    "edm_heun": edm_heun,
    "edm_stochastic": functools.partial(samplers.edm_stochastic.table, s_min=0.0, s_max=np.inf),
    "rk4": samplers.rk4,
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_table_run_one_after_the_other_give_the_whole(name, starts):
    """They draw the noise of the whole. Joined again, they are the whole."""
    times, keys = jnp.array(TIMES), sample_keys(jax.random.key(0), jnp.arange(len(starts)))
    table = getattr(PARTS[name], "table", PARTS[name])(FLOW, times)
    first, second = cut(table, 0, 3), cut(table, 3, 4)
    joined = join(first, second)
    np.testing.assert_array_equal(joined.step, steps_of(table))
    for column, expected in zip(joined[:-2], table[:-2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, column, expected)
    walk = lambda x, table: samplers.tables.run(mixture_denoiser(FLOW), x, table, keys)

    @quick_jit
    def both(x):
        return walk(walk(x, first), second), walk(x, table)

    np.testing.assert_allclose(*both(starts), rtol=1e-13)


def test_tables_of_different_columns_join(starts):
    """Rows with a memory, with several evaluations per step, and with noise equal separate runs."""
    times, keys = jnp.array(TIMES), sample_keys(jax.random.key(0), jnp.arange(len(starts)))
    draws = samplers.dpm_solver_pp_2m.table(FLOW, times[2:], eta=1.0)
    parts = [samplers.lms.table(FLOW, times[:3]), samplers.rk4.table(FLOW, times[2:4]), draws]
    walk = lambda x, table: samplers.tables.run(
        mixture_denoiser(FLOW), x, table, keys, trajectory=True
    )
    joined = join(*parts)
    assert joined.step.tolist() == [0, 1, 2, 2, 2, 2, 3, 4]
    draws = draws._replace(number=np.array([6, 7]))  # the rows' places in the joined table

    @quick_jit
    def both(x):
        lms = walk(x, parts[0])
        rk4 = walk(lms[-1], parts[1])
        return walk(x, joined), jnp.concatenate([lms, rk4[1:], walk(rk4[-1], draws)[1:]])

    np.testing.assert_allclose(*both(starts), rtol=1e-12)
    # Where only one of them knows a largest variance, the other draws its own as before.
    learned, fixed = samplers.ddpm.table(FLOW, times[:3]), samplers.ddim.table(FLOW, times[2:], 1.0)
    np.testing.assert_array_equal(join(learned, fixed).largest[2:], fixed.fresh)


def test_parts_that_do_not_stand_alone():
    table = samplers.deis.table(FLOW, jnp.array(TIMES))
    assert cut(table, 0, 2).noise.shape == (2, 3)
    with pytest.raises(
        ValueError, match="steps 2 to 3 use predictions made before step 2; make a table"
    ):
        cut(table, 2, 4)
    with pytest.raises(ValueError, match="the table has steps 0 to 3; got start=4, stop=5"):
        cut(table, 4, 5)
    two = Table(jnp.ones(2), clean=jnp.array([[1.0, 0.0], [2.0, -1.0]]))
    with pytest.raises(ValueError, match="steps 1 to 1 use predictions made before step 1"):
        cut(two, 1, 2)
    draws = Table(jnp.ones(1), fresh=jnp.ones(1))
    with pytest.raises(ValueError, match="draw noise from a Brownian path and others do not"):
        join(draws, draws._replace(path=jnp.array([[1.0, 0.5]])))


def test_a_trajectory_keeps_a_state_a_step():
    """This holds for rk4 with 4 evaluations per step too.

    Its program holds no state per evaluation.
    """
    noise = jnp.zeros((64, 96))
    denoiser = lambda x, t: Prediction(jnp.tanh(x), x)
    for sampler in (samplers.rk4, edm_heun):
        sample = lambda x, times, sampler=sampler: sampler(
            denoiser, FLOW, x, times, trajectory=True
        )
        program = jax.make_jaxpr(sample)(noise, uniform_grid(FLOW, 50))
        assert (
            max(v.aval.size for equation in program.eqns for v in equation.outvars)
            == 51 * noise.size
        )


def test_the_jit_line_of_the_docstring_compiles_once():
    """The line is that of the docstring of `sampler`. Every compilation begins with tracing."""
    [line] = [line for line in samplers.tables.sampler.__doc__.splitlines() if "jax.jit(" in line]
    traces = []

    def denoiser(x, t):
        traces.append(t)
        return Prediction(jnp.tanh(x), x)

    names = dict(jax=jax, heun=samplers.heun, denoiser=denoiser, process=FLOW)
    exec(line.strip(), names)
    noise = jnp.ones((2, 3))
    names["sample"](noise, uniform_grid(FLOW, 4))
    count = len(traces)
    names["sample"](2 * noise, uniform_grid(FLOW, 4, shift=3.0))
    assert len(traces) == count
    samplers.heun(denoiser, FLOW, noise, uniform_grid(FLOW, 4))
    assert len(traces) > count


def test_restart_is_its_algorithm(reference):
    """Xu et al. 2023, algorithm 1, on x/alpha.

    Heun's steps are followed twice by noise up and the same steps.
    """
    keys = sample_keys(jax.random.key(0), jnp.arange(len(reference.start)))
    times, rho = reference.times, lambda t: reference.sigma(t) / reference.alpha(t)
    row, states = 0, [reference.start]

    def steps(x, path):
        nonlocal row
        for t, s in zip(path[:-1], path[1:], strict=True):
            scaled, slope = x / reference.alpha(t), reference.predict(x, t)[1]
            x = reference.alpha(s) * (scaled + (rho(s) - rho(t)) * slope)
            if s != times[-1]:
                slope = (slope + reference.predict(x, s)[1]) / 2
                x = reference.alpha(s) * (scaled + (rho(s) - rho(t)) * slope)
            row += 2
            states.append(x)
        return x

    x = steps(reference.start, times[:6])
    for _ in range(2):
        drawn = [jax.random.normal(jax.random.fold_in(key, 2 * row)) for key in keys]
        added = np.sqrt(rho(times[2]) ** 2 - rho(times[5]) ** 2) * np.array(drawn)
        x = steps(reference.alpha(times[2]) * (x / reference.alpha(times[5]) + added), times[2:6])
    steps(x, times[5:])
    reference.check(restart, states, keys, first=2, last=5, repeats=2)


def test_restart_forgets_errors():
    """Restarts remove nearly all of the error of a start that is 1.3 times too large.

    Without them the samples are 1.3 times too large. For data N(0, s²) the error shrinks with every
    restart. Deviations of 10,000 samples scatter by s/√20000 = .004, and Heun's 64 steps add .002.
    """
    process, s, count = EDM(), 0.6, 10_000
    keys = sample_keys(jax.random.key(0), jnp.arange(2 * count))

    def denoiser(x, t):
        total = s**2 + t**2
        return Prediction(s**2 / total * x, t / total * x)

    times, start = karras_grid(process, 64), 1.3 * process.prior(keys[count:], ())
    sample = lambda repeats: np.std(
        quick_jit(
            lambda x: restart(
                denoiser, process, x, times, keys=keys[:count], first=16, last=48, repeats=repeats
            )
        )(start)
    )
    np.testing.assert_allclose(sample(0), 1.3 * s, atol=0.02)
    np.testing.assert_allclose(sample(2), s, atol=0.02)


def test_restart_refuses_steps_outside_the_grid():
    with pytest.raises(
        ValueError, match="0 <= first < last <= 4, .*; got first=3, last=5, repeats=1"
    ):
        restart.table(FLOW, jnp.array(TIMES), 3, 5)
    for first, last, repeats in ((2, 2, 1), (-1, 2, 1), (1, 2, -1)):
        with pytest.raises(ValueError, match=f"got first={first}, last={last}, repeats={repeats}"):
            restart.table(FLOW, jnp.array(TIMES), first, last, repeats)


def test_samples_are_floats(unchecked_annotations):
    """Whole numbers would round every state. float64 of NumPy is float32 in JAX."""
    denoiser = lambda x, t: Prediction(x, x)
    with pytest.raises(ValueError, match="samplers start at floats; got int32: convert them"):
        samplers.euler(denoiser, FLOW, jnp.ones((2, 3), int), uniform_grid(FLOW, 2))


def test_a_class_is_no_process(unchecked_annotations):
    denoiser = lambda x, t: Prediction(x, x)
    with pytest.raises(ValueError, match=r"and this is a class: RectifiedFlow\(\)"):
        uniform_grid(RectifiedFlow, 2)
    with pytest.raises(ValueError, match=r"and this is a class: RectifiedFlow\(\)"):
        samplers.euler(denoiser, RectifiedFlow, jnp.ones((2, 3)), uniform_grid(FLOW, 2))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            lambda s, t: Table(t[:-1], clean=s, noise=s[:, None]),
            r"clean of shape \(2,\); expected 2 rows, .* process.alpha\(s\)\[:, None\]",
        ),
        (
            lambda s, t: Table(t, state=s),
            r"state of shape \(2,\); expected 3 rows, one for each evaluation$",
        ),
        (lambda s, t: [s], "own returns a list; it must return a Table"),
    ],
)
def test_a_table_has_as_many_rows_as_times(table, message, unchecked_annotations):
    @samplers.tables.sampler
    def own(process, times):
        return table(times[1:], times)

    with pytest.raises(ValueError, match=message):
        own(lambda x, t: Prediction(x, x), FLOW, jnp.ones((2, 3)), uniform_grid(FLOW, 2))
