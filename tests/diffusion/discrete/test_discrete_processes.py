"""Discrete processes against matrix exponentials and Bayes' rule over an enumerated chain."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from chain import LAW, LENGTH, SEQUENCES, VOCABULARY, exact

from genjax import diffusion
from genjax.diffusion import discrete

pytestmark = pytest.mark.usefixtures("float64")

T, S = 0.7, 0.45


def noise_of(process):
    masked = isinstance(process, discrete.Masked)
    return np.eye(VOCABULARY + 1)[-1] if masked else np.full(VOCABULARY, 1 / VOCABULARY)


def generator(process):
    """Return the rates of the forward chain per unit of −log alpha, [from to]."""
    noise = noise_of(process)
    return np.ones((len(noise), 1)) * noise - np.eye(len(noise))


def transition(process, s, t):
    """Return q(x_t | x_s), [from to]: the exponential of the integrated rates."""
    log_alpha = [np.log(float(process.alpha(jnp.asarray(u)))) for u in (s, t)]
    return scipy.linalg.expm((log_alpha[0] - log_alpha[1]) * generator(process))


def states_of(process):
    return np.array(list(itertools.product(range(len(noise_of(process))), repeat=LENGTH)))


def joint(process, t):
    """Return p(x, x_t) of all sequences x and all states x_t, by enumeration."""
    kernel, states = transition(process, 0.0, t), states_of(process)
    factors = kernel[SEQUENCES[:, None, :], states[None, :, :]]
    return LAW[:, None] * factors.prod(-1)


def test_alpha_and_sigma_of_schedules(schedule):
    """They sum to 1 and are precise at both ends, where float32 would lose one of them."""
    t = jnp.linspace(0, 1, 101)
    alpha, sigma = schedule(t)
    np.testing.assert_allclose([alpha[0], sigma[0]], [1, 0], rtol=1e-15)
    np.testing.assert_allclose(alpha + sigma, 1, atol=1e-15)
    assert np.all(np.diff(sigma) > 0)
    near = jnp.asarray([1e-6, 1 - 1e-6])
    single = schedule(near.astype(jnp.float32))
    double = schedule(near.astype(jnp.float32).astype(jnp.float64))
    # 1e-5: the steepest schedule multiplies the rounding of t, 6e-8, by about log(2e5).
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    rate = discrete.Masked(vocabulary_size=3, schedule=schedule).noise_rate
    single = near.astype(jnp.float32)
    np.testing.assert_allclose(rate(single), rate(single.astype(jnp.float64)), rtol=1e-5)


def test_published_schedules_at_a_half():
    half = jnp.asarray(0.5)
    np.testing.assert_allclose(discrete.Linear()(half)[0], 0.5)
    np.testing.assert_allclose(discrete.Cosine()(half)[0], 1 - np.cos(np.pi / 4), rtol=1e-12)
    np.testing.assert_allclose(discrete.Polynomial()(half)[0], 0.75)
    np.testing.assert_allclose(discrete.Geometric()(half)[0], np.exp(-((1e-4 * 20) ** 0.5)))
    # SEDD's rate is that of the exponent, here in float32.
    rate = discrete.Uniform(vocabulary_size=3, schedule=discrete.Geometric()).noise_rate
    np.testing.assert_allclose(rate(jnp.float32(1.0)), 20 * np.log(20 / 1e-4), rtol=1e-6)
    first = jnp.asarray(1e-12)  # The clean end itself has no noise; see its test above.
    np.testing.assert_allclose(discrete.Geometric()(first)[1], 1e-4, rtol=1e-4)


def test_marginals_are_matrix_exponentials(kind, schedule):
    process = kind(vocabulary_size=VOCABULARY, schedule=schedule)
    kernel = transition(process, 0.0, T)[:VOCABULARY]
    x, t = jnp.arange(VOCABULARY)[None], jnp.asarray([T])
    np.testing.assert_allclose(process.marginal(x, t)[0], kernel, atol=1e-12)
    states = jnp.arange(process.num_states)[None]
    np.testing.assert_allclose(process.likelihood(states, t)[0], kernel.T, atol=1e-12)


def test_corrupt_draws_from_the_marginal(kind):
    process = kind(vocabulary_size=VOCABULARY)
    x = jnp.full((1, 20_000), 2)
    x_t = process.corrupt(jax.random.key(0), x, jnp.asarray([T]))
    frequency = np.bincount(x_t[0], minlength=process.num_states) / x.size
    # Four standard errors of a frequency of 20,000 are at most 0.0141.
    np.testing.assert_allclose(frequency, process.marginal(x, jnp.asarray([T]))[0, 0], atol=0.0141)


def test_posterior_is_bayes_rule(kind):
    process = kind(vocabulary_size=VOCABULARY)
    to_s, to_t = transition(process, 0.0, S), transition(process, S, T)
    for x, x_t in itertools.product(range(VOCABULARY), range(process.num_states)):
        expected = to_s[x] * to_t[:, x_t]
        if expected.sum() == 0:
            continue  # a token never becomes another one under a mask
        log_x = process.log_certain(jnp.asarray([[x]]))
        found = process.posterior(log_x, jnp.asarray([[x_t]]), jnp.asarray([T]), jnp.asarray([S]))
        np.testing.assert_allclose(found[0, 0], expected / expected.sum(), atol=1e-12)


def test_reverse_step_of_the_exact_denoiser_is_that_of_the_chain(kind):
    """p(x_s at a place | x_t), by enumerating all x and all x_s."""
    process = kind(vocabulary_size=VOCABULARY)
    states = states_of(process)
    kernel = transition(process, S, T)[states[:, None, :], states[None, :, :]].prod(-1)
    both = joint(process, S).sum(0)[:, None] * kernel  # [x_s x_t]
    conditional = both / both.sum(0)
    one_hot = np.eye(process.num_states)[states]  # [x_s 3 states]
    expected = np.einsum("st,slk->tlk", conditional, one_hot)
    t = jnp.full(len(states), T)
    log_p = exact(process)(jnp.asarray(states), t)
    found = process.posterior(log_p, jnp.asarray(states), t, jnp.full(len(states), S))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)


def test_scores_and_reverse_rates_are_those_of_the_chain(kind, schedule):
    """The rate of a jump at a place is the forward rate back times the ratio of the marginals."""
    process = kind(vocabulary_size=VOCABULARY, schedule=schedule)
    states, law = states_of(process), None
    rates = generator(process)
    kernel = transition(process, 0.0, T)
    law = (LAW[:, None] * kernel[SEQUENCES[:, None, :], states[None, :, :]].prod(-1)).sum(0)
    slope = jax.grad(lambda t: -jnp.log(process.alpha(t)))(T)
    t = jnp.full(len(states), T)
    log_p = exact(process)(jnp.asarray(states), t)
    found = process.reverse_rates(log_p, jnp.asarray(states), t)
    scores = process.scores(log_p, jnp.asarray(states), t)
    place_value = process.num_states ** np.arange(LENGTH)[::-1]
    for place, k in itertools.product(range(LENGTH), range(process.num_states)):
        other = (states + (k - states[:, place])[:, None] * np.eye(LENGTH, dtype=int)[place]) @ (
            place_value
        )
        ratio = law[other] / law
        jump = states[:, place] != k
        back = float(slope) * rates[k, states[:, place]]
        np.testing.assert_allclose(found[:, place, k], jump * back * ratio, rtol=1e-8, atol=1e-12)
        reachable = rates[k, states[:, place]] != 0
        np.testing.assert_allclose(
            scores[reachable, place, k], ratio[reachable], rtol=1e-8, atol=1e-12
        )


def test_divergence_rate_of_uniform_noise_is_the_bound_of_udlm():
    """Schiff et al. 2025, of all data x and states z, with x̄ = V·alpha·x + 1 − alpha.

    The rate is −alpha'/(V·alpha)·(V/x̄θ_z − V/x̄_z + Σ_k x̄_k/x̄_z·log(x̄θ_z·x̄_k/(x̄θ_k·x̄_z))).
    """
    process = discrete.Uniform(vocabulary_size=VOCABULARY)
    x, z = np.indices((VOCABULARY, VOCABULARY)).reshape(2, 1, -1)
    logits, t = np.random.default_rng(0).normal(size=(*x.shape, VOCABULARY)), jnp.asarray([T])
    log_p = discrete.leave_one_out(process, jnp.asarray(logits), jnp.asarray(z), t)
    found = process.divergence_rate(jnp.asarray(x), jnp.asarray(z), log_p, t)
    alpha = 1 - T  # whose slope is −1
    bar = lambda law: VOCABULARY * alpha * law + 1 - alpha
    true, model = bar(np.eye(VOCABULARY)[x]), bar(scipy.special.softmax(logits, -1))
    at_z = lambda a: np.take_along_axis(a, z[..., None], -1)
    true_z, model_z = at_z(true), at_z(model)
    logs = np.sum(true / true_z * np.log(model_z * true / (model * true_z)), -1)
    ends = VOCABULARY * (1 / model_z - 1 / true_z)[..., 0]
    np.testing.assert_allclose(found, (ends + logs) / (VOCABULARY * alpha), rtol=1e-10)


def test_path_mixes_data_and_noises():
    """Marginals, likelihoods and draws of a path from data by uniform tokens to masks."""
    masked, uniform = (
        kind(vocabulary_size=VOCABULARY) for kind in (discrete.Masked, discrete.Uniform)
    )
    weights = lambda t: (1 - t, t**2, t * (1 - t))
    path = discrete.Path(vocabulary_size=VOCABULARY, noises=(masked, uniform), schedule=weights)
    expected = np.eye(6)[:5] * 0.3
    expected[:, 5] += 0.49
    expected[:, :5] += 0.21 / 5
    t = jnp.asarray([T])
    np.testing.assert_allclose(path.marginal(jnp.arange(5)[None], t)[0], expected, atol=1e-12)
    np.testing.assert_allclose(path.likelihood(jnp.arange(6)[None], t)[0], expected.T, atol=1e-12)
    x_t = path.corrupt(jax.random.key(0), jnp.full((1, 20_000), 2), t)
    np.testing.assert_allclose(np.bincount(x_t[0]) / 20_000, expected[2], atol=0.0141)
    # Each sample has its own mixture: that of t = 1 is masks alone.
    of_both = path.corrupt(jax.random.key(0), jnp.full((8, 8), 2), jnp.repeat(jnp.array([T, 1]), 4))
    assert np.any(of_both[:4] < 5) and np.all(of_both[4:] == 5)
    keys = diffusion.sample_keys(jax.random.key(0), jnp.arange(3))
    np.testing.assert_array_equal(path.prior(keys, (4,)), np.full((3, 4), 5))
    with pytest.raises(ValueError, match="a Path of 2 noises has a schedule of 2 weights"):
        replace(path, schedule=discrete.Linear())
    # One noise is the process of that noise.
    one = discrete.Path(vocabulary_size=VOCABULARY, noises=(masked,), schedule=discrete.Linear())
    states = jnp.arange(6)[None]
    np.testing.assert_array_equal(one.likelihood(states, t), masked.likelihood(states, t))


def test_priors_are_noise_of_each_sample():
    keys = diffusion.sample_keys(jax.random.key(0), jnp.arange(4000))
    masks = discrete.Masked(vocabulary_size=7).prior(keys, (2,))
    assert np.all(masks == 7)
    tokens = discrete.Uniform(vocabulary_size=7).prior(keys, (2,), jnp.asarray(1.0))
    # Four standard errors of a frequency of 8,000.
    np.testing.assert_allclose(np.bincount(tokens.reshape(-1)) / 8000, 1 / 7, atol=0.0157)
    again = discrete.Uniform(vocabulary_size=7).prior(keys[3:4], (2,))
    np.testing.assert_array_equal(again[0], tokens[3])


def test_grids_and_laws_of_times_are_those_of_diffusion():
    process = discrete.Masked(vocabulary_size=3, domain=(0.01, 1.0))
    times = diffusion.uniform_grid(process, 4)
    np.testing.assert_allclose(times, [1, 0.67, 0.34, 0.01, 0], atol=1e-12)
    u = diffusion.stratified(jax.random.key(0), (8,))
    np.testing.assert_allclose(diffusion.uniform(process, u), 0.01 + 0.99 * u, rtol=1e-6)


@pytest.mark.parametrize("schedule_of_time", [discrete.Linear(), discrete.Cosine()])
def test_time_of_inverts_sigma(schedule_of_time):
    process = discrete.Masked(vocabulary_size=3, schedule=schedule_of_time)
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(process.time_of(process.alpha(t), process.sigma(t)), t, atol=1e-12)
