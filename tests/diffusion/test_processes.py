import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    EDM,
    EDMPreconditioning,
    Process,
    RectifiedFlow,
    Shifted,
    SubVariancePreserving,
    TrigFlow,
    TrigFlowPreconditioning,
    UnitVariance,
    VarianceExploding,
    VariancePreservingCosine,
    VariancePreservingLinear,
    VariancePreservingScaledLinear,
    VariancePreservingTable,
    cosine_betas,
    linear_betas,
    log_normal_sigma,
    sample_keys,
    scaled_linear_betas,
    shift_time,
    to_domain,
    zero_terminal_snr,
)

TIMES = np.linspace(0.02, 0.98, 13)
STEPS = np.arange(0, 1000, 77)  # of a table of 1000
LINEAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # alpha² of DDPM


def integral(rate, t):
    """Return ∫ rate from 0 to t by three Gauss points, exact for polynomials up to degree five."""
    nodes, weights = np.polynomial.legendre.leggauss(3)
    return t / 2 * (rate(t[:, None] * (nodes + 1) / 2) @ weights)


def vp(log_alpha_squared):
    return np.exp(log_alpha_squared / 2), np.sqrt(1 - np.exp(log_alpha_squared))


def terminal():
    alpha = np.sqrt(LINEAR)
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha[STEPS], np.sqrt(1 - alpha[STEPS] ** 2)


# (process, times, alpha, sigma), written from the papers.
linear = -(0.25 * TIMES**2 * 19.9 + 0.5 * TIMES * 0.1) * 2  # Song et al. 2021, equation 33
scaled = -integral(lambda t: (0.85**0.5 + t * (12**0.5 - 0.85**0.5)) ** 2, TIMES)
shifted_odds = (
    9 * (1 - np.exp(linear)) / np.exp(linear)
)  # sigma²/alpha², the deviation three times as large
EXPECTED = {
    "rectified flow": (RectifiedFlow(), TIMES, 1 - TIMES, TIMES),
    "cosine": (
        VariancePreservingCosine(),
        TIMES,
        np.cos(np.pi / 2 * TIMES),
        np.sin(np.pi / 2 * TIMES),
    ),
    "linear": (VariancePreservingLinear(), TIMES, *vp(linear)),
    "scaled linear": (VariancePreservingScaledLinear(), TIMES, *vp(scaled)),
    "sub-VP": (SubVariancePreserving(), TIMES, np.exp(linear / 2), 1 - np.exp(linear)),
    "exploding": (
        VarianceExploding(),
        TIMES,
        np.ones(13),
        np.exp(np.log(0.01) + TIMES * np.log(5000)),
    ),
    "EDM": (EDM(), 80 * TIMES, np.ones(13), 80 * TIMES),
    "TrigFlow": (
        TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=0.7)),
        1.5 * TIMES,
        np.cos(1.5 * TIMES),
        0.7 * np.sin(1.5 * TIMES),
    ),
    "table": (VariancePreservingTable(), (STEPS + 1) / 1000, *vp(np.log(LINEAR[STEPS]))),
    "terminal": (
        VariancePreservingTable(betas=zero_terminal_snr(linear_betas())),
        (STEPS + 1) / 1000,
        *terminal(),
    ),
    "shifted": (
        Shifted(base=VariancePreservingLinear(), shift=3.0),
        TIMES,
        1 / np.sqrt(1 + shifted_odds),
        np.sqrt(shifted_odds / (1 + shifted_odds)),
    ),
}


@pytest.fixture(params=EXPECTED.values(), ids=EXPECTED.keys())
def expected(request, float64):
    return request.param


def test_alpha_sigma_and_log_snr(expected):
    process, times, alpha, sigma = expected
    t = jnp.asarray(times)
    # The references lose digits too: 1 − alpha² at sigma = .01, and a product of 1000 factors.
    np.testing.assert_allclose(process.alpha(t), alpha, rtol=1e-12)
    np.testing.assert_allclose(process.sigma(t), sigma, rtol=1e-12)
    np.testing.assert_allclose(
        process.log_snr(t), np.log(alpha**2 / sigma**2), rtol=1e-12, atol=1e-11
    )


def test_time_at_inverts_log_snr(expected):
    process, times, alpha, sigma = expected
    np.testing.assert_allclose(
        process.time_at(jnp.asarray(np.log(alpha**2 / sigma**2))), times, rtol=1e-11
    )
    np.testing.assert_allclose(
        process.time_of(jnp.asarray(3 * alpha), jnp.asarray(3 * sigma)), times, rtol=1e-11
    )


def test_derivatives_against_differences(every_process, float64):
    process, step = every_process, 1e-6 * every_process.domain[1]
    # Not on a table's knots, where the slope jumps.
    t = to_domain(process, jnp.asarray(TIMES)) + 0.00013
    for function, derivative in (
        (process.alpha, process.alpha_prime),
        (process.sigma, process.sigma_prime),
    ):
        difference = (function(t + step) - function(t - step)) / (2 * step)
        # The difference errs by step²·f'''/6, 5e-11 of sigma = 50, and by rounding, 1e-16/step·50 =
        # 1e-8.
        np.testing.assert_allclose(derivative(t), difference, rtol=1e-7, atol=2e-8)


@dataclass(frozen=True, kw_only=True)
class Line(Process):
    """A rectified flow that defines only alpha and sigma, and its clean end."""

    clean_end = 0.0

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


@dataclass(frozen=True, kw_only=True)
class Root(Process):
    """VP-linear that defines only alpha and sigma. The slope of sigma at 0 is infinite."""

    base: Process = VariancePreservingLinear()

    def alpha(self, t):
        return self.base.alpha(t)

    def sigma(self, t):
        return self.base.sigma(t)


def test_a_new_process_needs_alpha_and_sigma_alone(float64):
    log_snr = jnp.asarray([-60.0, -20, -3, 0.1, 2, 30, 60])
    times = jax.jit(Line().time_at)(log_snr)
    np.testing.assert_allclose(times, 1 / (1 + np.exp(np.asarray(log_snr) / 2)), rtol=1e-12)
    np.testing.assert_array_equal(Line().time_at(jnp.asarray([np.inf, -np.inf])), [0, 1])
    # The clean end may lie outside the domain.
    later = Line(domain=(0.5, 1.0))
    np.testing.assert_allclose(later.time_of(jnp.asarray(3.0), jnp.asarray(1.0)), 0.25, rtol=1e-12)
    # Clamped to log-SNR ≥ −10.
    np.testing.assert_array_equal(Root().time_at(jnp.asarray([np.inf, -np.inf])), [0, 1])
    log_snr = jnp.asarray([-9.0, -3, 0.1, 2, 9])
    np.testing.assert_allclose(Root().time_at(log_snr), Root().base.time_at(log_snr), rtol=1e-12)


def test_derivatives_of_the_inverse_by_bisection(float64):
    """They exist forward, as importance correction takes them, and backward."""
    u = jnp.linspace(0.1, 0.9, 5)
    density = lambda process: jax.jvp(lambda u: log_normal_sigma(process, u), (u,), (jnp.ones(5),))[
        1
    ]
    np.testing.assert_allclose(density(Line()), density(RectifiedFlow()), rtol=1e-11)
    gradient = lambda process: jax.vmap(jax.grad(process.time_at))(u)
    np.testing.assert_allclose(gradient(Line()), gradient(RectifiedFlow()), rtol=1e-11)


def test_bisection_in_float32():
    t = jnp.asarray([1e-4, 0.1, 0.5, 0.9])
    times = Line().time_at(RectifiedFlow().log_snr(t))
    assert times.dtype == jnp.float32
    # Rounding a log-SNR of 18 is an error of 1e-6.
    np.testing.assert_allclose(times, t, rtol=2e-6)


def test_ends_are_exact():
    for process in (
        RectifiedFlow(),
        VariancePreservingCosine(),
        TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=1.0)),
    ):
        ends = jnp.array(process.domain)
        np.testing.assert_array_equal(process.alpha(ends), [1, 0])
        np.testing.assert_array_equal(process.sigma(ends), [0, 1])
        np.testing.assert_array_equal(process.log_snr(ends), [np.inf, -np.inf])
        np.testing.assert_array_equal(process.time_at(process.log_snr(ends)), ends)
        shifted = Shifted(base=process, shift=3.0)
        np.testing.assert_array_equal(shifted.alpha(ends), [1, 0])
        np.testing.assert_array_equal(shifted.sigma(ends), [0, 1])
    process = VarianceExploding(sigma_min=0.02, sigma_max=80.0)
    np.testing.assert_allclose(process.sigma(jnp.array([0.0, 1.0])), [0.02, 80], rtol=1e-6)
    for process in (
        VariancePreservingLinear(),
        VariancePreservingScaledLinear(),
        SubVariancePreserving(),
    ):
        assert process.alpha(jnp.float32(0)) == 1 and process.sigma(jnp.float32(0)) == 0
    process = VariancePreservingTable(betas=zero_terminal_snr(scaled_linear_betas()))
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(process.alpha(ends), [1, 0])
    np.testing.assert_array_equal(process.sigma(ends), [0, 1])
    np.testing.assert_array_equal(process.log_snr(ends), [np.inf, -np.inf])
    np.testing.assert_allclose(process.time_at(jnp.array([np.inf, -np.inf])), ends, rtol=1e-6)


@pytest.mark.parametrize("kind", [VariancePreservingLinear, VariancePreservingScaledLinear])
def test_a_rate_that_starts_at_0_starts_at_time_0(kind):
    process = kind(beta_min=0.0)
    ends = process.time_at(jnp.array([np.inf, process.log_snr(jnp.array(1.0))]))
    np.testing.assert_allclose(ends, [0, 1], rtol=1e-5)  # float32
    assert Shifted(base=process, shift=2.0).alpha(jnp.array(0.0)) == 1


@pytest.mark.parametrize("kind", [VariancePreservingLinear, VariancePreservingScaledLinear])
def test_small_times_keep_their_digits(kind):
    """sigma² is beta_min·t to second order, in float32, where 1 − alpha² would lose all digits."""
    t = np.array([1e-8, 1e-7, 1e-6], np.float32)
    process = kind()
    np.testing.assert_allclose(
        process.sigma(jnp.asarray(t)), np.sqrt(process.beta_min * t), rtol=2e-4
    )
    np.testing.assert_allclose(process.time_at(process.log_snr(jnp.asarray(t))), t, rtol=2e-5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_times_may_have_any_shape(every_process, shape):
    t = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name in (
        "alpha",
        "sigma",
        "alpha_prime",
        "sigma_prime",
        "log_snr",
        "time_at",
    ):
        result = jax.eval_shape(getattr(every_process, name), t)
        assert result.shape == shape and result.dtype == jnp.float32, name
    for name in ("input_scale", "network_time"):
        feed = functools.partial(getattr(every_process.preconditioning, name), every_process)
        result = jax.eval_shape(feed, t)
        assert result.shape == shape and result.dtype == jnp.float32, name


@pytest.mark.parametrize("process", [RectifiedFlow(), VariancePreservingTable()])
def test_times_may_be_python_or_whole_numbers(process, unchecked_annotations):
    for name in ("alpha", "sigma_prime"):
        method = getattr(process, name)
        for given, t in ((0.5, 0.5), (jnp.ones(2, int), jnp.ones(2))):
            np.testing.assert_allclose(method(given), method(jnp.asarray(t)), rtol=1e-6)


def test_tables_take_arrays_of_betas(unchecked_annotations):
    betas = np.linspace(1e-4, 0.02, 1000)
    process = VariancePreservingTable(betas=betas)
    assert process == VariancePreservingTable(betas=tuple(betas.tolist()))
    np.testing.assert_allclose(process.alpha(1) ** 2, LINEAR[-1], rtol=1e-5)


def test_processes_are_static_values(every_process):
    assert hash(every_process) == hash(every_process) and every_process == every_process
    jax.jit(lambda process, t: process.alpha(t), static_argnums=0)(every_process, jnp.ones(2))


def test_impossible_domains_are_refused():
    for domain in ((1.0, 0.0), (0.5, 0.5), (0.0, np.nan), (0.0, 0.5, 1.0)):
        with pytest.raises(ValueError, match="start < end; got"):
            RectifiedFlow(domain=domain)
    assert RectifiedFlow(domain=[0.1, 1.0]).domain == (0.1, 1.0)  # as read from a file
    for betas in ((), (0.1, 1.0, 0.2), (0.0, 0.1), (0.1, 1.1)):
        with pytest.raises(ValueError, match="betas are above 0 and below 1"):
            VariancePreservingTable(betas=betas)
    for rates in (dict(beta_min=-0.1), dict(beta_min=0.0, beta_max=0.0)):
        for process in (VariancePreservingScaledLinear, SubVariancePreserving):
            with pytest.raises(ValueError, match="rates go from beta_min, at least 0"):
                process(**rates)
    for sigmas in (dict(sigma_min=60.0), dict(sigma_min=0.0), dict(sigma_max=0.01)):
        with pytest.raises(ValueError, match="sigma rises from sigma_min, above 0, to sigma_max"):
            VarianceExploding(**sigmas)
    with pytest.raises(ValueError, match="a shift is positive"):
        Shifted(base=RectifiedFlow(), shift=0.0)


def test_the_network_sees_unit_variance_and_times_in_the_unit_interval(process):
    """This holds for data of unit variance. A straight path between data and noise is unchanged."""
    t = jnp.linspace(0.0, 1.0, 7)
    variance = process.alpha(t) ** 2 + process.sigma(t) ** 2
    if isinstance(process, RectifiedFlow):
        np.testing.assert_array_equal(process.preconditioning.input_scale(process, t), 1)
    else:
        np.testing.assert_allclose(
            process.preconditioning.input_scale(process, t) ** 2 * variance, 1, rtol=1e-6
        )
    network_time = process.preconditioning.network_time(process, t)
    assert network_time.min() >= 0 and network_time.max() <= 1 and np.all(np.diff(network_time) > 0)


@pytest.mark.parametrize(
    "process",
    [
        EDM(preconditioning=EDMPreconditioning(data_deviation=0.7)),
        TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=0.7)),
        RectifiedFlow(preconditioning=UnitVariance(data_deviation=0.7)),
    ],
    ids=lambda process: type(process).__name__,
)
def test_the_network_sees_unit_variance_for_data_of_their_deviation(process, float64):
    t = to_domain(process, jnp.asarray(TIMES))
    variance = 0.49 * process.alpha(t) ** 2 + process.sigma(t) ** 2
    # c_in²(σ² + σ_d²) = 1.
    np.testing.assert_allclose(
        process.preconditioning.input_scale(process, t) ** 2 * variance, 1, rtol=1e-13
    )
    expected = np.log(t) / 4 if isinstance(process, EDM) else t
    np.testing.assert_allclose(
        process.preconditioning.network_time(process, t), expected, rtol=1e-13
    )


# --- Tables.


def test_published_schedules(float64):
    """The numbers are those of the reference implementations."""
    end = jnp.asarray(1.0)
    squared = lambda betas: VariancePreservingTable(betas=betas).alpha(end) ** 2
    np.testing.assert_allclose(squared(linear_betas()), 4.0358e-5, rtol=2e-5)
    np.testing.assert_allclose(squared(scaled_linear_betas()), 0.0046601, rtol=1e-5)
    np.testing.assert_allclose(squared(cosine_betas()), 2.42877e-9, rtol=3e-6)
    ratio = lambda process, t: process.sigma(t) / process.alpha(t)
    np.testing.assert_allclose(ratio(VariancePreservingTable(), end), 157.407, rtol=4e-6)
    process = VariancePreservingTable(betas=scaled_linear_betas())
    ends = jnp.asarray(process.domain)
    np.testing.assert_allclose(ratio(process, ends), [0.0291672, 14.61464], rtol=2e-6)


def test_tables_are_products_of_their_betas(float64):
    """Between the steps they are linear in log(alpha²), as in DPM-Solver."""
    betas = cosine_betas(50)
    process, times = VariancePreservingTable(betas=betas), np.arange(51) / 50
    products = np.cumprod(np.append(1, 1 - np.asarray(betas)))
    np.testing.assert_allclose(process.alpha(jnp.asarray(times)) ** 2, products, rtol=1e-12)
    middles = (times[1:] + times[:-1]) / 2
    np.testing.assert_allclose(
        process.alpha(jnp.asarray(middles)) ** 2, np.sqrt(products[1:] * products[:-1]), rtol=1e-12
    )
    t = np.append(times[1:], middles)
    np.testing.assert_allclose(process.time_at(process.log_snr(jnp.asarray(t))), t, rtol=1e-10)


@pytest.mark.parametrize("x64", [False, True])
def test_the_network_time_is_the_index_of_the_step(x64):
    with jax.enable_x64(x64):
        process, index = VariancePreservingTable(), np.arange(1000)
        t = jnp.asarray((index + 1) / 1000)
        # One rounding each of t, of i/1000 and of 1000·(i/1000), relative to i + 1.
        np.testing.assert_allclose(
            1000 * process.preconditioning.network_time(process, t) + 1,
            index + 1,
            rtol=2 * jnp.finfo(t).eps,
        )
    assert process.domain == (1 / 1000, 1.0) and process.clean_end == 0
    short = VariancePreservingTable(betas=linear_betas(4))
    found = short.preconditioning.network_time(short, jnp.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_array_equal(found, [0.0, 0.25, 0.5, 0.75])
    assert short.domain == (0.25, 1.0)


@pytest.mark.parametrize(
    "table, process",
    [
        (linear_betas, VariancePreservingLinear()),
        (scaled_linear_betas, VariancePreservingScaledLinear()),
    ],
)
def test_tables_agree_with_continuous_time(table, process, float64):
    """The difference is O(1/N).

    At t = 1 log(alpha) differs in two terms. log(1 − beta/N) = −beta/N − beta²/2N² gives ∫
    beta²/4N. The sum exceeds the integral by ((beta(0) + beta(1))/2 − ∫ beta)/2N.
    """
    nodes, weights = np.polynomial.legendre.leggauss(5)
    beta = jax.vmap(jax.grad(process.decay))(jnp.asarray((nodes + 1) / 2))
    miss = weights @ beta**2 / 8 + (process.beta_min + process.beta_max - weights @ beta) / 4

    def error(num_steps):
        t = jnp.arange(1, num_steps + 1) / num_steps
        discrete = VariancePreservingTable(
            betas=[beta * 1000 / num_steps for beta in table(num_steps)]
        )
        return np.abs(np.log(discrete.alpha(t)) - np.log(process.alpha(t))).max()

    np.testing.assert_allclose(error(1000), miss / 1000, rtol=0.02)  # the next order is beta/N, 2 %
    np.testing.assert_allclose(error(2000), miss / 2000, rtol=0.01)


def test_the_cosine_table_is_the_cosine(float64):
    """This holds without its offset and limit, except in the last step, where alpha would be 0."""
    t = jnp.arange(1, 1000) / 1000
    discrete = VariancePreservingTable(betas=cosine_betas(offset=0.0, largest=1.0)[:-1])
    np.testing.assert_allclose(
        discrete.alpha(1000 / 999 * t), VariancePreservingCosine().alpha(t), rtol=1e-10
    )


def test_zero_terminal_snr(float64):
    """The first step is unchanged, the last has no data, and the others are in proportion.

    Lin et al. 2024, section 3.1.
    """
    betas = scaled_linear_betas()
    old, new = (
        VariancePreservingTable(betas=betas),
        VariancePreservingTable(betas=zero_terminal_snr(betas)),
    )
    t = jnp.arange(1, 1001) / 1000
    before, after = np.asarray(old.alpha(t)), np.asarray(new.alpha(t))
    np.testing.assert_allclose(after[0], before[0], rtol=1e-14)
    assert after[-1] == 0 and new.betas[-1] == 1
    slope, offset = np.polyfit(before, after, 1)
    np.testing.assert_allclose(after, slope * before + offset, atol=1e-13)
    end = jnp.asarray(1.0)
    # alpha is linear in the last step, so the derivatives, and with them velocity, are finite.
    np.testing.assert_allclose(new.alpha(jnp.asarray(0.9996)), 0.4 * after[-2], rtol=1e-9)
    np.testing.assert_allclose(new.alpha_prime(end), -1000 * after[-2], rtol=1e-9)
    np.testing.assert_allclose(new.sigma_prime(end), 0, atol=1e-12)
    np.testing.assert_allclose(new.time_at(new.log_snr(jnp.asarray(0.9996))), 0.9996, rtol=1e-12)


def test_shifted_zero_terminal_snr_has_finite_derivatives(float64):
    """Near alpha = 0 a shift divides alpha by its factor, so it divides the derivative too."""
    base = VariancePreservingTable(betas=zero_terminal_snr(scaled_linear_betas()))
    process, end = Shifted(base=base, shift=2.0), jnp.asarray(1.0)
    np.testing.assert_allclose(process.alpha_prime(end), base.alpha_prime(end) / 2, rtol=1e-9)
    np.testing.assert_allclose(process.sigma_prime(end), 0, atol=1e-12)
    assert jax.grad(base.log_snr)(end) == -np.inf


def test_the_time_without_data_is_infinite_if_the_decay_never_ends():
    kinds = VariancePreservingLinear, VariancePreservingScaledLinear, SubVariancePreserving
    for kind in kinds:
        assert kind().time_at(jnp.asarray(-np.inf)) == np.inf


def test_log_snr_of_a_large_decay_is_finite():
    """−log(expm1(100.05)) is −100.05, and exp(100) is infinite in float32."""
    process = VariancePreservingLinear(beta_max=200.0)
    np.testing.assert_allclose(process.log_snr(jnp.asarray(1.0)), -100.05, rtol=1e-6)


def test_zero_terminal_snr_of_cogvideox(float64):
    """CogVideoX-2B first divides the SNR of Stable Diffusion's table by 3."""
    squared = np.cumprod(1 - np.array(scaled_linear_betas()))
    squared = squared / (3 - 2 * squared)
    betas = 1 - squared / np.append(1, squared[:-1])
    process = VariancePreservingTable(betas=zero_terminal_snr(betas.tolist()))
    alpha = process.alpha(jnp.array([1, 500, 1000]) / 1000)
    np.testing.assert_allclose(alpha**2, [0.997454, 0.09597, 0], atol=5e-7)  # as printed


# --- Shifts.


def test_shifting_a_rectified_flow_is_shift_time(float64):
    process, t = Shifted(base=RectifiedFlow(), shift=3.0), jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(process.sigma(t), shift_time(t, 3.0), rtol=1e-15)
    np.testing.assert_allclose(
        process.preconditioning.network_time(process, t), shift_time(t, 3.0), rtol=1e-15
    )
    # It is finite at both ends, where the log-SNR is not.
    derivative = 3 / (1 + 2 * np.asarray(t)) ** 2
    np.testing.assert_allclose(process.sigma_prime(t), derivative, rtol=1e-14)
    np.testing.assert_allclose(process.alpha_prime(t), -derivative, rtol=1e-14)


@pytest.mark.parametrize(
    "base",
    [
        RectifiedFlow(),
        VariancePreservingCosine(),
        VariancePreservingScaledLinear(),
        VariancePreservingTable(),
        SubVariancePreserving(),
        TrigFlow(),
        VarianceExploding(),
        EDM(),
    ],
    ids=lambda base: type(base).__name__,
)
def test_shifts_lower_the_log_snr_and_keep_the_curve(base, float64):
    process, t = Shifted(base=base, shift=4.0), to_domain(base, jnp.asarray(TIMES))
    np.testing.assert_allclose(process.log_snr(t), base.log_snr(t) - np.log(16), atol=1e-13)
    log_snr = 2 * np.log(process.alpha(t) / process.sigma(t))
    np.testing.assert_allclose(log_snr, base.log_snr(t) - np.log(16), rtol=1e-11, atol=1e-11)
    there = base.time_at(process.log_snr(t))
    np.testing.assert_allclose(process.alpha(t), base.alpha(there), rtol=1e-10)
    np.testing.assert_allclose(
        process.preconditioning.input_scale(process, t),
        base.preconditioning.input_scale(base, there),
        rtol=1e-10,
    )
    np.testing.assert_allclose(
        process.preconditioning.network_time(process, t),
        base.preconditioning.network_time(base, there),
        rtol=1e-9,
    )
    assert process.domain == base.domain and process.clean_end == base.clean_end


def test_a_shifted_process_takes_the_deviation_of_the_base_that_replaces_another():
    bases = [EDM(preconditioning=EDMPreconditioning(data_deviation=s)) for s in (0.7, 2.0)]
    first, second = (Shifted(base=base, shift=2.0) for base in bases)
    assert first.preconditioning.data_deviation == 0.7
    assert replace(first, base=bases[1]) == second
    own = Shifted(base=bases[0], shift=2.0, preconditioning=EDMPreconditioning(data_deviation=3.0))
    assert replace(own, base=bases[1]).preconditioning == own.preconditioning


def test_corrupt_uses_each_examples_own_time(process):
    x, z = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2), np.float32)
    t = jnp.array([0.1, 0.5, 0.9])
    x_t, alpha, sigma = (
        process.corrupt(jnp.asarray(x), jnp.asarray(z), t),
        process.alpha(t),
        process.sigma(t),
    )
    for i in range(3):
        np.testing.assert_allclose(
            x_t[i], float(alpha[i]) * x[i] + float(sigma[i]) * z[i], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_prior_has_the_deviation_of_the_noise_end(process, end):
    process = replace(process, domain=(0.0, end))
    noise = process.prior(jax.random.split(jax.random.key(0), 100), (8, 8, 4))
    assert noise.shape == (100, 8, 8, 4)
    deviation = float(process.sigma(jnp.asarray(end)))
    # For n = 25,600 values the mean deviates by sigma/√n = .00625 and the deviation by sigma/√2n =
    # .0044.
    assert abs(noise.mean()) < 4 * 0.00625 * deviation
    np.testing.assert_allclose(noise.std(), deviation, rtol=4 * 0.0044)


def test_prior_of_a_sample_depends_on_its_index_alone(process):
    key = jax.random.key(0)
    together = process.prior(sample_keys(key, jnp.arange(6)), (4, 3))
    alone = process.prior(sample_keys(key, jnp.array([4, 1])), (4, 3))
    np.testing.assert_array_equal(alone, together[jnp.array([4, 1])])
    correlation = np.corrcoef(np.asarray(together).reshape(6, -1))
    assert np.all(np.abs(correlation[~np.eye(6, dtype=bool)]) < 0.999)  # all different


def test_sample_keys_takes_any_list_of_indices(unchecked_annotations):
    key = jax.random.key(0)
    expected = [jax.random.fold_in(key, index) for index in range(3)]
    for indices in (jnp.arange(3), range(3), [0, 1, 2]):
        np.testing.assert_array_equal(
            jax.random.key_data(sample_keys(key, indices)),
            [jax.random.key_data(each) for each in expected],
        )
    with pytest.raises(ValueError, match=r"such as jnp.arange\(4\); got shape \(\)"):
        sample_keys(key, 4)


def test_one_key_is_not_the_noise_of_a_batch(unchecked_annotations):
    with pytest.raises(ValueError, match="keys are one per sample, and this is one key"):
        RectifiedFlow().prior(jax.random.key(0), (4, 8, 8, 1))


def test_times_of_more_axes_than_the_data_are_refused(unchecked_annotations):
    """Times [4, 1, 1] would broadcast data [4, 2] to [4, 4, 2]."""
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"\(4, 1, 1\) have more axes than data"):
        RectifiedFlow().corrupt(x, x, jnp.full((4, 1, 1), 0.5))
