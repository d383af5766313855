import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import (
    BY_COLUMNS,
    QUICK,
    SAMPLERS,
    mixture_denoiser,
    quantiles_of,
    quick_jit,
    states_of,
    tabulate,
)

from genjax.diffusion import (
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    VariancePreservingCosine,
    ddim,
    euler,
    guide,
    predict,
    sample_keys,
    samplers,
    uniform_grid,
    velocity,
)

FLOW, COSINE = RectifiedFlow(), VariancePreservingCosine()
EVERY = [pytest.param(function, id=name) for name, function in SAMPLERS.items()]
every_sampler = pytest.mark.parametrize("sampler", EVERY)
every_kind = pytest.mark.parametrize("sampler", BY_COLUMNS.values(), ids=BY_COLUMNS.keys())


@functools.cache
def draws_noise(sampler):
    table = jax.eval_shape(functools.partial(sampler.table, FLOW), jnp.ones(3))
    return not (table.fresh is None and table.churn is None)


DETERMINISTIC = [parameter for parameter in EVERY if not draws_noise(*parameter.values)]


def gaussian_denoiser(process, deviation):
    """Make the exact denoiser for data N(0, deviation²)."""

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        variance = alpha**2 * deviation**2 + sigma**2
        return Prediction(alpha * deviation**2 / variance * x_t, sigma / variance * x_t)

    return denoise


@pytest.fixture
def starts(float64):
    return jnp.asarray(quantiles_of(0.0, 1.0))


def test_one_step_of_euler_lands_on_the_mean(starts):
    """At t = 1 the velocity is x_t − E[x] for any data. Here E[x] = .1."""
    samples = euler(mixture_denoiser(FLOW), FLOW, starts, uniform_grid(FLOW, 1))
    np.testing.assert_allclose(samples, 0.1, atol=1e-14)


@pytest.mark.parametrize("num_steps", [1, 5, 10])  # rounding adds up over more steps
def test_euler_is_ddim_for_rectified_flow(starts, num_steps):
    samples = lambda *arguments: [
        f(mixture_denoiser(FLOW), FLOW, *arguments) for f in (euler, ddim)
    ]
    np.testing.assert_allclose(
        *jax.jit(samples)(starts, uniform_grid(FLOW, num_steps)), atol=2e-15, rtol=0
    )


def test_each_sampler_against_its_own_equation(starts):
    """Euler in t, and DDIM as Euler in (x/alpha, sigma/alpha), on a variance preserving process."""
    process = VariancePreservingCosine(domain=(0.0, 0.9))
    denoiser, times = jax.jit(mixture_denoiser(process)), uniform_grid(process, 6)
    x_euler = x_ddim = np.asarray(starts)
    for t, s in zip(np.asarray(times[:-1]), np.asarray(times[1:]), strict=True):
        angle, next_angle = np.pi / 2 * t, np.pi / 2 * s
        clean, noise, _ = denoiser(jnp.asarray(x_euler), jnp.full(64, t))
        x_euler = x_euler + (s - t) * np.pi / 2 * (np.cos(angle) * noise - np.sin(angle) * clean)
        noise = denoiser(jnp.asarray(x_ddim), jnp.full(64, t)).noise
        x_ddim = np.cos(next_angle) * (
            x_ddim / np.cos(angle) + (np.tan(next_angle) - np.tan(angle)) * noise
        )
    np.testing.assert_allclose(
        euler(denoiser, process, starts, times), x_euler, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(
        ddim(denoiser, process, starts, times), x_ddim, rtol=1e-12, atol=1e-13
    )
    assert np.abs(x_euler - x_ddim).max() > 0.01


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_samplers_converge_for_gaussian_data(sampler, float64):
    """The flow keeps x_t over its deviation. `test_orders.py` has the other processes."""
    process, s = VarianceExploding(), 0.6
    deviation = lambda t: np.sqrt(
        float(process.alpha(t)) ** 2 * s**2 + float(process.sigma(t)) ** 2
    )
    noise = process.sigma(jnp.asarray(1.0)) * jnp.linspace(-2, 2, 5)[:, None]
    ratio = deviation(jnp.asarray(0.0)) / deviation(jnp.asarray(1.0))
    errors = []
    sample = jax.jit(functools.partial(sampler, gaussian_denoiser(process, s), process))
    for num_steps in (200, 400):
        samples = sample(noise, uniform_grid(process, num_steps))
        errors.append(np.abs(samples - ratio * noise).max())
    assert errors[1] < 0.1
    # First order, to this very limit.
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)


def tanh_denoiser(x_t, t):
    return Prediction(jnp.tanh(x_t), x_t)


def chance(indices):
    """Return keys for the samplers that draw noise. The others ignore them."""
    return sample_keys(jax.random.key(7), indices)


@every_kind
def test_trajectory_and_vmap(sampler):
    """A trajectory has the states at every time of the grid, and a grid may end at any of them."""
    noises, times = (
        np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(3, 5),
        uniform_grid(FLOW, 4),
    )
    last_differs = ("edm_heun", "edm_stochastic", "dpm2_ancestral", "dpm_solver_pp_sde")
    part = 5 if sampler.__name__ in last_differs else 3
    sample = functools.partial(sampler, tanh_denoiser, FLOW, keys=chance(jnp.arange(5)))

    @quick_jit
    def states_and_samples(noises, times):
        end = functools.partial(sample, times=times[:part])
        return (
            sample(noises[0], times, trajectory=True),
            jax.lax.map(end, noises),
            jax.vmap(end)(noises),
        )

    trajectory, samples, apart = states_and_samples(noises, times)
    assert trajectory.shape == (5, 5)
    np.testing.assert_array_equal(trajectory[0], noises[0])
    np.testing.assert_allclose(trajectory[part - 1], samples[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apart, samples, rtol=1e-5, atol=1e-6)


NULL = 3
WEIGHT = jnp.asarray(np.random.default_rng(0).standard_normal((6, 6)) / 3, jnp.float32)


def network(x, t, labels):
    return jnp.tanh(x @ WEIGHT + t[:, None]) * (1 + labels[:, None])


def generate_with(sampler, key, indices, labels, guidance_scale, times):
    denoiser = predict(network, FLOW, velocity)
    guided = guide(denoiser, labels, NULL, guidance_scale)
    noise = FLOW.prior(sample_keys(key, indices), (6,))
    return sampler(guided, FLOW, noise, times, keys=chance(indices))


def arguments(num_steps, batch=4, scale=2.0, shift=1.0):
    indices = jnp.arange(batch)
    return (
        jax.random.key(0),
        indices,
        indices % NULL,
        jnp.float32(scale),
        uniform_grid(FLOW, num_steps, shift),
    )


@pytest.mark.parametrize("sampler", [samplers.unipc, samplers.edm_stochastic])
def test_nothing_recompiles_when_values_change(sampler):
    traces = []

    @quick_jit
    def generate(*args):
        traces.append(args)
        return generate_with(sampler, *args)

    key, indices, labels, scale, times = arguments(5)
    first = generate(key, indices, labels, scale, times)
    others = [
        generate(key, indices, labels, jnp.float32(3.0), times),
        generate(key, indices, labels + 1, scale, times),
        generate(key, indices, labels, scale, uniform_grid(FLOW, 5, shift=3.0)),
        generate(jax.random.key(1), indices, labels, scale, times),
    ]
    assert len(traces) == 1
    # Every argument has an effect.
    assert all(np.abs(first - other).max() > 1e-5 for other in others)


@pytest.mark.parametrize("sampler", [samplers.unipc, samplers.dpm_solver_pp_sde])
def test_the_compiled_program_holds_the_network_once_and_no_more_memory_for_more_steps(sampler):
    noise = jnp.zeros((8, 4096))
    memory = []
    for num_steps in (10, 200):
        sample = lambda x, times, keys: sampler(tanh_denoiser, FLOW, x, times, keys=keys)
        keys = chance(jnp.arange(8))
        program = jax.jit(sample).lower(noise, uniform_grid(FLOW, num_steps), keys).compile(QUICK)
        assert program.as_text().count(" tanh(") == 1
        memory.append(program.memory_analysis().temp_size_in_bytes)
    # The table grows by a few numbers per step. One array of states would add 131 kB.
    assert memory[1] < memory[0] + noise.nbytes / 2


@every_sampler
def test_the_network_is_traced_once_and_states_are_stored_only_for_a_trajectory(sampler):
    """Times are traced too, so a new grid needs no new program."""

    def largest_array(trajectory):
        sample = lambda x, times, keys: sampler(
            tanh_denoiser, FLOW, x, times, keys=keys, trajectory=trajectory
        )
        keys = chance(jnp.arange(64))
        program = jax.make_jaxpr(sample)(noise, uniform_grid(FLOW, 50), keys)
        assert str(program).count("= tanh ") == 1
        return max(output.aval.size for equation in program.eqns for output in equation.outvars)

    noise = jnp.zeros((64, 96))
    assert largest_array(trajectory=False) == noise.size
    assert largest_array(trajectory=True) >= 51 * noise.size


@every_kind
def test_gradients_flow_through_a_sampler(sampler, float64):
    """The gradient by a network's parameter equals a central difference."""
    x, times = jnp.linspace(-1.0, 1.0, 4)[:, None], uniform_grid(FLOW, 4)

    @quick_jit
    @jax.value_and_grad
    def loss(parameter):
        apply = lambda x, t: jnp.tanh(parameter * x) + t[:, None]
        denoiser = predict(apply, FLOW, velocity)
        return jnp.sum(sampler(denoiser, FLOW, x, times, keys=chance(jnp.arange(4))) ** 2)

    step = 1e-5
    (_, gradient), (above, _), (below, _) = loss(1.3), loss(1.3 + step), loss(1.3 - step)
    assert abs(gradient) > 0.01
    # The difference errs by step² and by 1e-16/step.
    np.testing.assert_allclose(gradient, (above - below) / (2 * step), rtol=1e-7)


@every_sampler
def test_one_step_to_the_clean_end(sampler, float64):
    """With one evaluation the sample is x̂. At t = 1 this is the mean of the data."""
    in_t = (euler, samplers.adams_bashforth, samplers.euler_maruyama)
    process = COSINE if sampler not in in_t else FLOW
    table, x = tabulate(sampler, process, uniform_grid(process, 1)), jnp.linspace(-2.0, 2.0, 5)
    samples = states_of(process, x, table, chance(jnp.arange(5)))[-1]
    assert np.isfinite(samples).all()
    if len(table.times) == 1:
        np.testing.assert_allclose(samples, 0.1, atol=1e-14)


def check_finite(table, precision):
    assert all(np.isfinite(column).all() for column in jax.tree.leaves(table))
    assert table.times.dtype == precision


@every_sampler
def test_tables_are_finite_at_infinite_ends_and_precise(sampler):
    """Fifty steps from alpha = 0 to sigma = 0, in float32 against float64."""
    found = []
    for precision in ("float32", "float64"):
        with jax.enable_x64(precision == "float64"):
            table = tabulate(sampler, COSINE, jnp.linspace(1, 0, 51, dtype=precision))
            check_finite(table, precision)
            if not draws_noise(sampler):  # in float64 the noise is different
                x = jnp.asarray(quantiles_of(0.0, 1.0), precision)
                found.append(np.asarray(states_of(COSINE, x, table)))
                check_finite(
                    tabulate(sampler, COSINE, jnp.linspace(0, 1, 51, dtype=precision)), precision
                )
    check_finite(tabulate(sampler, FLOW, jnp.linspace(1.0, 0.0, 51)), "float32")
    if found:
        assert found[0].dtype == np.float32
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)  # 6e-8, about fifty times


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_inversion_and_back(sampler, starts):
    """It goes along the reversed grid and back, on intervals with finite ends."""
    times = jnp.linspace(0.1, 0.9, 51)
    there = states_of(COSINE, starts, tabulate(sampler, COSINE, times))
    assert np.abs(there[-1] - starts).max() > 0.3
    back = states_of(COSINE, there[-1], tabulate(sampler, COSINE, times[::-1]))
    # First and second order.
    assert np.abs(back[-1] - starts).max() < (
        0.3 if sampler in (euler, ddim, samplers.dpm_solver_1) else 0.05
    )


def test_samples_do_not_depend_on_their_batch():
    key, indices, labels, scale, times = arguments(10, batch=8)
    generate = jax.jit(functools.partial(generate_with, euler))
    together = generate(key, indices, labels, scale, times)
    chosen = jnp.array([6, 1])
    apart = generate(key, indices[chosen], labels[chosen], scale, times)
    # Matrix products of another size round differently, by 1e-7, at each of the ten steps.
    np.testing.assert_allclose(apart, together[chosen], rtol=1e-5, atol=1e-5)
    assert np.abs(together[6] - together[1]).max() > 0.1


def test_sample_keys_are_folded_by_index():
    key = jax.random.key(3)
    keys = sample_keys(key, jnp.array([5, 0]))
    expected = [jax.random.key_data(jax.random.fold_in(key, i)) for i in (5, 0)]
    np.testing.assert_array_equal(jax.random.key_data(keys), expected)
