"""Bounds and losses against enumerated likelihoods of three tokens of five levels.

Integrals over time are Gauss–Legendre sums in float64 and expectations over x_t are sums over all
states. So they are exact, and no tolerance is statistical unless a test says so.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chain import ENTROPY, LAW, LENGTH, OUTCOMES, SEQUENCES, VOCABULARY, exact, index

from genjax import diffusion
from genjax.diffusion import discrete

CONSTANT = lambda x_t, t: jnp.zeros((*x_t.shape, VOCABULARY))


def expected_bound(process, denoiser, nodes=48):
    """Return the bound of every sequence, [125], by quadrature over t and all states x_t."""
    states = jnp.asarray(list(itertools.product(range(process.num_states), repeat=LENGTH)))
    count, places = len(states), np.arange(LENGTH)
    values = jnp.broadcast_to(jnp.arange(VOCABULARY)[:, None, None], (VOCABULARY, count, LENGTH))

    @jax.jit
    def at(u):
        t = jnp.full(count, u**2)  # rates are least smooth at the clean end
        log_p, law = denoiser(states, t), process.likelihood(states, t)
        rate = jax.vmap(lambda x: process.divergence_rate(x, states, log_p, t))(values)
        rate = rate[OUTCOMES[:, None], jnp.arange(count)[None, :, None], places].sum(-1)
        probability = jnp.moveaxis(law[:, places, OUTCOMES], 0, 1).prod(-1)
        return 2 * u * jnp.sum(rate * probability, 1)

    points, weights = np.polynomial.legendre.leggauss(nodes)
    pairs = zip((points + 1) / 2, weights / 2, strict=True)
    return sum(weight * at(jnp.asarray(u)) for u, weight in pairs)


def drawn(count, seed):
    return OUTCOMES[np.random.default_rng(seed).choice(len(LAW), count, p=LAW)]


def nll_of(x):
    return -np.log(LAW[index(x)])


def table_network(seed=0):
    """Return a network of random logits for every state of the masked chain, at all times."""
    logits = jax.random.normal(jax.random.key(seed), (6, 6, 6, LENGTH, VOCABULARY), jnp.float32)
    return lambda x_t, t: 2 * logits[x_t[:, 0], x_t[:, 1], x_t[:, 2]]


@pytest.mark.usefixtures("float64")
def test_the_bound_of_the_exact_denoiser_of_a_law_is_its_likelihood(kind):
    """If the law is wrong for the data, the bound's mean exceeds their entropy."""
    process = kind(vocabulary_size=VOCABULARY)
    wrong = 0.5 * LAW + 0.5 / len(LAW)
    bound = expected_bound(process, exact(process, wrong))
    # 1e-4: the quadrature's error, which falls to 1e-6 with twice the nodes.
    np.testing.assert_allclose(bound, -np.log(wrong), rtol=1e-4, atol=1e-4)
    assert np.sum(LAW * np.asarray(bound)) > ENTROPY + 0.1


@pytest.mark.usefixtures("float64")
def test_masked_bound_is_the_mean_over_orders_and_does_not_depend_on_the_schedule(schedule):
    """A network whose answers agree with no law: each order of unmasking has its own likelihood.

    Its bound is the mean of −log p over the six orders (Hoogeboom et al. 2022).
    """
    if schedule == discrete.Geometric():
        pytest.skip("it jumps to 0.9999 of the tokens at the clean end; see its tests below")
    process = discrete.Masked(vocabulary_size=VOCABULARY, schedule=schedule)
    network = table_network()
    log_p = lambda x_t: jax.nn.log_softmax(network(x_t, None))
    expected = np.zeros(len(OUTCOMES))
    for order in itertools.permutations(range(LENGTH)):
        x_t = np.full_like(SEQUENCES, process.mask)
        for place in order:
            chosen = np.asarray(log_p(jnp.asarray(x_t)))[:, place]
            expected -= chosen[np.arange(len(chosen)), SEQUENCES[:, place]] / math.factorial(LENGTH)
            x_t[:, place] = SEQUENCES[:, place]
    found = expected_bound(process, discrete.predict(network, process, discrete.clean))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_constant_logits_cost_log_of_the_vocabulary_for_every_schedule(kind, schedule):
    process = kind(vocabulary_size=VOCABULARY, schedule=schedule)
    denoiser = discrete.predict(CONSTANT, process, discrete.leave_one_out)
    bound = expected_bound(process, denoiser)
    # The schedule's ends leave a part out: after 0, geometric's alpha runs from 0.9999 to 2e-9.
    ends = [float(process.sigma(jnp.asarray(t))) for t in (1e-12, 1.0)]
    if kind is discrete.Masked:
        expected = LENGTH * math.log(VOCABULARY) * (ends[1] - ends[0])
        np.testing.assert_allclose(bound, expected, rtol=1e-6)
    else:
        np.testing.assert_allclose(bound, LENGTH * math.log(VOCABULARY), rtol=1e-3)


@functools.partial(jax.jit, static_argnames=("process", "target", "loss", "options"))
def mean_loss(key, x, process, target, loss, options=()):
    """Return the mean loss and its standard error over the batch."""
    options = dict(options) | ({} if target is None else {"target": target})
    apply = table_network() if isinstance(process, discrete.Masked) else CONSTANT
    each, t = loss(key, apply, x, process=process, times=diffusion.uniform, **options)
    return each.mean(), each.std() / jnp.sqrt(each.size), t


def test_bound_loss_estimates_the_bound(kind):
    """With independent times, within four standard errors of the exact bound, per token."""
    process, x = kind(vocabulary_size=VOCABULARY), jnp.tile(OUTCOMES, (160, 1))
    mean, error, t = mean_loss(
        jax.random.key(0), x, process, discrete.leave_one_out, discrete.bound_loss
    )
    with jax.enable_x64(True):
        network = table_network() if kind is discrete.Masked else CONSTANT
        denoiser = discrete.predict(network, process, discrete.leave_one_out)
        expected = float(expected_bound(process, denoiser).mean() / LENGTH)
    assert t.shape == (len(x),)
    assert abs(mean - expected) < 4 * error and error < 0.02 * expected


def test_stratified_times_lower_the_variance_of_the_bound():
    process, x = discrete.Masked(vocabulary_size=VOCABULARY), jnp.tile(OUTCOMES, (2, 1))
    run = lambda options: np.std(
        [
            mean_loss(key, x, process, discrete.clean, discrete.bound_loss, options)[0]
            for key in jax.random.split(jax.random.key(1), 40)
        ]
    )
    assert run((("variates", diffusion.stratified),)) < 0.8 * run(())


def test_shifted_times_and_other_schedules_leave_the_expected_bound():
    """Same network, times of another density, within four standard errors of the difference."""
    x = jnp.tile(OUTCOMES, (160, 1))
    means = []
    for schedule_of_time, shift in [(discrete.Linear(), 1.0), (discrete.Cosine(), 2.0)]:
        process = discrete.Masked(vocabulary_size=VOCABULARY, schedule=schedule_of_time)
        law = diffusion.shifted(diffusion.uniform, shift)
        each, _ = jax.jit(
            functools.partial(
                discrete.bound_loss, process=process, target=discrete.clean, times=law
            ),
            static_argnums=1,
        )(jax.random.key(2), table_network(), x)
        means.append((float(each.mean()), float(each.std() / len(each) ** 0.5)))
    (a, a_error), (b, b_error) = means
    assert abs(a - b) < 4 * math.hypot(a_error, b_error)


@pytest.mark.usefixtures("float64")
def test_score_entropy_of_scores_is_the_bound_of_the_prediction(kind):
    """One generic formula for scores, a closed form for masks: SEDD's bound and MDLM's agree."""
    process = kind(vocabulary_size=VOCABULARY)
    x = jnp.tile(OUTCOMES, (2, 1))
    network = (
        table_network()
        if kind is discrete.Masked
        else lambda x_t, t: jax.random.normal(jax.random.key(0), (*x_t.shape, VOCABULARY))
    )
    denoiser = discrete.predict(network, process, discrete.leave_one_out)

    def log_scores(x_t, t):
        return jnp.log(process.scores(denoiser(x_t, t), x_t, t)[..., :VOCABULARY])

    options = dict(process=process, times=diffusion.shifted(diffusion.uniform, 2.0))

    @jax.jit
    def losses_and_predictions(key):
        entropy, t = discrete.score_entropy_loss(
            key, log_scores, x, target=discrete.score, **options
        )
        bound, _ = discrete.bound_loss(key, network, x, target=discrete.leave_one_out, **options)
        x_t = process.corrupt(key, x, t)
        back = discrete.predict(log_scores, process, discrete.score)(x_t, t)
        return entropy, bound, jnp.exp(back), jnp.exp(denoiser(x_t, t))

    entropy, bound, back, expected = losses_and_predictions(jax.random.key(3))
    np.testing.assert_allclose(entropy, bound, rtol=1e-9, atol=1e-12)
    # The target `score` returns the prediction that the scores came from.
    np.testing.assert_allclose(back, expected, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_steps_of_d3pm_tend_to_the_continuous_bound(kind):
    """num_steps times the divergence of a step, over the step, tends to the rate: error 1/steps."""
    process = kind(vocabulary_size=VOCABULARY, schedule=discrete.Cosine())
    x = jnp.tile(OUTCOMES, (8, 1))
    t = jnp.linspace(0.1, 0.9, len(x))
    network = table_network() if kind is discrete.Masked else CONSTANT
    denoiser = discrete.predict(network, process, discrete.leave_one_out)

    @jax.jit
    def error(steps):
        x_t = process.corrupt(jax.random.key(4), x, t)
        log_p = denoiser(x_t, t)
        rate = process.divergence_rate(x, x_t, log_p, t)
        divergence = discrete.step_divergence(process, x, x_t, log_p, t, t - 1 / steps)
        return jnp.max(jnp.abs(divergence * steps - rate))

    few, many = error(1e4), error(1e5)
    assert many < 1e-2
    np.testing.assert_allclose(few / many, 10, rtol=0.1)


@pytest.mark.usefixtures("float64")
def test_discrete_bound_falls_to_the_likelihood_with_the_number_of_steps(kind):
    """The factorized reverse of few steps cannot follow the chain; with more steps it can."""
    process = kind(vocabulary_size=VOCABULARY)
    x = drawn(4000, seed=5)
    bound = jax.jit(
        lambda key, times: (
            -discrete.discrete_bound(key, exact(process), process, x, times).log_likelihood
        )
    )
    excess = []
    for steps in (1, 4, 64):
        difference = bound(jax.random.key(6), diffusion.uniform_grid(process, steps)) - nll_of(x)
        excess.append(float(difference.mean()))
        standard_error = float(difference.std() / 4000**0.5)
    assert excess[0] > excess[1] > excess[2] > -4 * standard_error
    # One step draws all tokens independently: it costs the total correlation of the chain.
    own = [np.bincount(SEQUENCES[:, i], LAW) for i in range(LENGTH)]
    correlation = sum(-np.sum(p * np.log(p)) for p in own) - ENTROPY
    assert abs(excess[0] - correlation) < 0.05
    assert excess[2] < 0.05 * correlation


def test_continuous_bound_estimates_bits_per_dimension(kind):
    process = kind(vocabulary_size=VOCABULARY)
    x = drawn(4000, seed=7)
    bound = jax.jit(
        lambda key: discrete.continuous_bound(key, exact(process), process, x, num_times=16)
    )(jax.random.key(8))
    bits = diffusion.bits_per_dimension(bound.log_likelihood, LENGTH)
    error = bits.std() / 4000**0.5
    assert abs(bits.mean() - ENTROPY / LENGTH / math.log(2)) < 4 * error
    assert error < 0.03
    np.testing.assert_array_equal(bound.prior, 0)
    np.testing.assert_array_equal(bound.reconstruction, 0)


def test_a_domain_that_ends_early_adds_prior_and_reconstruction():
    """The sum of the three terms stays the likelihood of the exact denoiser (uniform noise)."""
    process = discrete.Uniform(vocabulary_size=VOCABULARY, domain=(0.1, 0.99))
    x = drawn(4000, seed=9)
    bound = jax.jit(
        lambda key: discrete.continuous_bound(key, exact(process), process, x, num_times=16)
    )(jax.random.key(9))
    alpha, sigma = 0.01, 0.99
    own = alpha + sigma / VOCABULARY
    prior = own * math.log(own * VOCABULARY) + 4 * sigma / VOCABULARY * math.log(sigma)
    np.testing.assert_allclose(bound.prior, LENGTH * prior, rtol=1e-3)
    masked, times = discrete.Masked(vocabulary_size=VOCABULARY), jnp.asarray([0.99, 0.5])
    steps = lambda process: discrete.discrete_bound(jax.random.key(9), CONSTANT, process, x, times)
    of_steps, of_masks = jax.jit(lambda: (steps(process).prior, steps(masked).prior))()
    np.testing.assert_allclose(of_steps, LENGTH * prior, rtol=1e-3)
    assert np.all(np.isinf(of_masks))  # a token that is kept is impossible in the prior
    excess = -bound.log_likelihood - nll_of(x)
    # The model draws the tokens of the last step independently: that is looser, but not by much.
    assert -4 * excess.std() / len(x) ** 0.5 < excess.mean() < 0.3
    assert bound.reconstruction.mean() > 0.1


@pytest.mark.parametrize("schedule", [discrete.Linear(), discrete.Geometric(sigma_min=0.5)])
def test_times_of_blocks_have_the_shape_of_tokens(schedule):
    """Also in the reconstruction, which constant logits make cost log 5 a token of noise."""
    process = discrete.Uniform(vocabulary_size=VOCABULARY, schedule=schedule)
    shapes = []

    def denoiser(x_t, t):
        shapes.append(t.shape)
        return jax.nn.log_softmax(0 * t[..., None] + jnp.zeros(VOCABULARY))

    x = OUTCOMES[:9]
    bound = discrete.continuous_bound(jax.random.key(0), denoiser, process, x, block_length=1)
    assert {*shapes} == {x.shape}
    assert (bound.reconstruction.mean() > 1) == (schedule != discrete.Linear())


def test_a_time_that_is_rounded_to_the_noise_end_costs_little(monkeypatch):
    """(15 + 0.9999999)/16 is 1 in float32, where the rate is infinite, and no score is exact."""
    logits = jax.random.normal(jax.random.key(1), (9, LENGTH, VOCABULARY))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.ones(shape))
    process = discrete.Uniform(vocabulary_size=VOCABULARY)
    denoiser = discrete.predict(lambda x_t, t: logits, process, discrete.leave_one_out)
    bound = discrete.continuous_bound(jax.random.key(0), denoiser, process, OUTCOMES[:9])
    assert jnp.all(bound.diffusion < 1e-3)


def test_a_schedule_that_jumps_at_the_clean_end_adds_reconstruction(kind):
    """Constant logits cost log 5 a token; 39 % of the tokens are noise right after the jump."""
    process = kind(vocabulary_size=VOCABULARY, schedule=discrete.Geometric(sigma_min=0.5))
    denoiser = discrete.predict(CONSTANT, process, discrete.leave_one_out)
    bound = jax.jit(
        lambda key: discrete.continuous_bound(key, denoiser, process, drawn(4000, 9), num_times=8)
    )(jax.random.key(9))
    total = bound.diffusion + bound.reconstruction
    error = total.std() / 4000**0.5
    assert abs(total.mean() - LENGTH * math.log(VOCABULARY)) < 4 * error < 0.15
    assert bound.reconstruction.mean() > 1


def test_gradients_are_finite_at_the_clean_end(kind, schedule):
    process = kind(vocabulary_size=VOCABULARY, schedule=schedule)

    @jax.jit
    @jax.grad
    def gradient_by(logits):
        options = dict(process=process, target=discrete.leave_one_out, times=diffusion.uniform)
        least = lambda key, shape: jnp.full(shape, 2.0**-24)  # that `independent` can draw
        network, key = lambda x_t, t: logits, jax.random.key(0)
        return discrete.bound_loss(key, network, OUTCOMES, variates=least, **options)[0].sum()

    gradient = gradient_by(jnp.zeros((*OUTCOMES.shape, VOCABULARY)))
    assert jnp.all(jnp.isfinite(gradient))


def test_simple_loss_is_the_weighted_cross_entropy():
    """Weighted by sigma'/sigma, it is the bound of masks. The bound of steps weighs by 1/t too."""
    process, x = discrete.Masked(vocabulary_size=VOCABULARY), OUTCOMES
    weight = lambda process, t: process.sigma_prime(t) / process.sigma(t)
    key, shared = jax.random.key(10), dict(process=process, target=discrete.clean)
    run = lambda loss, **options: jax.jit(
        lambda key: loss(key, table_network(), x, times=diffusion.uniform, **shared, **options)[0]
    )(key)
    bound = run(discrete.bound_loss)
    np.testing.assert_allclose(run(discrete.simple_loss, weighting=weight), bound, rtol=1e-5)
    assert np.all(run(discrete.simple_loss) <= bound)
    loss = lambda key: discrete.simple_loss(
        key, table_network(), x, times=diffusion.uniform, block_length=1, **shared
    )
    assert [each.shape for each in jax.eval_shape(loss, key)] == [x.shape, x.shape]
    options = shared | dict(times=diffusion.uniform, num_steps=64)
    hybrid = lambda key, weight: discrete.hybrid_loss(
        key, table_network(), x, cross_entropy_weight=weight, **options
    )
    (steps, t), (both, _) = jax.jit(lambda key: (hybrid(key, 0.0), hybrid(key, 1.0)))(key)
    np.testing.assert_allclose(steps, (both - steps) / t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "domain"),
    [
        (discrete.Masked, (0.0, 1.0)),
        (discrete.Uniform, (0.0, 1.0)),
        (discrete.Uniform, (0.0, 0.5)),
    ],
)
def test_hybrid_loss_is_the_bound_plus_cross_entropy(kind, domain):
    process = kind(vocabulary_size=VOCABULARY, domain=domain)
    x = jnp.tile(OUTCOMES, (64, 1))
    args = jax.random.key(11), x, process, discrete.leave_one_out, discrete.hybrid_loss
    plain, error, t = mean_loss(*args, (("num_steps", 64), ("cross_entropy_weight", 0.0)))
    heavier, _, _ = mean_loss(*args, (("num_steps", 64),))  # of weight 1
    bound, bound_error, _ = mean_loss(*args[:4], discrete.bound_loss)
    # 64 steps are looser than the continuous bound by a few per cent of a nat.
    assert -4 * math.hypot(error, bound_error) < plain - bound < 0.1
    grid = domain[1] * np.arange(1, 65) / 64  # the noisier end of each step
    np.testing.assert_allclose(np.unique(t), grid, rtol=1e-6)
    if kind is discrete.Uniform:  # the entropy of a token given x_t, four of whose are alike
        other = grid / VOCABULARY
        own = 1 - 4 * other
        entropy = -np.mean(own * np.log(own) + 4 * other * np.log(other))
        # Four deviations: those of −log p are below 1.5, and there are 24,000 tokens.
        assert abs(heavier - plain - entropy) < 4 * 1.5 / 24_000**0.5
    assert heavier - plain > 0.1


@pytest.mark.usefixtures("float64")
def test_blocks_of_one_token_are_autoregression():
    """The bound of block diffusion is tight for blocks of one: the chain rule, token by token."""
    process, x = discrete.Masked(vocabulary_size=VOCABULARY), jnp.tile(OUTCOMES, (64, 1))
    logits = jax.random.normal(jax.random.key(12), (LENGTH, 6, 6, VOCABULARY))

    def network(x_t, t, clean):
        assert t.shape == x_t.shape
        earlier = jnp.pad(clean, ((0, 0), (2, 0)), constant_values=5)
        return jnp.stack(
            [logits[i, earlier[:, i], earlier[:, i + 1]] for i in range(LENGTH)], 1
        )  # each token is told the two before it, and not itself

    @jax.jit
    def losses(key, x):
        options = dict(process=process, target=discrete.clean, times=diffusion.uniform)
        log_p = jax.nn.log_softmax(network(x, jnp.zeros(x.shape), x))
        exact_nll = -jnp.take_along_axis(log_p, x[..., None], -1)[..., 0]
        return *discrete.bound_loss(key, network, x, x, block_length=1, **options), exact_nll

    loss, t, exact_nll = map(np.asarray, losses(jax.random.key(13), x))
    assert loss.shape == t.shape == x.shape
    difference = loss - exact_nll
    assert abs(difference.mean()) < 4 * difference.std() / difference.size**0.5
    masked = loss > 0
    np.testing.assert_allclose((loss * t)[masked], exact_nll[masked], rtol=1e-9)


def test_tokens_of_a_block_share_a_time_and_a_loss():
    """In raster order. Constant logits cost log V at each mask, weighted by 1/t."""
    process, x, seen = discrete.Masked(vocabulary_size=VOCABULARY), jnp.zeros((4, 2, 6), int), []
    network = lambda x_t, t: seen.extend([x_t, t]) or CONSTANT(x_t, t)
    options = dict(process=process, target=discrete.clean, times=diffusion.uniform)
    loss, t = discrete.bound_loss(jax.random.key(0), network, x, block_length=3, **options)
    x_t, times = (np.asarray(each).reshape(4, 4, 3) for each in seen)
    np.testing.assert_array_equal(times, np.asarray(t)[..., None] * np.ones(3))
    masked = np.mean(x_t == process.mask, axis=2)
    np.testing.assert_allclose(loss, math.log(VOCABULARY) * masked / t, rtol=1e-6)


def test_blocks_divide_sequences():
    process = discrete.Masked(vocabulary_size=VOCABULARY)
    with pytest.raises(ValueError, match="blocks of 2 tokens do not divide a sequence of 3"):
        discrete.bound_loss(
            jax.random.key(0),
            CONSTANT,
            OUTCOMES,
            process=process,
            target=discrete.clean,
            times=diffusion.uniform,
            block_length=2,
        )


def test_outputs_of_bfloat16_are_compared_in_float32():
    process, x = discrete.Masked(vocabulary_size=3), jnp.zeros((4, 2), jnp.int32)
    output = jnp.full((4, 2, 3), -1.3, jnp.bfloat16)
    options = dict(process=process, times=diffusion.uniform)
    simple_loss = functools.partial(discrete.simple_loss, target=discrete.clean)
    for loss in (discrete.score_entropy_loss, simple_loss):  # not compiled, which would round less
        narrow, wide = (
            loss(jax.random.key(0), lambda x_t, t, output=each: output, x, **options)[0]
            for each in (output, output.astype(jnp.float32))
        )
        np.testing.assert_array_equal(narrow, wide)


def test_the_score_entropy_is_of_scores():
    options = dict(process=discrete.Masked(vocabulary_size=VOCABULARY), times=diffusion.uniform)
    with pytest.raises(ValueError, match="the target is clean; take the target score"):
        discrete.score_entropy_loss(
            jax.random.key(0), CONSTANT, OUTCOMES, target=discrete.clean, **options
        )


def test_steps_by_scores_of_independent_tokens_are_exact_in_float32():
    """Each but the first of 64 steps, at whose time all scores are 1. Errors are 1e-7 / alpha."""
    size, alpha = 17, np.arange(1, 64)[:, None, None] / 64
    generator = np.random.default_rng(0)
    law, x_t = generator.dirichlet(np.full(size, 0.3), 8), generator.integers(size, size=(63, 8))
    later, earlier = (a * law + (1 - a) / size for a in (alpha, alpha + 1 / 64))
    of_x_t = np.take_along_axis(later, x_t[..., None], -1)
    kept, own = alpha / (alpha + 1 / 64), x_t[..., None] == np.arange(size)
    expected = (kept * own + (1 - kept) / size) * earlier / of_x_t  # Bayes' rule
    process = discrete.Uniform(vocabulary_size=size)
    t = jnp.float32(1 - alpha[:, 0, 0])
    log_p = discrete.score(process, jnp.float32(np.log(later / of_x_t)), jnp.asarray(x_t), t)
    found = process.posterior(log_p, jnp.asarray(x_t), t, t - 1 / 64)
    assert found.dtype == jnp.float32
    found = found / found.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
