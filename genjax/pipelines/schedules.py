"""diffusers' schedules, `scheduler_config.json`, as processes, targets, samplers and grids."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax import diffusion
from genjax.diffusion import grids, samplers
from genjax.pretrained.configuration import (
    Natural,
    Value,
    default_of,
    expect,
    expect_kind,
    kind_of,
)


def _expect_all(schedule: Mapping[str, Any], **fixed: Any) -> None:
    """Check that entries, if present, have these values."""
    for name, value in fixed.items():
        expect({name: value, **schedule}, name, value)


def _expect_positive(schedule: Mapping[str, Any], *names: str) -> None:
    """Check that entries are numbers above 0."""
    for name in names:
        expect_kind(schedule, name, float)
        if schedule[name] <= 0:
            given = f"{name}={schedule[name]}"
            raise ValueError(f"{given} is not supported; expected a number above 0")


# Default entries of a rectified flow's schedule.
_FLOW_MATCHING = dict(shift=1.0, use_dynamic_shifting=False, base_shift=0.5, max_shift=1.15) | dict(
    base_image_seq_len=256, max_image_seq_len=4096, shift_terminal=Value(None, float | None)
)


def flow_matching(schedule: Mapping[str, Any], *dynamic: bool) -> dict[str, Any]:
    """Return the entries of an Euler schedule of a rectified flow, completed by defaults.

    Args:
        dynamic: the allowed values of `use_dynamic_shifting`, which shifts time by the number of
            tokens: False, True, or both.

    Raises:
        ValueError: the schedule is of another kind; the error names the entry that differs.
    """
    defaults = {name: default_of(entry) for name, entry in _FLOW_MATCHING.items()}
    schedule = {"_class_name": None, **defaults, **schedule}
    expect(schedule, "_class_name", "FlowMatchEulerDiscreteScheduler")
    for name, entry in _FLOW_MATCHING.items():
        expect_kind(schedule, name, kind_of(entry))
    _expect_positive(schedule, "shift")
    terminal = schedule["shift_terminal"]
    if terminal is not None and not 0 < terminal < 1:
        raise ValueError(f"shift_terminal={terminal} is not supported; expected None, or 0 to 1")
    if schedule["base_image_seq_len"] == schedule["max_image_seq_len"]:
        raise ValueError("base_image_seq_len and max_image_seq_len are equal; expected two numbers")
    expect(schedule, "use_dynamic_shifting", *dynamic)
    _expect_all(
        schedule,
        num_train_timesteps=1000,
        invert_sigmas=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        time_shift_type="exponential",
        stochastic_sampling=False,
    )
    return schedule


def euler_flow(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return process, target, sampler and grid of Euler's method on a rectified flow.

    The schedule may shift time by the number of tokens. With `shift_terminal` it stretches all
    times so that the last step starts there (HaCohen et al. 2024).

    Raises:
        ValueError: as for `flow_matching`.
    """
    schedule = flow_matching(schedule, False, True)
    process, terminal = diffusion.RectifiedFlow(), schedule["shift_terminal"]

    def grid(num_steps: int, tokens: int) -> Float[Array, " times"]:
        shift = _shift_of_tokens(schedule, tokens)
        times = grids.uniform_grid(process, num_steps, shift)
        if terminal is None or num_steps == 1:
            return times
        stretched = 1 - (1 - times[:-1]) * (1 - terminal) / (1 - times[-2])
        return jnp.append(stretched, times[-1])

    return dict(process=process, target=diffusion.velocity, sampler=samplers.euler, grid=grid)


def _shift_of_tokens(schedule: Mapping[str, Any], tokens: int) -> float:
    """Return the shift of time: the schedule's, or exp(mu) with mu linear in the tokens."""
    if not schedule["use_dynamic_shifting"]:
        return schedule["shift"]
    ends = schedule["base_image_seq_len"], schedule["max_image_seq_len"]
    slope = (schedule["max_shift"] - schedule["base_shift"]) / (ends[1] - ends[0])
    return np.exp(schedule["base_shift"] + slope * (tokens - ends[0]))


@dataclass(frozen=True, kw_only=True)
class WholeSteps(diffusion.Preconditioning):
    """Feed the last of 1000 times before t: diffusers' UniPC cuts times to integers."""

    def network_time(self, process: Any, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return jnp.floor(1000 * t) / 1000


_UNIPC = functools.partial(samplers.unipc, lower_order_final=True)


def unipc_flow(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return process, target, sampler and grid of UniPC on a rectified flow.

    Raises:
        ValueError: an entry is not supported; the error names it.
    """
    schedule = {"_class_name": None, "flow_shift": 1.0, **schedule}
    expect(schedule, "_class_name", "UniPCMultistepScheduler")
    _expect_positive(schedule, "flow_shift")
    required = dict(use_flow_sigmas=False, prediction_type="epsilon") | schedule
    expect(required, "use_flow_sigmas", True)
    expect(required, "prediction_type", "flow_prediction")
    _expect_all(
        schedule,
        solver_order=2,
        solver_type="bh2",
        predict_x0=True,
        lower_order_final=True,
        disable_corrector=[],
        solver_p=None,
        final_sigmas_type="zero",
        num_train_timesteps=1000,
        thresholding=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        use_dynamic_shifting=False,
        shift_terminal=None,
    )

    def grid(num_steps: int, tokens: int) -> Float[Array, " times"]:
        times, shift = np.linspace(1.0, 1 / 1000, num_steps + 1)[:-1], schedule["flow_shift"]
        times = shift * times / (1 + (shift - 1) * times)
        times[0] = 1 - 1e-6  # as diffusers', whose log-SNR is finite
        # Times at the edge of a thousandth, such as 0.63, move inside by no more than a float32's
        # rounding. So `WholeSteps` cuts them in float32 as diffusers does in float64.
        thousandth = np.floor(1000 * times)
        inside = np.clip(1000 * times, thousandth + 1e-4, thousandth + 1 - 1e-4)
        return jnp.asarray(np.append(inside / 1000, 0.0))

    process = diffusion.RectifiedFlow(preconditioning=WholeSteps())
    return dict(process=process, target=diffusion.velocity, sampler=_UNIPC, grid=grid)


# The stochastic DPM-Solver++ 2M of each `solver_type`.
_STOCHASTIC = {
    form: functools.partial(samplers.dpm_solver_pp_2m, eta=1.0, form=form)
    for form in ("midpoint", "heun")
}


def cosine_dpm(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return process, target, sampler and grid of Stable Audio's stochastic DPM-Solver++ 2M.

    diffusers writes x_t as data + sigma·noise, and scales it by 1/√(1 + sigma²) at the network's
    input. This is the cosine process at the time 2/π·arctan(sigma), which the network is fed.

    Raises:
        ValueError: an entry is not supported; the error names it.
    """
    schedule = {"_class_name": None, "sigma_min": 0.3, "sigma_max": 500.0, "rho": 7.0, **schedule}
    schedule = {"sigma_schedule": "exponential", "solver_type": "midpoint", **schedule}
    expect(schedule, "_class_name", "CosineDPMSolverMultistepScheduler")
    expect(schedule, "sigma_schedule", "exponential", "karras")
    expect(schedule, "solver_type", *_STOCHASTIC)
    _expect_positive(schedule, "sigma_min", "sigma_max", "rho")
    _expect_all(
        schedule,
        sigma_data=1.0,
        num_train_timesteps=1000,
        solver_order=2,
        prediction_type="v_prediction",
        lower_order_final=True,
        euler_at_final=False,
        final_sigmas_type="zero",
    )
    levels = {name: float(schedule[name]) for name in ("sigma_min", "sigma_max")}
    end = 2 / np.pi * np.arctan(levels["sigma_max"])
    process = diffusion.VariancePreservingCosine(domain=(0.0, float(end)))
    spacing = grids.exponential_grid
    if schedule["sigma_schedule"] == "karras":
        spacing = functools.partial(grids.karras_grid, rho=schedule["rho"])
    return dict(
        process=process,
        target=diffusion.v,
        sampler=_STOCHASTIC[schedule["solver_type"]],
        grid=lambda num_steps, tokens: spacing(process, num_steps, **levels),
    )


def noise_prediction(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return process, target, sampler and grid of DDIM or DPM-Solver++ 2M on a table of betas.

    Raises:
        ValueError: an entry is not supported; the error names it.
    """
    schedule = {"_class_name": None, **schedule}
    expect(schedule, "_class_name", "DDIMScheduler", "DPMSolverMultistepScheduler")
    _expect_all(
        schedule,
        prediction_type="epsilon",
        trained_betas=None,
        rescale_betas_zero_snr=False,
        thresholding=False,
        num_train_timesteps=1000,
    )
    tables = dict(linear=diffusion.linear_betas, scaled_linear=diffusion.scaled_linear_betas)
    complete = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, **schedule}
    expect(complete, "beta_schedule", *tables)
    for name in ("beta_start", "beta_end"):
        expect_kind(complete, name, float)
    betas = tables[complete["beta_schedule"]](1000, complete["beta_start"], complete["beta_end"])
    process = diffusion.VariancePreservingTable(betas=betas)
    sampling = _ddim if schedule["_class_name"] == "DDIMScheduler" else _dpm_solver
    return dict(process=process, target=diffusion.noise, **sampling(schedule, process))


def _ddim(schedule: Mapping[str, Any], process: diffusion.Process) -> dict[str, Any]:
    # Left out, `clip_sample` is true: samples are latents, which no range bounds.
    expect({"clip_sample": True, **schedule}, "clip_sample", False)
    _expect_all(schedule, set_alpha_to_one=True, timestep_spacing="leading")
    offset = schedule.get("steps_offset", 0)
    expect_kind(dict(steps_offset=offset), "steps_offset", Natural)
    grid = lambda num_steps, tokens: grids.leading_grid(process, num_steps, offset=offset)
    return dict(sampler=samplers.ddim, grid=grid)


def _dpm_solver(schedule: Mapping[str, Any], process: diffusion.Process) -> dict[str, Any]:
    if schedule.get("variance_type") in ("learned", "learned_range"):
        schedule = {**schedule, "variance_type": None}  # pipelines drop the learned variance
    _expect_all(
        schedule,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        euler_at_final=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        use_lu_lambdas=False,
        use_flow_sigmas=False,
        final_sigmas_type="zero",
        lambda_min_clipped=-np.inf,
        variance_type=None,
        timestep_spacing="linspace",
    )
    # diffusers spaces one step more, and leaves out the last.
    grid = lambda num_steps, tokens: jnp.delete(grids.linspace_grid(process, num_steps + 1), -2)
    return dict(sampler=samplers.dpm_solver_pp_2m, grid=grid)
