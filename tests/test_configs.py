"""Every config builds its experiment and traces its step, or its parameters, at full size."""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import text_to_image
from experiments.configuration import kinds
from experiments.configuration.runs import build, mesh_axes
from experiments.inputs.autoencoders import FrozenAutoencoder
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import abstract_batch
from experiments.launch.experiment import Experiment
from experiments.tasks import adapters, autoencoding
from experiments.tasks.diffusion import time_grid
from genjax import parts
from genjax.devices import make_mesh
from genjax.metrics.lpips import LPIPS
from genjax.pretrained import crepe
from genjax.training import abstract_state
from genjax.training.loop import compile_update
from genjax.training.placement import abstract_frozen
from genjax.training.sampling import POSTHOC, sampling_program
from tests.experiments import scales_tokenizer

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in Path(ROOT, "configs").glob("*.py"))
PARAMETERS = {
    "cifar10_flow": 32_475_660,
    "imagenet256_latent_flow": 674_816_272,
    "imagenet256_latent_flow:dit": 674_834_720,
    # the published counts of mean flows' and JiT's networks, in training
    "imagenet256_distillation": 131_165_248,
    "imagenet256_distillation:mean_flow_xl2": 676_440_592,
    "imagenet256_distillation:imf_xl2": 711_113_760,
    "imagenet256_distillation:pmf_b16": 175_474_304,
    "imagenet256_distillation:shortcut_xl2": 676_440_592,
    "imagenet256_distillation:scm_xl2": 674_816_272,
    "imagenet256_pixel_flow": 131_123_712,
    # LlamaGen's published counts
    "imagenet256_tokens": 110_888_448,
    "imagenet256_tokens:llamagen_l": 342_910_976,
    "imagenet256_tokens:llamagen_xl": 774_699_520,
    "imagenet256_tokens:llamagen_3b": 3_096_659_200,
    # the published counts of VAR and MAR
    "imagenet256_tokens:var_d16": 310_283_520,
    "imagenet256_tokens:var_d30": 2_010_020_356,
    "imagenet256_tokens:mar_b": 207_924_768,
    "imagenet256_tokens:mar_h": 942_403_104,
    # 24 blocks: 12·768² of kernels, 9 biases and 2 norms of 2; 16,385 codes, 1,001 classes and 257
    # places; a layer before the logits and a norm; a bias of the logits
    "imagenet256_tokens:maskgit": 24 * (12 * 768**2 + 13 * 768)
    + (16_385 + 1_001 + 257 + 768 + 3) * 768
    + 16_384,
    "text_to_image": 2_028_328_000,
    "text_to_image:flux": 11_891_178_560,
    "text_to_image:flux,latents": 11_891_178_560,
    # rank 16 of 6 square kernels in each of 24 blocks of 1,536 features
    "text_to_image_lora": 24 * 6 * 16 * 2 * 1536,
    # the same of 19 blocks of two streams of 3,072, and of 3 kernels in 38 blocks of one
    "text_to_image_lora:flux": (19 * 6 + 38 * 3) * 16 * 2 * 3072,
    # the published count of Stable Audio Open
    "text_to_audio": 1_056_939_136,
    # the published counts of LTX-2.0 and 2.3
    "sound_and_video:ltx_2_0": 18_876_174_592,
    "sound_and_video": 18_988_838_144,
    # the published counts of Wan 2.1
    "text_to_video": 14_288_491_584,
    "text_to_video:wan_1b": 1_418_996_800,
    # Movie Gen's "30B": 48 blocks of 8·6144² in attention, 2·6144·24,576 in the feed-forward layer,
    # 9 biases, 4 norms of queries and keys, 2 of one norm, and 6 of modulation, all of 6,144, and a
    # bias of 24,576; two layers of text and of the time, and modulation; patches in and out
    "text_to_video:moviegen_30b": 48 * (8 * 6144**2 + 2 * 6144 * 24_576 + 21 * 6144 + 24_576)
    + (4096 + 1 + 6144 + 1) * 6144
    + (256 + 1 + 6144 + 1) * 6144
    + 6 * (6144 + 1) * 6144
    + (64 + 1) * 6144
    + 2 * 6144
    + (6144 + 1) * 64,
    # FLUX.1's autoencoder, and PatchGAN of three layers with a bias of each convolution
    "imagenet256_autoencoder": 83_819_683 + 2_766_529,
    # Stable Audio Open's autoencoder, and EnCodec's discriminators of width 64 for five resolutions
    # of stereo: kernels, biases and gains
    "sound_autoencoder:stable_audio": 156_112_514
    + 5 * (27 * 64 * 4 + (3 * 27 + 9) * 64**2 + 9 * 64 + 2 * (5 * 64 + 1)),
    # DAC's published count and its gains, five periods, and three resolutions of five bands
    "sound_autoencoder:dac": 76_620_777
    + 31_113
    + 41_105_770
    + 3 * (5 * (27 * 32 * 2 + (3 * 27 + 9) * 32**2 + 2 * 5 * 32) + 9 * 32 + 2),
    # generator and discriminator, as published
    "cifar10_gan": 20_781_952 + 21_280_512,
    # the authors' PyTorch code for 64 pixels, and a hand count (tests/models/gans)
    "imagenet_gan:biggan_64": 70_377_348 + 45_511_970,
    "imagenet_gan:sngan_64": 17_974_915 + 11_165_441,
    "ffhq_gan": 23_057_952 + 23_009_568,
    "ffhq_gan:stylegan2_256": 24_767_458 + 24_001_089,
    "ffhq_gan:stylegan2_1024": 30_370_060 + 29_012_513,
    "ffhq_gan:stylegan3_t": 22_313_167 + 29_012_513,
    "ffhq_gan:stylegan3_r": 15_093_151 + 29_012_513,
}
# Of GANs for accelerators, those that the configs do not have without one.
CHOICES = [
    "cifar10_gan:stylegan2",
    "ffhq_gan:stylegan3_r",
    # GANs on a CPU whose networks have a constraint of their own: resized images, a transform.
    "fashion_gan:stylegan2",
    "fashion_gan:stylegan3",
    # Of others, those whose network or loss is another.
    "digits_gan_inverse:bigbigan",
    "digits_autoregression:rnn",
    "digits_masked_diffusion:blocks",
    "digits_vae:iwae",
    "fashion_autoregression:pixelcnn_pp",
    "fashion_families:vae",
    "fashion_families:masked_diffusion",
    "fashion_families:latent_flow",
    "fashion_families:token_autoregression",
    "fashion_families:masked_tokens",
    "fashion_families:next_scale",
    "fashion_families:mean_flow",
    "fashion_families:drifting",
    "fashion_families:consistency",
    "fashion_families:autoencoder",
    "fashion_families:tokenizer",
    "fashion_families:scales_tokenizer",
    "emoji_families:mean_flow",
    "emoji_autoencoder:vq_adversarial",
    "imagenet256_autoencoder:vq",
    "imagenet256_latent_flow:lightning_dit",
    "imagenet256_distillation:pmf_b16",
    "emoji_tokens:maskgit_text",
    "emoji_tokens:var_text",
    "emoji_tokens:mar_text",
    "emoji_tokens:uniform_diffusion",
    "emoji_tokens:masked_diffusion_text",
    "emoji_text:joint_attention",
    "emoji_text:in_context",
    "text_to_image:flux,latents",
    "text_to_video:moviegen_30b",
    "emoji_text:cross_attention,pixels",
    "moving_digits_video:image_to_video",
    "moving_digits_video:causal",
    "moving_digits_video:packed",
    "pong:joint",
    "sounding_digits:samples",
    "spoken_digits:latents",
    "spoken_digits:tokens",
    "spoken_digits:masked_tokens",
    "sound_autoencoder:oobleck",
    "sound_autoencoder:mel",
    "sound_autoencoder:vocoder",
]
# Choices whose step is that of another config in other sizes, or runs narrowed in another test.
SIZES = [
    "ffhq_gan:r3gan_64",
    "ffhq_gan:stylegan2_256",
    "ffhq_gan:stylegan2_1024",
    "ffhq_gan:stylegan3_t",
    "imagenet_gan:32",
    "imagenet_gan:sngan_64",
    "imagenet_gan:biggan_64",
    "emoji_families:vae",
    "emoji_families:autoregression",
    "emoji_families:token_autoregression",
    "emoji_families:drifting",
    "imagenet256_latent_flow:dit",
    "imagenet256_distillation:mean_flow_xl2",
    "imagenet256_distillation:imf_xl2",
    "imagenet256_distillation:shortcut_xl2",
    "imagenet256_distillation:scm_xl2",
    "imagenet256_tokens:llamagen_l",
    "imagenet256_tokens:llamagen_xl",
    "imagenet256_tokens:llamagen_3b",
    "imagenet256_tokens:maskgit",
    "imagenet256_tokens:mdlm",
    "imagenet256_tokens:var_d16",
    "imagenet256_tokens:var_d30",
    "imagenet256_tokens:mar_b",
    "imagenet256_tokens:mar_h",
    "text_to_image:flux",
    "text_to_image_lora:flux",
    "text_to_video:wan_1b",
    "sounding_digits:one_digit",
    "sound_and_video:ltx_2_0",
    "sound_autoencoder:stable_audio",
    "sound_autoencoder:dac",
]


def load(name):
    name, _, choice = name.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*filter(None, [choice]))
    if config.space.name in ("Latents", "Tokens") and not config.space.get("run"):
        config.space.published = "scales" if config.task == "NextScale" else "VAE"  # of the user
    if config.get("teacher"):
        config.teacher, config.method.guidance_scale = None, 1.0  # which the user trains
    if "adapters" in config and config.adapters:
        config.adapters.source = text_to_image.get_config(*filter(None, [choice])).model.name
    return config


@pytest.fixture(autouse=True)
def nothing_to_load(monkeypatch):
    """Set LPIPS' weights and encoded text to 0, and CREPE's aside.

    An autoencoder repeats some of the pixels, and decodes nothing.
    """
    monkeypatch.setattr(autoencoding, "load_lpips", empty_lpips)
    monkeypatch.setattr(Prompts, "frozen", no_prompts)
    monkeypatch.setattr(crepe, "load", lambda path: None)
    networks = kinds.DIFFUSION_NETWORK.places
    monkeypatch.setattr(adapters, "_source", lambda name: (parts.find(name, networks, "")(), None))

    def autoencoder(run, weights, published, latents=None):
        factor, channels = 8, 16
        if "scales" in (run or published):
            return scales_tokenizer.make()
        return scales_tokenizer.StandIn(
            load=dict,
            abstract=lambda data_shape: {"variables": {}},
            latent_shape=lambda shape: (
                *(1 + frames // 4 for frames in shape[:-3]),  # of video
                *(side // factor for side in shape[-3:-1]),
                channels,
            ),
            encode=lambda frozen, x: jnp.repeat(
                x[:, ::factor, :1]
                if x.ndim == 3  # sound
                else (x if x.ndim == 4 else x[:, ::4])[..., ::factor, ::factor, :1],
                channels,
                -1,
            ),
            decode=lambda frozen, latents: latents,
            decode_codes=decode_codes,
            network=scales_tokenizer.StandIn(init=lambda key, x: {}, quantizer=None),
            vocabulary=16_384,
            encode_codes=codes,
            codes_shape=lambda shape: codes(None, np.zeros((1, *shape), bool)).shape[1:],
        )

    def codes(variables, x):
        if x.ndim == 3:  # sound
            return x[:, ::128].repeat(4, -1).astype(int)
        factor = min(16, x.shape[1] // 8)
        return x[:, ::factor, ::factor, 0].astype(int)

    def decode_codes(variables, codes):
        sound = codes.shape[-1] == 4  # codes of each frame
        return (codes if sound else codes[..., None]).astype(float)

    monkeypatch.setattr(FrozenAutoencoder, "open", autoencoder)


def no_prompts(prompts):
    """Return what they would load, of zeros."""
    empty = jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), prompts.example())
    return {"empty": empty, "prompts": jax.tree.map(lambda a: a[None], empty)}


@functools.cache
def empty_lpips():
    images = jnp.zeros((1, 16, 16, 3))
    abstract = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)
    return LPIPS(), jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)


def experiment_of(name):
    """Return a config and its experiment, which has the config's name and measures."""
    config = load(name)
    name_of_choice = name.replace(":", "_").replace(",", "_")
    assert config.experiment == name_of_choice or config.experiment.startswith(f"{name_of_choice}_")
    experiment = Experiment.from_config(config)
    assert [measure.name for measure in experiment.measures] == list(config.evaluation.measures)
    return config, experiment


def check_parameters(name, state):
    parameters = sum(a.size for a in jax.tree.leaves(state.params))
    assert parameters == PARAMETERS.get(name, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS + CHOICES)
def test_programs_of_every_config_trace_at_full_size_and_use_each_key_once(name):
    """JAX follows the keys through the first state, a step, and sampling."""
    config, experiment = experiment_of(name)
    task, mesh = experiment.task, make_mesh(mesh_axes(config), config.batch_size)
    with jax.debug_key_reuse(True), jax.set_mesh(mesh):
        state = abstract_state(task, jax.random.key(0), mesh)
        check_parameters(name, state)
        batch, frozen = abstract_batch(config, task, mesh), abstract_frozen(task, mesh)
        compile_update(task, state, mesh, frozen).trace(state, batch, jax.random.key(0), *frozen)
        sampling = config.sampling
        indices = np.arange(mesh.size, dtype=np.int32)
        inputs = task.abstract_sampling_inputs(sampling, batch, frozen)
        key, labels = jax.random.key(0), indices % task.condition.num_rows
        weights = "params" if sampling.weights.startswith(POSTHOC) else sampling.weights
        program = sampling_program(task, weights, False, mesh)
        program.trace(state, key, labels, indices, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_state_of_other_sizes_traces_at_its_full_size(name):
    config, experiment = experiment_of(name)
    make_mesh(mesh_axes(config), config.batch_size)  # which the batch divides over
    check_parameters(name, jax.eval_shape(experiment.task.init, jax.random.key(0)))


@pytest.mark.parametrize("name", ["fashion_families", "emoji_families"])
def test_all_families_have_one_evaluation(name):
    """Families with a likelihood also measure their bits per dimension."""
    families = importlib.import_module(f"configs.{name}").FAMILIES
    found = {family: load(f"{name}:{family}") for family in families}
    own = dict(vae="bounds", autoregression="likelihood")
    if name == "fashion_families":
        own["masked_diffusion"] = "likelihood"  # of pixels
    shared = None
    for family, config in found.items():
        assert config.experiment == f"{name}_{family}"
        assert config.sampling.every == config.evaluation.every == 0
        measures = {key: each.to_dict() for key, each in config.evaluation.measures.items()}
        assert measures.keys() & {"bounds", "likelihood"} == {*filter(None, [own.get(family)])}
        measures.pop(own.get(family), None)
        by_caption = config.condition.name == "Prompts"
        assert ("captions" in measures.get("prompts", {})) == (
            name == "emoji_families" and not by_caption
        )
        measures.get("prompts", {}).pop("captions", None)
        shared = shared or (measures, config.evaluation.num_samples)
        assert (measures, config.evaluation.num_samples) == shared
        if f"{name}:{family}" not in (*CHOICES, *SIZES):  # which are built by another test
            assert Experiment.from_config(config).measures


@pytest.mark.parametrize("name", ["fashion_families", "emoji_families"])
def test_all_families_see_the_same_images(name):
    """The same set at the same size, and either all mirror half of the images or none does."""
    choices = importlib.import_module(f"configs.{name}").CHOICES
    data = [load(f"{name}:{choice}").data for choice in choices]
    assert len({(each.name, tuple(each.image_shape), each.flip) for each in data}) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_choice_is_one_of_those_there_are(name):
    module = importlib.import_module(f"configs.{name}")
    takes_one = bool(inspect.signature(module.get_config).parameters)
    assert takes_one == hasattr(module, "CHOICES")
    if takes_one:
        default = module.get_config()
        assert [module.get_config(each) for each in module.CHOICES].count(default) == 1
        longest = max(module.CHOICES, key=len)
        for wrong in ("typo", longest + "x", longest.partition(",")[0] + ",x"):
            with pytest.raises(
                ValueError, match=f"the choices are {', '.join(module.CHOICES)}; got '{wrong}'"
            ):
                module.get_config(wrong)
        with pytest.raises(ValueError, match=f"nearest to '{longest}'"):
            module.get_config(longest + "x")


def imported_configs(name):
    """Return the names of the configs that a config imports."""
    found = []
    for node in ast.walk(ast.parse(Path(ROOT, "configs", f"{name}.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            found += [f"{module}.{each.name}" if module else each.name for each in node.names]
    return {each.split(".")[1] for each in found if each.startswith("configs.")}


def test_a_config_builds_on_configs_that_build_on_none():
    """Configs of large data, for accelerators, build on none of digits or emoji."""
    imported = {name: imported_configs(name) for name in CONFIGS}
    pairs = [(name, each) for name in CONFIGS for each in imported[name]]
    assert ("digits_likelihood", "digits_flow") in pairs
    assert [(name, each) for name, each in pairs if imported[each]] == []
    small = [name for name in CONFIGS if re.search("digits|emoji|fashion|notes", name)]
    of_small = [name for name, each in pairs if re.search("digits|emoji", each)]
    assert sorted({*of_small} - {*small}) == []


# What DiT's and SiT's training scripts say, and LightningDiT's config of 64 epochs: learning rate,
# betas, batch, steps. DiT embeds a step of its table, and the others a time from 0 to 1.
@pytest.mark.parametrize(
    ("choice", "recipe"),
    [
        ("dit", (1e-4, 0.9, 0.999, 256, 400_000, 1000)),
        ("sit", (1e-4, 0.9, 0.999, 256, 400_000, 1)),
        ("lightning_dit", (2e-4, 0.9, 0.95, 1024, 80_000, 1)),
    ],
)
def test_latent_flows_are_trained_and_sampled_as_published(choice, recipe):
    """Adam at a constant rate, without clipping and without decay.

    Clipping would make gradients of 1 and −2 equally long.
    """
    config = load(f"imagenet256_latent_flow:{choice}")
    task, (rate, b1, b2, *sizes) = build(config), recipe
    assert [config.batch_size, config.num_steps, task.network.time_scale] == sizes
    times = np.asarray(time_grid(task.process, config.sampling))
    if choice == "dit":  # 250 steps from 999 to 0, rounded, and the clean end
        steps = [round(i * 999 / 249) for i in range(249, -1, -1)]
        np.testing.assert_allclose(1000 * times[:-1] - 1, steps, atol=1e-3)
    elif choice == "lightning_dit":  # 0.3·u/(1 − 0.7·u) of u from noise to data
        u = np.linspace(0, 1, 251)
        np.testing.assert_allclose(1 - times, 0.3 * u / (1 - 0.7 * u), atol=1e-6)
    np.testing.assert_allclose(
        [task.optimization.schedule(step) for step in (0, 1000, config.num_steps - 1)],
        rate,
        rtol=1e-6,
    )
    params = {"layer": {"kernel": jnp.ones(3)}}
    optimizer = task.optimization.optimizer
    state, gradient = optimizer.init(params), lambda size: {"layer": {"kernel": jnp.full(3, size)}}
    _, state = optimizer.update(gradient(1e4), state, params)
    update, _ = optimizer.update(gradient(-2e4), state, params)
    mean, square = (
        (b1 - 2) / (1 + b1),
        (b2 + 4) / (1 + b2),
    )  # of 1 and −2, corrected for starting at 0
    np.testing.assert_allclose(update["layer"]["kernel"], -rate * mean / np.sqrt(square), rtol=1e-4)
    start, end = task.process.domain
    drawn = (
        np.asarray(task.objective.times(task.process, jnp.asarray([0.1, 0.5, 0.9]))) - start
    ) / (end - start)
    # uniform, or logit-normal: sigmoids of the normal law's quantiles
    logits = 1 / (1 + np.exp(-np.array([-1.2815516, 0, 1.2815516])))
    np.testing.assert_allclose(
        drawn, logits if choice == "lightning_dit" else [0.1, 0.5, 0.9], atol=1e-5
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_that_is_set_is_one_field(name):
    """No two places of a config are one dictionary.

    A flag for the one would change the other, too.
    """

    def parts(config):
        return [
            config,
            *(
                each
                for value in config.values()
                if isinstance(value, ConfigDict)
                for each in parts(value)
            ),
        ]

    identities = [id(each) for each in parts(load(name))]
    assert len(set(identities)) == len(identities)
