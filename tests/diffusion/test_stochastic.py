"""Stochastic samplers against their equations with the same noise in NumPy, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from mixtures import (
    DEVIATIONS,
    MEANS,
    WEIGHTS,
    Reference,
    filled,
    mixture_denoiser,
    normal,
    optimized_jit,
    quick_jit,
    states_of,
    tabulate,
    tabulate_together,
)

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    Table,
    VariancePreservingCosine,
    ddim,
    edm_heun,
    euler,
    noise_growth,
    process_diffusion,
    run,
    sample_keys,
    samplers,
    uniform_grid,
)

FLOW, COSINE, EDM_PROCESS = RectifiedFlow(), VariancePreservingCosine(), EDM()
TIME_AT = {  # functions of rho = sigma/alpha
    FLOW: lambda rho: rho / (1 + rho),
    COSINE: lambda rho: np.arctan(rho) * 2 / np.pi,
    EDM_PROCESS: lambda rho: rho,
}


def keys_of(batch, seed=0):
    return sample_keys(jax.random.key(seed), jnp.arange(batch))


def check(reference, sampler, step, per_step=1, **options):
    """Check that the sampler's states are those of `step(x, t, s, noise)`.

    noise(row, churn) is the noise of a row of that step.
    """
    keys, x = keys_of(len(reference.start)), reference.start
    states = [x]
    for i, (t, s) in enumerate(zip(reference.times[:-1], reference.times[1:], strict=True)):
        drawn = lambda row, churn=False, i=i: np.asarray(
            normal(keys, 2 * (per_step * i + row) + (not churn))
        )
        x = step(x, t, s, drawn)
        states.append(x)
    reference.check(sampler, states, keys, **options)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_equation_16(reference, eta):
    """abar = alpha²/(alpha² + sigma²), and x_t is scaled to be variance preserving, as there."""

    def step(x, t, s, drawn):
        scale = lambda t: np.hypot(reference.alpha(t), reference.sigma(t))
        abar_t, abar_s = ((reference.alpha(u) / scale(u)) ** 2 for u in (t, s))
        noise = reference.predict(x, t)[1]
        deviation = eta * np.sqrt((1 - abar_s) / (1 - abar_t)) * np.sqrt(1 - abar_t / abar_s)
        clean = (x / scale(t) - np.sqrt(1 - abar_t) * noise) / np.sqrt(abar_t)
        x = (
            np.sqrt(abar_s) * clean
            + np.sqrt(1 - abar_s - deviation**2) * noise
            + deviation * drawn(0)
        )
        return scale(s) * x

    check(reference, ddim, step, eta=eta)


def test_ddpm_is_the_posterior_of_two_noise_levels(reference):
    """q(x_s | x_t, x) by Bayes: the prior is N(alpha_s·x, sigma_s²), and x_t = a·x_s + N(0, b²)."""

    def step(x, t, s, drawn):
        a = reference.alpha(t) / reference.alpha(s)
        b = np.sqrt(reference.sigma(t) ** 2 - (a * reference.sigma(s)) ** 2)
        precision = 1 / reference.sigma(s) ** 2 + a**2 / b**2
        clean = reference.predict(x, t)[0]
        mean = (reference.alpha(s) * clean / reference.sigma(s) ** 2 + a * x / b**2) / precision
        return mean + drawn(0) / np.sqrt(precision)

    check(reference, samplers.ddpm, step)
    times = jnp.asarray(reference.times)
    ddpm, same = (
        samplers.ddpm.table(reference.process, times),
        ddim.table(reference.process, times, eta=1.0),
    )
    jax.tree.map(np.testing.assert_array_equal, ddpm._replace(largest=None), same)


def test_learned_variance_runs_from_the_least_to_the_largest(reference):
    """The largest is Var[x_s | x_t] for data N(0, 1): one normal conditioned on another."""
    share = np.array([0.0, 0.4, 0.8, 1.0])  # of each sample
    keys, times, x = keys_of(4), reference.times, jnp.zeros(4)
    denoiser = lambda x_t, t: Prediction(0 * x_t, 0 * x_t, jnp.asarray(share))
    sample = lambda x, keys: samplers.ddpm(
        denoiser, reference.process, x, jnp.asarray(times), keys=keys, trajectory=True
    )
    found = np.asarray(quick_jit(sample)(x, keys))
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        a = reference.alpha(t) / reference.alpha(s)
        b2 = reference.sigma(t) ** 2 - (a * reference.sigma(s)) ** 2
        total_t, total_s = (reference.alpha(u) ** 2 + reference.sigma(u) ** 2 for u in (t, s))
        least, largest = (
            b2 * (reference.sigma(s) / reference.sigma(t)) ** 2,
            total_s - (a * total_s) ** 2 / total_t,
        )
        deviation = np.exp((1 - share) * np.log(least) / 2 + share * np.log(largest) / 2)
        np.testing.assert_allclose(found[i + 1], deviation * normal(keys, 2 * i + 1), rtol=1e-11)


def test_no_learned_variance_at_the_clean_end():
    """The sample is x̂ = 0, and its gradient by the times is 0."""
    share = jnp.array([0.5, 0.5, 1.0, 1.0])
    denoiser = lambda x_t, t: Prediction(0 * x_t, 0 * x_t, share)
    sample = lambda times: samplers.ddpm(denoiser, FLOW, jnp.ones(4), times, keys=keys_of(4))
    found, slopes = quick_jit(lambda times: (sample(times), jax.jacobian(sample)(times)))(
        jnp.array([1.0, 0.5, 0.0])
    )
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(slopes, 0)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_ancestral_is_ddim_by_another_name(reference, eta):
    """k-diffusion's step in rho = sigma/alpha is Euler's to below rho_s, and noise up to it."""

    def step(x, t, s, drawn):
        rho_t, rho_s = (reference.sigma(u) / reference.alpha(u) for u in (t, s))
        up = min(rho_s, eta * np.sqrt(rho_s**2 * (rho_t**2 - rho_s**2) / rho_t**2))
        down = np.sqrt(rho_s**2 - up**2)
        scaled = x / reference.alpha(t)
        slope = (scaled - reference.predict(x, t)[0]) / rho_t
        return reference.alpha(s) * (scaled + slope * (down - rho_t) + drawn(0) * up)

    check(reference, samplers.euler_ancestral, step, eta=eta)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_dpm2_ancestral_is_its_equation(reference, eta):
    """k-diffusion's step in rho takes the slope at the middle of log rho.

    The last step is Euler's.
    """

    def step(x, t, s, drawn):
        rho_t, rho_s = (reference.sigma(u) / reference.alpha(u) for u in (t, s))
        up = eta * np.sqrt(rho_s**2 * (rho_t**2 - rho_s**2) / rho_t**2)
        down = np.sqrt(rho_s**2 - up**2)
        scaled, slope = x / reference.alpha(t), reference.predict(x, t)[1]
        last = s == reference.times[-1]
        if not last:
            middle = np.exp((np.log(rho_t) + np.log(down)) / 2)
            u = TIME_AT[reference.process](middle)
            slope = reference.predict(reference.alpha(u) * (scaled + slope * (middle - rho_t)), u)[
                1
            ]
        return reference.alpha(s) * (scaled + slope * (down - rho_t) + up * drawn(0 if last else 1))

    check(reference, samplers.dpm2_ancestral, step, per_step=2, eta=eta)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_dpm_solver_pp_sde_is_its_equation(reference, eta):
    """k-diffusion's step in rho takes x̂ from the middle of log rho. The last step is Euler's."""

    def step(x, t, s, drawn):
        rho_t = reference.sigma(t) / reference.alpha(t)

        def moved(clean, end, xi):
            rho = reference.sigma(end) / reference.alpha(end)
            up = eta * np.sqrt(rho**2 * (rho_t**2 - rho**2) / rho_t**2)
            down = np.sqrt(rho**2 - up**2)
            return reference.alpha(end) * (
                down / rho_t * (x / reference.alpha(t) - clean) + clean + up * xi
            )

        clean = reference.predict(x, t)[0]
        if s == reference.times[-1]:
            return moved(clean, s, drawn(0))
        middle = TIME_AT[reference.process](
            np.sqrt(rho_t * reference.sigma(s) / reference.alpha(s))
        )
        clean = reference.predict(moved(clean, middle, drawn(0)), middle)[0]
        return moved(clean, s, drawn(1))

    check(reference, samplers.dpm_solver_pp_sde, step, per_step=2, eta=eta)


def test_noise_of_a_path_adds_up_over_its_parts():
    """Over disjoint intervals the noise is N(0, 1) and independent.

    Over a union it is the sum of the parts, weighted by their lengths.
    """
    keys, rows = keys_of(4000), jnp.array([[1.0, 0.6], [0.6, 0.1], [1.0, 0.1], [0.1, 0.1]])
    table = Table(jnp.ones(4), fresh=jnp.array([1.0, 1.0, 1.0, 0.0]), path=rows)
    draw = quick_jit(
        lambda keys: run(
            lambda x, t: Prediction(x, x), jnp.zeros(len(keys)), table, keys, trajectory=True
        )
    )
    first, second, whole, none = np.asarray(draw(keys))[1:]
    np.testing.assert_allclose(
        np.sqrt(0.4) * first + np.sqrt(0.5) * second, np.sqrt(0.9) * whole, atol=1e-5
    )
    np.testing.assert_array_equal(none, 0)
    np.testing.assert_allclose(np.cov([first, second]), np.eye(2), atol=4 * np.sqrt(2 / 4000))


def test_samples_of_one_path_converge_as_the_grid_is_refined():
    """For equal keys, doubling the steps changes samples less and less.

    With noise by row they are different samples.
    """
    noise, keys = FLOW.prior(keys_of(256, seed=1), ()), keys_of(256)
    sample = optimized_jit(lambda table: run(mixture_denoiser(FLOW), noise, table, keys))

    def table(n):
        """Return a table filled up to one number of rows, so that one program serves all."""
        table = tabulate(samplers.dpm_solver_pp_sde, FLOW, uniform_grid(FLOW, n))._replace(
            step=None
        )
        idle = [(0, 255 - len(table.times))]
        table = jax.tree.map(
            lambda column: np.pad(column, idle + [(0, 0)] * (column.ndim - 1)), table
        )
        return table._replace(state=np.where(np.arange(255) < 2 * n - 1, table.state, 1))

    change = lambda ends: [
        float(np.median(np.abs(a - b))) for a, b in zip(ends, ends[1:], strict=False)
    ]
    first, second = change([sample(table(n)) for n in (32, 64, 128)])
    assert second < 0.75 * first < 0.1
    [by_row] = change(
        [states_of(FLOW, noise, table(n)._replace(path=None), keys)[-1] for n in (32, 64)]
    )
    assert by_row > 5 * first


@pytest.mark.parametrize("s_churn, s_min, s_max", [(1.0, 0.0, np.inf), (100.0, 0.25, 2.0)])
def test_edm_stochastic_is_algorithm_2(reference, s_churn, s_min, s_max):
    num_steps, s_noise, churned = len(reference.times) - 1, 1.1, []

    def step(x, t, s, drawn):
        rho, next_rho = (reference.sigma(u) / reference.alpha(u) for u in (t, s))
        gamma = min(s_churn / num_steps, np.sqrt(2) - 1) if s_min <= rho <= s_max else 0
        churned.append(gamma > 0)
        raised = rho + gamma * rho
        x = x / reference.alpha(t) + np.sqrt(raised**2 - rho**2) * s_noise * drawn(0, churn=True)
        u = TIME_AT[reference.process](raised)
        d = (x - reference.predict(reference.alpha(u) * x, u)[0]) / raised
        ahead = x + (next_rho - raised) * d
        if (
            s != reference.times[-1]
            # The algorithm's last time has sigma = 0, without a second evaluation.
        ):
            d_ahead = (ahead - reference.predict(reference.alpha(s) * ahead, s)[0]) / next_rho
            ahead = x + (next_rho - raised) * (d + d_ahead) / 2
        return reference.alpha(s) * ahead

    options = dict(s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    check(reference, samplers.edm_stochastic, step, per_step=2, **options)
    assert any(churned) and all(churned) == (s_min == 0)


def test_default_noise_is_the_papers(float64):
    """Churn is that of ImageNet-64 (Karras et al. 2022, table 5), and snr that of Song et al. 2021.

    sigma is just inside and outside of [0.05, 50], and there are 256 steps as in the paper.
    """
    times = jnp.concatenate([jnp.array([51.0, 49.0]), jnp.geomspace(40, 0.051, 253), jnp.zeros(2)])
    times = times.at[-2].set(0.049)
    churn = tabulate(samplers.edm_stochastic, EDM_PROCESS, times).churn[::2]
    expected = 1.003 * np.sqrt((1 + 40 / 256) ** 2 - 1) * times[:-1].at[jnp.array([0, -1])].set(0)
    np.testing.assert_allclose(churn, expected, rtol=1e-12)
    noise = tabulate(samplers.predictor_corrector, EDM_PROCESS, times).fresh[::2]
    np.testing.assert_allclose(noise, 2 * 0.16 * times[:-1], rtol=1e-12)


def test_churn_stays_below_the_noise_end(float64):
    """At the very end nothing is added. Just below it, noise is added up to the end."""
    options = dict(s_churn=40.0, s_min=0.0, s_max=np.inf, s_noise=1.0)
    table = lambda *times: tabulate(
        samplers.edm_stochastic, EDM_PROCESS, jnp.array(times), **options
    )
    at_end, below = table(80.0, 1.0, 0.0), table(64.0, 1.0, 0.0)
    np.testing.assert_array_equal([at_end.times[0], at_end.churn[0]], [80, 0])
    np.testing.assert_allclose(
        [below.times[0], below.churn[0]], [80, np.sqrt(80**2 - 64**2)], rtol=1e-12
    )


DIFFUSIONS = {  # SiT's three forms, in NumPy
    "growth": (noise_growth, lambda a, s, da, ds: s * ds),
    "own": (process_diffusion, lambda a, s, da, ds: 2 * s * ds - 2 * da / a * s**2),
    "sigma": (lambda process, t: process.sigma(t), lambda a, s, da, ds: s),
}


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_euler_maruyama_is_the_reverse_sde(reference, name):
    diffusion, in_numpy = DIFFUSIONS[name]

    def step(x, t, s, drawn):
        w, score = (
            in_numpy(*reference.coefficients(t)),
            -reference.predict(x, t)[1] / reference.sigma(t),
        )
        drift = reference.velocity(x, t) - w * score / 2
        return x + (s - t) * drift + np.sqrt(w * (t - s)) * drawn(0)

    check(reference, samplers.euler_maruyama, step, diffusion=diffusion)


def test_reverse_diffusion_is_equation_46(reference):
    """The paper has a = 1 (variance exploding) and a = √(1 − beta), b² = beta (preserving)."""

    def step(x, t, s, drawn):
        score = -reference.predict(x, t)[1] / reference.sigma(t)
        a = reference.alpha(t) / reference.alpha(s)
        if reference.process == COSINE:
            beta = 1 - a**2
            return (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * drawn(0)
        b2 = reference.sigma(t) ** 2 - (a * reference.sigma(s)) ** 2
        return (2 - a) * x + b2 * score + np.sqrt(b2) * drawn(0)

    check(reference, samplers.reverse_diffusion, step)


@pytest.mark.parametrize(
    "corrector_steps, predictor", [(0, "ddpm"), (1, "reverse_diffusion"), (3, "ddpm")]
)
def test_predictor_corrector_is_algorithms_4_and_5(reference, corrector_steps, predictor):
    """‖ξ‖/‖score‖ is sigma, as for score = −z/sigma in many dimensions."""

    def step(x, t, s, drawn):
        a = reference.alpha(t) / reference.alpha(s)
        b2 = reference.sigma(t) ** 2 - (a * reference.sigma(s)) ** 2
        for j in range(corrector_steps):
            score = -reference.predict(x, t)[1] / reference.sigma(t)
            epsilon = 2 * a**2 * (0.1 * reference.sigma(t)) ** 2
            x = x + epsilon * score + np.sqrt(2 * epsilon) * drawn(j)
        clean, noise = reference.predict(x, t)
        if predictor == "ddpm":
            kept = a * reference.sigma(s) / reference.sigma(t)
            mixed = kept * noise + np.sqrt(1 - kept**2) * drawn(corrector_steps)
            return reference.alpha(s) * clean + reference.sigma(s) * mixed
        return (2 - a) * x - b2 * noise / reference.sigma(t) + np.sqrt(b2) * drawn(corrector_steps)

    options = dict(predictor=getattr(samplers, predictor), corrector_steps=corrector_steps, snr=0.1)
    check(reference, samplers.predictor_corrector, step, per_step=corrector_steps + 1, **options)


def test_predictor_corrector_requires_a_plain_predictor():
    with pytest.raises(
        ValueError, match="predictor=dpm2_ancestral has several evaluations per step"
    ):
        table = functools.partial(samplers.predictor_corrector.table, FLOW)
        jax.eval_shape(lambda times: table(times, samplers.dpm2_ancestral), jnp.ones(5))


# Laws, on grids so fine that the error of their steps is a fraction of the samples' scatter.

STOCHASTIC = {
    "ddpm": (samplers.ddpm, {}),
    "ddim": (ddim, dict(eta=0.5)),
    "dpm2_ancestral": (samplers.dpm2_ancestral, {}),
    "edm_stochastic": (samplers.edm_stochastic, dict(s_noise=1.0)),
    "euler_maruyama": (samplers.euler_maruyama, {}),
    "its own diffusion": (samplers.euler_maruyama, dict(diffusion=process_diffusion)),
    "predictor_corrector": (samplers.predictor_corrector, {}),
}
LINEAR = STOCHASTIC | {  # tested with Gaussian data only
    "dpm_solver_pp_sde": (samplers.dpm_solver_pp_sde, {}),
    "sa_solver": (samplers.sa_solver, {}),
    "sa_solver, orders 3 and 4": (samplers.sa_solver, dict(order=3, corrector_order=4)),
}
ROWS_PER_STEP = {
    samplers.dpm2_ancestral: 2,
    samplers.edm_stochastic: 2,
    samplers.predictor_corrector: 2,
}
all_samplers = pytest.mark.parametrize("name", STOCHASTIC)
everywhere = pytest.mark.parametrize("process", TIME_AT, ids=lambda p: type(p).__name__)


def fine_grid(process, num_steps):
    if process == EDM_PROCESS:  # equation 5 of Karras et al. 2022
        i = np.arange(num_steps) / (num_steps - 1)
        return jnp.append((80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)
    return uniform_grid(process, num_steps)


def mixture_cdf(x):
    return scipy.special.ndtr((x[..., None] - MEANS) / DEVIATIONS) @ WEIGHTS


@functools.cache
def generator(process):
    """Make a function that returns samples, and samples with `factor` times the noise."""

    def denoise(x_t, t):  # any number of independent coordinates of the mixture, all at one time
        flat = mixture_denoiser(process)(x_t.reshape(-1), t[:1])
        return jax.tree.map(lambda a: a.reshape(x_t.shape), flat)

    @optimized_jit
    def generate(noise, table, keys, factor):
        def samples(factor):
            louder = lambda column: None if column is None else factor * column
            changed = table._replace(fresh=louder(table.fresh), churn=louder(table.churn))
            return run(denoise, noise, changed, keys)

        # Both use the same noise, drawn once.
        return jax.vmap(samples)(jnp.stack([jnp.ones_like(factor), factor]))

    return generate


@pytest.mark.parametrize(
    "process, name",
    # Noise of EDM's grid is added before a step, or in it by a rate.
    [(FLOW, name) for name in STOCHASTIC]
    + [(EDM_PROCESS, name) for name in ("edm_stochastic", "euler_maruyama")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_samples_have_the_law_of_the_data(process, name):
    """Grids run from alpha = 0, or from an end of finite noise, to sigma = 0.

    Kolmogorov–Smirnov at the level of 1 %: |F_n − F| < 1.63/√n = .0127 for n = 16384.

    Noise that is 10 % too large moves F by .018 or more (20 % for the default diffusion, whose
    noise is small). |F_n − F| scatters by .004. So such noise is rejected at least nine times in
    ten, and it is rejected here.
    """
    sampler, options = STOCHASTIC[name]
    num_steps = 512 // ROWS_PER_STEP.get(sampler, 1)
    table = filled(tabulate(sampler, process, fine_grid(process, num_steps), **options))
    keys, start_keys = np.split(keys_of(2 * 16384, seed=1), 2)
    noise = process.prior(start_keys, ())
    factor = jnp.float32(1.2 if name == "euler_maruyama" else 1.1)
    both = generator(process)(noise, table._replace(largest=None), keys, factor)
    right, wrong = np.asarray(both, np.float64).reshape(2, -1)
    # 3 deviations of the mean, √(2.413/16384) = .012.
    np.testing.assert_allclose(right.mean(), 0.1, atol=0.04)
    # 3 deviations of the variance, about 2.413·√(1.4/16384) = .022.
    np.testing.assert_allclose(right.var(), 2.413, atol=0.08)
    assert scipy.stats.kstest(right, mixture_cdf).pvalue > 0.01
    assert scipy.stats.kstest(wrong, mixture_cdf).pvalue < 0.01


@functools.partial(jax.jit, static_argnums=0)
def compiled_levels(process, times):
    return process.alpha(times), process.sigma(times)


def variance_at_the_end(process, table, deviation, variance):
    """Return the exact variance for data N(0, deviation²) and a start of `variance`.

    Everything is linear in independent normals.
    """
    t = np.asarray(table.times)
    alpha, sigma = np.asarray(compiled_levels(process, table.times))
    total = (alpha * deviation) ** 2 + sigma**2
    # Those of the start and two normals of every row.
    x = np.sqrt(variance) * np.eye(1, 1 + 2 * len(t))[0]
    cleans, noises = [0 * x] * 4, [0 * x] * 4
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


@pytest.mark.parametrize(
    "name, order",
    [
        ("ddpm", 1),
        ("ddim", 1),
        ("euler_maruyama", 1),
        ("its own diffusion", 1),
        ("dpm2_ancestral", 2),  # its noise maps the law at rho_down exactly to that at rho_s
        ("edm_stochastic", 2),  # the same holds
        ("dpm_solver_pp_sde", 1),
        ("sa_solver", 2),
        ("sa_solver, orders 3 and 4", 2),
    ],
)
def test_order_of_the_variance_for_gaussian_data(float64, name, order):
    """The steps go from the exact law at one end of an interval in the domain to the other.

    The tables of all processes agree with their equations above.
    """
    sampler, options = LINEAR[name]
    reference, s, errors, ends = Reference(COSINE), 0.6, [], (0.8, 0.2)
    variance = lambda t: (reference.alpha(t) * s) ** 2 + reference.sigma(t) ** 2
    grids = [(COSINE, np.linspace(*ends, num_steps + 1)) for num_steps in (128, 256)]
    for table in tabulate_together(sampler, grids, **options):
        errors.append(variance_at_the_end(COSINE, table, s, variance(ends[0])) - variance(ends[1]))
    found = np.log2(errors[0] / errors[1])
    # On these grids the order of sa_solver is between 2.2 and 2.9.
    assert abs(found - order) < 0.1 or (
        sampler is samplers.sa_solver and order < found < order + 0.9
    )


def test_largest_variance_is_exact_for_normal_data(reference):
    """For data N(0, 1) and a learned variance of 1, steps of any length keep the exact law."""
    process, times = reference.process, jnp.asarray(reference.times)
    table = tabulate(samplers.ddpm, process, times)
    total = np.sum(np.square(compiled_levels(process, times)), 0)
    found = variance_at_the_end(process, table._replace(fresh=table.largest), 1.0, total[0])
    np.testing.assert_allclose(found, total[-1], rtol=1e-13)
    # The least variance does not.
    assert abs(variance_at_the_end(process, table, 1.0, total[0]) / total[-1] - 1) > 1e-3


@pytest.mark.parametrize(
    "sampler, quiet, power, still",
    [
        (ddim, lambda e: dict(eta=e), 1, ddim),
        (samplers.dpm2_ancestral, lambda e: dict(eta=e), 1, samplers.dpm2_ancestral),
        # The deviation of the noise grows as √gamma and √w.
        (
            samplers.edm_stochastic,
            lambda e: dict(s_churn=e, s_min=0.0, s_max=np.inf),
            0.5,
            edm_heun,
        ),
        (
            samplers.euler_maruyama,
            lambda e: dict(diffusion=lambda p, t: e * noise_growth(p, t)),
            0.5,
            euler,
        ),
    ],
    ids=["ddim", "dpm2_ancestral", "edm_stochastic", "euler_maruyama"],
)
def test_without_noise_it_is_the_ode(float64, sampler, quiet, power, still):
    """With zero noise, traced or not, they are equal to rounding.

    Near zero the difference falls at the rate of the noise's deviation.
    """
    reference = Reference(COSINE)
    times, keys = jnp.asarray(reference.times), keys_of(len(reference.start))
    states = lambda table, keys: states_of(COSINE, jnp.asarray(reference.start), table, keys)
    options = dict(eta=0.0) if still is samplers.dpm2_ancestral else {}
    expected = states(tabulate(still, COSINE, times, **options), None)
    loud_table = quick_jit(lambda e: sampler.table(COSINE, times, **quiet(e)))
    loud = lambda e: states(loud_table(e), keys)
    np.testing.assert_allclose(loud(0.0), expected, rtol=1e-13, atol=1e-13)
    distance = lambda e: np.abs(loud(e) - expected).max()
    np.testing.assert_allclose(np.log10(distance(1e-6) / distance(1e-8)) / 2, power, atol=0.01)


@all_samplers
def test_samples_depend_on_nothing_but_their_own_key_and_start(name):
    sampler, options = STOCHASTIC[name]
    table = tabulate(sampler, FLOW, uniform_grid(FLOW, 10), **options)
    noise, keys = FLOW.prior(keys_of(8, seed=1), ()), keys_of(8)
    together = states_of(FLOW, noise, table, keys)[-1]
    np.testing.assert_array_equal(together, states_of(FLOW, noise, table, keys)[-1])
    chosen = jnp.array([6, 1, 3, 3, 1, 6, 1, 3])  # as many, so that the program is the same
    apart = states_of(FLOW, noise[chosen], table, keys[chosen])[-1]
    # Rounding of ten steps in float32.
    np.testing.assert_allclose(apart, together[chosen], rtol=1e-5, atol=1e-5)
    assert np.abs(together - states_of(FLOW, noise, table, keys_of(8, seed=2))[-1]).max() > 0.1


@pytest.mark.parametrize("num_steps", [1, 3])
@everywhere
def test_options_are_finite_at_infinite_ends_too(process, num_steps):
    """Options are churn without bounds, and infinite diffusion at alpha = 0."""
    times = (
        uniform_grid(process, num_steps) if num_steps > 1 else jnp.array([process.domain[1], 0.0])
    )
    churned = tabulate(samplers.edm_stochastic, process, times, s_min=0.0, s_max=np.inf)
    diffusing = tabulate(samplers.euler_maruyama, process, times, diffusion=process_diffusion)
    corrected = tabulate(
        samplers.predictor_corrector, process, times, predictor=samplers.euler_maruyama
    )
    for column in jax.tree.leaves([churned, diffusing, corrected]):
        assert np.isfinite(column).all()


@everywhere
def test_noise_does_not_stay_in_the_sample(process):
    """The last step of Euler–Maruyama to sigma = 0 is Euler's, and the step before it is not."""
    times = uniform_grid(process, 3)
    noisy, quiet = (tabulate(f, process, times) for f in (samplers.euler_maruyama, euler))
    # sigma' = 0 at the cosine's end.
    np.testing.assert_array_equal(noisy.fresh > 0, [process != COSINE, True, False])
    np.testing.assert_array_equal(noisy.noise[-1], quiet.noise[-1])
    assert (noisy.noise[1] != quiet.noise[1]).all()


def test_noise_does_not_lead_to_noise():
    with pytest.raises(ValueError, match="ddpm draws noise, so its grid falls from noise to data"):
        samplers.ddpm(
            mixture_denoiser(FLOW), FLOW, jnp.zeros(4), jnp.array([0.1, 0.5, 0.9]), keys=keys_of(4)
        )


@pytest.mark.parametrize("name", ["ddpm", "edm_stochastic"])  # noise in a step, and before it
def test_noise_needs_keys(name):
    sampler, options = STOCHASTIC[name]
    with pytest.raises(ValueError, match="give it keys"):
        sampler(mixture_denoiser(FLOW), FLOW, jnp.zeros(4), uniform_grid(FLOW, 4), **options)


@pytest.mark.parametrize("keys", [jax.random.key(0), keys_of(3)])
def test_keys_are_one_per_sample(keys, unchecked_annotations):
    with pytest.raises(
        ValueError,
        match=r"keys are one per sample, \(4,\); got \(3?,?\): give .* key is jax.random.key",
    ):
        samplers.ddpm(mixture_denoiser(FLOW), FLOW, jnp.zeros(4), uniform_grid(FLOW, 4), keys=keys)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_the_noise_of_ddim_is_at_most_that_of_ddpm(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}; it must be from 0 .* to 1"):
        samplers.ddim(
            mixture_denoiser(FLOW),
            FLOW,
            jnp.zeros(4),
            uniform_grid(FLOW, 4),
            keys=keys_of(4),
            eta=eta,
        )


def test_a_network_is_no_denoiser():
    with pytest.raises(ValueError, match="returns a Prediction.* by predict"):
        samplers.euler(lambda x, t: x, FLOW, jnp.zeros(4), uniform_grid(FLOW, 4))
