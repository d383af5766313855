"""MaskGIT's steps beside the scheduler of Amused in diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler
from diffusers.schedulers import scheduling_amused

from genjax.autoregression import masked
from genjax.autoregression.masked import masked_counts, maskgit

# No count of a step is a whole number before it is rounded down: there float32 misses by one.
BATCH, LENGTH, VOCABULARY, STEPS = 3, 25, 7, 6


def predict(tokens):
    """Return logits that depend on the tokens."""
    random = np.random.default_rng(int(np.asarray(tokens).sum()))
    return random.standard_normal((BATCH, LENGTH, VOCABULARY)).astype(np.float32)


def noise_of(keys, step):
    """Return the noise of `maskgit`'s choice."""
    fold = jax.vmap(jax.random.fold_in, (0, None))(keys, 2 * step + 1)
    return jax.vmap(lambda key: jax.random.gumbel(key, (LENGTH,)))(fold)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_states_are_those_of_amused(schedule, monkeypatch):
    """Tokens are the most likely ones on both sides, and the choice has the same noise."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    likeliest = lambda probabilities, *_, **__: probabilities.argmax(-1, keepdim=True)
    monkeypatch.setattr(torch, "multinomial", likeliest)
    noise = lambda *_, **__: torch.from_numpy(np.array(noise_of(keys, len(expected) - 1)))
    monkeypatch.setattr(scheduling_amused, "gumbel_noise", noise)

    scheduler = AmusedScheduler(mask_token_id=VOCABULARY, masking_schedule=schedule)
    scheduler.set_timesteps(STEPS, temperature=(2, 0))
    expected = [torch.full((BATCH, LENGTH), VOCABULARY)]
    for timestep in scheduler.timesteps:
        logits = torch.from_numpy(predict(expected[-1]))
        expected.append(scheduler.step(logits, timestep, expected[-1]).prev_sample)

    network = lambda tokens, share: jax.pure_callback(
        predict, jax.ShapeDtypeStruct((BATCH, LENGTH, VOCABULARY), jnp.float32), tokens
    )
    states = maskgit(
        keys,
        network,
        jnp.full((BATCH, LENGTH), VOCABULARY),
        VOCABULARY,
        masked_counts(getattr(masked, schedule), LENGTH, STEPS),
        scheduler.temperatures.numpy(),
        lambda keys, logits: jnp.argmax(logits, axis=-1),
        trajectory=True,
    )
    np.testing.assert_array_equal(states, torch.stack(expected[1:]))
    assert (states[0] == VOCABULARY).sum() > LENGTH
