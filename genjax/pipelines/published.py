"""Published text-to-image systems as diffusers writes them: a folder with a network, an autoencoder, text encoders, tokenizers,
and a schedule, which `model_index.json` lists."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from genjax import diffusion, pretrained
from genjax.data.tokenizers import Tokenizer
from genjax.diffusion import grids, samplers
from genjax.nn import Text
from genjax.pipelines.generation import Pipeline
from genjax.pretrained.configuration import expect

CLIP_LENGTH = 77  # tokens


class System(NamedTuple):
    """How a published system encodes prompts, `(folder, index, part) -> function`, and samples, arguments of `Pipeline`."""

    encoder: Callable
    settings: Callable


def _read_index(folder: str | os.PathLike) -> tuple[Path, dict[str, Any], "System"]:
    folder = Path(folder)
    path = folder / "model_index.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; one part alone is for genjax.pretrained.load")
    index = json.loads(path.read_text())
    systems = {
        "StableDiffusion3Pipeline": System(_encode_stable_diffusion_3, _stable_diffusion_3),
        "FluxPipeline": System(_encode_flux, _flux),
        "PixArtAlphaPipeline": System(functools.partial(_encode_pixart, length=120), _pixart),
        "PixArtSigmaPipeline": System(functools.partial(_encode_pixart, length=300), _pixart),
        "DiTPipeline": System(
            lambda folder, index, part: lambda labels: jnp.asarray(labels, jnp.int32), _dit
        ),
    }
    if index["_class_name"] not in systems:
        raise ValueError(f"{path} describes {index['_class_name']!r}; known are {', '.join(systems)}")
    return folder, index, systems[index["_class_name"]]


def _reader(folder: Path, dtype: Any, param_dtype: Any, sharding: Callable | None) -> Callable:
    def part(name: str) -> tuple[Any, Any]:
        module, variables = pretrained.load(folder / name, param_dtype=param_dtype, sharding=sharding)
        if dtype is not None:
            module = module.clone(dtype=dtype)
        return module, variables if sharding else jax.device_put(variables)

    return part


def load_encoder(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
) -> Callable[[Sequence[str]], Text]:
    """The text encoders alone of a folder that `load` reads, as one function of prompts; arguments and errors are its."""
    folder, index, system = _read_index(folder)
    return system.encoder(folder, index, _reader(folder, dtype, param_dtype, sharding))


def load(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    batch_sharding: Sharding | None = None,
) -> Pipeline:
    """The pipeline of a folder: Stable Diffusion 3 and 3.5, FLUX.1 (dev, schnell), PixArt (alpha, sigma), DiT.

        pipeline = load("stable-diffusion-3-medium-diffusers", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        images = pipeline(["a corgi on a skateboard"], seeds=[7], guidance_scale=5.0)

    Each with the schedule, the text encoders and the defaults of its authors. Numbers of text tokens are theirs too: 77 of
    CLIP, and of T5 256 for Stable Diffusion 3 and FLUX.1 schnell, 512 for FLUX.1 dev, 120 for PixArt-alpha, 300 for PixArt-sigma.

    Args:
        dtype: in which all networks compute; float32 if None.
        param_dtype, sharding: as in `genjax.pretrained.load`.
        batch_sharding: of prompts, noise and pictures, such as `genjax.devices.mesh.batch_sharding(mesh)`.

    Raises:
        FileNotFoundError: no `model_index.json`, or a part without safetensors.
        ValueError: another system, or an entry of a configuration that is not supported, by name.
    """
    folder, index, system = _read_index(folder)
    part = _reader(folder, dtype, param_dtype, sharding)
    network, variables = part("transformer")
    autoencoder, autoencoder_variables = part("vae")
    return Pipeline(
        network,
        autoencoder,
        {"network": variables, "autoencoder": autoencoder_variables},
        condition=system.encoder(folder, index, part),
        sharding=batch_sharding,
        **system.settings(folder, network, autoencoder),
    )


def _config(folder: Path, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return json.loads((folder / part / name).read_text())


def _size(folder: Path, autoencoder: Any) -> tuple[int, int]:
    """Of the pictures the network was trained on."""
    side = _config(folder, "transformer")["sample_size"] * autoencoder.factor
    return side, side


def _encoder(part: Callable, folder: Path, suffix: str, length: int, take: Callable) -> Callable:
    """Prompts to `take(output, mask)` of a text encoder, one program."""
    module, variables = part(f"text_encoder{suffix}")
    tokenizer = Tokenizer(folder / f"tokenizer{suffix}")
    program = jax.jit(lambda variables, ids, mask: take(module, variables, ids, mask))
    return lambda prompts: program(variables, *tokenizer.encode(prompts, length))


def _clip(module: Any, variables: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """The states before the last block, and the projected pooled one; padding is looked at."""
    encoded = module.apply(variables, ids)
    return encoded.states[-2], encoded.projected


def _encode_stable_diffusion_3(folder: Path, index: dict[str, Any], part: Callable) -> Callable:
    """Esser et al. 2024, section 5.1: two CLIPs side by side, T5's states after them; T5 may be missing."""
    clips = [_encoder(part, folder, suffix, CLIP_LENGTH, _clip) for suffix in ("", "_2")]
    width = _config(folder, "transformer")["joint_attention_dim"]
    length = 256
    if index.get("text_encoder_3", [None])[0]:
        t5 = _encoder(
            part, folder, "_3", length, lambda module, variables, ids, mask: module.apply(variables, ids)
        )
    else:
        t5 = lambda prompts: jnp.zeros((len(prompts), length, width))

    @jax.jit
    def join(states, pooled, rest):
        side_by_side = jnp.concatenate(states, axis=-1)
        side_by_side = jnp.pad(side_by_side, ((0, 0), (0, 0), (0, width - side_by_side.shape[-1])))
        return Text(jnp.concatenate([side_by_side, rest], axis=1), jnp.concatenate(pooled, axis=-1))

    def condition(prompts: Sequence[str]) -> Text:
        states, pooled = zip(*(encode(prompts) for encode in clips), strict=True)
        return join(states, pooled, t5(prompts))

    return condition


def _stable_diffusion_3(folder: Path, network: Any, autoencoder: Any) -> dict[str, Any]:
    schedule = _config(folder, "scheduler")
    _flow_matching(schedule, dynamic=False)
    process = diffusion.RectifiedFlow()
    return dict(
        empty="",
        process=process,
        target=diffusion.velocity,
        sampler=samplers.euler,
        grid=lambda num_steps, tokens: grids.stable_diffusion_3_grid(process, num_steps, schedule["shift"]),
        size=_size(folder, autoencoder),
        num_steps=28,
        guidance_scale=7.0,
    )


def _encode_flux(folder: Path, index: dict[str, Any], part: Callable) -> Callable:
    """CLIP's pooled state, T5's states."""
    pooled = lambda module, variables, ids, mask: module.apply(variables, ids).pooled
    clip = _encoder(part, folder, "", CLIP_LENGTH, pooled)
    states = lambda module, variables, ids, mask: module.apply(variables, ids)
    dev = _config(folder, "transformer").get("guidance_embeds", False)
    t5 = _encoder(part, folder, "_2", 512 if dev else 256, states)
    return lambda prompts: Text(t5(prompts), clip(prompts))


def _flux(folder: Path, network: Any, autoencoder: Any) -> dict[str, Any]:
    """Dev is told its guidance scale and shifts time by the number of tokens."""
    schedule = _config(folder, "scheduler")
    dynamic = schedule.get("use_dynamic_shifting", False)
    _flow_matching(schedule, dynamic)
    process = diffusion.RectifiedFlow()

    def grid(num_steps: int, tokens: int):
        if not dynamic:
            return grids.uniform_grid(process, num_steps, schedule["shift"])
        ends = schedule["base_image_seq_len"], schedule["max_image_seq_len"]
        slope = (schedule["max_shift"] - schedule["base_shift"]) / (ends[1] - ends[0])
        shift = np.exp(schedule["base_shift"] + slope * (tokens - ends[0]))
        return grids.uniform_grid(process, num_steps, shift)

    return dict(
        empty="",
        process=process,
        target=diffusion.velocity,
        sampler=samplers.euler,
        grid=grid,
        size=(1024, 1024),
        num_steps=28 if network.takes_guidance else 4,
        guidance_scale=3.5 if network.takes_guidance else 1.0,
    )


def _encode_pixart(folder: Path, index: dict[str, Any], part: Callable, *, length: int) -> Callable:
    """Chen et al. 2024: T5's states, of small letters, padding masked."""
    states = lambda module, variables, ids, mask: Text(module.apply(variables, ids, mask), None, mask)
    t5 = _encoder(part, folder, "", length, states)
    return lambda prompts: t5([prompt.lower().strip() for prompt in prompts])


def _pixart(folder: Path, network: Any, autoencoder: Any) -> dict[str, Any]:
    return dict(
        empty="",
        size=_size(folder, autoencoder),
        num_steps=20,
        guidance_scale=4.5,
        **_noise_prediction(_config(folder, "scheduler")),
    )


def _dit(folder: Path, network: Any, autoencoder: Any) -> dict[str, Any]:
    """Peebles & Xie 2023, by class."""
    return dict(
        empty=network.null_label,
        size=_size(folder, autoencoder),
        num_steps=50,
        guidance_scale=4.0,
        **_noise_prediction(_config(folder, "scheduler")),
    )


def _flow_matching(schedule: dict[str, Any], dynamic: bool) -> None:
    """Raises ValueError if a schedule is not Euler's of rectified flow, by the entry that differs."""
    expect(schedule, "_class_name", "FlowMatchEulerDiscreteScheduler")
    fixed = dict(
        use_dynamic_shifting=dynamic,
        num_train_timesteps=1000,
        invert_sigmas=False,
        shift_terminal=None,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        time_shift_type="exponential",
        stochastic_sampling=False,
    )
    _expect_all(schedule, fixed)


def _expect_all(schedule: dict[str, Any], fixed: dict[str, Any]) -> None:
    for name, value in fixed.items():
        expect({name: value} | schedule, name, value)


def _noise_prediction(schedule: dict[str, Any]) -> dict[str, Any]:
    """Process, target, sampler and grid of DDIM or DPM-Solver++ 2M on a table of betas.

    Raises:
        ValueError: an entry that is not supported, by name.
    """
    expect(schedule, "_class_name", "DDIMScheduler", "DPMSolverMultistepScheduler")
    fixed = dict(
        prediction_type="epsilon",
        trained_betas=None,
        rescale_betas_zero_snr=False,
        thresholding=False,
        num_train_timesteps=1000,
    )
    _expect_all(schedule, fixed)
    spacing = {"beta_schedule": "linear"} | schedule
    expect(spacing, "beta_schedule", "linear", "scaled_linear")
    betas = diffusion.linear_betas if spacing["beta_schedule"] == "linear" else diffusion.scaled_linear_betas
    process = diffusion.VariancePreservingTable(
        betas=betas(1000, schedule.get("beta_start", 1e-4), schedule.get("beta_end", 0.02))
    )
    common = dict(process=process, target=diffusion.noise)
    if schedule["_class_name"] == "DDIMScheduler":
        _expect_all(schedule, dict(clip_sample=False, set_alpha_to_one=True))
        expect({"timestep_spacing": "leading"} | schedule, "timestep_spacing", "leading")
        offset = schedule.get("steps_offset", 0)
        grid = lambda num_steps, tokens: grids.leading_grid(process, num_steps, offset=offset)
        return common | dict(sampler=samplers.ddim, grid=grid)
    fixed = dict(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        euler_at_final=False,
        use_karras_sigmas=False,
        use_lu_lambdas=False,
        use_flow_sigmas=False,
        final_sigmas_type="zero",
        variance_type=None,
        timestep_spacing="linspace",
    )
    if schedule.get("variance_type") in ("learned", "learned_range"):
        schedule = schedule | dict(variance_type=None)  # pipelines drop the variance
    _expect_all(schedule, fixed)
    # It spaces one step more, and leaves out the last.
    grid = lambda num_steps, tokens: jnp.delete(grids.linspace_grid(process, num_steps + 1), -2)
    return common | dict(sampler=samplers.dpm_solver_pp_2m, grid=grid)
