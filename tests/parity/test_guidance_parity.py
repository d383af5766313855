"""Guidance rules compared with diffusers' guiders on equal predictions, and RePaint's way back."""

import functools

import diffusers.guiders as guiders
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, RePaintScheduler

from genjax.diffusion import (
    RectifiedFlow,
    adaptive_projected,
    blend,
    classifier_free,
    clean,
    ddim,
    dynamic_threshold,
    guide,
    repaint,
    rescaled,
    scale_of_weight,
    tangential,
    target_rule,
    uniform_grid,
    zero_star,
)
from genjax.diffusion.targets import Prediction

SCALE = 4.0
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums over 128 numbers
FLOW = RectifiedFlow()


@pytest.fixture
def pair():
    return np.random.default_rng(0).normal(size=(2, 3, 8, 8, 2)).astype(np.float32)


def theirs(guider, conditional, unconditional, step=5, steps=10):
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(0))
    return guider.forward(torch.as_tensor(conditional), torch.as_tensor(unconditional)).pred.numpy()


@pytest.mark.parametrize(
    "rule, guider",
    [
        (classifier_free, guiders.ClassifierFreeGuidance(guidance_scale=SCALE)),
        (
            functools.partial(rescaled, phi=0.7),
            guiders.ClassifierFreeGuidance(guidance_scale=SCALE, guidance_rescale=0.7),
        ),
        (
            classifier_free,
            guiders.AutoGuidance(guidance_scale=SCALE, dropout=0.1, auto_guidance_layers=[0]),
        ),
        (tangential, guiders.TangentialClassifierFreeGuidance(guidance_scale=SCALE)),
        (zero_star, guiders.ClassifierFreeZeroStarGuidance(guidance_scale=SCALE)),
        (
            functools.partial(rescaled, phi=0.5, rule=zero_star),
            guiders.ClassifierFreeZeroStarGuidance(guidance_scale=SCALE, guidance_rescale=0.5),
        ),
        *(
            (
                functools.partial(adaptive_projected, eta=eta, norm_threshold=threshold),
                # the published equation starts from the conditional prediction and has weight s − 1
                guiders.AdaptiveProjectedGuidance(
                    guidance_scale=SCALE - 1,
                    eta=eta,
                    adaptive_projected_guidance_rescale=threshold,
                    use_original_formulation=True,
                ),
            )
            for eta, threshold in ((1.0, 5.0), (0.0, 5.0), (0.3, 15.0), (0.3, 1e6))
        ),
    ],
)
def test_one_quantity(pair, rule, guider):
    conditional, unconditional = pair
    result = rule(jnp.asarray(conditional), jnp.asarray(unconditional), SCALE)
    np.testing.assert_allclose(result, theirs(guider, conditional, unconditional), **TOLERANCE)


def test_the_other_convention(pair):
    guider = guiders.ClassifierFreeGuidance(guidance_scale=SCALE, use_original_formulation=True)
    result = classifier_free(*map(jnp.asarray, pair), scale_of_weight(SCALE))
    np.testing.assert_allclose(result, theirs(guider, *pair), **TOLERANCE)


def test_a_layer_left_out(pair):
    """Classifier-free guidance, and guidance away from a network without some layers."""
    disturbed = np.random.default_rng(1).normal(size=pair[0].shape).astype(np.float32)
    guider = guiders.SkipLayerGuidance(
        guidance_scale=SCALE, skip_layer_guidance_scale=2.8, skip_layer_guidance_layers=[0]
    )
    guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(0))
    expected = guider.forward(*map(torch.as_tensor, (*pair, disturbed))).pred.numpy()
    denoisers = [
        lambda x, t, half=half: Prediction(half, -half)
        for half in map(jnp.asarray, (*pair, disturbed))
    ]
    found = blend(denoisers, [1 - SCALE, -2.8])(jnp.zeros(pair[0].shape), jnp.ones(3))
    np.testing.assert_allclose(found.clean, expected, **TOLERANCE)
    np.testing.assert_allclose(found.noise, -expected, **TOLERANCE)


def test_momentum_over_steps():
    """Adaptive projected guidance of x̂ over a whole trajectory, including its running average."""
    weights = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    noise = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    times = uniform_grid(FLOW, 8)[:-1]

    def denoise(x_t, t, labels):
        x_hat = jnp.tanh(x_t + t[:, None] * jnp.asarray(weights)[labels])
        return Prediction(x_hat, (x_t - (1 - t[:, None]) * x_hat) / t[:, None])

    projected = functools.partial(adaptive_projected, eta=0.2, norm_threshold=2.0)
    rule = target_rule(FLOW, clean, projected, momentum=-0.5)
    guided = guide(denoise, jnp.ones(3, int), 0, SCALE, rule)
    result = ddim(guided, FLOW, jnp.asarray(noise), times, memory=jnp.zeros(noise.shape))

    guider = guiders.AdaptiveProjectedGuidance(
        guidance_scale=SCALE - 1,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=2.0,
        eta=0.2,
        use_original_formulation=True,
    )
    guider.momentum_buffer = guiders.adaptive_projected_guidance.MomentumBuffer(-0.5)
    x = noise
    for step, (t, s) in enumerate(zip(np.asarray(times[:-1]), np.asarray(times[1:]), strict=True)):
        x_hat = theirs(guider, *(np.tanh(x + t * weights[label]) for label in (1, 0)), step=step)
        x = (1 - s) * x_hat + s * (x - (1 - t) * x_hat) / t
    np.testing.assert_allclose(result, x, rtol=1e-4, atol=1e-4)  # seven steps


@pytest.mark.parametrize(
    "num_steps, jump_length, resamplings", [(50, 10, 10), (23, 4, 3), (10, 1, 2), (8, 8, 5)]
)
def test_repaint_goes_back_when_diffusers_does(num_steps, jump_length, resamplings):
    """diffusers lists the ends of steps, in remaining steps, and all places on the way back."""
    scheduler = RePaintScheduler(num_train_timesteps=num_steps)
    scheduler.set_timesteps(num_steps, jump_length, resamplings)
    times = uniform_grid(FLOW, num_steps)
    starts = num_steps * np.asarray(repaint.table(FLOW, times, jump_length, resamplings).times)
    places = [num_steps]
    for start in np.rint(starts).astype(int):
        places.extend(range(places[-1] + 1, start + 1))
        places.append(start - 1)
    np.testing.assert_array_equal(places[1:], scheduler.timesteps)


def test_dynamic_threshold():
    sample = 2 * np.random.default_rng(3).normal(size=(4, 8, 8, 3)).astype(np.float32)
    scheduler = DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e6
    )
    expected = scheduler._threshold_sample(torch.as_tensor(sample)).numpy()
    np.testing.assert_allclose(dynamic_threshold(jnp.asarray(sample), 0.9), expected, **TOLERANCE)
