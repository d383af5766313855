"""A mixture of Gaussians in one dimension, with its exact denoiser and its exact flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from genjax.diffusion import EDM, Prediction, RectifiedFlow, VariancePreservingCosine, run, samplers
from genjax.diffusion.samplers.tables import steps_of

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.array([0.5, 0.8])
# These options compile in a third of the time, for programs that run only a few times.
LEVEL = "xla_backend_optimization_level"
QUICK = {LEVEL: 0, "xla_cpu_use_fusion_emitters": False}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
# For programs that run for seconds. LLVM's first level compiles as fast and runs four times faster.
optimized_jit = functools.partial(jax.jit, compiler_options=QUICK | {LEVEL: 1})
# All samplers with a table except `restart`, which needs the steps between which it goes back.
SAMPLERS = {
    name: f
    for name, f in vars(samplers).items()
    if hasattr(f, "table") and f is not samplers.restart
}
# A twin has the table of another sampler with other numbers, or with the other half of the
# prediction. The other one covers its whole run, and its equations cover its numbers.
TWINS = "dpm_solver_1 dpm_solver_pp_2m dpm_solver_pp_2s dpm_solver_pp_3s midpoint".split()
DISTINCT = {name: f for name, f in SAMPLERS.items() if name not in TWINS}
# Tests of what `run` does with a table take one sampler for each set of columns, and one with two
# rows per step and a shorter last step. They hold whatever the table's numbers are.
BY_COLUMNS = {
    name: SAMPLERS[name]
    for name in (
        "adams_bashforth",  # state
        "unipc",  # of the columns below none
        "rk4",  # state and stages
        "edm_heun",  # two rows per step
        "sa_solver",  # fresh
        "predictor_corrector",  # state and fresh
        "ddpm",  # fresh and largest
        "edm_stochastic",  # churn
        "dpm_solver_pp_sde",  # a Brownian path
    )
}
QUANTILES = (np.arange(64) + 0.5) / 64


def mixture_denoiser(process):
    """Make the denoiser that returns E[x | x_t] and E[z | x_t]."""

    def denoise(x_t, t):
        # The shape is [component, batch], because a short last axis is four times slower.
        weights, means, deviations = (
            jnp.asarray(a, x_t.dtype)[:, None] for a in (WEIGHTS, MEANS, DEVIATIONS)
        )
        alpha, sigma = process.alpha(t), process.sigma(t)
        variance = alpha**2 * deviations**2 + sigma**2
        residual = x_t - alpha * means
        logits = jnp.log(weights) - jnp.log(variance) / 2 - residual**2 / (2 * variance)
        posterior = jax.nn.softmax(logits, axis=0)
        clean = means + alpha * deviations**2 / variance * residual
        return Prediction(
            jnp.sum(posterior * clean, 0), jnp.sum(posterior * sigma / variance * residual, 0)
        )

    return denoise


def leaf_by_leaf(denoisers):
    """Make the denoiser of a dictionary of arrays, with one denoiser for each array."""

    def denoise(x_t, t):
        answers = {name: denoiser(x_t[name], t[name]) for name, denoiser in denoisers.items()}
        clean, noise = ({name: answer[half] for name, answer in answers.items()} for half in (0, 1))
        return Prediction(clean, noise)

    return denoise


@functools.cache
def quantiles_of(alpha, sigma):
    """Return x_t at the quantiles of its law, by root finding.

    The flow in one dimension keeps quantiles.
    """
    means, deviations = alpha * MEANS, np.sqrt(alpha**2 * DEVIATIONS**2 + sigma**2)
    excess = lambda x, quantile: WEIGHTS @ scipy.special.ndtr((x - means) / deviations) - quantile
    bound = 9 * (alpha + sigma)
    return np.array(
        [scipy.optimize.brentq(excess, -bound, bound, args=(q,), xtol=1e-13) for q in QUANTILES]
    )


def quantiles_at(process, t):
    return quantiles_of(float(process.alpha(jnp.asarray(t))), float(process.sigma(jnp.asarray(t))))


@jax.jit
def normal(keys, number):
    """Return the noise of each sample that `run` draws with this number."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number)))(keys)


# The same in plain NumPy, for step loops that share no code with the library.

# alpha, sigma and their derivatives, and a grid on which alpha and sigma stay positive.
IRREGULAR = np.array([0.0, 0.13, 0.2, 0.37, 0.5, 0.71, 0.8, 1.0])


def cosine(t):
    angle = np.pi / 2 * t
    return np.cos(angle), np.sin(angle), -np.pi / 2 * np.sin(angle), np.pi / 2 * np.cos(angle)


COEFFICIENTS = {
    RectifiedFlow(): (lambda t: (1 - t, t, -1.0, 1.0), 0.95 - 0.9 * IRREGULAR),
    VariancePreservingCosine(): (cosine, 0.9 - 0.85 * IRREGULAR),
    EDM(): (lambda t: (1.0, t, 0.0, 1.0), 0.05 + 4 * (1 - IRREGULAR) ** 2),
}


class Reference:
    """One process in NumPy: coefficients, an irregular grid, starts, and the exact prediction."""

    def __init__(self, process):
        self.process = process
        self.coefficients, self.times = COEFFICIENTS[process]
        self.start = np.linspace(-2.0, 2.0, 9) * np.hypot(*self.coefficients(self.times[0])[:2])

    def alpha(self, t):
        return self.coefficients(t)[0]

    def sigma(self, t):
        return self.coefficients(t)[1]

    def half_log_snr(self, t):
        return np.log(self.alpha(t) / self.sigma(t))

    def predict(self, x, t):
        """Return x̂ and ẑ."""
        alpha, sigma, *_ = self.coefficients(t)
        variance = alpha**2 * DEVIATIONS**2 + sigma**2
        residual = x[:, None] - alpha * MEANS
        likelihood = WEIGHTS / np.sqrt(variance) * np.exp(-(residual**2) / (2 * variance))
        posterior = likelihood / likelihood.sum(1, keepdims=True)
        clean = (posterior * (MEANS + alpha * DEVIATIONS**2 / variance * residual)).sum(1)
        return clean, (x - alpha * clean) / sigma

    def velocity(self, x, t):
        _, _, alpha_prime, sigma_prime = self.coefficients(t)
        clean, noise = self.predict(x, t)
        return alpha_prime * clean + sigma_prime * noise

    def check(self, sampler, states, keys=None, **options):
        """Check that the sampler's states on the grid are `states`, up to rounding."""
        table = _tables_of_references(sampler, tuple(options.items()))[self.process]
        found = states_of(self.process, jnp.asarray(self.start), table, keys)
        # States are of order 1 to 10. (x − alpha·x̂)/sigma loses digits at sigma = .05.
        np.testing.assert_allclose(found, np.stack(states), rtol=1e-12, atol=1e-12)


@functools.cache
def _tables_of_references(sampler, options):
    """Return the tables of the processes of `COEFFICIENTS` on their grids."""
    grids = [(process, times) for process, (_, times) in COEFFICIENTS.items()]
    tables = tabulate_together(sampler, grids, **dict(options))
    return dict(zip(COEFFICIENTS, tables, strict=True))


@functools.cache
def _compiled_table(sampler, process, options):
    table = lambda times: sampler.table(process, times, **dict(options))
    return quick_jit(table)


def tabulate(sampler, process, times, **options):
    """Return the sampler's table for traced times, in NumPy.

    It compiles once for every shape, because op by op it would take far longer.
    """
    return jax.device_get(_compiled_table(sampler, process, tuple(options.items()))(times))


def tabulate_together(sampler, grids, **options):
    """Return the sampler's tables for a list of (process, times).

    They are one program, which compiles in half the time of one after another.
    """
    processes, times = zip(*grids, strict=True)

    @quick_jit
    def tables(times):
        pairs = zip(processes, times, strict=True)
        return [sampler.table(process, grid, **options) for process, grid in pairs]

    return jax.device_get(tables([jnp.asarray(grid) for grid in times]))


@functools.cache
def _compiled(process):
    def run_rows(noise, table, keys):
        return run(mixture_denoiser(process), noise, table, keys, trajectory=True)

    return quick_jit(run_rows)


def filled(table, every_noise=False):
    """Return the table with all columns, and filled up with rows that change nothing.

    The number of rows becomes 32 or a multiple of 512. So all tables share one compiled program, or
    one for each way of drawing noise without `every_noise`. Compiling takes most of the time, also
    for every operation on another shape. So this function is in NumPy.
    """
    table = jax.tree.map(np.asarray, table)
    count = len(table.times)
    missing = -count % (32 if count <= 32 else 512)
    zeros = np.zeros_like(table.times)

    def rows(column, default):
        return np.pad(
            zeros + default if column is None else column, (0, missing), constant_values=1
        )

    def noise(column, default=0):
        if column is None and not every_noise:
            return None
        column = zeros + default if column is None else column
        return np.pad(column, (0, missing), constant_values=default)

    def history(column):
        column = zeros[:, None] if column is None else column
        return np.pad(column, ((0, missing), (0, 4 - column.shape[1])))

    return table._replace(
        times=np.pad(table.times, (0, missing), mode="edge"),
        state=rows(table.state, 0),
        clean=history(table.clean),
        noise=history(table.noise),
        fresh=noise(table.fresh),
        largest=noise(table.largest),
        stage_state=rows(table.stage_state, 1),
        stage_clean=history(table.stage_clean),
        stage_noise=history(table.stage_noise),
        churn=noise(table.churn),
        churn_state=noise(table.churn_state, 1),
        path=None,  # replaced by independent draws
        step=None,
        number=None,
    )


def states_of(process, noise, table, keys=None):
    """Return the states of `run` on the mixture at all times of the grid, like a trajectory."""
    states = np.asarray(_compiled(process)(noise, filled(table, keys is not None), keys))
    steps = steps_of(table)
    return states[[0, *(np.flatnonzero(np.append(steps[1:] > steps[:-1], True)) + 1)]]


@functools.cache
def _compiled_cotangents(process):
    def total(table, noise, keys):
        return jnp.sum(jnp.sin(run(mixture_denoiser(process), noise, table, keys)))

    return quick_jit(jax.grad(total))


@functools.cache
def _compiled_pullback(sampler, process, options):
    def pullback(times, cotangents):
        table = lambda times: sampler.table(process, times, **dict(options))._replace(
            step=None, path=None
        )
        return jax.vjp(table, times)[1](cotangents)[0]

    return quick_jit(pullback)


def gradient_by_times(sampler, process, noise, times, keys=None, **options):
    """Return the gradient of sum(sin(samples)), backwards through the samples and the table."""
    table = tabulate(sampler, process, times, **options)._replace(step=None, path=None)
    cotangents = _compiled_cotangents(process)(filled(table, keys is not None), noise, keys)
    own = lambda column, cotangent: (
        column if column is None else cotangent[tuple(map(slice, column.shape))]
    )
    cotangents = map(own, table, jax.device_get(cotangents))  # without the filled-up rows
    pullback = _compiled_pullback(sampler, process, tuple(options.items()))
    return np.asarray(pullback(times, type(table)(*cotangents)))


def integrals_of_polynomials(nodes, start, end, kernel=lambda u: 1.0):
    """Return the integral of kernel·(Lagrange polynomial) from start to end, for every node."""
    points, weights = np.polynomial.legendre.leggauss(40)
    u = start + (end - start) * (points + 1) / 2
    values = [
        np.prod([(u - other) / (node - other) for other in nodes if other != node], axis=0)
        for node in nodes
    ]
    return [(weights * value * kernel(u)).sum() * (end - start) / 2 for value in values]
