"""The laws of times against SciPy's, the papers' closed forms and published moments."""

import functools

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
    clean,
    cosmap,
    density,
    independent,
    log_normal_sigma,
    logit_normal,
    mode,
    shift_time,
    shifted,
    simple_loss,
    stratified,
    uniform,
    uniform_log_snr,
)
from genjax.diffusion.times import karras

FLOW = RectifiedFlow()
PROCESSES = [
    FLOW,
    VariancePreservingCosine(),
    VarianceExploding(),
    EDM(),
    RectifiedFlow(domain=(0.2, 0.7)),
]
LAWS = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "narrow_logit_normal": functools.partial(logit_normal, mean=-0.4, deviation=0.5),
    "mode": mode,
    "heavy_ended_mode": functools.partial(mode, scale=-0.5),
    "cosmap": cosmap,
    "log_normal_sigma": log_normal_sigma,
    "shifted_uniform": shifted(uniform, 3.0),
    "shifted_logit_normal": shifted(logit_normal, 0.4),
}
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
processes = pytest.mark.parametrize(
    "process", PROCESSES, ids=lambda p: f"{type(p).__name__}{p.domain}"
)


def midpoints(n):
    return (np.arange(n) + 0.5) / n


def mode_inverse(t, scale):
    """Return the inverse by bisection, independently of the function's algebra."""
    low, high = np.zeros_like(t), np.ones_like(t)
    for _ in range(60):
        middle = (low + high) / 2
        below = (
            1 - (1 - middle) - scale * (np.cos(np.pi / 2 * (1 - middle)) ** 2 - 1 + 1 - middle) < t
        )
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return middle


# Distribution functions for rectified flow, from SciPy or the papers' formulas (Esser et al. 2024,
# section 3.1).
CDFS = {
    "uniform": scipy.stats.uniform.cdf,
    "logit_normal": lambda t: scipy.stats.norm.cdf(np.log(t / (1 - t))),
    "narrow_logit_normal": lambda t: scipy.stats.norm(-0.4, 0.5).cdf(np.log(t / (1 - t))),
    "mode": lambda t: mode_inverse(t, 1.29),
    "heavy_ended_mode": lambda t: mode_inverse(t, -0.5),
    "cosmap": lambda t: 2 / np.pi * np.arctan(t / (1 - t)),
    "log_normal_sigma": lambda t: scipy.stats.norm(-1.2, 1.2).cdf(np.log(t / (1 - t))),
    "shifted_uniform": lambda t: t / (3 - 2 * t),
    "shifted_logit_normal": lambda t: scipy.stats.norm(np.log(0.4)).cdf(np.log(t / (1 - t))),
}


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_law(name):
    """50,000 draws would reveal a distribution function that is wrong by 0.0073 at any point."""
    t = LAWS[name](FLOW, independent(jax.random.key(1), (50_000,)))
    assert scipy.stats.kstest(np.asarray(t, np.float64), CDFS[name]).pvalue > 0.01


@pytest.mark.parametrize("name", LAWS)
def test_laws_invert_their_distribution_functions(name, float64):
    u = np.concatenate([midpoints(999), [1e-9, 1 - 1e-9]])
    # Far out a float64 t keeps only this much of u.
    np.testing.assert_allclose(
        CDFS[name](np.asarray(LAWS[name](FLOW, jnp.asarray(u)))), u, atol=1e-12
    )


def test_draws_of_edm_are_log_normal():
    sigma = np.asarray(
        log_normal_sigma(EDM(), independent(jax.random.key(2), (50_000,))), np.float64
    )
    assert scipy.stats.kstest(np.log(sigma), scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_moments_of_the_logit_normal(float64):
    """The integrands are smooth and bounded, so 10⁵ midpoints err far below the last digit."""
    u = jnp.asarray(midpoints(100_000))
    t = np.asarray(logit_normal(FLOW, u))
    np.testing.assert_allclose([t.mean(), t.var()], [0.5, 0.0433790], atol=5e-8)
    # Counts one in 10⁵.
    np.testing.assert_allclose(np.mean((0.3 < t) & (t < 0.7)), 0.603171, atol=1e-5)
    np.testing.assert_allclose(logit_normal(FLOW, u, mean=-0.4).mean(), 0.418012, atol=5e-7)


DENSITIES = {  # Esser et al. 2024, equations 19 and 22; mode by its derivative at a known u
    "uniform": lambda t, u: np.ones_like(t),
    "logit_normal": lambda t, u: (
        np.exp(-(np.log(t / (1 - t)) ** 2) / 2) / np.sqrt(2 * np.pi) / (t * (1 - t))
    ),
    "narrow_logit_normal": lambda t, u: (
        np.exp(-((np.log(t / (1 - t)) + 0.4) ** 2) / (2 * 0.5**2))
        / (0.5 * np.sqrt(2 * np.pi) * t * (1 - t))
    ),
    "mode": lambda t, u: 1 / (1 + 1.29 - 1.29 * np.pi / 2 * np.sin(np.pi * u)),
    "heavy_ended_mode": lambda t, u: 1 / (1 - 0.5 + 0.5 * np.pi / 2 * np.sin(np.pi * u)),
    "cosmap": lambda t, u: 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2),
    "shifted_uniform": lambda t, u: 3 / (3 - 2 * t) ** 2,
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities(name, float64):
    u = midpoints(50)
    t = np.asarray(LAWS[name](FLOW, jnp.asarray(u)))
    np.testing.assert_allclose(
        density(LAWS[name], FLOW, jnp.asarray(u)), DENSITIES[name](t, u), rtol=1e-11
    )


@laws
@processes
def test_densities_integrate(law, process, float64):
    """∫ t² dt = ∫ t(u)² dt/du du between two u. Importance correction relies on it."""
    start, end = process.domain
    # Gauss–Legendre in the logit of u, where the densities of all laws are smooth, up to 3e-7 from
    # both ends.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = 1 / (1 + np.exp(-15 * np.concatenate([[-1], nodes, [1]])))
    place = (np.asarray(law(process, jnp.asarray(u))) - start) / (end - start)
    inverse = 1 / np.asarray(density(law, process, jnp.asarray(u))) / (end - start)
    total = np.sum(weights * (15 * u * (1 - u) * inverse * place**2)[1:-1])
    np.testing.assert_allclose(total, (place[-1] ** 3 - place[0] ** 3) / 3, rtol=1e-9)


@laws
@processes
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_laws_increase_within_the_domain(law, process, dtype):
    """u runs from the least to the largest variate of float32.

    Rounding may make the far tails constant, but must not make them fall.
    """
    u = np.unique(
        np.concatenate([2.0 ** -np.arange(1, 25), 1 - 2.0 ** -np.arange(1, 25), midpoints(1000)])
    )
    with jax.enable_x64(dtype == "float64"):
        t = law(process, jnp.asarray(u, dtype))
        assert t.dtype == dtype
    start, end = np.asarray(process.domain, dtype)
    t = np.asarray(t)
    ulp = np.spacing(end)
    assert np.all(np.isfinite(t)) and start - ulp <= t.min() and t.max() <= end + ulp
    assert law is not log_normal_sigma or start <= t.min() and t.max() <= end
    middle = slice(24, -24)
    assert np.all(np.diff(t[middle]) > 0) and np.all(np.diff(t) >= 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@laws
def test_shapes(law, shape):
    for variates in (independent, stratified):
        draw = lambda key, variates=variates: law(FLOW, variates(key, shape))
        assert jax.eval_shape(draw, jax.random.key(0)).shape == shape


@pytest.mark.parametrize("distribution", [logit_normal, log_normal_sigma])
def test_a_deviation_that_is_not_positive_is_refused(distribution):
    for deviation in (-1.0, 0.0):
        with pytest.raises(ValueError, match=f"deviation is above 0, .*; got {deviation}"):
            distribution(FLOW, jnp.array([0.5]), deviation=deviation)
    traced = jax.jit(lambda deviation: distribution(FLOW, jnp.array([0.5]), deviation=deviation))
    assert jnp.isfinite(traced(1.0)).all()


def test_a_shift_that_is_not_positive_is_refused():
    for shift in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"a shift is positive.*; got {shift}"):
            shifted(uniform, shift)(FLOW, jnp.array([0.5]))


def test_mode_is_the_papers_function_of_one_minus_u(float64):
    u = midpoints(101)
    for scale in (-1.0, -0.5, 0.0, 0.8, 1.29, 2 / (np.pi - 2)):
        paper = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
        ours = mode(FLOW, jnp.asarray(u[::-1].copy()), scale=scale)
        np.testing.assert_allclose(ours, paper, atol=1e-15)
        assert np.all(np.diff(ours) < 0)


@pytest.mark.parametrize("scale", [-1.01, 1.76])
def test_mode_refuses_scales_where_it_does_not_increase(scale):
    u = midpoints(10_001)
    assert np.any(np.diff(u + scale * (u - np.sin(np.pi / 2 * u) ** 2)) < 0)
    with pytest.raises(ValueError, match="between -1 and 2/"):
        mode(FLOW, jnp.asarray(u), scale=scale)


def test_cosmap_gives_rectified_flow_the_log_snr_of_the_cosine_process(float64):
    u = jnp.asarray(midpoints(50))
    np.testing.assert_allclose(
        FLOW.log_snr(cosmap(FLOW, u)), VariancePreservingCosine().log_snr(u), atol=1e-13
    )


def test_log_normal_sigma_is_conditioned_on_the_domain(float64):
    """Variance exploding starts at 0.01. 0.23 % of the law lies below and is never drawn."""
    process, law = VarianceExploding(), scipy.stats.norm(-1.2, 1.2)
    low, high = law.cdf(np.log([0.01, 50.0]))
    assert 0.002 < low < 0.003
    u = midpoints(101)
    sigma = process.sigma(log_normal_sigma(process, jnp.asarray(u)))
    np.testing.assert_allclose(law.cdf(np.log(sigma)), low + (high - low) * u, atol=1e-12)
    start, end = law.cdf(np.log(EDM().domain))
    np.testing.assert_allclose(1 - (end - start), 1.6e-5, atol=1e-6)  # what EDM's domain leaves out


@pytest.mark.parametrize(
    "process, ends",
    [
        (RectifiedFlow(domain=(0.01, 1.0)), (2 * np.log(99), -15)),  # alpha is 0 at the end
        (RectifiedFlow(domain=(0.2, 0.7)), (2 * np.log(4), -2 * np.log(7 / 3))),
        (EDM(), (-2 * np.log(0.002), -2 * np.log(80))),
    ],
)
def test_log_snrs_are_equally_likely(process, ends, float64):
    u = jnp.asarray(np.append(0, np.append(midpoints(9), 1)))
    log_snr = process.log_snr(uniform_log_snr(process, u))
    np.testing.assert_allclose(log_snr, ends[0] + (ends[1] - ends[0]) * np.asarray(u), rtol=1e-8)


@pytest.mark.parametrize("law", [uniform_log_snr, karras])
def test_rounded_levels_stay_in_the_domain(law):
    for process in (EDM(), VarianceExploding()):
        start, end = np.float32(process.domain)
        t = law(process, jnp.array([0.0, 2.0**-24, 1 - 2.0**-24, 1.0]))
        assert np.all((start <= t) & (t <= end))


def test_infinite_log_snrs_are_refused():
    with pytest.raises(ValueError, match="domain of RectifiedFlow starts at 0, where sigma = 0"):
        jax.jit(lambda u: uniform_log_snr(FLOW, u))(jnp.ones(2))


def test_an_infinite_noise_level_has_no_roots_to_space():
    with pytest.raises(ValueError, match="domain of RectifiedFlow ends at 1, where alpha = 0"):
        jax.jit(lambda u: karras(FLOW, u))(jnp.ones(2))


@pytest.mark.parametrize("base", [uniform, logit_normal])
@pytest.mark.parametrize("process", [FLOW, RectifiedFlow(domain=(0.2, 0.7))], ids=["whole", "part"])
def test_shifted_distribution_shifts_the_times_of_the_other(base, process, float64):
    u = jnp.asarray(midpoints(9))
    start, end = process.domain
    t = (np.asarray(base(process, u)) - start) / (end - start)
    result = np.asarray(shifted(base, 3.0)(process, u))
    np.testing.assert_allclose((result - start) / (end - start), 3 * t / (1 + 2 * t), rtol=1e-12)
    assert np.all(result > base(process, u))  # nearer to noise


@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_shift_lowers_the_log_snr_of_rectified_flow(shift, float64):
    t = jnp.linspace(0.01, 0.99, 9)
    log_snr = FLOW.log_snr
    np.testing.assert_allclose(
        log_snr(shift_time(t, shift)), log_snr(t) - 2 * np.log(shift), atol=1e-12
    )
    np.testing.assert_allclose(shift_time(shift_time(t, shift), 1 / shift), t, rtol=1e-12)


def test_shift_keeps_both_ends_exactly_and_stays_between_them():
    shifts = jnp.asarray(np.random.default_rng(0).uniform(0.05, 20, 1000), jnp.float32)
    ends = jax.vmap(lambda shift: shift_time(jnp.array([0.0, 1.0]), shift))(shifts)
    np.testing.assert_array_equal(ends, np.broadcast_to([0.0, 1.0], (1000, 2)))
    np.testing.assert_array_equal(shift_time(jnp.linspace(0, 1, 11), 1.0), jnp.linspace(0, 1, 11))


@pytest.mark.parametrize("shape", [(7,), (64,), (4, 16), ()])
def test_stratified_variates_fall_one_into_each_part(shape):
    for seed in range(20):
        with jax.debug_key_reuse(True):  # the order of frames has another key than u
            u = np.asarray(stratified(jax.random.key(seed), shape), np.float64)
        assert u.shape == shape and u.min() > 0 and u.max() < 1
        # Neighbours on the circle are 1/n apart, up to the rounding of numbers below 2.
        gaps = np.diff(np.sort(u.ravel()), append=u.min() + 1)
        np.testing.assert_allclose(gaps, 1 / u.size, atol=4e-7)


def test_stratified_variates_of_two_frames_of_an_example_are_independent():
    u = np.asarray(stratified(jax.random.key(0), (1000, 3)))
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 4 / np.sqrt(1000)
    for frame in u.T:  # each frame's variates are stratified too
        assert np.ptp(np.diff(np.sort(frame))) < 1e-6


def test_no_variate_is_zero():
    """There quantiles may be infinite. JAX draws 0 once in 2²³ times.

    The start of the stratified variates is a multiple of 2⁻¹⁴ here, so that one of them is 0.
    """
    assert jax.random.uniform(jax.random.key(46), (2**16,)).min() == 0
    assert independent(jax.random.key(46), (2**16,)).min() == 2.0**-24
    assert jax.random.uniform(jax.random.key(289)) * 2**14 % 1 == 0
    assert stratified(jax.random.key(289), (2**14,)).min() == 2.0**-24


def test_each_stratified_variate_is_uniform():
    keys = jax.random.split(jax.random.key(3), 20_000)
    u = np.asarray(jax.vmap(lambda key: stratified(key, (5,)))(keys), np.float64)
    for i in range(5):
        assert scipy.stats.kstest(u[:, i], "uniform").pvalue > 0.01


def losses_of_time(key, law, variates, n, **options):
    """Return the loss t², which has no noise but that of times.

    The network answers t to data of 0.
    """
    apply = lambda x, t: jnp.broadcast_to(t[:, None], x.shape)
    x = jnp.zeros((n, 1))
    return simple_loss(
        key, apply, x, process=FLOW, target=clean, times=law, variates=variates, **options
    )[0]


@laws
def test_importance_corrected_loss_is_the_integral_whatever_the_law(law):
    """∫ t² dt from ¼ to ¾ is 13/96. The weighting leaves out the ends, where logit-normals fail.

    Their loss has infinite variance there.
    """
    middle = lambda process, target, t: jnp.where(abs(t - 0.5) < 0.25, 1.0, 0.0)
    key, n = jax.random.key(4), 50_000
    losses = losses_of_time(key, law, independent, n, weighting=middle, importance_corrected=True)
    np.testing.assert_allclose(losses.mean(), 13 / 96, atol=4 * losses.std() / np.sqrt(n))
    # One variate in each n-th part errs by at most total variation / n: four times the maximum,
    # with two bumps.
    losses = losses_of_time(key, law, stratified, n, weighting=middle, importance_corrected=True)
    np.testing.assert_allclose(losses.mean(), 13 / 96, atol=4 * losses.max() / n)


def test_without_the_correction_the_law_weights_the_loss():
    for law, expected in ((uniform, 1 / 3), (logit_normal, 0.25 + 0.0433790)):  # E[t²]
        losses = losses_of_time(jax.random.key(4), law, stratified, 50_000)
        # t² rises by 1 at most.
        np.testing.assert_allclose(losses.mean(), expected, atol=1 / 50_000)


def test_stratified_variates_lower_the_variance_of_the_loss():
    """For uniform times and f = t² they lower it by a factor of 16n/15.

    The factor is 12·n·Var[f]/(f(1) − f(0))² for a smooth f(t), up to 1/n². A mean over n equal
    steps from a random start errs by (f(1) − f(0))/n times a variate that is uniform in ±½.
    """
    keys, n = jax.random.split(jax.random.key(5), 8000), 32

    def variance(variates):
        means = jax.vmap(lambda key: jnp.mean(losses_of_time(key, uniform, variates, n)))(keys)
        return np.var(np.asarray(means, np.float64))

    plain, low = variance(independent), variance(stratified)
    # A sample variance of 8000 has a relative deviation of √(2/8000) = 1.6 %, the flat one less.
    # Four of both are allowed.
    np.testing.assert_allclose(plain, 4 / 45 / n, rtol=0.065)
    np.testing.assert_allclose(plain / low, 16 * n / 15, rtol=0.09)


def test_quantiles_of_python_and_numpy_numbers(recwarn, unchecked_annotations):
    """The ends of EDM's domain cut off 2e-5 of the normal distribution."""
    u = np.array([0.5, 0.8])
    expected = np.exp(scipy.stats.norm(-1.2, 1.2).ppf(u))
    np.testing.assert_allclose(log_normal_sigma(EDM(), u), expected, rtol=1e-4)
    np.testing.assert_allclose(log_normal_sigma(EDM(), 0.5), expected[0], rtol=1e-4)
    assert not recwarn.list
