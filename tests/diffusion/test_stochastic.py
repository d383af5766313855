"""Samplers that draw noise, against their equations in plain NumPy with the same noise, and against their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VariancePreservingCosine,
    ddim,
    euler,
    noise_growth,
    process_diffusion,
    run,
    sample_keys,
    samplers,
    uniform_grid,
)

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
FLOW, COSINE, EDM_PROCESS = RectifiedFlow(), VariancePreservingCosine(), EDM()


def karras_times(num_steps):
    """Karras et al. 2022, equation 5, written here for tests alone."""
    i = np.arange(num_steps)
    return np.append((80 ** (1 / 7) + i / (num_steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)


def posterior(x_t, alpha, sigma, xp=np):
    """E[x | x_t] and E[z | x_t] of a mixture of Gaussians in every coordinate, with `xp` NumPy or jax.numpy."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    residual = x_t[..., None] - alpha * MEANS
    logits = np.log(WEIGHTS) - xp.log(variance) / 2 - residual**2 / (2 * variance)
    weights = xp.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    clean = xp.sum(weights * (MEANS + alpha * DEVIATIONS**2 / variance * residual), -1)
    return clean, xp.sum(weights * sigma / variance * residual, -1)


def mixture_denoiser(process):
    def denoise(x_t, t):
        expand = lambda a: a.reshape(a.shape + (1,) * x_t.ndim)
        return Prediction(*posterior(x_t, expand(process.alpha(t)), expand(process.sigma(t)), jnp))

    return denoise


# The three processes in NumPy alone, t ↦ (alpha, sigma, alpha', sigma', t at sigma/alpha).
REFERENCES = {
    FLOW: (lambda t: 1 - t, lambda t: t, lambda t: -1.0, lambda t: 1.0, lambda rho: rho / (1 + rho)),
    COSINE: (
        lambda t: np.cos(np.pi / 2 * t),
        lambda t: np.sin(np.pi / 2 * t),
        lambda t: -np.pi / 2 * np.sin(np.pi / 2 * t),
        lambda t: np.pi / 2 * np.cos(np.pi / 2 * t),
        lambda rho: np.arctan(rho) * 2 / np.pi,
    ),
    EDM_PROCESS: (lambda t: 1.0, lambda t: t, lambda t: 0.0, lambda t: 1.0, lambda rho: rho),
}
# Inside their domains, where every formula of the papers is finite.
INTERIOR = {
    FLOW: np.array([0.9, 0.75, 0.5, 0.3, 0.22, 0.05]),
    COSINE: np.array([0.95, 0.7, 0.5, 0.3, 0.1, 0.02]),
    EDM_PROCESS: np.array([40.0, 10.0, 2.0, 0.9, 0.3, 0.01]),
}
BATCH = 8
everywhere = pytest.mark.parametrize("process", REFERENCES, ids=lambda p: type(p).__name__)


def keys_of(batch, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(batch))


def draw(keys, number, shape=()):
    return np.asarray(jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), shape))(keys))


def start(process, t, batch=BATCH):
    scale = np.sqrt(REFERENCES[process][0](t) ** 2 + REFERENCES[process][1](t) ** 2)
    return scale * np.linspace(-2.0, 2.0, batch)


def assert_follows(sampler, process, step, per_step=1, rows=None, **options):
    """The sampler's trajectory is that of `step(x, t, s, draw)`, where draw(j, churn) is a row's noise."""
    alpha, sigma = REFERENCES[process][:2]
    times, keys = INTERIOR[process], keys_of(BATCH)
    x = start(process, times[0])
    expected = [x]
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        noise_of = lambda row, churn=False, i=i: draw(keys, 2 * (per_step * i + row) + (not churn))
        x = step(x, t, s, noise_of, lambda x, t: posterior(x, alpha(t), sigma(t)))
        expected.append(x)
    sample = functools.partial(sampler, mixture_denoiser(process), process, trajectory=True, **options)
    found = jax.jit(sample)(jnp.asarray(expected[0]), jnp.asarray(times), keys=keys)
    assert found.shape == (len(times), BATCH)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    return np.asarray(found[-1])


@everywhere
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_equation_16(process, eta, float64):
    """With abar = alpha²/(alpha² + sigma²) and x_t scaled to it, as the paper has it for variance preserving ones."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        scale = lambda t: np.sqrt(alpha(t) ** 2 + sigma(t) ** 2)
        abar_t, abar_s = (alpha(t) / scale(t)) ** 2, (alpha(s) / scale(s)) ** 2
        noise = predict(x, t)[1]
        deviation = eta * np.sqrt((1 - abar_s) / (1 - abar_t)) * np.sqrt(1 - abar_t / abar_s)
        clean = (x / scale(t) - np.sqrt(1 - abar_t) * noise) / np.sqrt(abar_t)
        x = np.sqrt(abar_s) * clean + np.sqrt(1 - abar_s - deviation**2) * noise + deviation * noise_of(0)
        return scale(s) * x

    assert_follows(ddim, process, step, eta=eta)


@everywhere
def test_ddpm_is_the_posterior_of_two_noise_levels(process, float64):
    """q(x_s | x_t, x) by Bayes: the prior N(alpha_s·x, sigma_s²) and the likelihood of x_t = a·x_s + N(0, b²)."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        a = alpha(t) / alpha(s)
        b = np.sqrt(sigma(t) ** 2 - a**2 * sigma(s) ** 2)
        precision = 1 / sigma(s) ** 2 + a**2 / b**2
        mean = (alpha(s) * predict(x, t)[0] / sigma(s) ** 2 + a * x / b**2) / precision
        return mean + noise_of(0) / np.sqrt(precision)

    assert_follows(samplers.ddpm, process, step)
    tables = (
        f(process, jnp.asarray(INTERIOR[process]))
        for f in (samplers.ddpm.table, lambda *a: ddim.table(*a, 1.0))
    )
    ddpm, same = (table._replace(largest=None) for table in tables)
    jax.tree.map(np.testing.assert_array_equal, ddpm, same)


@everywhere
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_learned_variance_runs_from_the_least_to_the_largest(process, share, float64):
    """The largest one is Var[x_s | x_t] for data N(0, 1): a normal conditioned on another."""
    alpha, sigma = REFERENCES[process][:2]
    times, keys = INTERIOR[process], keys_of(BATCH)

    def denoiser(x_t, t):
        return Prediction(jnp.zeros_like(x_t), jnp.zeros_like(x_t), jnp.full_like(x_t, share))

    found = samplers.ddpm(denoiser, process, jnp.zeros(BATCH), jnp.asarray(times), keys=keys, trajectory=True)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        a = alpha(t) / alpha(s)
        b2 = sigma(t) ** 2 - a**2 * sigma(s) ** 2
        total_t, total_s = (alpha(u) ** 2 + sigma(u) ** 2 for u in (t, s))
        least, largest = b2 * sigma(s) ** 2 / sigma(t) ** 2, total_s - (a * total_s) ** 2 / total_t
        deviation = np.exp((1 - share) * np.log(least) / 2 + share * np.log(largest) / 2)
        np.testing.assert_allclose(found[i + 1], deviation * draw(keys, 2 * i + 1), rtol=1e-11)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_no_learned_variance_at_the_clean_end(share):
    denoiser = lambda x_t, t: Prediction(0 * x_t, 0 * x_t, jnp.full_like(x_t, share))
    found = samplers.ddpm(denoiser, FLOW, jnp.ones(BATCH), jnp.array([1.0, 0.5, 0.0]), keys=keys_of(BATCH))
    np.testing.assert_array_equal(found, 0)


@everywhere
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_ancestral_is_ddim_by_another_name(process, eta, float64):
    """k-diffusion's step in rho = sigma/alpha: Euler down to below rho_s, and noise up to it."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        rho_t, rho_s = sigma(t) / alpha(t), sigma(s) / alpha(s)
        up = min(rho_s, eta * np.sqrt(rho_s**2 * (rho_t**2 - rho_s**2) / rho_t**2))
        down = np.sqrt(rho_s**2 - up**2)
        clean, _ = predict(x, t)
        slope = (x / alpha(t) - clean) / rho_t
        return alpha(s) * (x / alpha(t) + slope * (down - rho_t) + noise_of(0) * up)

    assert_follows(samplers.euler_ancestral, process, step, eta=eta)


@everywhere
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_dpm2_ancestral_is_its_equation(process, eta, float64):
    """k-diffusion's steps in rho: the slope at the middle of log rho; the last step is Euler's."""
    alpha, sigma, _, _, time_at = REFERENCES[process]

    def step(x, t, s, noise_of, predict):
        rho_t, rho_s = sigma(t) / alpha(t), sigma(s) / alpha(s)
        up = eta * np.sqrt(rho_s**2 * (rho_t**2 - rho_s**2) / rho_t**2)
        down = np.sqrt(rho_s**2 - up**2)
        scaled, slope = x / alpha(t), predict(x, t)[1]
        last = s == INTERIOR[process][-1]
        if not last:
            middle = np.exp((np.log(rho_t) + np.log(down)) / 2)
            halfway = scaled + slope * (middle - rho_t)
            slope = predict(alpha(time_at(middle)) * halfway, time_at(middle))[1]
        return alpha(s) * (scaled + slope * (down - rho_t) + up * noise_of(0 if last else 1))

    assert_follows(samplers.dpm2_ancestral, process, step, per_step=2, eta=eta)


@everywhere
@pytest.mark.parametrize("s_churn, s_min, s_max", [(1.0, 0.0, np.inf), (100.0, 0.25, 9.0)])
def test_edm_stochastic_is_algorithm_2(process, s_churn, s_min, s_max, float64):
    alpha, sigma, _, _, time_at = REFERENCES[process]
    s_noise, num_steps, churned = 1.1, len(INTERIOR[process]) - 1, []

    def step(x, t, s, noise_of, predict):
        rho, next_rho, x = sigma(t) / alpha(t), sigma(s) / alpha(s), x / alpha(t)
        gamma = min(s_churn / num_steps, np.sqrt(2) - 1) if s_min <= rho <= s_max else 0
        churned.append(gamma > 0)
        raised = rho + gamma * rho
        x = x + np.sqrt(raised**2 - rho**2) * s_noise * noise_of(0, churn=True)
        u = time_at(raised)
        d = (x - predict(alpha(u) * x, u)[0]) / raised
        ahead = x + (next_rho - raised) * d
        if s != INTERIOR[process][-1]:  # the algorithm's last time has sigma = 0, and no second evaluation
            d_ahead = (ahead - predict(alpha(s) * ahead, s)[0]) / next_rho
            ahead = x + (next_rho - raised) * (d + d_ahead) / 2
        return alpha(s) * ahead

    options = dict(s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    assert_follows(samplers.edm_stochastic, process, step, per_step=2, **options)
    assert any(churned) and all(churned) == (s_min == 0)


def test_churn_stays_below_the_noise_end(float64):
    """At the very end nothing is added; just below it, up to the end."""
    table = lambda *times: samplers.edm_stochastic.table(
        EDM_PROCESS, jnp.array(times), 40.0, 0.0, np.inf, 1.0
    )
    at_end, below = table(80.0, 1.0, 0.0), table(64.0, 1.0, 0.0)
    np.testing.assert_array_equal([at_end.times[0], at_end.churn[0]], [80, 0])
    np.testing.assert_allclose([below.times[0], below.churn[0]], [80, np.sqrt(80**2 - 64**2)], rtol=1e-12)


DIFFUSIONS = {  # of SiT in its three forms, in NumPy
    "growth": (noise_growth, lambda a, s, da, ds: s * ds),
    "own": (process_diffusion, lambda a, s, da, ds: 2 * s * ds - 2 * da / a * s**2),
    "sigma": (lambda process, t: process.sigma(t), lambda a, s, da, ds: s),
}


@everywhere
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_euler_maruyama_is_the_reverse_sde(process, name, float64):
    values = lambda t: [f(t) for f in REFERENCES[process][:4]]
    diffusion, reference = DIFFUSIONS[name]

    def step(x, t, s, noise_of, predict):
        a, sigma, da, ds = values(t)
        w, score = reference(a, sigma, da, ds), -predict(x, t)[1] / sigma
        velocity = da * (x - sigma * predict(x, t)[1]) / a + ds * predict(x, t)[1]
        return x + (s - t) * (velocity - w * score / 2) + np.sqrt(w * (t - s)) * noise_of(0)

    assert_follows(samplers.euler_maruyama, process, step, diffusion=diffusion)


@everywhere
def test_reverse_diffusion_is_equation_46(process, float64):
    """With the paper's own two cases: a = 1 (variance exploding), a = √(1 − beta), b² = beta (variance preserving)."""
    alpha, sigma = REFERENCES[process][:2]

    def step(x, t, s, noise_of, predict):
        score = -predict(x, t)[1] / sigma(t)
        if process is COSINE:
            beta = 1 - (alpha(t) / alpha(s)) ** 2
            return (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * noise_of(0)
        b2 = sigma(t) ** 2 - (alpha(t) / alpha(s) * sigma(s)) ** 2
        return (2 - alpha(t) / alpha(s)) * x + b2 * score + np.sqrt(b2) * noise_of(0)

    assert_follows(samplers.reverse_diffusion, process, step)


@everywhere
@pytest.mark.parametrize("corrector_steps, predictor", [(0, "ddpm"), (1, "reverse_diffusion"), (3, "ddpm")])
def test_predictor_corrector_is_algorithms_4_and_5(process, corrector_steps, predictor, float64):
    alpha, sigma = REFERENCES[process][:2]
    times, keys, snr, shape = INTERIOR[process], keys_of(BATCH), 0.2, (2, 3)
    predict = lambda x, t: posterior(x, alpha(t), sigma(t))
    x = start(process, times[0])[:, None, None] * np.array([[1.0, -0.5, 0.3], [0.2, 0.7, -1.0]])
    expected, row = [x], 0
    for t, s in zip(times[:-1], times[1:], strict=True):
        a = alpha(t) / alpha(s)
        b2 = sigma(t) ** 2 - a**2 * sigma(s) ** 2
        for _ in range(corrector_steps):
            xi, score = draw(keys, 2 * row + 1, shape), -predict(x, t)[1] / sigma(t)
            norms = [np.array([np.linalg.norm(each) for each in many])[:, None, None] for many in (xi, score)]
            epsilon = 2 * a**2 * (snr * norms[0] / norms[1]) ** 2
            x, row = x + epsilon * score + np.sqrt(2 * epsilon) * xi, row + 1
        xi, (clean, noise) = draw(keys, 2 * row + 1, shape), predict(x, t)
        if predictor == "ddpm":
            kept = a * sigma(s) / sigma(t)
            x = alpha(s) * clean + sigma(s) * (kept * noise + np.sqrt(1 - kept**2) * xi)
        else:
            x = (2 - a) * x - b2 * noise / sigma(t) + np.sqrt(b2) * xi
        expected, row = [*expected, x], row + 1
    found = samplers.predictor_corrector(
        mixture_denoiser(process),
        process,
        jnp.asarray(expected[0]),
        jnp.asarray(times),
        keys=keys,
        trajectory=True,
        predictor=getattr(samplers, predictor),
        corrector_steps=corrector_steps,
        snr=snr,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())


def test_predictor_corrector_asks_for_a_plain_predictor():
    with pytest.raises(ValueError, match="predictor=dpm2_ancestral has several evaluations a step"):
        samplers.predictor_corrector.table(FLOW, uniform_grid(FLOW, 4), samplers.dpm2_ancestral)


# Laws. Grids so fine that the error of their steps is a fraction of what the samples scatter.
FINE = {FLOW: 256, COSINE: 256, EDM_PROCESS: 400}  # halved where a step has two evaluations
STOCHASTIC = {
    "ddpm": (samplers.ddpm, {}),
    "ddim": (ddim, dict(eta=0.5)),
    "dpm2_ancestral": (samplers.dpm2_ancestral, {}),
    "edm_stochastic": (samplers.edm_stochastic, dict(s_noise=1.0)),
    "euler_maruyama": (samplers.euler_maruyama, {}),
    "its own diffusion": (samplers.euler_maruyama, dict(diffusion=process_diffusion)),
    "predictor_corrector": (samplers.predictor_corrector, dict(snr=0.02)),
}
all_samplers = pytest.mark.parametrize("name", STOCHASTIC)


def grid(process, num_steps):
    return (
        jnp.asarray(karras_times(num_steps)) if process is EDM_PROCESS else uniform_grid(process, num_steps)
    )


def mixture_cdf(x):
    return scipy.special.ndtr((x[..., None] - MEANS) / DEVIATIONS) @ WEIGHTS


@everywhere
@all_samplers
def test_samples_have_the_law_of_the_data(process, name):
    """Kolmogorov–Smirnov at the level of 1 %: |F_n − F| < 1.63/√n = .0127 for n = 16384.

    Noise 10 % too large moves F by .018 or more (20 % for the default diffusion, whose noise is small), while |F_n − F|
    varies by .004: it is rejected with a probability of 9 in 10 or more, and here in fact.
    """
    sampler, options = STOCHASTIC[name]
    num_steps = FINE[process] // (2 if name in ("dpm2_ancestral", "edm_stochastic") else 1)
    table = sampler.table(process, grid(process, num_steps), **options)
    shape = (
        (256,) if name == "predictor_corrector" else ()
    )  # norms over many dimensions, each one the mixture
    keys, start_keys = np.split(keys_of(2 * 16384 // int(np.prod(shape)), seed=1), 2)
    noise = process.prior(start_keys, shape)
    generate = jax.jit(
        lambda table: run(mixture_denoiser(process), noise, table._replace(rows_per_step=1), keys)
    )

    def samples(factor):
        louder = lambda column: None if column is None else factor * column
        wrong = table._replace(fresh=louder(table.fresh), churn=louder(table.churn), rows_per_step=None)
        return np.asarray(generate(wrong), np.float64).ravel()

    right = samples(1.0)
    np.testing.assert_allclose(
        right.mean(), 0.1, atol=0.04
    )  # 3 deviations of the mean, √(2.413/16384) = .012
    np.testing.assert_allclose(
        right.var(), 2.413, atol=0.08
    )  # 3 of the variance's, 2.413·√(1.35/16384) = .022
    assert scipy.stats.kstest(right, mixture_cdf).pvalue > 0.01
    wrong = samples(1.2 if name == "euler_maruyama" else 1.1)
    assert scipy.stats.kstest(wrong, mixture_cdf).pvalue < 0.01


def variance_at_the_end(process, table, deviation, variance):
    """Exactly, for data N(0, deviation²) and a start of `variance`: all is linear in independent normals."""
    t = np.asarray(table.times)
    alpha, sigma = np.asarray(process.alpha(table.times)), np.asarray(process.sigma(table.times))
    total = (alpha * deviation) ** 2 + sigma**2
    x = np.sqrt(variance) * np.eye(1, 1 + 2 * len(t))[0]  # of the start and of every row's two normals
    cleans, noises = [0 * x] * 2, [0 * x] * 2
    for i in range(len(t)):
        if table.churn is not None:
            x = np.asarray(table.churn_state)[i] * x
            x[1 + 2 * i] += np.asarray(table.churn)[i]
        cleans = [alpha[i] * deviation**2 / total[i] * x, *cleans]
        noises = [sigma[i] / total[i] * x, *noises]
        x = 0 if table.state is None else np.asarray(table.state)[i] * x
        x = x + sum(c * each for c, each in zip(np.asarray(table.clean)[i], cleans, strict=False))
        x = x + sum(c * each for c, each in zip(np.asarray(table.noise)[i], noises, strict=False))
        if table.fresh is not None:
            x[2 + 2 * i] += np.asarray(table.fresh)[i]
    return x @ x


@everywhere
@pytest.mark.parametrize(
    "name, order",
    [
        ("ddpm", 1),
        ("ddim", 1),
        ("euler_maruyama", 1),
        ("its own diffusion", 1),
        ("dpm2_ancestral", 2),  # its noise takes the law at rho_down exactly to that at rho_s
        ("edm_stochastic", 2),  # likewise
    ],
)
def test_order_of_the_variance_for_gaussian_data(process, name, order, float64):
    """From the exact law at one end of an interval, inside the domain, to the other."""
    sampler, options = STOCHASTIC[name]
    s, errors = 0.6, []
    variance = lambda t: (REFERENCES[process][0](t) * s) ** 2 + REFERENCES[process][1](t) ** 2
    ends = (2.0, 0.3) if process is EDM_PROCESS else (0.8, 0.2)
    for num_steps in (128, 256):
        table = sampler.table(process, jnp.linspace(*ends, num_steps + 1), **options)
        errors.append(variance_at_the_end(process, table, s, variance(ends[0])) - variance(ends[1]))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.1)


@everywhere
def test_largest_variance_is_exact_for_normal_data(process, float64):
    """Data N(0, 1) and a learned variance of 1: every step of any length keeps the exact law."""
    times = jnp.asarray(INTERIOR[process])
    table = samplers.ddpm.table(process, times)
    total = process.alpha(times) ** 2 + process.sigma(times) ** 2
    found = variance_at_the_end(process, table._replace(fresh=table.largest), 1.0, total[0])
    np.testing.assert_allclose(found, total[-1], rtol=1e-13)
    assert (
        abs(variance_at_the_end(process, table, 1.0, total[0]) / total[-1] - 1) > 1e-3
    )  # the least one does not


@everywhere
@pytest.mark.parametrize(
    "name, quiet, power",
    [
        ("ddim", lambda e: dict(eta=e), 1),
        ("dpm2_ancestral", lambda e: dict(eta=e), 1),
        ("edm_stochastic", lambda e: dict(s_churn=e, s_min=0.0, s_max=np.inf), 0.5),  # noise grows as √gamma
        ("euler_maruyama", lambda e: dict(diffusion=lambda p, t: e * noise_growth(p, t)), 0.5),
    ],
)
def test_without_noise_it_is_the_ode(process, name, quiet, power, float64):
    """To rounding at zero, traced or not; and on the way there at the rate of the noise's deviation."""
    sampler, times, keys = STOCHASTIC[name][0], jnp.asarray(INTERIOR[process]), keys_of(BATCH)
    noise = jnp.asarray(start(process, times[0]))
    sample = lambda options, keys: sampler(
        mixture_denoiser(process), process, noise, times, keys=keys, **options
    )
    still = {
        "ddim": lambda: ddim(mixture_denoiser(process), process, noise, times),
        "euler_maruyama": lambda: euler(mixture_denoiser(process), process, noise, times),
    }.get(name, lambda: sample(quiet(0.0), None))()
    traced = jax.jit(lambda e: sample(quiet(e), keys))
    np.testing.assert_allclose(traced(0.0), still, rtol=1e-13, atol=1e-13)
    distance = lambda e: np.abs(traced(e) - still).max()
    rate = np.log10(distance(1e-6) / distance(1e-8)) / 2
    np.testing.assert_allclose(rate, power, atol=0.01)


@all_samplers
def test_samples_depend_on_nothing_but_their_own_key_and_start(name):
    sampler, options = STOCHASTIC[name]
    noise, times = FLOW.prior(keys_of(8, seed=1), (3,)), uniform_grid(FLOW, 10)
    generate = jax.jit(lambda x, keys: sampler(mixture_denoiser(FLOW), FLOW, x, times, keys=keys, **options))
    together = generate(noise, keys_of(8))
    np.testing.assert_array_equal(together, generate(noise, keys_of(8)))
    chosen = jnp.array([6, 1, 3])
    apart = generate(noise[chosen], keys_of(8)[chosen])
    np.testing.assert_allclose(
        apart, together[chosen], rtol=1e-5, atol=1e-5
    )  # rounding, at ten steps of float32
    assert np.abs(together - generate(noise, keys_of(8, seed=2))).max() > 0.1


@everywhere
@all_samplers
def test_ends_of_infinite_log_snr_are_finite(process, name):
    """In one step and in three, with everything in one program, in float32."""
    sampler, options = STOCHASTIC[name]
    if name == "edm_stochastic":
        options = dict(s_min=0.0, s_max=np.inf)
    noise, keys = process.prior(keys_of(4), ()), keys_of(4)
    sample = lambda times: sampler(mixture_denoiser(process), process, noise, times, keys=keys, **options)
    grids = jnp.array([*process.domain[::-1]]).at[1].set(process.clean_end), uniform_grid(process, 3)
    one, three = jax.jit(lambda grids: [sample(times) for times in grids])(grids)
    assert np.isfinite(one).all() and np.isfinite(three).all()
    if process is FLOW:
        np.testing.assert_allclose(one, 0.1, atol=1e-6)  # x̂ at pure noise: the mean of the data


@all_samplers
def test_noise_needs_keys(name):
    sampler, options = STOCHASTIC[name]
    with pytest.raises(ValueError, match="give it keys"):
        sampler(mixture_denoiser(FLOW), FLOW, jnp.zeros(4), uniform_grid(FLOW, 4), **options)


@all_samplers
def test_the_compiled_program_of_a_stochastic_sampler_holds_the_network_once(name):
    sampler, options = STOCHASTIC[name]
    denoiser = lambda x_t, t: Prediction(jnp.tanh(x_t), x_t)
    generate = jax.jit(lambda x, times, keys: sampler(denoiser, FLOW, x, times, keys=keys, **options))
    program = generate.lower(jnp.zeros((4, 6)), uniform_grid(FLOW, 5), keys_of(4)).compile()
    assert program.as_text().count(" tanh(") == 1
