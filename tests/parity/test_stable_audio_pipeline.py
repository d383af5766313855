"""Stable Audio's system compared with diffusers', assembled from small random parts."""

import importlib
import sys
import types

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from genjax import diffusion, pipelines, pretrained
from genjax.pipelines.schedules import cosine_dpm

from .libraries import assert_opens
from .test_pipelines import NEGATIVES, loud, randomize, t5_encoder
from .test_tokenizers import t5

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput.* is deprecated:FutureWarning"),
]

# The scheduler's module imports torchsde for its noise, which `same_noise` replaces.
sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
scheduling = importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
CosineDPMSolver = scheduling.CosineDPMSolverMultistepScheduler
FRAMES, CHANNELS, RATE, FACTOR = 11, 3, 100, 8
SEEDS, NUM_STEPS = [3, 8], 5
PROMPTS = ["a photo of a cat", "Red apples"]  # padded to 24 tokens


def drawn(step, shape):
    """Return the noise that our samplers draw from the seeds after a step, `[batch *shape]`."""
    keys = [jax.random.fold_in(jax.random.key(seed), 2 * step + 1) for seed in SEEDS]
    return np.stack([jax.random.normal(key, shape) for key in keys])


@pytest.fixture
def same_noise(monkeypatch):
    """Give the scheduler our samplers' noise, in the order of its steps."""

    class Sampler:
        def __init__(self, x, **options):
            self.shape, self.step = tuple(x.shape[1:]), 0

        def __call__(self, sigma, next_sigma):
            noise = drawn(self.step, self.shape[::-1]).swapaxes(1, 2)
            self.step += 1
            return torch.from_numpy(noise.copy())

    monkeypatch.setattr(scheduling, "BrownianTreeNoiseSampler", Sampler)


@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("spacing", ["exponential", "karras"])
def test_steps_are_those_of_the_scheduler(form, spacing, same_noise):
    scheduler = CosineDPMSolver(sigma_schedule=spacing, solver_type=form)
    scheduler.set_timesteps(NUM_STEPS)
    noise = np.random.default_rng(0).standard_normal((2, 5, CHANNELS), np.float32)
    x = torch.from_numpy(noise).swapaxes(1, 2) * scheduler.init_noise_sigma
    expected = [noise]
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[1:], strict=True):
        answer = torch.tanh(scheduler.scale_model_input(x, t) + t)
        x = scheduler.step(answer, t, x).prev_sample
        expected.append((x / (1 + sigma**2) ** 0.5).numpy().swapaxes(1, 2))
    ours = cosine_dpm(dict(scheduler.config, _class_name=CosineDPMSolver.__name__))
    process, times = ours["process"], ours["grid"](NUM_STEPS, 1)
    np.testing.assert_allclose(times[:-1], scheduler.timesteps, rtol=1e-6)
    denoiser = diffusion.predict(
        lambda x, t: jnp.tanh(x + t[:, None, None]), process, ours["target"]
    )
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    states = ours["sampler"](
        denoiser, process, jnp.asarray(noise), times, keys=keys, trajectory=True
    )
    # The first time is .99873, whose distance from 1 float32 knows to 5e-5, so that the first level
    # is 500 up to this; measured 3.2e-5.
    np.testing.assert_allclose(states, np.stack(expected), rtol=0, atol=1e-4)
    assert np.abs(states[2:] - np.stack(expected)[1:-1]).max() > 0.1


def stable_audio(folder, width=12):
    """Return diffusers' system, with states of T5 of `width`; timing has 12 features."""
    tokenizer = t5(folder / "t5")
    tokenizer.model_max_length = 24
    autoencoder = diffusers.AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=CHANNELS,
        sampling_rate=RATE,
    )
    transformer = diffusers.StableAudioDiTModel(
        sample_size=FRAMES,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=6,
        global_states_input_dim=24,
        cross_attention_input_dim=12,
    )
    projection = dict(text_encoder_dim=width, conditioning_dim=12, min_value=0, max_value=2)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if name.endswith(("alpha", "beta", "bias")):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return diffusers.StableAudioPipeline(
        vae=autoencoder.eval(),
        text_encoder=t5_encoder(width),
        projection_model=randomize(
            diffusers.pipelines.stable_audio.StableAudioProjectionModel(**projection)
        ),
        tokenizer=tokenizer,
        transformer=loud(transformer),
        scheduler=CosineDPMSolver(),
    )


@pytest.fixture(scope="module", params=[12, 20], ids=["same width", "projected"])
def system(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("system")
    theirs = stable_audio(folder, request.param)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder / "saved")
    return theirs, pipelines.load(folder / "saved"), folder / "saved"


@pytest.mark.parametrize(
    ("negatives", "scale", "start", "end"),
    [(NEGATIVES, 4.0, 0.0, 0.5), (None, 4.0, 0.25, 0.75), (None, 1.0, 0.0, None)],
    ids=["negative prompts", "guided from no text", "without guidance"],
)
def test_sounds_agree_and_those_of_other_prompts_do_not(
    system, same_noise, negatives, scale, start, end
):
    theirs, ours, _ = system
    noise = np.random.default_rng(0).standard_normal((2, FRAMES, CHANNELS), np.float32)
    with torch.no_grad():
        expected = (
            theirs(
                prompt=PROMPTS,
                negative_prompt=negatives,
                guidance_scale=scale,
                audio_start_in_s=start,
                audio_end_in_s=end,
                num_inference_steps=NUM_STEPS,
                latents=torch.from_numpy(noise.swapaxes(1, 2).copy()),
            )
            .audios.numpy()
            .swapaxes(1, 2)
        )
    given = dict(negative_prompts=negatives, guidance_scale=scale, start=start, end=end)
    given |= dict(num_steps=NUM_STEPS, noise=noise, seeds=SEEDS)
    made = ours(PROMPTS, **given)
    assert made.shape == (2, round(((end or 0.88) - start) * RATE), 2) == expected.shape
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(ours(PROMPTS[::-1], **given) - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_text_alone_is_of_the_whole_sound(system):
    """So text encoders of training, which take texts, serve a network with timing."""
    _, ours, folder = system
    timed = ours.condition([pipelines.TimedPrompt(text, 0.0, 0.88) for text in PROMPTS])
    text = pipelines.load_encoder(folder)(PROMPTS)
    assert text.tokens.shape == (2, 26, 12) and text.pooled.shape == (2, 24) and text.mask is None
    jax.tree.map(np.testing.assert_array_equal, text, timed)


def test_settings_are_the_authors(system):
    _, ours, _ = system
    assert (ours.size, ours.num_steps, ours.guidance_scale) == ((FRAMES * FACTOR,), 100, 7.0)


def test_a_saved_system_opens_in_diffusers(system, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers, CosineDPMSolver.__name__, CosineDPMSolver)
    theirs, ours, folder = system
    pipelines.save(tmp_path / "again", ours)
    again = diffusers.StableAudioPipeline.from_pretrained(tmp_path / "again")
    for part in ("vae", "transformer", "projection_model"):
        state, saved = (getattr(each, part).state_dict() for each in (theirs, again))
        assert state.keys() == saved.keys()
        assert all(torch.equal(state[name], saved[name]) for name in state)
    assert again.transformer.config.sample_size == FRAMES
    loaded = pretrained.load(folder / "projection_model")
    assert_opens(theirs.projection_model, *loaded, tmp_path / "projection")
