"""Which folders are systems; tests/parity compares pictures with diffusers'."""

import json
import shutil
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import pipelines, pretrained
from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.autoencoders.autoencoder_ltx_audio import AutoencoderLTXAudio
from genjax.models.autoencoders.vocoder_ltx import VocoderLTX
from genjax.models.transformers.dit import DiT
from genjax.models.transformers.flux import Flux
from genjax.pipelines.folders import Folder
from genjax.pipelines.schedules import noise_prediction
from genjax.pipelines.systems import dit, flux, wan
from genjax.pretrained.dit import MAX_PERIOD
from genjax.pretrained.vocoder_ltx import EXTENDED_VOCODER


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json does not exist; one part alone"):
        pipelines.load(tmp_path)


@pytest.mark.parametrize("load", [pipelines.load, pipelines.load_encoder])
def test_an_unknown_system_is_named_and_the_known_ones_listed(load, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LattePipeline"}))
    known = (
        "DiTPipeline, FluxPipeline, LTX2Pipeline, LTXPipeline, PixArtAlphaPipeline, "
        "PixArtSigmaPipeline, StableAudioPipeline, StableDiffusion3Pipeline, WanPipeline, "
        "WanImageToVideoPipeline"
    )
    with pytest.raises(ValueError, match=f"describes 'LattePipeline'; known are {known}$"):
        load(tmp_path)


def test_labels_are_the_condition_of_a_class_conditional_network(tmp_path):
    """A system without text encoders reads nothing but the index."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    labels = pipelines.load_encoder(tmp_path)([3, 17])
    assert labels.tolist() == [3, 17] and labels.dtype == "int32"


def folder_of(path, **configs):
    """Return a folder of parts whose configurations have no entries except `configs`."""
    for part, config in configs.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (path / part).mkdir()
        (path / part / name).write_text(json.dumps(config))
    return Folder(path, None, None, None)


def test_prompts_of_wan_are_cleaned_as_in_training():
    """ftfy makes the same of curly quotes."""
    given = " The cat’s &amp;amp; the dog&rsquo;s\n“tale”  in ‛one‚ „book‟ "
    assert wan._clean(given) == "The cat's & the dog's \"tale\" in 'one' \"book\""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ＬＯＵＤ　ＮＯＩＳＥＳ", "LOUD NOISES"),  # of ftfy's documentation, as the next
        ("ﬂuﬃest", "fluffiest"),
        (
            "色调艳丽，过曝（静态）",
            "色调艳丽,过曝(静态)",
        ),  # commas as in the authors' negative prompt
        ("cafe\u0301", "caf\u00e9"),
        ("x² ½ …", "x² ½ …"),  # other forms stay
    ],
)
def test_prompts_of_wan_have_plain_characters(given, expected):
    assert wan._clean(given) == expected


def test_pictures_are_as_large_as_the_latents_and_the_autoencoder_say(tmp_path):
    """The size is right even if configurations leave out defaults, such as the shift of times."""
    autoencoder = AutoencoderKL(latent_channels=4, widths=(8, 8, 8))
    flow = dict(_class_name="FlowMatchEulerDiscreteScheduler")
    (tmp_path / "flux").mkdir()
    settings = flux._settings(
        folder_of(tmp_path / "flux", scheduler=flow), Flux(1, 1, 1, (2, 2, 2)), autoencoder
    )
    assert settings["size"] == (512, 512)
    np.testing.assert_allclose(settings["grid"](4, 1), [1, 0.75, 0.5, 0.25, 0], atol=1e-6)
    ddim = dict(_class_name="DDIMScheduler", clip_sample=False)
    settings = dit._settings(
        folder_of(tmp_path, transformer={}, scheduler=ddim), DiT(2, 8, 1, 1, 7), autoencoder
    )
    assert settings["size"] == (128, 128)


def test_a_part_made_of_parts_computes_in_the_given_type(tmp_path):
    """LTX-2.3's vocoder is two vocoders."""
    config = EXTENDED_VOCODER.complete(EXTENDED_VOCODER.examples[0])
    vocoder = EXTENDED_VOCODER.make(config)
    shapes = EXTENDED_VOCODER.shapes(vocoder, config)
    variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
    pretrained.save(tmp_path / "vocoder", vocoder, variables)
    (tmp_path / "model_index.json").write_text("{}")
    module, read = Folder(tmp_path, jnp.bfloat16, None, None).part("vocoder")
    assert module.vocoder == vocoder.vocoder.clone(dtype=jnp.bfloat16)
    assert module.extension == vocoder.extension.clone(dtype=jnp.bfloat16)
    assert jax.eval_shape(module.apply, read, jnp.zeros((1, 1, 3, 2))).shape[-1] == 2


def test_a_pipeline_without_a_folder_cannot_be_saved(tmp_path):
    pipeline = create_autospec(pipelines.Pipeline, instance=True)
    pipeline.folder = None
    with pytest.raises(ValueError, match="was not loaded from a folder, .*genjax.pretrained.save"):
        pipelines.save(tmp_path, pipeline)
    pipeline.folder = tmp_path / "published"
    (tmp_path / "notes").write_text("")
    with pytest.raises(FileExistsError, match="is not empty; save in a new folder"):
        pipelines.save(tmp_path, pipeline)


@pytest.fixture(scope="module")
def small_dit():
    """A class-conditional DiT pipeline, built by hand, and its schedule."""
    network = DiT(
        2, 8, 1, 1, 7, out_channels=4, base_size=4, max_period=MAX_PERIOD, mlp_epsilon=1e-5
    )
    autoencoder = AutoencoderKL(latent_channels=4, widths=(8, 8), blocks=1, groups=4)
    latents, labels = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, jnp.int32)
    shapes = dict(
        network=jax.eval_shape(network.init, jax.random.key(0), latents, jnp.zeros(1), labels),
        autoencoder=jax.eval_shape(autoencoder.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))),
    )
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    schedule = dict(_class_name="DDIMScheduler", clip_sample=False)
    settings = noise_prediction(schedule) | dict(size=(16, 16), num_steps=3, guidance_scale=2.0)
    condition = lambda labels: jnp.asarray(labels, jnp.int32)
    pipeline = pipelines.Pipeline(
        network, autoencoder, variables, condition=condition, empty=network.null_label, **settings
    )
    return pipeline, schedule


@pytest.fixture(scope="module")
def saved_dit(small_dit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit") / "saved"
    pipeline, schedule = small_dit
    pipelines.save(folder, pipeline, "DiTPipeline", scheduler=schedule)
    return folder


def test_a_pipeline_built_by_hand_is_read_again(small_dit, saved_dit):
    pipeline, again = small_dit[0], pipelines.load(saved_dit)
    assert (again.network, again.autoencoder) == (pipeline.network, pipeline.autoencoder)
    jax.tree.map(np.testing.assert_array_equal, again.variables, pipeline.variables)
    assert again.size == pipeline.size and again.empty == pipeline.empty
    np.testing.assert_array_equal(again.grid(5, 4), pipeline.grid(5, 4))


SCHEDULE, CONFIG = "scheduler/scheduler_config.json", "transformer/config.json"
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", 9, "model_index.json is not valid JSON"),
        (
            "model_index.json",
            dict(_class_name=["a"]),
            r"model_index.json describes \['a'\]; known are DiT",
        ),
        (
            "model_index.json",
            dict(vae="x"),
            r"model_index.json has vae='x'; expected \[library, class\]",
        ),
        (
            "model_index.json",
            dict(vae=["diffusers", "VQModel"]),
            "vae/config.json describes a AutoencoderKL,",
        ),
        (SCHEDULE, None, "No such file or directory: .*scheduler_config.json"),
        (SCHEDULE, 9, "scheduler_config.json is not valid JSON"),
        (
            SCHEDULE,
            dict(_class_name=3),
            "scheduler_config.json cannot be read: _class_name=3 is not supp",
        ),
        (
            SCHEDULE,
            dict(beta_start=[1]),
            r"scheduler_config.json cannot be read: beta_start=\[1\] is not",
        ),
        (CONFIG, None, "transformer/config.json does not exist"),
        (
            CONFIG,
            dict(sample_size="8"),
            "config.json cannot be read as DiTTransformer2DModel: sample_size='8'",
        ),
        (
            CONFIG,
            dict(_class_name="AutoencoderKL", norm_type=0),
            "config.json cannot be read as Autoencoder",
        ),
        (
            WEIGHTS,
            None,
            "vae holds neither diffusion_pytorch_model.safetensors nor model.safetensors",
        ),
        (
            WEIGHTS,
            0,
            "vae/diffusion_pytorch_model.safetensors is not a safetensors file, or is incomplete",
        ),
        (
            WEIGHTS,
            5,
            "vae/diffusion_pytorch_model.safetensors is not a safetensors file, or is incomplete",
        ),
        (
            WEIGHTS,
            -1,
            "vae/diffusion_pytorch_model.safetensors has .* bytes of numbers, "
            "but its header promises",
        ),
    ],
)
def test_a_damaged_folder_is_one_line_with_the_file(file, change, message, saved_dit, tmp_path):
    """A file is removed (None), cut to a number of bytes, or given other entries."""
    folder = tmp_path / "folder"
    shutil.copytree(saved_dit, folder)
    if change is None:
        (folder / file).unlink()
    elif isinstance(change, int):
        (folder / file).write_bytes((folder / file).read_bytes()[:change])
    else:
        entries = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(entries | change))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        pipelines.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        (
            "LattePipeline",
            {},
            "this pipeline describes 'LattePipeline'; known are DiTPipeline, Flux",
        ),
        (
            "DiTPipeline",
            dict(scheduler=None),
            "DiTPipeline needs scheduler: give the scheduler as a dict",
        ),
        (
            "FluxPipeline",
            {},
            "FluxPipeline needs text_encoder, tokenizer, text_encoder_2, tokenizer_2: ",
        ),
        (
            "StableDiffusion3Pipeline",
            {},
            "needs text_encoder, tokenizer, text_encoder_2, tokenizer_2: give",
        ),
        ("DiTPipeline", dict(tokenizer="here"), "DiTPipeline has no tokenizer; it has scheduler$"),
        (
            "DiTPipeline",
            dict(beta_end=0.03),
            "gives DiTPipeline another process than this pipeline has",
        ),
        (
            "DiTPipeline",
            dict(steps_offset=1),
            "gives DiTPipeline another grid than this pipeline has",
        ),
        ("DiTPipeline", dict(clip_sample=True), "clip_sample=True is not supported"),
    ],
)
def test_what_a_pipeline_built_by_hand_lacks_is_named(
    system, changes, message, small_dit, tmp_path
):
    pipeline, schedule = small_dit
    parts = {name: changes[name] for name in ("scheduler", "tokenizer") if name in changes}
    entries = {name: value for name, value in changes.items() if name not in parts}
    with pytest.raises(ValueError, match=message):
        pipelines.save(
            tmp_path / "saved", pipeline, system, **dict(scheduler=schedule | entries) | parts
        )
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind", [pipelines.Pipeline, pipelines.VideoSoundPipeline])
def test_networks_are_saved_from_where_their_variables_lie(kind, tmp_path, monkeypatch):
    """Saving reads variables layer by layer, so the host never needs memory for all of them."""
    published, saved = tmp_path / "published", {}
    published.mkdir()
    (published / "model_index.json").write_text("{}")
    folder_of(published, transformer={}, vae={}, audio_vae={}, vocoder={})
    pipeline = object.__new__(kind)
    pipeline.folder, pipeline.network = published, DiT(2, 8, 1, 1, 7)
    pipeline.autoencoder = AutoencoderKL(latent_channels=4, widths=(8, 8, 8))
    pipeline.variables = dict(network=jnp.zeros(2), autoencoder=jnp.ones(3))
    if kind is pipelines.VideoSoundPipeline:
        pipeline.audio_autoencoder, pipeline.vocoder = AutoencoderLTXAudio(), VocoderLTX()
        pipeline.variables |= dict(audio_autoencoder=jnp.ones(4), vocoder=jnp.ones(5))

    def save(folder, module, variables):
        folder.mkdir()
        saved[type(module)] = variables

    monkeypatch.setattr(pretrained, "save", save)
    pipelines.save(tmp_path / "new", pipeline)
    assert saved[DiT] is pipeline.variables["network"]
    assert saved[AutoencoderKL] is pipeline.variables["autoencoder"]
    if kind is pipelines.VideoSoundPipeline:
        assert saved[AutoencoderLTXAudio] is pipeline.variables["audio_autoencoder"]
        assert saved[VocoderLTX] is pipeline.variables["vocoder"]
