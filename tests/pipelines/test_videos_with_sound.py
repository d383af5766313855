"""A small pipeline of videos with sound; tests/parity compares LTX-2's with diffusers'.

The stand-ins for autoencoders and vocoder are linear, so that networks of LTX-2 alone take time.
"""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import diffusion
from genjax.diffusion import grids, samplers
from genjax.diffusion.targets import Prediction
from genjax.models.autoencoders.autoencoder_ltx_audio import AutoencoderLTXAudio
from genjax.models.autoencoders.vocoder_ltx import VocoderLTX
from genjax.models.transformers.ltx2 import LTX2
from genjax.nn import Text, chunking
from genjax.pipelines.systems.ltx2 import DISTILLED_TIMES, SECOND_STAGE_TIMES
from genjax.pipelines.videos_with_sound import Scales, VideoSoundPipeline, guide_away
from tests import virtual_devices

PROMPTS = ["a cat", "a dog barks"]
GIVEN = dict(size=(4, 8), frames=5, frame_rate=25.0, num_steps=3)
CALLS = []


class Images(nn.Module):
    """A latent stands for one frame of 2×2 pixels, and from the second on for four."""

    factor, temporal_factor, latent_channels, decoder_causal = 2, 4, 3, False
    latent_mean, latent_deviation = (0.1,), (0.5,)

    def __call__(self, latents):
        frames = jnp.repeat(jnp.repeat(jnp.repeat(latents, 2, 2), 2, 3), 4, 1)
        return frames[:, 3:]

    decode = __call__


class Spectrograms(nn.Module):
    bins, factor, latent_channels = 4, 2, 3
    latent_mean, latent_deviation = (-0.2,), (2.0,)

    def __call__(self, latents):
        return jnp.repeat(latents[..., :2], 2, axis=2)

    decode = __call__


class Waves(nn.Module):
    sample_rate = 100

    def __call__(self, spectrogram):
        return jnp.tanh(spectrogram.mean(2))


class Counted(LTX2):
    """Note the batch of each call that is traced."""

    def __call__(self, x, *args):
        CALLS.append(len(x["video"]))
        return super().__call__(x, *args)


def condition(prompts):
    """Return three tokens per text and stream, made of its letters."""
    rows = [np.frombuffer(f"{prompt:24.24}".encode(), np.uint8) / 64 - 1 for prompt in prompts]
    letters = jnp.asarray(np.array(rows, np.float32)).reshape(len(prompts), 3, 8)
    return dict(video=Text(letters), audio=Text(-letters))


def build(sharding=None):
    network = Counted(width=8, audio_width=8, depth=2, num_heads=2, gated=True)
    x = dict(video=jnp.zeros((1, 1, 1, 1, 3)), audio=jnp.zeros((1, 1, 6)))
    t = dict.fromkeys(x, jnp.zeros(1))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, t, condition([""]))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), shapes)
    process = diffusion.RectifiedFlow()
    return VideoSoundPipeline(
        network,
        Images(),
        dict(network=variables, autoencoder={}),
        condition=condition,
        empty="",
        process=process,
        target=diffusion.velocity,
        sampler=samplers.euler,
        grid=lambda num_steps, tokens: grids.uniform_grid(process, num_steps),
        size=(8, 8),
        frames=9,
        frame_rate=24.0,
        num_steps=4,
        scales=Scales(dict(video=3.0, audio=7.0), 1.0, 3.0, 0.7),
        perturbed_blocks=(1,),
        sound=((Spectrograms(), {}), (Waves(), {})),
        sharding=sharding,
    )


@pytest.fixture(scope="module")
def pipeline():
    return build()


def test_a_result_depends_on_its_prompt_and_seed_alone(pipeline):
    both = pipeline(PROMPTS, seeds=[3, 9], **GIVEN)
    assert both.frames.shape == (2, 5, 4, 8, 3) and both.frames.dtype == np.uint8
    # A fifth of a second at 25 latents per second, of one spectrum each here.
    assert both.waveform.shape == (2, 5, 2) and both.sample_rate == 100
    second = pipeline(PROMPTS[1:], seeds=[9], **GIVEN)
    # Programs of other batches are rounded otherwise.
    np.testing.assert_allclose(second.waveform[0], both.waveform[1], rtol=0, atol=1e-4)
    assert np.abs(second.frames[0].astype(int) - both.frames[1]).max() <= 1
    assert np.abs(both.waveform[0] - both.waveform[1]).max() > 0.1


def test_sound_is_decoded_in_chunks_and_windows(pipeline, monkeypatch):
    """With the networks of LTX-2, whose programs then have a loop each."""
    sound = AutoencoderLTXAudio(1, 4, 3, 4, (1, 2), 1), VocoderLTX(1, 4, (2,), (4,), (3,), ((1,),))
    monkeypatch.setattr(pipeline, "audio_autoencoder", sound[0])
    monkeypatch.setattr(pipeline, "vocoder", sound[1])
    key, spectrogram = jax.random.key(0), jax.ShapeDtypeStruct((1, 9, 4, 1), np.float32)
    variables = [jax.eval_shape(module.init, key, spectrogram) for module in sound]
    latents = jax.ShapeDtypeStruct((1, 99, 6), np.float32)

    def loops():
        decode = lambda *inputs: pipeline._decoded_sound(*inputs)
        program = jax.make_jaxpr(decode)(variables, latents)
        assert program.out_avals[0].shape == (1, 2 * 197, 1)
        return [each.params["length"] for each in program.eqns if each.primitive.name == "scan"]

    assert loops() == []
    monkeypatch.setattr(chunking, "PLACES", 2 * 4 * 7)
    assert loops() == [98 // 7, 8]  # of 197 frames, 28 at a time


ON_DEVICES = """
import sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from genjax.devices import make_mesh
from genjax.devices.mesh import batch_sharding
from test_videos_with_sound import GIVEN, PROMPTS, build
assert jax.device_count() == 8
mesh = make_mesh({"data": 8}, 8)
with jax.set_mesh(mesh):
    latents = build(batch_sharding(mesh)).latents(PROMPTS * 4, **GIVEN)
assert len(latents["audio"].sharding.device_set) == 8
np.savez(sys.argv[2], **latents)
"""


@pytest.mark.slow
def test_devices_do_not_matter(pipeline, tmp_path):
    path = tmp_path / "latents.npz"
    virtual_devices.run(["-c", ON_DEVICES, os.path.dirname(__file__), path], num_devices=8)
    expected = pipeline.latents(PROMPTS * 4, **GIVEN)
    for name, latents in np.load(path).items():
        limit = 1e-4 * np.abs(expected[name]).max()  # rounding, over three steps
        np.testing.assert_allclose(latents, expected[name], rtol=0, atol=limit)


def test_all_predictions_are_of_one_call_and_other_values_compile_nothing(pipeline):
    plain = dict(guidance_scale=1.0, perturbation_scale=0.0, isolation_scale=1.0)
    first = pipeline.latents(PROMPTS, **GIVEN)
    CALLS.clear()
    changes = [
        dict(guidance_scale=2.0),
        dict(perturbation_scale=dict(video=0.0, audio=2.0)),
        dict(isolation_scale=2.0),
        dict(rescale=0.1),
        dict(perturbed_blocks=[0]),
        dict(negative_prompts=["noise", ""]),
        dict(times=[0.9, 0.5, 0.2, 0.0]),
    ]
    for change in changes:
        other = pipeline.latents(PROMPTS, **GIVEN | change)
        for name in other:
            assert np.abs(other[name] - first[name]).max() > 1e-3, (name, change)
    assert not CALLS
    pipeline.latents(PROMPTS, **GIVEN | plain)
    pipeline.latents(PROMPTS, **GIVEN | plain | dict(guidance_scale=2.0))
    assert set(CALLS) == {2, 4}


@pytest.mark.parametrize(
    ("name", "off"),
    [("guidance_scale", 1.0), ("isolation_scale", 1.0), ("perturbation_scale", 0.0)],
)
def test_a_scale_below_that_of_no_guidance_is_none(pipeline, name, off):
    """Also for one stream alone, while the other is guided."""
    make = lambda scale: pipeline.latents(PROMPTS, **GIVEN | {name: dict(video=scale, audio=3.0)})
    jax.tree.map(np.testing.assert_array_equal, make(off - 1), make(off))


def test_guidance_is_the_sum_of_its_differences_rescaled():
    """The closed form, with predictions that are constants of their condition."""
    x_t = dict(video=jnp.ones((2, 3)), audio=jnp.full((2, 2), 2.0))
    t = dict.fromkeys(x_t, jnp.array([0.5, 0.25]))
    pattern = dict(video=np.array([1.0, -2.0, 0.5]), audio=np.array([1.0, 3.0]))

    def denoiser(x_t, t, condition):
        clean = {name: condition[:, None] * pattern[name] for name in x_t}
        return Prediction(clean, clean)

    conditions = [jnp.array([1.0, 2.0]), jnp.array([0.5, 3.0]), jnp.array([2.0, 2.5])]
    weights = [dict(video=-2.0, audio=-6.0), dict(video=-1.0, audio=0.0)]
    guide = lambda phi: guide_away(denoiser, diffusion.RectifiedFlow(), conditions, weights, phi)
    prediction = guide(0.0)(x_t, t)
    scales = dict(video=[1 + 1 - 1, 2 - 2 - 0.5], audio=[1 + 3, 2 - 6])
    for name, pair in scales.items():
        expected = np.array(pair)[:, None] * pattern[name]
        np.testing.assert_allclose(prediction.clean[name], expected, rtol=1e-6)
        at = np.array([[0.5], [0.25]])
        np.testing.assert_allclose(
            (1 - at) * prediction.clean[name] + at * prediction.noise[name], x_t[name], rtol=1e-6
        )
    # Rescaled fully, each has the deviation of the plain prediction, and its own sign.
    full = guide(1.0)(x_t, t).clean
    for name, pair in scales.items():
        expected = np.sign(pair)[:, None] * np.array([[1.0], [2.0]]) * pattern[name]
        np.testing.assert_allclose(full[name], expected, rtol=1e-5)


def test_distilled_times_are_the_linear_quadratic_schedule():
    """Mochi's schedule rises linearly by .025 in the first half, then quadratically to 1."""
    steps, threshold = 8, 0.025
    linear = threshold * np.arange(steps // 2) / (steps // 2)
    i = np.arange(steps // 2, steps)
    difference = steps // 2 - threshold * steps
    quadratic = difference / ((steps // 2) * (steps // 2) ** 2)
    slope = threshold / (steps // 2) - 2 * difference / (steps // 2) ** 2
    later = quadratic * i**2 + slope * i + quadratic * (steps // 2) ** 2
    np.testing.assert_allclose(DISTILLED_TIMES, 1 - np.array([*linear, *later, 1]), atol=1e-12)
    assert DISTILLED_TIMES[-4:] == SECOND_STAGE_TIMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(perturbed_blocks=[2]), r"perturbed_blocks=\[2\]; the network has 0 to 1"),
        (dict(times=[0.5, 0.6, 0.0]), "do not fall"),
        (dict(times=[1.0, np.nan, 0.0]), "do not fall"),
        (dict(rescale=np.nan), "a scale is a finite number, or one for .*; got nan"),
        (dict(guidance_scale=dict(video=2.0)), "one for video and for audio"),
        (dict(guidance_scale=1.0, negative_prompts=["", ""]), "negative_prompts have no effect"),
        (dict(frames=6), "is not 1 \\+ n·4"),
        (dict(frames=0), "frames=0 is not 1 \\+ n·4"),
        (dict(frame_rate=0.0), "frame_rate=0.0; frames per second are a number above 0"),
        (dict(frame_rate=-24.0), "frame_rate=-24.0; frames per second"),
        (dict(seeds=[-1, 0]), "seeds are from 0 to 2³² − 1; got -1"),
        (dict(noise=dict(video=np.zeros(3), audio=np.zeros(3))), "noise of video has shape"),
    ],
)
def test_wrong_arguments_are_named(pipeline, options, message, monkeypatch):
    monkeypatch.setattr(pipeline, "condition", None)  # no fault waits for the encoders
    with pytest.raises(ValueError, match=message):
        pipeline.latents(PROMPTS, **GIVEN | options)
