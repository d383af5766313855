"""Samplers compared with diffusers' schedulers step by step: same denoiser, grid and drawn noise.

A scheduler's `sigmas` are sigma/alpha, and for flow matching sigma. Our grid consists of the times
of these levels. On the grids of DDPM and DDIM, timestep i is t = (i + 1)/1000. CASES lists all
other choices that make the mathematics equal. Three differences of diffusers 0.42 remain:

- SDE-DPM-Solver++ 3M subtracts 1/2 where its second difference must be multiplied by 1/2 + (1 −
  e^{−a} − a)/a², a = 2h. So its error does not shrink with the step.
- Churn (`s_churn`) in its Euler and Heun raises the noise after the network was evaluated at the
  previous level.
- Its singlestep SDE draws noise for every update from the start of the step; ours has no such form.
"""

import sys
from functools import partial
from typing import NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from genjax.diffusion import (
    EDM,
    Prediction,
    RectifiedFlow,
    VariancePreservingTable,
    linear_betas,
    sample_keys,
    samplers,
    zero_terminal_snr,
)
from genjax.diffusion.samplers.tables import Table, run

BATCH, DIMENSIONS = 16, 4
STEPS = 10
KEYS = sample_keys(jax.random.key(0), jnp.arange(BATCH))

# Relative to the largest number in the states at that time. Both sides work in float32, where one
# rounding is 6e-8. Schedulers divide small differences of logarithms and of exponentials. Up to
# 1e-6 was measured, and up to 1e-5 for third-order DEIS and DPM-Solver.
TOLERANCE = 3e-5


class Case(NamedTuple):
    scheduler: object
    sampler: object
    process: object = VariancePreservingTable()
    step: dict = {}  # options of the scheduler's step
    grid: dict = {}  # options of its set_timesteps
    compared: int | None = None  # number of states to compare


# Samplers whose state is x_t/alpha.
DIVIDED = (
    diffusers.EulerDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
    diffusers.LMSDiscreteScheduler,
)
dpm = diffusers.DPMSolverMultistepScheduler


class PublishedThirdOrder(diffusers.DPMSolverSinglestepScheduler):
    """Return DPM-Solver-3 as published.

    The update of its second evaluation is that of solver type "heun", of its third "midpoint"."""

    def singlestep_dpm_solver_second_order_update(self, *arguments, **named):
        self.register_to_config(solver_type="heun")
        x = super().singlestep_dpm_solver_second_order_update(*arguments, **named)
        self.register_to_config(solver_type="midpoint")
        return x


CASES = {
    # x̂ is not clipped here. "trailing" makes equal steps of 100 from timestep 999 to the clean
    # end.
    "DDPM": Case(
        partial(diffusers.DDPMScheduler, clip_sample=False, timestep_spacing="trailing"),
        samplers.ddpm,
    ),
    # "leading" ends at timestep 0, where no noise is drawn, whatever the variance.
    "DDPM, learned variance": Case(
        partial(
            diffusers.DDPMScheduler,
            clip_sample=False,
            timestep_spacing="leading",
            variance_type="learned_range",
        ),
        samplers.ddpm,
    ),
    "DDIM": Case(
        partial(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing="trailing"),
        samplers.ddim,
    ),
    "DDIM, eta .7": Case(
        partial(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing="trailing"),
        partial(samplers.ddim, eta=0.7),
        step={"eta": 0.7},
    ),
    "DDIM from alpha = 0": Case(
        partial(
            diffusers.DDIMScheduler,
            clip_sample=False,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
        ),
        samplers.ddim,
        VariancePreservingTable(betas=zero_terminal_snr(linear_betas())),
    ),
    "Euler": Case(diffusers.EulerDiscreteScheduler, samplers.ddim),
    "Euler, Karras": Case(
        partial(diffusers.EulerDiscreteScheduler, use_karras_sigmas=True), samplers.ddim
    ),
    "Euler ancestral": Case(diffusers.EulerAncestralDiscreteScheduler, samplers.euler_ancestral),
    "DPM2": Case(diffusers.KDPM2DiscreteScheduler, partial(samplers.dpm2_ancestral, eta=0.0)),
    "DPM2 ancestral": Case(diffusers.KDPM2AncestralDiscreteScheduler, samplers.dpm2_ancestral),
    "Heun": Case(
        partial(diffusers.HeunDiscreteScheduler, beta_start=1e-4, beta_end=0.02), samplers.edm_heun
    ),
    "Heun, Karras": Case(
        partial(
            diffusers.HeunDiscreteScheduler, beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True
        ),
        samplers.edm_heun,
    ),
    "LMS": Case(diffusers.LMSDiscreteScheduler, samplers.lms),
    "LMS, order 2": Case(
        diffusers.LMSDiscreteScheduler, partial(samplers.lms, order=2), step={"order": 2}
    ),
    "DPM-Solver++ 2M": Case(dpm, samplers.dpm_solver_pp_2m),
    "DPM-Solver++ 2M, Karras": Case(
        partial(dpm, use_karras_sigmas=True), samplers.dpm_solver_pp_2m
    ),
    "DPM-Solver++ 2M, heun": Case(
        partial(dpm, solver_type="heun"), partial(samplers.dpm_solver_pp_2m, form="heun")
    ),
    "DPM-Solver++ 2M to sigma_min": Case(
        partial(dpm, final_sigmas_type="sigma_min", lower_order_final=False),
        samplers.dpm_solver_pp_2m,
    ),
    "DPM-Solver++ 2M to sigma_min, lower order": Case(
        partial(dpm, final_sigmas_type="sigma_min"),
        partial(samplers.dpm_solver_pp_2m, lower_order_final=True),
    ),
    "DPM-Solver++ 2M, flow": Case(
        partial(dpm, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
        samplers.dpm_solver_pp_2m,
        RectifiedFlow(),
    ),
    "SDE-DPM-Solver++ 2M": Case(
        partial(dpm, algorithm_type="sde-dpmsolver++"), partial(samplers.dpm_solver_pp_2m, eta=1.0)
    ),
    "SDE-DPM-Solver++ 2M, Karras, heun": Case(
        partial(dpm, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, solver_type="heun"),
        partial(samplers.dpm_solver_pp_2m, eta=1.0, form="heun"),
    ),
    # diffusers' second-order steps follow solver_type. Its third-order steps halve the second
    # derivative once too often, whatever solver_type is. So `curvature` is .5 here.
    "DPM-Solver++ 3M": Case(
        partial(dpm, solver_order=3, solver_type="heun"),
        partial(samplers.dpm_solver_pp_3m, curvature=0.5, lower_order_final=True),
    ),
    "DPM-Solver++ 3M, Karras": Case(
        partial(dpm, solver_order=3, solver_type="heun", use_karras_sigmas=True),
        partial(samplers.dpm_solver_pp_3m, curvature=0.5, lower_order_final=True),
    ),
    "DPM-Solver++ 3M to sigma_min": Case(
        partial(
            dpm,
            solver_order=3,
            solver_type="heun",
            final_sigmas_type="sigma_min",
            lower_order_final=False,
        ),
        partial(samplers.dpm_solver_pp_3m, curvature=0.5),
    ),
    "DEIS, order 2": Case(
        partial(diffusers.DEISMultistepScheduler, solver_order=2),
        partial(samplers.deis, order=2, lower_order_final=True),
    ),
    "DEIS, order 3": Case(
        partial(diffusers.DEISMultistepScheduler, solver_order=3),
        partial(samplers.deis, order=3, lower_order_final=True),
    ),
    "DEIS, order 3 to the end": Case(
        partial(diffusers.DEISMultistepScheduler, solver_order=3, lower_order_final=False),
        partial(samplers.deis, order=3),
    ),
    "UniPC": Case(
        diffusers.UniPCMultistepScheduler, partial(samplers.unipc, lower_order_final=True)
    ),
    "UniPC, Karras": Case(
        partial(diffusers.UniPCMultistepScheduler, use_karras_sigmas=True),
        partial(samplers.unipc, lower_order_final=True),
    ),
    "UniPC, order 3 to sigma_min": Case(
        partial(
            diffusers.UniPCMultistepScheduler,
            solver_order=3,
            lower_order_final=False,
            final_sigmas_type="sigma_min",
        ),
        partial(samplers.unipc, order=3),
    ),
    # diffusers divides 0 by 0 in a step to sigma = 0.
    "UniPC, B = h, to sigma_min": Case(
        partial(
            diffusers.UniPCMultistepScheduler, solver_type="bh1", final_sigmas_type="sigma_min"
        ),
        partial(samplers.unipc, variant="bh1", lower_order_final=True),
    ),
    "DPM-Solver++ 2S": Case(
        partial(diffusers.DPMSolverSinglestepScheduler, lower_order_final=True),
        partial(samplers.dpm_solver_pp_2s, on_grid=True),
    ),
    "DPM-Solver++ 2S to sigma_min": Case(
        partial(diffusers.DPMSolverSinglestepScheduler, final_sigmas_type="sigma_min"),
        partial(samplers.dpm_solver_pp_2s, on_grid=True),
    ),
    "DPM-Solver 2": Case(
        partial(
            diffusers.DPMSolverSinglestepScheduler,
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
        ),
        partial(samplers.dpm_solver_2, on_grid=True),
    ),
    "DPM-Solver 3": Case(
        partial(
            PublishedThirdOrder,
            solver_order=3,
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
            lower_order_final=True,  # ten steps are three times three, and one
        ),
        partial(samplers.dpm_solver_3, on_grid=True),
    ),
    # Lines are integrated exactly in third-order steps, and not in second-order ones: as in
    # DPM-Solver 3.
    "DPM-Solver++ 3S": Case(
        partial(
            PublishedThirdOrder,
            solver_order=3,
            final_sigmas_type="sigma_min",
            lower_order_final=True,
        ),
        partial(samplers.dpm_solver_pp_3s, on_grid=True),
    ),
    # diffusers' steps to sigma = 0 are NaN.
    "SA-Solver": Case(
        partial(diffusers.SASolverScheduler, tau_func=lambda t: 1.0, lower_order_final=False),
        partial(samplers.sa_solver, form="program"),
        compared=STEPS,
    ),
    "SA-Solver, orders 3 and 4": Case(
        partial(
            diffusers.SASolverScheduler,
            tau_func=lambda t: 0.8,
            predictor_order=3,
            corrector_order=4,
            lower_order_final=False,
        ),
        partial(samplers.sa_solver, tau=0.8, order=3, corrector_order=4, form="program"),
        compared=STEPS,
    ),
    "EDM, Euler": Case(diffusers.EDMEulerScheduler, samplers.euler, EDM()),
    "EDM, DPM-Solver++ 2M": Case(
        diffusers.EDMDPMSolverMultistepScheduler, samplers.dpm_solver_pp_2m, EDM()
    ),
    "EDM, SDE-DPM-Solver++ 2M": Case(
        partial(diffusers.EDMDPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
        partial(samplers.dpm_solver_pp_2m, eta=1.0),
        EDM(),
    ),
    "EDM, DPM-Solver++ 3M": Case(
        partial(diffusers.EDMDPMSolverMultistepScheduler, solver_order=3, solver_type="heun"),
        partial(samplers.dpm_solver_pp_3m, curvature=0.5, lower_order_final=True),
        EDM(),
    ),
    "flow matching, Euler": Case(
        partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0),
        samplers.euler,
        RectifiedFlow(),
    ),
    "flow matching, Euler, dynamic shift": Case(
        partial(diffusers.FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True),
        samplers.euler,
        RectifiedFlow(),
        grid={"mu": 0.8},
    ),
    # diffusers' last step is Euler's, ours is Heun's, so only earlier states are compared.
    "flow matching, Heun": Case(
        partial(diffusers.FlowMatchHeunDiscreteScheduler, shift=3.0),
        samplers.heun,
        RectifiedFlow(),
        compared=STEPS,
    ),
}


def two_normals(x, alpha, sigma, tanh):
    """Return x̂ and ẑ for data with independent numbers from N(1, 1/4) or N(−1, 1/4)."""
    variance = alpha**2 / 4 + sigma**2
    centre = tanh(alpha * x / variance)  # the expected sign, from how likely each centre is
    return (alpha * x / 4 + sigma**2 * centre) / variance, sigma * (x - alpha * centre) / variance


def learned_variance(x, tanh):
    """Scale numbers to [0, 1], from the least to the largest."""
    return (1 + tanh(x)) / 2


def variance_preserving(rho):
    alpha = (1 + rho**2).rsqrt()
    return alpha, alpha * rho


def levels(scheduler):
    """Return alpha and sigma at each evaluation and at the end.

    A second evaluation has those of the next step.
    """
    if not hasattr(scheduler, "sigmas"):
        squares = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)]).double()
        return squares.sqrt(), (1 - squares).sqrt()
    sigmas = scheduler.sigmas[: len(scheduler.timesteps) + 1].double()
    if "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas"):
        return 1 - sigmas, sigmas
    return (
        (torch.ones_like(sigmas), sigmas)
        if "EDM" in type(scheduler).__name__
        else variance_preserving(sigmas)
    )


def network(scheduler, x, t, alpha, sigma):
    """Return a perfect network's output for a scheduler's state, of the kind that it expects."""
    if hasattr(scheduler, "scale_model_input"):
        # The scheduler requires this call, which gives x_t, except for EDM's.
        scaled = scheduler.scale_model_input(x, t)
        x = x if "EDM" in type(scheduler).__name__ else scaled
    clean, noise = two_normals(x.double(), alpha, sigma, torch.tanh)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "flow_prediction":
        return (noise - clean).float()
    if kind == "v_prediction":
        return (alpha * noise - sigma * clean).float()
    # Karras et al. 2022, table 1, for data of standard deviation 1/2.
    if "EDM" in type(scheduler).__name__:
        total = sigma**2 + 0.25
        return ((clean - 0.25 / total * x) * total.sqrt() / (sigma * 0.5)).float()
    if scheduler.config.get("variance_type") == "learned_range":
        return torch.cat([noise, 2 * learned_variance(x, torch.tanh) - 1], 1).float()
    return noise.float()


def their_states(scheduler, case, noise, draws, monkeypatch):
    """Return the grid's alphas and sigmas, and the states x_t there."""
    scheduler.set_timesteps(STEPS, **case.grid)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # Karras' timesteps are rounded, and not unique
    # Second evaluations draw.
    draws = iter(draws if len(scheduler.timesteps) == STEPS else draws[1::2])
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(draws)))
    alphas, sigmas = levels(scheduler)
    scales = alphas if type(scheduler) in DIVIDED else torch.ones_like(alphas)
    x, states = torch.from_numpy(noise) / scales[0].float(), [noise]
    for t, alpha, sigma, scale in zip(
        scheduler.timesteps, alphas, sigmas, scales[1:], strict=False
    ):
        # DPM2, inside a step.
        if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
            ancestral = isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler)
            rho = scheduler.sigmas_interpol[scheduler.step_index - ancestral]
            alpha, sigma = variance_preserving(rho.double())
        x = scheduler.step(network(scheduler, x, t, alpha, sigma), t, x, **case.step).prev_sample
        states.append((x * scale).numpy())
    kept = np.append(np.diff(sigmas) != 0, True)  # after the last evaluation of a step
    return alphas[kept].numpy(), sigmas[kept].numpy(), np.stack(states)[kept]


@pytest.fixture(scope="module")
def draws():
    """Return a sampler's draws for KEYS after each evaluation, computed separately."""
    rows = 2 * STEPS
    nothing = lambda x, t: Prediction(x, x)
    table = Table(jnp.zeros(rows), fresh=jnp.ones(rows))
    return np.array(run(nothing, jnp.zeros((BATCH, DIMENSIONS)), table, KEYS, trajectory=True)[1:])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
# diffusers will remove DPM-Solver without ++.
@pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation|__array_wrap__ must:DeprecationWarning"
)
def test_states_are_those_of_the_scheduler(case, draws, monkeypatch):
    scheduler, process = case.scheduler(), case.process
    noise = process.prior(KEYS, (DIMENSIONS,))
    alphas, sigmas, theirs = their_states(scheduler, case, np.array(noise), draws, monkeypatch)
    if hasattr(scheduler, "sigmas"):
        times = process.time_of(jnp.asarray(alphas, jnp.float32), jnp.asarray(sigmas, jnp.float32))
    else:
        times = jnp.append((jnp.asarray(scheduler.timesteps.numpy()) + 1.0) / 1000, 0)

    def denoiser(x, t):
        prediction = Prediction(
            *two_normals(x, process.alpha(t)[:, None], process.sigma(t)[:, None], jnp.tanh)
        )
        if scheduler.config.get("variance_type") != "learned_range":
            return prediction
        return prediction._replace(fraction=learned_variance(x, jnp.tanh))

    ours = case.sampler(
        denoiser, process, noise, times[: case.compared], keys=KEYS, trajectory=True
    )
    assert ours.shape == (case.compared or STEPS + 1, BATCH, DIMENSIONS)
    difference = np.abs(ours - theirs[: case.compared]).max((1, 2))
    assert np.all(difference <= TOLERANCE * np.abs(theirs[: case.compared]).max((1, 2)))
