"""A single small pipeline of sounds; tests/parity compares a whole system with diffusers'."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import pipelines
from genjax.models.autoencoders.oobleck import AutoencoderOobleck
from genjax.models.encoders.timed_text import TimedText
from genjax.models.transformers.stable_audio_dit import StableAudioDiT
from genjax.nn import chunking
from genjax.pipelines.schedules import cosine_dpm
from tests import virtual_devices

FRAMES, FACTOR, RATE = 96, 8, 256  # 3 seconds
COSINE = dict(_class_name="CosineDPMSolverMultistepScheduler")


def build(sharding=None):
    random = np.random.default_rng(0)
    network = StableAudioDiT(
        width=16, depth=1, num_heads=2, num_kv_heads=1, text_width=8, time_features=4
    )
    autoencoder = AutoencoderOobleck(
        latent_channels=2,
        width=4,
        decoder_width=2,
        multiples=(1, 2),
        strides=(2, 4),
        sample_rate=RATE,
    )
    timed, seconds = TimedText(4), jnp.zeros(1)

    def drawn(module, *inputs):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), shapes)

    timed_variables = drawn(timed, jnp.zeros((1, 3, 4)), seconds, seconds)

    def condition(prompts):
        letters = np.zeros((len(prompts), 3, 4), np.float32)
        for row, (text, _, _) in zip(letters, prompts, strict=True):
            row.reshape(-1)[: len(text or "")] = np.frombuffer((text or "").encode(), np.uint8) / 64
        numbers = jnp.asarray([prompt[1:] for prompt in prompts], jnp.float32).T
        return timed.apply(timed_variables, jnp.asarray(letters), *numbers)

    text = condition([pipelines.TimedPrompt("", 0.0, 1.0)])
    variables = dict(
        network=drawn(network, jnp.zeros((1, 5, 2)), seconds, text),
        autoencoder=drawn(autoencoder, jnp.zeros((1, FACTOR, 2))),
    )
    settings = dict(size=(FRAMES * FACTOR,), num_steps=3, guidance_scale=4.0, sharding=sharding)
    return pipelines.SoundPipeline(
        network,
        autoencoder,
        variables,
        condition=condition,
        empty=None,
        **settings,
        **cosine_dpm(COSINE),
    )


@pytest.fixture(scope="module")
def pipeline():
    return build()


@pytest.fixture(scope="module")
def pair(pipeline):
    return pipeline(["rain", "a bell"], seeds=[7, 8])


def close(ours, expected):
    # float32 in programs of other shapes; measured 2e-6 of the largest value.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_sound_depends_on_its_prompt_and_seed_alone(pipeline, pair):
    """The noise of every step is a sample's own too."""
    assert pair.shape == (2, 3 * RATE, 2) and pair.dtype == np.float32 and pair.std() > 0.1
    close(pipeline(["a bell"], seeds=[8])[0], pair[1])
    others = pipeline(["a bell", "rain"], seeds=[7, 8])
    assert np.abs(others - pair).max((1, 2)).min() > 1e-2 * np.abs(pair).max()


def test_other_seconds_seeds_and_prompts_compile_nothing(pipeline):
    pipeline(["a bell", "rain"])  # programs of other tests may have been dropped
    programs = pipeline._draw, pipeline._denoise, pipeline._decode
    before = [program._cache_size() for program in programs]
    options = dict(seeds=[7, 8], negative_prompts=["rain", ""], guidance_scale=2.0)
    cut = pipeline(["rain", "a bell"], start=0.25, end=1.5, **options)
    assert cut.shape == (2, 1.25 * RATE, 2)
    assert [program._cache_size() for program in programs] == before
    # The network is told the seconds, so the same samples of other seconds differ.
    whole = pipeline(["rain", "a bell"], **options)
    assert np.abs(whole[:, RATE // 4 : RATE * 3 // 2] - cut).max() > 1e-3
    assert [program._cache_size() for program in programs] == before


def test_sounds_are_decoded_in_windows(pipeline, pair, monkeypatch):
    latents = jax.random.normal(jax.random.key(0), (1, FRAMES, 2))
    variables = pipeline.variables["autoencoder"]
    whole = jax.jit(pipeline._decoded)(variables, latents)
    lengths = []
    monkeypatch.setattr(chunking, "PLACES", 16 * pipeline.autoencoder.factor)
    decode = AutoencoderOobleck.decode
    spy = lambda self, latents: lengths.append(latents.shape[1]) or decode(self, latents)
    monkeypatch.setattr(AutoencoderOobleck, "decode", spy)
    close(jax.jit(lambda *inputs: pipeline._decoded(*inputs))(variables, latents), whole)
    # The shape of the whole is asked first.
    assert {*lengths[1:]} == {16 + 2 * pipeline.autoencoder.decoder_margin}


def test_the_unconditional_sound_is_no_prompt(pipeline):
    """In its own call the annotations refuse it too, where they are checked."""
    with pytest.raises(ValueError, match="prompts has None; expected a list of strings"):
        pipeline._checked_count([None], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(end=4.0), "start=0.0 and end=4.0 are no part of 3 seconds"),
        (dict(start=1.0, end=1.0), "start=1.0 and end=1.0 are no part"),
        (dict(guidance_scale=1.0, negative_prompts=["rain"]), "raise guidance_scale above 1"),
        (dict(noise=np.zeros((1, 5, 2))), r"these samples start from \(1, 96, 2\)"),
        (dict(seeds=[-1]), "seeds are from 0 to 2³² − 1; got -1"),
    ],
    ids=["too long", "empty", "without effect", "noise", "seed"],
)
def test_faults_are_named(pipeline, options, message, monkeypatch):
    monkeypatch.setattr(pipeline, "condition", None)  # no fault waits for the encoders
    with pytest.raises(ValueError, match=message):
        pipeline(["rain"], **options)


ON_DEVICES = """
import sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_sounds import build
from genjax.devices.mesh import batch_sharding
mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    made = build(batch_sharding(mesh))(["rain", "a bell"] * 4, seeds=range(8), num_steps=2)
np.save(sys.argv[2], made)
"""


@pytest.mark.slow
def test_devices_do_not_matter(pipeline, tmp_path):
    path = tmp_path / "sounds.npy"
    virtual_devices.run(["-c", ON_DEVICES, os.path.dirname(__file__), path], num_devices=8)
    close(np.load(path), pipeline(["rain", "a bell"] * 4, seeds=range(8), num_steps=2))
