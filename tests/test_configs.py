"""Every config builds its task and trains; those for accelerators in full shape abstractly, and narrowed for real."""

import functools
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from experiments.benchmark import random_arrays
from experiments.configuration.runs import build
from experiments.inputs.autoencoders import FrozenAutoencoder
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import abstract_batch
from experiments.tasks import autoencoding
from genjax.data import Batches, load_dataset, sources
from genjax.devices import make_mesh
from genjax.metrics.lpips import LPIPS
from genjax.training import abstract_state, init_state, place_frozen
from genjax.training.loop import compile_update

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in Path(ROOT, "configs").glob("*.py"))
PARAMETERS = {
    "cifar10_flow": 32_475_660,
    "imagenet256_latent_flow": 674_816_272,
    "imagenet256_latent_flow:dit": 674_834_720,
    "text_to_image": 2_028_328_000,
    "text_to_image:flux": 11_891_178_560,
    "text_to_image:flux,latents": 11_891_178_560,
    # 40 blocks: 2 × 4·5120² of attention, 2·5120·13,824, biases and 6 of modulation; and embeddings, modulation and head
    "text_to_video": 14_287_262_784,
    # FLUX.1's autoencoder, and PatchGAN of three layers with a bias of each convolution
    "imagenet256_autoencoder": 83_819_683 + 2_766_529,
    # generator and discriminator, as published
    "cifar10_gan": 20_781_952 + 21_280_512,
    "ffhq_gan": 23_057_952 + 23_009_568,
    "ffhq_gan:stylegan2_256": 24_767_458 + 24_001_089,
    "ffhq_gan:stylegan2_1024": 30_370_060 + 29_012_513,
}
# Of GANs for accelerators, those that the configs do not have without one.
CHOICES = [
    "cifar10_gan:stylegan2",
    "ffhq_gan:r3gan_64",
    "ffhq_gan:stylegan2_256",
    "ffhq_gan:stylegan2_1024",
    "imagenet_gan:32",
    # Of others, those whose network or loss is another.
    "digits_vae:iwae",
    "emoji_autoencoder:vq_adversarial",
    "imagenet256_autoencoder:vq",
    "imagenet256_latent_flow:dit",
    "imagenet256_latent_flow:lightning_dit",
    "emoji_text:joint_attention",
    "emoji_text:in_context",
    "text_to_image:flux",
    "text_to_image:flux,latents",
    "emoji_text:cross_attention,pixels",
]


def load(name):
    name, _, choice = name.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*filter(None, [choice]))
    if config.space.name == "Latents" and not config.space.get("run"):
        config.space.published = "a folder that a user names"
    return config


@pytest.fixture(autouse=True)
def nothing_to_load(monkeypatch):
    """LPIPS' weights are 0, and flows on latents have an autoencoder, of a run or published, that only decodes."""
    monkeypatch.setattr(autoencoding, "load_lpips", empty_lpips)

    factor, channels = 8, 16
    autoencoder = SimpleNamespace(
        load=dict,
        abstract=lambda shape: {},
        latent_shape=lambda shape: (shape[0] // factor, shape[1] // factor, channels),
        encode=lambda frozen, x: jnp.repeat(x[:, ::factor, ::factor, :1], channels, -1),
    )
    monkeypatch.setattr(FrozenAutoencoder, "open", lambda *args: autoencoder)
    monkeypatch.setattr(Prompts, "frozen", no_prompts)


def no_prompts(prompts):
    """What they would load, of zeros."""
    empty = jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), prompts.example())
    return {"empty": empty, "prompts": jax.tree.map(lambda a: a[None], empty)}


@functools.cache
def empty_lpips():
    images = jnp.zeros((1, 16, 16, 3))
    abstract = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)
    return LPIPS(), jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)


@pytest.mark.parametrize("name", CONFIGS + CHOICES)
def test_the_step_of_every_config_traces_at_its_full_size(name):
    config = load(name)
    name_of_choice = name.replace(":", "_").replace(",", "_")
    assert config.experiment == name_of_choice or config.experiment.startswith(f"{name_of_choice}_")
    task, mesh = build(config), make_mesh(dict(config.mesh), config.batch_size)
    state = abstract_state(task, jax.random.key(0), mesh)
    parameters = sum(a.size for a in jax.tree.leaves(state.params))
    assert parameters == PARAMETERS.get(name, parameters)
    batch = abstract_batch(config, task, mesh)
    with jax.set_mesh(mesh):
        frozen = place_frozen(task, mesh)
        compile_update(task, state, mesh, frozen).trace(state, batch, jax.random.key(0), *frozen)


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


# What DiT's and SiT's training scripts say, and LightningDiT's config of 64 epochs: learning rate, betas, batch, steps.
@pytest.mark.parametrize(
    ("choice", "recipe"),
    [
        ("dit", (1e-4, 0.9, 0.999, 256, 400_000)),
        ("sit", (1e-4, 0.9, 0.999, 256, 400_000)),
        ("lightning_dit", (2e-4, 0.9, 0.95, 1024, 80_000)),
    ],
)
def test_latent_flows_are_trained_as_published(choice, recipe):
    """Adam at a constant rate, without clipping, which would make gradients of 1 and −2 equally long, and without decay."""
    config = load(f"imagenet256_latent_flow:{choice}")
    task, (rate, b1, b2, *sizes) = build(config), recipe
    assert [config.batch_size, config.num_steps] == sizes
    np.testing.assert_allclose([task.schedule(step) for step in (0, 1000, sizes[1] - 1)], rate, rtol=1e-6)
    params = {"layer": {"kernel": jnp.ones(3)}}
    state, gradient = task.optimizer.init(params), lambda size: {"layer": {"kernel": jnp.full(3, size)}}
    _, state = task.optimizer.update(gradient(1e4), state, params)
    update, _ = task.optimizer.update(gradient(-2e4), state, params)
    mean, square = (b1 - 2) / (1 + b1), (b2 + 4) / (1 + b2)  # of 1 and −2, corrected for starting at 0
    np.testing.assert_allclose(update["layer"]["kernel"], -rate * mean / np.sqrt(square), rtol=1e-4)
    start, end = task.process.domain
    drawn = (np.asarray(task.times(task.process, jnp.asarray([0.1, 0.5, 0.9]))) - start) / (end - start)
    # uniform, or logit-normal: sigmoids of the normal law's quantiles
    logits = 1 / (1 + np.exp(-np.array([-1.2815516, 0, 1.2815516])))
    np.testing.assert_allclose(drawn, logits if choice == "lightning_dit" else [0.1, 0.5, 0.9], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_that_is_set_is_one_field(name):
    """No two places of a config are one dictionary, which a flag for the one would change for the other too."""

    def parts(config):
        return [
            config,
            *(each for value in config.values() if isinstance(value, ConfigDict) for each in parts(value)),
        ]

    identities = [id(each) for each in parts(load(name))]
    assert len(set(identities)) == len(identities)


def train_twice(config, batch=None):
    task, mesh, key = build(config), make_mesh(dict(config.mesh), config.batch_size), jax.random.key(0)
    batch = batch or random_arrays(abstract_batch(config, task, mesh), task.condition.num_rows)
    state, frozen = init_state(task, key, mesh), place_frozen(task, mesh)
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract_state(task, key, mesh), mesh, frozen)
        for _ in range(2):
            state, metrics = update(state, batch, key, *frozen)
    assert int(state.step) == 2 and np.isfinite(metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_flow", "imagenet256_latent_flow"])
def test_configs_for_accelerators_step_when_narrowed(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_any_answers", lambda urls: True)  # mock data need no host
    config = load(name)
    options = {k: v for k, v in config.model.items() if k not in ("name", "patch_size")}
    config.model = dict(name="DiT", patch_size=2, width=32, depth=2, num_heads=2, **options)
    config.batch_size = 4
    batch = None
    if name == "cifar10_flow":
        with tfds.testing.mock_data(num_examples=8, data_dir=tmp_path):
            data = load_dataset("cifar10", "train", tmp_path)
            batch = Batches(data, 4, 0, image_shape=tuple(config.data.image_shape))[0]
    train_twice(config, batch)


# Of those whose network is another: what to change lest it be large. Processes, losses, precision and remat stay.
BLOCKS = dict(width=32, depth=2, num_heads=2)
NARROWED = {
    "imagenet256_latent_flow:dit": dict(model=dict(name="DiT", **BLOCKS)),
    "imagenet256_latent_flow:lightning_dit": dict(model=dict(name="LightningDiT", **BLOCKS)),
    "text_to_image": dict(
        data=dict(image_shape=(64, 32, 3)), model=dict(name="MMDiT", patch_size=2, **BLOCKS)
    ),
    "text_to_image:flux": dict(
        data=dict(image_shape=(64, 32, 3)),
        model=dict(
            name="Flux", num_double_blocks=2, num_single_blocks=2, num_heads=2, rotary_features=(4, 4, 8)
        ),
    ),
    "imagenet256_autoencoder": dict(
        data=dict(image_shape=(64, 64, 3)),
        model=dict(widths=(32, 32, 32, 32), blocks=1),
        adversary=dict(start_step=0, network=dict(width=32)),
    ),
    "imagenet256_autoencoder:vq": dict(
        data=dict(image_shape=(64, 64, 3)),
        model=dict(widths=(32, 32, 32, 32, 32), blocks=1),
        adversary=dict(start_step=0, network=dict(width=32)),
    ),
    "video_autoencoder:wan_256": dict(
        data=dict(image_shape=(5, 32, 32, 3)),
        model=dict(widths=(16, 16, 16, 16), blocks=1),
        adversary=dict(start_step=0, network=dict(width=32)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROWED)
def test_networks_for_accelerators_step_when_narrowed(name):
    config = load(name)
    config.update(NARROWED[name])
    config.batch_size = 4
    train_twice(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_gan:r3gan", "ffhq_gan:stylegan2_256", "imagenet_gan:64"])
def test_gans_for_accelerators_step_when_narrowed(name, tmp_path, monkeypatch):
    """All their stages and penalties; data by the loader that their configs name, of mock records or files.

    In a program that compiles in less time, since it runs once.
    """
    monkeypatch.setattr(sources, "_any_answers", lambda urls: True)
    config = load(name)
    config.batch_size = 4
    for network in config.model.generator, config.model.discriminator:
        if "widths" in network:
            network.widths = tuple(width // 48 for width in network.widths)
            network.cardinalities = network.blocks = (1,) * len(network.widths)
        else:
            config.data.image_shape = (64, 64, 3)
            network.update(resolution=64, channel_max=16)
    if config.data.name == "folder":
        for i in range(12):
            Image.fromarray(np.full(config.data.image_shape, 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        data = load_dataset("folder", config.data.train_split, tmp_path)
    else:
        with tfds.testing.mock_data(num_examples=8, data_dir=tmp_path):
            data = load_dataset(config.data.name, config.data.train_split, tmp_path)
    batch = Batches(data, 4, 0, image_shape=tuple(config.data.image_shape))[0]
    task, key = build(config), jax.random.key(0)
    update = jax.jit(task.update, compiler_options={"xla_backend_optimization_level": 0})
    _, metrics = update(jax.jit(task.init)(key), batch, key)
    assert all(np.isfinite(metric.total) for name, metric in metrics.items() if name.startswith("loss"))
