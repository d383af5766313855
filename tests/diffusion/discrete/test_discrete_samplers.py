"""Samplers with the exact denoiser of an enumerated chain: their laws, by chi-square.

2,000 samples tell the chain from independent tokens with its own frequencies with a power above
0.999 at the level 0.001 (`chain.chi_square`). Samplers that draw tokens together have an error of
discretization, which their grids make small beside the noise of 2,000 samples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chain import LAW, LENGTH, SEQUENCES, VOCABULARY, chi_square, exact_by_state

from genjax import diffusion
from genjax.diffusion import discrete
from genjax.diffusion.discrete.samplers.decoding import nearly_independent
from genjax.diffusion.discrete.samplers.steps import draw

BATCH = 2000
KEYS = diffusion.sample_keys(jax.random.key(0), jnp.arange(BATCH))
FREQUENCIES = [np.bincount(SEQUENCES[:, i], LAW) for i in range(LENGTH)]
INDEPENDENT = np.prod([p[SEQUENCES[:, i]] for i, p in enumerate(FREQUENCIES)], 0)

MASKED = discrete.Masked(vocabulary_size=VOCABULARY)
UNIFORM = discrete.Uniform(vocabulary_size=VOCABULARY)
PATH = discrete.Path(
    vocabulary_size=VOCABULARY,
    noises=(MASKED, UNIFORM),
    schedule=discrete.Bump(),
)
COSINE = discrete.Masked(vocabulary_size=VOCABULARY, schedule=discrete.Cosine())


@functools.partial(jax.jit, static_argnames=("sampler", "process", "options"))
def sample(sampler, process, times, keys=KEYS, options=()):
    noise = process.prior(keys, (LENGTH,))
    return sampler(exact_by_state(process), process, noise, times, keys=keys, **dict(options))


# Sampler, process, steps and options.
CASES = {
    "ancestral, masked": (discrete.ancestral, MASKED, 32, ()),
    "ancestral, masked, cosine": (discrete.ancestral, COSINE, 32, ()),
    "ancestral, uniform": (discrete.ancestral, UNIFORM, 32, ()),
    "tau_leaping, masked": (discrete.tau_leaping, MASKED, 64, ()),
    "tau_leaping, uniform": (discrete.tau_leaping, UNIFORM, 64, ()),
    "flow, masked": (discrete.flow, MASKED, 32, ()),
    "flow, uniform": (discrete.flow, UNIFORM, 32, ()),
    "flow with eta, masked": (discrete.flow, MASKED, 64, (("eta", 4.0),)),
    "flow with eta, uniform": (discrete.flow, UNIFORM, 64, (("eta", 4.0),)),
    "flow along a path": (discrete.flow, PATH, 64, ()),
    "flow with eta along a path": (discrete.flow, PATH, 64, (("eta", 1.0),)),
    "remasking": (discrete.remasking, MASKED, 64, (("rate", discrete.capped),)),
    "remasking, rescaled": (discrete.remasking, COSINE, 64, (("rate", discrete.rescaled),)),
    # One token a step, chosen by what all samples share or by the entropy: no error at all.
    "entropy_bounded by 0": (discrete.entropy_bounded, MASKED, LENGTH, (("bound", 0.0),)),
    "blockwise": (discrete.blockwise, MASKED, 2, (("block_length", 1),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_samples_have_the_law_of_the_chain(case):
    sampler, process, steps, options = case
    samples = sample(sampler, process, diffusion.uniform_grid(process, steps), options=options)
    assert samples.shape == (BATCH, LENGTH) and samples.max() < VOCABULARY
    assert chi_square(samples, against=INDEPENDENT) > 1e-3


def test_first_hitting_has_the_law_of_the_chain_with_one_token_a_step():
    @jax.jit
    def first_hitting(keys):
        noise = MASKED.prior(keys, (LENGTH,))
        return discrete.first_hitting(
            exact_by_state(MASKED), MASKED, noise, keys=keys, trajectory=True
        )

    states = first_hitting(KEYS)
    assert chi_square(states[-1], against=INDEPENDENT) > 1e-3
    np.testing.assert_array_equal(
        (states == MASKED.mask).sum(-1), [[3 - k] * BATCH for k in range(4)]
    )
    # Every place is as likely as the others to be the first: four standard errors of 2,000.
    first = (states[1] != MASKED.mask).mean(0)
    np.testing.assert_allclose(first, 1 / 3, atol=0.043)


def test_first_hitting_times_are_those_of_the_process():
    """sigma of the times are uniform variates in falling order: means 3/4, 2/4 and 1/4."""
    seen = []

    def denoiser(x_t, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t, ordered=True)
        return exact_by_state(COSINE)(x_t, t)

    noise = COSINE.prior(KEYS, (LENGTH,))
    jax.block_until_ready(discrete.first_hitting(denoiser, COSINE, noise, keys=KEYS))
    jax.effects_barrier()
    sigma = np.asarray(COSINE.sigma(jnp.asarray(seen)))
    assert np.all(np.diff(sigma, axis=0) <= 0)
    # Four standard errors: the deviation of these variates is at most 0.23.
    np.testing.assert_allclose(sigma.mean(1), [0.75, 0.5, 0.25], atol=0.021)


def test_one_step_draws_tokens_independently():
    """A check of the check: one step of `ancestral` has the wrong law, and the test sees it."""
    samples = sample(discrete.ancestral, MASKED, jnp.asarray([1.0, 0.0]))
    assert chi_square(samples, INDEPENDENT, against=LAW) > 1e-3
    assert chi_square(samples) < 1e-10


def one_token(process, t, law):
    """Return all states of one token, their probabilities at t, and the exact log p(x | x_t)."""
    states, t = jnp.arange(process.num_states)[None], jnp.asarray([t])
    joint = law * process.likelihood(states, t)[0]  # [states V]
    total = jnp.sum(joint, -1, keepdims=True)
    return states, total[:, 0], jnp.log(jnp.maximum(joint / total, 1e-30))[None]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("sampler", "process", "options"),
    [
        (discrete.ancestral, MASKED, {}),
        (discrete.ancestral, UNIFORM, {}),
        (discrete.flow, COSINE, dict(eta=0.0)),
        (discrete.flow, MASKED, dict(eta=3.0)),
        (discrete.flow, UNIFORM, dict(eta=3.0)),
        (discrete.flow, PATH, dict(eta=0.0)),
        (discrete.flow, PATH, dict(eta=3.0)),
        (discrete.remasking, MASKED, dict(rate=functools.partial(discrete.rescaled, eta=0.7))),
        (discrete.remasking, COSINE, dict(rate=functools.partial(discrete.capped, cap=0.3))),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_steps_map_the_marginal_of_one_token_to_that_of_the_next_time(sampler, process, options):
    """Whatever the step's length: from 0.9 to 0.3. Probabilities sum to 1."""
    law = jnp.asarray([0.4, 0.3, 0.15, 0.1, 0.05])

    @jax.jit
    def of_both_times(t, s):
        states, before, log_p = one_token(process, t, law)
        step = sampler.step(process, log_p, states, t, s, **options)[0]
        return before, step, one_token(process, s, law)[1]

    before, step, after = of_both_times(jnp.asarray(0.9), jnp.asarray(0.3))
    np.testing.assert_allclose(step.sum(-1), 1, atol=1e-12)
    assert step.min() >= 0
    np.testing.assert_allclose(before @ step, after, atol=1e-12)


def test_tau_leaping_starts_from_every_schedule(kind, schedule):
    """In float32, at t = 1: noise stays noise, but for the masks that are unmasked until 7/8."""
    process = kind(vocabulary_size=VOCABULARY, schedule=schedule)
    states = jnp.arange(process.num_states)[None]

    @jax.jit
    def step_between(t, s):
        zeros = jnp.zeros((*states.shape, VOCABULARY))
        log_p = discrete.leave_one_out(process, zeros, states, t[None])
        return discrete.tau_leaping.step(process, log_p, states, t, s)[0]

    t = jnp.asarray(1.0)
    step = step_between(t, jnp.asarray(0.875))
    assert step.min() >= 0
    np.testing.assert_allclose(step.sum(-1), 1, rtol=1e-5)
    after = process.noise_distribution @ step
    masked = 1.0
    if kind is discrete.Masked:
        masked = jnp.exp(-0.125 * process.sigma_prime(t) / process.sigma(t))
    expected = masked * process.noise_distribution[:VOCABULARY] + (1 - masked) / VOCABULARY
    np.testing.assert_allclose(after[:VOCABULARY], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("num_steps", [10, 20, 25])
def test_remasking_ends_without_masks(num_steps):
    """In float32, for numbers of steps whose last time was rounded so that masks remained."""
    t, s = diffusion.uniform_grid(MASKED, num_steps)[-2:]
    log_p = jnp.full((1, 1, VOCABULARY), -jnp.log(VOCABULARY))
    step = discrete.remasking.step(MASKED, log_p, jnp.asarray([[MASKED.mask]]), t, s)[0, 0]
    np.testing.assert_allclose(step, [1 / VOCABULARY] * VOCABULARY + [0], rtol=1e-6)


def test_rates_of_remasking_are_the_papers():
    """A cap on sigma_s/alpha_t = 1/2, and a share of it (Wang et al. 2025).

    The marginals are the same whatever the rate.
    """
    t, s = jnp.asarray(0.5), jnp.asarray(0.25)
    np.testing.assert_allclose(discrete.rescaled(MASKED, t, s, eta=0.4), 0.2, rtol=1e-6)
    found = [discrete.capped(MASKED, t, s, cap) for cap in (0.3, 0.9)]
    np.testing.assert_allclose(found, [0.3, 0.5], rtol=1e-6)


def test_options_of_negative_probabilities_are_refused():
    t, s = jnp.asarray(0.5), jnp.asarray(0.25)
    for rate in (
        functools.partial(discrete.rescaled, eta=2.0),
        functools.partial(discrete.capped, cap=-0.1),
    ):
        with pytest.raises(ValueError, match=r"of remasking is in \[0, 1\]; got"):
            rate(MASKED, t, s)
    x_t, log_p = jnp.full((1, 1), MASKED.mask), jnp.zeros((1, 1, VOCABULARY))
    with pytest.raises(ValueError, match=r"eta, .* is at least 0; got -0.5"):
        discrete.flow.step(MASKED, log_p, x_t, t, s, eta=-0.5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_flow_has_the_published_rates_of_masks(eta):
    """(1 + eta·alpha)/sigma per time to unmask, and eta to mask: Campbell et al. 2024."""
    law = jnp.asarray([0.4, 0.3, 0.15, 0.1, 0.05])
    states, _, log_p = one_token(MASKED, 0.6, law)
    length = 1e-6
    t, s = jnp.asarray(0.6), jnp.asarray(0.6 - length)
    rates = discrete.flow.step(MASKED, log_p, states, t, s, eta=eta)[0] / length
    np.testing.assert_allclose(rates[-1, :-1], law * (1 + eta * 0.4) / 0.6, rtol=1e-4)
    np.testing.assert_allclose(rates[:-1, -1], eta, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("sampler", "process", "options"),
    [(discrete.ancestral, MASKED, ()), (discrete.flow, PATH, (("eta", 1.0),))],
    ids=["ancestral, masked", "flow along a path"],
)
def test_marginals_in_the_middle_are_those_of_the_process(sampler, process, options):
    """Not only the end: at t = 1/2 the states have the law of data corrupted to t = 1/2."""
    times = jnp.linspace(1.0, 0.5, 65)
    states = sample(sampler, process, times, options=options)
    token = np.bincount(np.asarray(states[:, 1]), minlength=process.num_states) / BATCH
    expected = FREQUENCIES[1] @ np.asarray(
        process.marginal(jnp.arange(VOCABULARY)[None], jnp.asarray([0.5]))[0]
    )
    # Four standard errors of a frequency of 2,000 are at most 0.045.
    np.testing.assert_allclose(token, expected, atol=0.045)


@pytest.mark.parametrize(
    "case", [CASES["ancestral, uniform"], CASES["blockwise"]], ids=["ancestral", "blockwise"]
)
def test_a_sample_does_not_depend_on_its_batch(case):
    sampler, process, _, options = case
    times = diffusion.uniform_grid(process, 2)
    together = sample(sampler, process, times, keys=KEYS[:8], options=options)
    others = KEYS[jnp.asarray([5, 9, 10, 11, 12, 13, 14, 15])]
    apart = sample(sampler, process, times, keys=others, options=options)
    np.testing.assert_array_equal(together[5], apart[0])


@pytest.mark.parametrize("name", ["ancestral", "flow", "confident", "entropy_bounded"])
def test_given_tokens_stay_and_the_others_follow_them(name):
    noise = MASKED.prior(KEYS, (LENGTH,)).at[:, 0].set(2)
    times = diffusion.uniform_grid(MASKED, 32)
    samples = jax.jit(
        lambda: getattr(discrete, name)(exact_by_state(MASKED), MASKED, noise, times, keys=KEYS)
    )()
    assert np.all(samples[:, 0] == 2)
    given = np.where(SEQUENCES[:, 0] == 2, LAW, 0)
    second = np.bincount(SEQUENCES[:, 1], given) / given.sum()
    found = np.bincount(samples[:, 1], minlength=VOCABULARY) / BATCH
    if name == "confident":  # choosing places by the tokens drawn there favours likely tokens
        assert found.argmax() == second.argmax() and found.max() > second.max()
    else:  # four standard errors
        np.testing.assert_allclose(found, second, atol=0.045)


def test_first_hitting_keeps_given_tokens():
    noise = MASKED.prior(KEYS[:64], (LENGTH,)).at[:, 1].set(3)
    samples = jax.jit(
        lambda: discrete.first_hitting(exact_by_state(MASKED), MASKED, noise, keys=KEYS[:64])
    )()
    assert np.all(samples[:, 1] == 3) and samples.max() < VOCABULARY


JUMP = discrete.Masked(vocabulary_size=VOCABULARY, schedule=discrete.Geometric(sigma_min=0.5))


@pytest.mark.parametrize(
    "name", ["ancestral", "tau_leaping", "flow", "remasking", "confident", "entropy_bounded"]
)
def test_no_mask_is_left_by_a_schedule_that_starts_with_noise(name):
    """Right after the clean end 39 % of its tokens are masks. The last step removes them."""
    keys = KEYS[:64]
    denoiser = discrete.predict(
        lambda x_t, t: jnp.zeros((*x_t.shape, VOCABULARY)), JUMP, discrete.clean
    )
    sampler = jax.jit(
        lambda times: getattr(discrete, name)(
            denoiser, JUMP, JUMP.prior(keys, (8,)), times, keys=keys
        )
    )
    assert sampler(diffusion.uniform_grid(JUMP, 2)).max() < VOCABULARY


def test_first_hitting_evaluates_masks_after_the_jump():
    """At the clean end itself a mask would be impossible, and the network not heard."""
    logits = jnp.where(jnp.arange(VOCABULARY) == 3, 50.0, 0.0)
    denoiser = discrete.predict(
        lambda x_t, t: jnp.broadcast_to(logits, (*x_t.shape, VOCABULARY)), JUMP, discrete.clean
    )
    noise = JUMP.prior(KEYS[:64], (8,))
    samples = jax.jit(lambda: discrete.first_hitting(denoiser, JUMP, noise, keys=KEYS[:64]))()
    assert np.all(samples == 3)


def logits_of(seed, length=16, vocabulary=11):
    return 3 * jax.random.normal(jax.random.key(seed), (length, vocabulary))


def test_confident_accepts_the_quota_of_the_schedule_and_what_is_sure():
    """Cosine: few tokens first. Each place is accepted exactly once.

    The temperature of 0 takes the most likely tokens. Their probabilities are those without it.
    """
    process = discrete.Masked(vocabulary_size=11, schedule=discrete.Cosine())
    logits = logits_of(0)
    denoiser = discrete.predict(
        lambda x_t, t: logits + 0 * t[:, None, None], process, discrete.clean
    )
    times = diffusion.uniform_grid(process, 5)
    options = dict(keys=KEYS[:4], threshold=0.9, temperature=0.0, trajectory=True)
    states = jax.jit(
        lambda: discrete.confident(
            denoiser, process, process.prior(KEYS[:4], (16,)), times, **options
        )
    )()
    p = np.asarray(jax.nn.softmax(logits))
    accepted, expected = np.zeros(16, bool), [np.full(16, process.mask)]
    for quota in np.diff(np.ceil(16 * np.asarray(process.alpha(times)) - 1e-3).astype(int)):
        waiting = np.flatnonzero(~accepted)
        accepted[waiting[np.argsort(-p.max(1)[waiting])][:quota]] = True
        accepted |= p.max(1) > 0.9
        expected.append(np.where(accepted, p.argmax(1), process.mask))
    assert 1 < (p.max(1) > 0.9).sum() < 8
    np.testing.assert_array_equal(states, np.repeat(np.stack(expected)[:, None], 4, axis=1))


def test_maskgit_counts_of_256_tokens():
    """The published counts of masked tokens after each of 8 and 12 steps (parallel_decode.py)."""
    process = discrete.Masked(vocabulary_size=2, schedule=discrete.Cosine())
    for steps, expected in [
        (8, [251, 236, 212, 181, 142, 97, 49, 0]),
        (12, [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0]),
    ]:
        times = diffusion.uniform_grid(process, steps)[1:]
        target = [discrete.in_total(process, 256, jnp.asarray(0), times[0], t) for t in times]
        np.testing.assert_array_equal(256 - np.array(target), expected)
        # 9 tokens have been accepted. `in_total` counts them, and `per_step` does not.
        rest = discrete.in_total(process, 256, jnp.asarray(9), times[0], times[1])
        more = discrete.per_step(process, 256, jnp.asarray(9), times[0], times[1])
        assert rest == 256 - expected[1] - 9 and more == expected[0] - expected[1]


def test_the_entropies_before_an_accepted_place_sum_to_the_bound_at_most():
    entropy = jnp.array([[[0.3, 0.05], [0.1, 0.02]], [[0.9, 0.8], [0.7, 0.6]]])
    expected = [[[False, True], [True, True]], [[False, False], [False, True]]]
    np.testing.assert_array_equal(nearly_independent(entropy, 0.1), expected)
    one = nearly_independent(jnp.array([[1e-8, 0.6, 0.65]]), 0.0)
    np.testing.assert_array_equal(one, [[True, False, False]])  # a sum would lose the first


def test_confident_stops_evaluating_when_all_is_accepted():
    """With a threshold of 0 the first step accepts everything: one evaluation of 16."""
    calls = []

    def network(x_t, t):
        jax.debug.callback(lambda _: calls.append(1), t, ordered=True)
        return jnp.broadcast_to(logits_of(1), (*x_t.shape, 11))

    process = discrete.Masked(vocabulary_size=11)
    samples = discrete.confident(
        discrete.predict(network, process, discrete.clean),
        process,
        process.prior(KEYS[:4], (16,)),
        diffusion.uniform_grid(process, 16),
        keys=KEYS[:4],
        threshold=0.0,
    )
    jax.block_until_ready(samples)
    jax.effects_barrier()
    assert len(calls) == 1 and samples.max() < 11


def test_blocks_are_told_earlier_blocks_and_their_times():
    """The second block sees the first one clean, at time 0, and later ones as noise, at time 1."""
    process, seen = discrete.Masked(vocabulary_size=11), []

    def network(x_t, t):
        jax.debug.callback(
            lambda *both: seen.append([np.array(a[0]) for a in both]), x_t, t, ordered=True
        )
        return jnp.zeros((*x_t.shape, 11))

    sampler = functools.partial(discrete.blockwise, block_length=2)
    states = sampler(
        discrete.predict(network, process, discrete.clean),
        process,
        process.prior(KEYS[:1], (6,)),
        jnp.asarray([1.0, 0.25, 0.0]),
        keys=KEYS[:1],
        trajectory=True,
    )
    jax.block_until_ready(states)
    jax.effects_barrier()
    samples = states[-1]
    assert len(seen) == discrete.num_evaluations(sampler, 6, 2) == 6 and samples.max() < 11
    # The states at all times: one block after the other loses its masks.
    assert states.shape == (7, 1, 6)
    np.testing.assert_array_equal((states[::2, 0] == 11).sum(1), [6, 4, 2, 0])
    x_t, t = seen[3]  # the second step of the second block
    np.testing.assert_array_equal(t, [0, 0, 0.25, 0.25, 1, 1])
    np.testing.assert_array_equal(x_t[:2], samples[0, :2])
    np.testing.assert_array_equal(x_t[4:], 11)
    with pytest.raises(ValueError, match="blocks of 4 tokens do not divide a sequence of 6"):
        functools.partial(discrete.blockwise, block_length=4)(
            network, process, process.prior(KEYS[:1], (6,)), jnp.asarray([1.0, 0.0]), keys=KEYS[:1]
        )


def test_grids_and_options_do_not_recompile():
    traces = []

    @jax.jit
    def run(times, eta):
        traces.append(1)
        noise = UNIFORM.prior(KEYS[:4], (LENGTH,))
        return discrete.flow(exact_by_state(UNIFORM), UNIFORM, noise, times, keys=KEYS[:4], eta=eta)

    run(jnp.asarray([1.0, 0.5, 0.0]), 0.0)
    run(jnp.asarray([1.0, 0.2, 0.0]), 3.0)
    assert len(traces) == 1


def test_a_list_of_times_is_refused(unchecked_annotations):
    inputs = None, MASKED, jnp.full((2, LENGTH), MASKED.mask), [1.0, 0.0]
    keys = diffusion.sample_keys(jax.random.key(0), jnp.arange(2))
    for sampler in (discrete.ancestral, discrete.confident):
        with pytest.raises(ValueError, match="times are an array of floats .*; got .1.0, 0.0.: "):
            sampler(*inputs, keys=keys)


def test_one_key_is_refused(unchecked_annotations):
    key, noise = jax.random.key(0), jnp.full((2, LENGTH), MASKED.mask)
    denoiser = lambda x_t, t: jnp.zeros((*x_t.shape, VOCABULARY))
    with pytest.raises(ValueError, match="keys are one per sample, and this is one key: give"):
        MASKED.prior(key, (LENGTH,))
    for sampler in (discrete.ancestral, discrete.confident, discrete.first_hitting):
        with pytest.raises(ValueError, match="keys are one per sample, and this is one key: give"):
            sampler(denoiser, MASKED, noise, jnp.asarray([1.0, 0.0]), keys=key)


@pytest.mark.parametrize("shape", [(2, LENGTH, VOCABULARY + 1), (2, VOCABULARY)])
def test_outputs_of_another_shape_are_refused(shape, unchecked_annotations):
    """Logits of a mask too, and logits of a whole sequence, which may broadcast to all places."""
    denoiser = discrete.predict(lambda x_t, t: jnp.zeros(shape), MASKED, discrete.clean)
    with pytest.raises(ValueError, match="returns shape .*; it must return one value for each of"):
        denoiser(jnp.zeros((2, LENGTH), jnp.int32), jnp.ones(2))


@pytest.mark.slow
def test_choices_of_a_probability_near_1e_8_are_drawn():
    """Noise of the default precision ends below 16, and one in five of them is drawn then."""
    states = jnp.zeros((1, 2**12, 2**10)).at[..., 1:].set(-17.0)  # at 2¹² places of 32 samples
    counted = lambda key: (draw(key[None], jnp.exp(states)) > 0).sum()
    count = jax.lax.map(counted, jax.random.split(jax.random.key(0), 32)).sum()
    assert 3 <= count <= 12  # 91 % of all seeds; 5.6 are expected
