"""Samplers of discrete diffusion compared with diffusers' schedulers, step by step.

Both sides see the same logits. What they draw differs, so the laws are compared: the probabilities
from which a scheduler draws are recorded. Where the tokens are the most likely ones, a step is
deterministic and states are compared.

- DiscreteDDIM draws x̂ and then a route (clean, stay, noise): the three routes make the law of x_s.
- BlockRefinement's and EntropyBound's places are compared, given the tokens which were drawn.
- BlockRefinement accepts steps' quotas in another order where steps do not divide the block.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler

from genjax import diffusion
from genjax.diffusion import discrete
from genjax.diffusion.discrete.samplers import decoding

BATCH, LENGTH, VOCABULARY = 4, 16, 7
UNIFORM = discrete.Uniform(vocabulary_size=VOCABULARY)
MASKED = discrete.Masked(vocabulary_size=VOCABULARY)
CLEAN = discrete.predict(lambda x_t, t: network(x_t, t), MASKED, discrete.clean)
KEYS = diffusion.sample_keys(jax.random.key(0), jnp.arange(BATCH))


def network(x_t, t):
    """Return logits that depend on the tokens, with clear and with close favourites."""
    rng = np.random.default_rng(0)
    shape = (VOCABULARY + 1, LENGTH, VOCABULARY)
    own, neighbour = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    places = jnp.arange(LENGTH)
    logits = own[x_t, places] + neighbour[jnp.roll(x_t, 1, -1), places]
    return (2 + 2 * jnp.linspace(0, 1, LENGTH)[:, None]) * logits + 0 * t[:, None, None]


def recorded(monkeypatch, function):
    """Return the arguments that `torch.<function>` is called with from now on."""
    seen, original = [], getattr(torch, function)

    def record(first, *args, **named):
        seen.append(first)
        return original(first, *args, **named)

    monkeypatch.setattr(torch, function, record)
    return seen


@pytest.mark.parametrize("index", range(4))
def test_discrete_ddim_draws_from_the_posterior(monkeypatch, index):
    """Of the most likely x̂, at temperature 0, at every step of four."""
    scheduler = DiscreteDDIMScheduler(num_inference_steps=4)
    x_t = UNIFORM.prior(KEYS, (LENGTH,))
    t, s = diffusion.uniform_grid(UNIFORM, 4)[index : index + 2]
    each_t = jnp.full(BATCH, t)
    logits = network(x_t, each_t)
    drawn = recorded(monkeypatch, "multinomial")
    state = torch.tensor(np.asarray(x_t)).long()
    answer = scheduler.step(torch.tensor(np.asarray(logits)), index, state)
    routes = drawn[0].reshape(BATCH, LENGTH, 3).numpy()
    one_hot = np.eye(VOCABULARY)
    theirs = (
        routes[..., :1] * one_hot[answer.sampled_tokens.numpy()]
        + routes[..., 1:2] * one_hot[np.asarray(x_t)]
        + routes[..., 2:] / VOCABULARY
    )
    denoiser = discrete.temper(discrete.predict(network, UNIFORM, discrete.clean), 0.0)
    ours = UNIFORM.posterior(denoiser(x_t, each_t), x_t, t, s)
    np.testing.assert_allclose(ours, theirs, atol=2e-7)  # float32: one rounding of a probability


def test_leave_one_out_logits_of_discrete_ddim():
    """Its conversion of plain logits is what the target `leave_one_out` takes back."""
    x_t = UNIFORM.prior(KEYS, (LENGTH,))
    t = jnp.full(BATCH, 0.3)
    logits = network(x_t, t)
    state = torch.tensor(np.asarray(x_t)).long()
    theirs = DiscreteDDIMScheduler._to_loo_logits(torch.tensor(np.asarray(logits)), state, 0.7)
    ours = discrete.leave_one_out(UNIFORM, jnp.asarray(theirs.numpy()), x_t, t)
    np.testing.assert_allclose(ours, discrete.clean(UNIFORM, logits, x_t, t), atol=3e-6)


@pytest.mark.parametrize("steps", [4, 8, 16])
@pytest.mark.parametrize("threshold", [0.6, 0.95])
def test_block_refinement_of_masks(steps, threshold):
    """LLaDA2's decoding, greedy: the states after every step are equal."""
    scheduler = BlockRefinementScheduler(block_length=LENGTH, threshold=threshold)
    scheduler.set_timesteps(steps)
    times = diffusion.uniform_grid(MASKED, steps)
    options = dict(keys=KEYS, threshold=threshold, temperature=0.0, trajectory=True)
    states = jax.jit(lambda noise: discrete.confident(CLEAN, MASKED, noise, times, **options))(
        MASKED.prior(KEYS, (LENGTH,))
    )
    theirs = torch.full((BATCH, LENGTH), VOCABULARY)
    for index in range(steps):
        logits = torch.tensor(np.asarray(network(jnp.asarray(theirs.numpy()), jnp.zeros(BATCH))))
        theirs = scheduler.step(logits, index, theirs, mask_token_id=VOCABULARY).prev_sample
        np.testing.assert_array_equal(states[index + 1], theirs.numpy())
    assert theirs.max() < VOCABULARY


def test_block_refinement_of_uniform_noise():
    """DiffusionGemma's: which tokens are accepted at each step, given our states, greedy.

    What is not accepted is drawn anew, so each step of theirs starts from our state.
    """
    scheduler = BlockRefinementScheduler(block_length=LENGTH, threshold=0.8)
    scheduler.set_timesteps(5)
    times = diffusion.uniform_grid(UNIFORM, 5)
    denoiser = discrete.predict(network, UNIFORM, discrete.clean)
    states = jax.jit(
        lambda noise: discrete.confident(
            denoiser,
            UNIFORM,
            noise,
            times,
            keys=KEYS,
            threshold=0.8,
            temperature=0.0,
            quota=discrete.in_total,
            trajectory=True,
        )
    )(UNIFORM.prior(KEYS, (LENGTH,)))
    accepted = np.zeros((BATCH, LENGTH), bool)
    for index in range(5):
        x_t = np.asarray(states[index])
        logits = torch.tensor(np.asarray(network(jnp.asarray(x_t), jnp.zeros(BATCH))))
        answer = scheduler.step(logits, index, torch.tensor(x_t).long())
        accepted |= answer.transfer_index.numpy()
        ours = np.asarray(states[index + 1])
        np.testing.assert_array_equal(ours[accepted], answer.prev_sample.numpy()[accepted])
        # And nothing else is: it is drawn anew, so it is seldom the same.
        assert (ours == x_t)[~accepted].mean() < 0.5 if (~accepted).any() else index == 4


@pytest.mark.parametrize("bound", [0.1, 0.5, 2.0])
def test_entropy_bound_of_uniform_noise(bound):
    """Which places are accepted, at every step but the last, where ours accepts all of them."""
    scheduler = EntropyBoundScheduler(entropy_bound=bound, num_inference_steps=6)
    times = diffusion.uniform_grid(UNIFORM, 6)
    plain = discrete.predict(network, UNIFORM, discrete.clean)
    denoiser = discrete.temper(plain, lambda t: 0.4 + 0.4 * t)
    for index in range(5):
        x_t = UNIFORM.prior(KEYS, (LENGTH,))
        logits = torch.tensor(np.asarray(network(x_t, jnp.zeros(BATCH))))
        answer = scheduler.step(logits, index, torch.tensor(np.asarray(x_t)).long())
        log_p = denoiser(x_t, jnp.full(BATCH, times[index]))
        np.testing.assert_allclose(
            log_p, torch.log_softmax(answer.pred_logits, -1).numpy(), atol=2e-5
        )
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
        ours = decoding.nearly_independent(entropy, bound)
        np.testing.assert_array_equal(ours, answer.accepted_index.numpy())
        assert 0 < ours.sum() < ours.size
