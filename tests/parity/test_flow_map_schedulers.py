"""Samplers of flow maps against the schedulers of diffusers, with one network and one noise."""

import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from genjax import diffusion
from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    TrigFlow,
    TrigFlowPreconditioning,
    VariancePreservingTable,
    scaled_linear_betas,
    targets,
)
from genjax.distillation import flow_maps

BATCH, STEPS = 4, 4
SHAPE = (3, 4, 4)
KEYS = diffusion.sample_keys(jax.random.key(0), jnp.arange(BATCH))
X = np.array(jax.random.normal(jax.random.key(1), (BATCH, *SHAPE)))


def draw(number):
    """What `flow_maps.jump` draws at its steps."""
    one = lambda key: jax.random.normal(jax.random.fold_in(key, number), SHAPE)
    return torch.from_numpy(np.array(jax.vmap(one)(KEYS)))


def their_states(scheduler, monkeypatch, start, network=torch.sin, **step):
    """The states at all times of a scheduler whose network is the sine of its input."""
    numbers = iter(range(STEPS))
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draw(next(numbers)))
    x, states = torch.from_numpy(start), [start]
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **step).prev_sample.float()
        states.append(x.numpy())
    return np.stack(states)


sine = lambda x, t: torch.sin(x)


def compare(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(ours[-1] - ours[0]).max() > 0.1


def table_times(timesteps):
    """Timestep i of a thousand is (i + 1)/1000."""
    return (jnp.asarray(np.asarray(timesteps), jnp.float32) + 1) / 1000


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_latent_consistency(prediction, monkeypatch):
    """Four of fifty trailing steps."""
    scheduler = diffusers.LCMScheduler(prediction_type=prediction)
    scheduler.set_timesteps(STEPS)
    process = VariancePreservingTable(betas=scaled_linear_betas())
    times = diffusion.trailing_grid(process, 50)[np.array([0, 12, 25, 37, 50])]
    np.testing.assert_allclose(1000 * times[:-1] - 1, [999, 759, 499, 259], atol=1e-3)
    np.testing.assert_allclose(times[:-1], table_times(scheduler.timesteps), rtol=1e-6)
    target = targets.noise if prediction == "epsilon" else targets.v
    denoiser = diffusion.predict(lambda x, t: jnp.sin(x), process, target)
    ours = flow_maps.consistency(
        flow_maps.ddim_map(denoiser, process),
        process,
        jnp.asarray(X),
        times,
        keys=KEYS,
        trajectory=True,
    )
    compare(ours, their_states(scheduler, monkeypatch, X, sine))


def test_trajectory_consistency(monkeypatch):
    """Landings are the scheduler's: (1 − η)·timestep, rounded down. The last step is step 0."""
    scheduler = diffusers.TCDScheduler()
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    process = VariancePreservingTable(betas=scaled_linear_betas())
    denoiser = diffusion.predict(lambda x, t: jnp.sin(x), process, targets.noise)
    after = np.append(scheduler.timesteps[1:], 0)
    times, end_times = table_times(np.append(scheduler.timesteps, 0)), np.floor(0.7 * after)
    ours = flow_maps.jump(
        flow_maps.ddim_map(denoiser, process),
        process,
        jnp.asarray(X),
        times,
        keys=KEYS,
        end_times=table_times(end_times),
        trajectory=True,
    )
    compare(ours, their_states(scheduler, monkeypatch, X, sine, eta=0.3))


def test_consistency_models(monkeypatch):
    """Every tenth of 40 times. The scheduler adds no noise at the end, where its deviation is 0."""
    scheduler = diffusers.CMStochasticIterativeScheduler()
    scheduler.set_timesteps(STEPS)
    process = EDM()
    times = diffusion.karras_grid(process, 40)[np.array([0, 10, 20, 30, 39])]
    np.testing.assert_allclose(times, [80, 16.77989, 2.24044, 0.131197, 0.002], rtol=1e-5)
    np.testing.assert_allclose(times, scheduler.sigmas, rtol=1e-5)
    start = 80 * X

    def network(x, t):
        index = [float(a) for a in scheduler.timesteps].index(float(t))
        return torch.sin(x / (scheduler.sigmas[index] ** 2 + 0.25) ** 0.5)

    monkeypatch.setattr(scheduler, "is_scale_input_called", True)
    scheduler.register_to_config(clip_denoised=False)
    ours = flow_maps.consistency(
        flow_maps.consistency_map(lambda x, t: jnp.sin(x), process),
        process,
        jnp.asarray(start),
        times,
        keys=KEYS,
        trajectory=True,
    )
    compare(ours, their_states(scheduler, monkeypatch, start, network))


def test_continuous_consistency(monkeypatch):
    """SCM's two steps at 1.5708, 1.3, 0 (π/2 rounded)."""
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(2)
    np.testing.assert_allclose(scheduler.timesteps, [1.5708, 1.3, 0.0], rtol=1e-6)
    process = TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=0.5))
    F = lambda x, t: 0.5 * jnp.sin(2 * x)  # of the scheduler's x; ours is fed x over the deviation
    apply = lambda x, t: F(x / 2, t)
    denoiser = diffusion.predict(apply, process, targets.velocity)
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draw(0))
    x = torch.from_numpy(0.5 * X)
    theirs = [x.numpy()]
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(torch.sin(2 * x) / 2, t, x).prev_sample
        theirs.append(x.numpy())
    ours = flow_maps.consistency(
        flow_maps.ddim_map(denoiser, process),
        process,
        jnp.asarray(0.5 * X),
        jnp.minimum(jnp.asarray(scheduler.timesteps.numpy()), jnp.pi / 2),
        keys=KEYS,
        trajectory=True,
    )
    compare(ours, np.stack(theirs))


def test_flow_matching_consistency(monkeypatch):
    scheduler = diffusers.FlowMatchLCMScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    process = RectifiedFlow()
    denoiser = diffusion.predict(lambda x, t: jnp.sin(x), process, targets.velocity)
    ours = flow_maps.consistency(
        flow_maps.ddim_map(denoiser, process),
        process,
        jnp.asarray(X),
        jnp.asarray(scheduler.sigmas.numpy()),
        keys=KEYS,
        trajectory=True,
    )
    compare(ours, their_states(scheduler, monkeypatch, X, sine))


def test_flow_maps(monkeypatch):
    """Shift 5 in four steps: the times of Self-Forcing."""
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(STEPS)
    np.testing.assert_allclose(scheduler.timesteps, [1000, 937.5, 833.33333, 625], rtol=1e-8)
    process = RectifiedFlow()
    times = diffusion.shift_time(diffusion.uniform_grid(process, STEPS), 5.0)
    np.testing.assert_allclose(times[:-1], scheduler.timesteps / 1000, rtol=1e-6)
    network = flow_maps.flow_map(lambda x, t, s: jnp.sin(x), process, targets.velocity)
    ours = flow_maps.jump(network, process, jnp.asarray(X), times, trajectory=True)
    compare(ours, their_states(scheduler, monkeypatch, X, sine))
