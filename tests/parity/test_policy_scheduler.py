"""The policies of pi-Flow against the scheduler of diffusers, with one network and one noise."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from genjax.diffusion import RectifiedFlow, shift_time
from genjax.distillation import flow_maps
from genjax.distillation.policies import policy_map

STEPS, POINTS, SHIFT = 4, 10, 5.0
X = np.array(jax.random.normal(jax.random.key(1), (4, 6, 3)))
FACTORS = 1 + 0.1 * np.arange(POINTS, dtype=np.float32)


def test_policies():
    """The scheduler wants predictions side by side in the channels, the segment's end first."""
    scheduler = diffusers.PiflowScheduler(shift=SHIFT, n_grid=POINTS)
    scheduler.set_timesteps(STEPS)
    x, states = torch.from_numpy(X), [X]
    for t in scheduler.timesteps:
        outputs = torch.cat([torch.sin(float(a) * x) for a in FACTORS], dim=-1)
        x = scheduler.step(outputs, t, x).prev_sample
        states.append(x.numpy())

    # Equal steps of the time before its shift, of which the last has half the length.
    raw = 1 - np.arange(STEPS) / (STEPS - 0.5)
    times = jnp.append(shift_time(jnp.asarray(raw, jnp.float32), SHIFT), 0.0)
    np.testing.assert_allclose(times[:-1], scheduler.timesteps / 1000, rtol=1e-6)
    apply = lambda x, t: jnp.stack([jnp.sin(a * x) for a in FACTORS], axis=1)
    policy = policy_map(apply, shift=SHIFT)
    ours = flow_maps.jump(policy, RectifiedFlow(), jnp.asarray(X), times, trajectory=True)
    theirs = np.stack(states)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
