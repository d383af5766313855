"""The configs of few-step generators: their papers' numbers, and a step at toy size."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import (
    digits_distillation,
    emoji_text,
    emoji_text_distillation,
    imagenet256_distillation,
)
from experiments.configuration import kinds
from experiments.configuration.runs import build, mesh_axes
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import abstract_batch
from experiments.tasks import distillation
from experiments.tasks.diffusion import time_grid
from genjax.devices import make_mesh
from genjax.diffusion.guidance import interval

GUIDED = dict(diagonal=0.5, max_guidance_scale=8.0, power=1.0)
# Method's numbers; learning rate, b2, weight decay; batch, steps; averages' half-lives; the mean
# and deviation of the times' logits, from noise at 1 to data at 0.
RECIPES = {
    # Gsunshine/meanflow:configs/default.py and run_b4.yml; 240 epochs of 5,004 steps
    "mean_flow_b4": (
        dict(diagonal=0.75, guidance_scale=1.0, mixing=0.5, power=1.0),
        (1e-4, 0.95, 0.0),
        (256, 1_200_960),
        [6931.1],
        (-0.4, 1.0),
    ),
    # the same, with the scales of table 4: 0.2/(1 − 0.92) = 2.5
    "mean_flow_xl2": (
        dict(diagonal=0.75, guidance_scale=0.2, mixing=0.92, power=1.0),
        (1e-4, 0.95, 0.0),
        (256, 1_200_960),
        [6931.1],
        (-0.4, 1.0),
    ),
    # Lyy-iiis/imeanflow:configs/default.py and train_config.yml; 640 epochs of 1,251 steps
    "imf_b2": (GUIDED, (1e-4, 0.95, 0.0), (1024, 800_640), [6931.1], (-0.4, 1.0)),
    "imf_xl2": (GUIDED, (1e-4, 0.95, 0.0), (1024, 800_640), [6931.1], (-0.4, 1.0)),
    # Lyy-iiis/pMF:configs/pMF_B_16_config.yml; 320 epochs of 1,251 steps
    "pmf_b16": (
        dict(perceptual=0.4, latest=0.8, crop=224, **GUIDED),
        (1e-3, 0.95, 0.0),
        (1024, 400_320),
        [1953.125, 976.5625, 488.28125],
        (0.8, 0.8),
    ),
    # kvfrans/shortcut-models:README.md and train.py; a bootstrapped example in 8
    "shortcut_xl2": (
        dict(finest=128, share=0.125, largest=4.0, guidance_scale=1.5),
        (1e-4, 0.999, 0.1),
        (256, 810_000),
        [692.8],
        None,
    ),
    # arXiv 2410.11081: a warm-up of 10,000 steps, and log-normal levels of noise
    "scm_xl2": (
        dict(warmup=10_000 / 1_200_960),
        (1e-4, 0.95, 0.0),
        (256, 1_200_960),
        [6931.1],
        None,
    ),
}


def load(name, choice=None):
    return importlib.import_module(f"configs.{name}").get_config(*filter(None, [choice]))


def check_recipe(config, optimizer, sizes, half_lives, logits):
    fields = config.optimizer
    assert (fields.learning_rate, fields.b2, fields.weight_decay) == optimizer
    assert fields.schedule == "constant" and fields.clip_norm is None
    assert (config.batch_size, config.num_steps) == sizes
    np.testing.assert_allclose([rule.steps for rule in config.averages.values()], half_lives)
    assert config.conditioning_dropout == 0.1
    if logits:
        assert config.times.name == "logit_normal"
        assert (config.times.mean, config.times.deviation) == logits


@pytest.mark.parametrize("choice", RECIPES)
def test_few_step_generators_have_their_papers_numbers(choice):
    config = load("imagenet256_distillation", choice)
    method, *recipe = RECIPES[choice]
    own = dict(config.method)
    own.pop("name")
    assert own == {name: value for name, value in method.items() if name in own}
    check_recipe(config, *recipe)
    # What a config leaves to the method has the paper's value too.
    learned = kinds.METHOD.bind(config.method, "method")
    assert {name: getattr(learned, name) for name in method} == method
    if choice.startswith(("imf", "pmf")):
        interval = dict(imf_b2=(0.4, 0.65), imf_xl2=(0.42, 0.62), pmf_b16=(0.1, 0.7))[choice]
        scale = dict(imf_b2=8.0, imf_xl2=8.0, pmf_b16=8.5)[choice]
        assert tuple(config.model.interval) == interval
        assert config.sampling.guidance_scale == scale
    if choice == "scm_xl2":
        process = kinds.PROCESS.bind(config.process, "process")
        law = kinds.TIME_DISTRIBUTION.bind(config.times, "times")
        (mean, deviation), s = (-1.0, 1.4), 0.5  # t = arctan(e^τ/s), s the deviation of its data
        places = np.array([-1.0, 0.0, 1.0])
        found = law(process, jnp.asarray(stats.norm.cdf(places)))
        np.testing.assert_allclose(
            found, np.arctan(np.exp(mean + deviation * places) / s), rtol=1e-5
        )  # float32
        # of diffusers' SCMScheduler
        np.testing.assert_allclose(time_grid(process, config.sampling), [1.5708, 1.3, 0], atol=1e-5)


def test_jit_has_its_papers_numbers():
    """LTH14/JiT:main_jit.py, README.md: 200 epochs of 1,251 steps, a rate of 5e-5 for 256."""
    config = load("imagenet256_pixel_flow")
    check_recipe(config, (2e-4, 0.95, 0.0), (1024, 250_200), [6931.1], (0.8, 0.8))
    assert config.optimizer.warmup == 5 * 1251
    assert (config.sampling.num_steps, config.sampling.guidance_scale) == (50, 2.9)
    # The authors guide where 0.1 < 1 − t < 1. These are the steps of 0.02 up to 0.88.
    scale = interval(2.9, *config.sampling.guidance_interval)(jnp.arange(51) / 50)
    np.testing.assert_allclose(scale, [1.0] + 44 * [2.9] + 6 * [1.0], rtol=1e-6)  # float32
    assert dict(config.weighting) == dict(name="bounded_velocity", smallest=0.05)
    assert config.target.name == "clean"


# Their students learn jumps to the clean end alone, from noised data or samples.
TO_THE_CLEAN_END = (
    "Consistency",
    "DiscreteConsistency",
    "ImprovedConsistencyTraining",
    "LatentConsistency",
    "ContinuousConsistency",
    "DMD",
    "DMD2",
    "LADD",
    "RCM",
)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        *(("digits_distillation", choice) for choice in digits_distillation.CHOICES),
        *(("emoji_text_distillation", choice) for choice in emoji_text_distillation.CHOICES),
        *(("imagenet256_distillation", choice) for choice in imagenet256_distillation.CHOICES),
        ("emoji_families", "consistency"),
        ("fashion_families", "consistency"),
    ],
)
def test_students_of_the_clean_end_are_sampled_with_noise_again(name, choice):
    config = load(name, choice)
    renoised = config.sampling.sampler.name == "consistency"
    assert renoised == (config.method.name in TO_THE_CLEAN_END)


@pytest.mark.parametrize("choice", emoji_text_distillation.CHOICES)
def test_students_of_text_learn_jumps_from_noise(choice):
    """A jump from t = 1 is learned near t = 1. Logit-normal times lie above 0.95 once in 600."""
    assert load("emoji_text_distillation", choice).times.name == "uniform"


@pytest.mark.parametrize(
    "name", ["digits_distillation", "emoji_text_distillation", "imagenet256_distillation"]
)
def test_pictures_show_one_two_and_four_steps_beside_the_teachers(name):
    images = lambda labels, *_, **__: np.zeros((len(labels), 2, 2, 3), np.uint8)
    model = SimpleNamespace(
        sample=images,
        functions={"sample_teacher": lambda labels, seed: (images(labels), 50)},
        sampling=SimpleNamespace(seed=0),
    )
    measure = kinds.EVALUATOR.bind(
        load(name).evaluation.measures.few_step_pictures,
        "evaluation.measures.few_step_pictures",
        context=SimpleNamespace(condition=SimpleNamespace(num_rows=10)),
    )
    rows = measure(model)["few_steps"].info["rows"]
    assert rows == ["1 step", "2 steps", "4 steps", "teacher, 50 steps"]


def narrow(config):
    """Return the config on digits of 8×8 pixels, with a network of a few features."""
    config.data.update(name="digits", image_shape=(8, 8, 1), resize=False, flip=False)
    config.condition.num_classes = 10
    config.space = dict(name="Pixels")
    config.batch_size = 4
    if "perceptual" in config.get("method", {}):
        config.method.perceptual = 0.0  # LPIPS needs 16 pixels
    if "share" in config.get("method", {}):
        config.method.share = 1 / config.batch_size
    depth = 3 if config.model.name[:3] in ("IMF", "PMF") else 2
    config.model.update(patch_size=4, width=16, depth=depth, num_heads=2, dtype="float32")
    family = config.model.name.partition("_")[0]
    if family in ("IMF", "PMF"):
        config.model.name = "MeanFlowDiT"
        config.model.update(head_depth=1, grid=family == "PMF")
    if family == "JiT":
        config.model.update(name="JiT", start=1, class_tokens=2, bottleneck=4)
    if family == "DiT":
        config.model.name = "DiT"
    return config.lock()


def step(config):
    """Return the parameters before and after a step, and what it measured."""
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(4)}
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1))
    return task, state, after, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("imagenet256_distillation", "mean_flow_b4"),
        ("imagenet256_distillation", "imf_b2"),
        ("imagenet256_distillation", "pmf_b16"),
        ("imagenet256_distillation", "shortcut_xl2"),
        ("imagenet256_distillation", "scm_xl2"),
        ("imagenet256_pixel_flow", None),
    ],
)
def test_a_step_of_every_architecture_runs_narrowed(name, choice):
    config = load(name, choice)
    config.optimizer.warmup = 0.0  # a first step at the full rate
    task, state, after, metrics = step(narrow(config))
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
    sample = lambda scale: task.generate(
        after, jax.random.key(0), jnp.arange(2), jnp.arange(2), scale, jnp.array([1.0, 0.0])
    )
    if choice in ("imf_b2", "pmf_b16"):
        assert jax.eval_shape(sample, 2.0).shape == (2, 8, 8, 1)


def small_text(config):
    """Return the config on pixels, with a network of a few features."""
    config.space = dict(name="Pixels")
    config.batch_size = 2
    config.model.update(patch_size=8, width=16, depth=1, num_heads=2, unroll=1)
    return config


def teach(monkeypatch, folder, config):
    """Let every teacher be a first network of this config, and return its parameters."""
    task = build(config)
    params = jax.jit(task.init)(jax.random.key(0)).params
    run = SimpleNamespace(
        task=task, network=task.network, config=config, variables={"params": params}
    )
    monkeypatch.setattr(distillation.Teacher, "run", property(lambda _: run))
    (folder / "config.json").touch()
    return params


@pytest.mark.slow
def test_dmd2_has_its_papers_numbers_and_steps_narrowed(monkeypatch, tmp_path):
    """DMD2's experiments/imagenet, the scratch run with its classifier; seven devices of 40."""
    config = load("imagenet256_distillation", "dmd2_xl2")
    assert (config.batch_size, config.num_steps * config.method.critic_updates) == (280, 200_000)
    for player in config.optimizer.values():
        assert (player.learning_rate, player.weight_decay, player.clip_norm) == (2e-6, 0.01, 10.0)
        assert (player.schedule, player.warmup) == ("constant", 500.0)
        player.warmup = 0.0  # a first step at the full rate
    numbers = dict(critic_updates=5, adversarial=3e-3, discriminator=1e-2, guidance_scale=1.5)
    assert dict(config.method) == dict(name="DMD2", **numbers)
    # sigma⁻² + s⁻² of the critic's x̂; the latents' deviation s is 1
    assert dict(config.weighting) == dict(name="edm", data_deviation=1.0)
    teacher = narrow(load("imagenet256_latent_flow", "sit"))
    params = teach(monkeypatch, tmp_path, teacher)
    config.teacher = str(tmp_path)
    task = build(narrow(config))
    state = jax.jit(task.init)(jax.random.key(0))
    state = task.start_from(state, {"network": {"params": params}})
    batch = {"image": jnp.zeros((4, 8, 8, 1), jnp.uint8), "label": jnp.arange(4)}
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1), *task.frozen())
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["loss/critic"])
    for before, now in ((state.params, after.params), (state.critic.params, after.critic.params)):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, now)
        assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_a_student_of_text_steps_from_its_teacher(monkeypatch, tmp_path):
    """The encoded prompts are zeros, and the teacher's parameters its first."""
    zeros = lambda prompts: jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), prompts.example())
    encoded = lambda prompts: {
        "empty": jax.tree.map(lambda a: a[0], zeros(prompts)),
        "prompts": zeros(prompts),
    }
    monkeypatch.setattr(Prompts, "frozen", encoded)
    theirs = small_text(emoji_text.get_config())
    params = teach(monkeypatch, tmp_path, theirs)
    config = small_text(load("emoji_text_distillation"))
    assert config.method.guidance_scale == theirs.sampling.guidance_scale == 3.0
    assert config.sampling.num_steps == 4 and config.sampling.guidance_scale == 1.0
    config.teacher, config.optimizer.warmup = str(tmp_path), 0.0  # a first step at the full rate
    task = build(config.lock())
    state = jax.jit(task.init)(jax.random.key(0))
    assert state.params.keys() - params.keys() == {"end_time_embedding"}
    state = task.start_from(state, {"network": {"params": state.params | params}})
    mesh = make_mesh(mesh_axes(config), config.batch_size)
    shapes = abstract_batch(config, task, mesh)
    batch = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1), *task.frozen())
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
