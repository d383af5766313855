"""The configs of VAR and MAR on ImageNet: their papers' numbers, a step at toy size, and plans."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet256_tokens
from experiments.configuration.runs import build
from experiments.inputs.autoencoders import FrozenAutoencoder
from experiments.plan import plan
from genjax import pretrained
from tests.experiments import scales_tokenizer
from tests.pretrained.authors_files import draw, write

# First and last learning rate, b2, weight decay, clipping; batch and steps; guidance scale.
VAR, MAR = (0.95, 0.05, 2.0), (8e-4, 8e-4, 0.95, 0.02, 3.0)
RECIPES = {
    # FoundationVision/VAR:README.md, utils/arg_util.py; cfg=1.5 there is a scale of 2.5
    "var_d16": ((3e-4, 3e-5, *VAR), (768, 200 * 1668), 2.5),
    "var_d20": ((3e-4, 3e-5, *VAR), (768, 250 * 1668), 2.5),
    "var_d24": ((2.4e-4, 2.4e-6, *VAR), (768, 350 * 1668), 2.5),
    "var_d30": ((3.2e-4, 3.2e-6, *VAR), (1024, 350 * 1251), 2.5),
    # LTH14/mar:README.md, main_mar.py
    "mar_b": (MAR, (2048, 800 * 625), 2.9),
    "mar_l": (MAR, (2048, 800 * 625), 3.0),
    "mar_h": (MAR, (2048, 800 * 625), 3.2),
}


@pytest.fixture
def stand_ins(monkeypatch):
    """Let every tokenizer have VAR's maps, and every autoencoder latents on disk.

    They compute nothing, which saves ten seconds. `narrowed` reads autoencoders from their folders.
    """

    def open_autoencoder(run, weights, published, latents=None):
        return SimpleNamespace(load=dict) if latents else scales_tokenizer.make()

    monkeypatch.setattr(FrozenAutoencoder, "open", open_autoencoder)


@pytest.mark.parametrize("choice", RECIPES)
def test_var_and_mar_have_their_papers_numbers(choice, stand_ins):
    config = imagenet256_tokens.get_config(choice)
    (first, last, *rule), sizes, guidance_scale = RECIPES[choice]
    task, fields = build(config), config.optimizer
    warm = 0.02 * config.num_steps if "var" in choice else 100 * 625
    # The scheduler "lin0" of utils/lr_control.py falls from 5 % of the steps after the warm-up.
    halfway = warm + (0.05 + 0.95 / 2) * (config.num_steps - warm)
    steps = round(warm), round(halfway), config.num_steps
    rates = [task.optimization.schedule(step) for step in steps]
    np.testing.assert_allclose(rates, [first, (first + last) / 2, last], rtol=1e-4)
    assert [fields.b2, fields.weight_decay, fields.clip_norm] == rule
    assert (config.batch_size, config.num_steps) == sizes
    assert config.conditioning_dropout == 0.1 and config.sampling.guidance_scale == guidance_scale
    if "var" in choice:
        assert (config.sampling.top_k, config.sampling.top_p) == (900, 0.96)
        assert not config.data.flip and config.sampling.weights == "params"
        assert task.network.depth == int(choice.removeprefix("var_d"))
        assert task.network.width == 64 * task.network.depth
    else:
        assert (task.num_steps, config.sampling.token_steps, task.objective.repeats) == (
            256,
            100,
            4,
        )
        assert (task.network.channels, task.network.grid) == (16, (16, 16))
        # Steps 0, 10, …, 999 of 1000, as the authors' respacing
        *_, grid = task.abstract_sampling_inputs(config.sampling, {}, ())
        steps = np.asarray(grid) * 1000
        expected = np.append(np.round(np.linspace(999, 0, 100)) + 1, 0)
        np.testing.assert_allclose(steps, expected, atol=1e-3)
        alpha = task.process.alpha(jnp.float32(0.5))  # a cosine with an offset
        bar = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2)
        np.testing.assert_allclose(alpha, bar(0.5) / bar(0.0), rtol=1e-4)


SMALL = dict(
    llamagen_b=("LlamaGenTokenizer", (4, 4)),
    var_d16=("VARTokenizer", (30,)),
    mar_b=("MARAutoencoder", (4, 4, 2)),
)


def narrowed(choice, folder):
    """Return a config of images of 8×8 and few features, whose space reads its authors' file."""
    config = imagenet256_tokens.get_config(choice)
    name = SMALL[choice][0]
    config.space.published = str(write(folder, name, draw(name)))
    config.data.update(name="digits", image_shape=(8, 8, 3), resize=False)
    config.model.name = config.model.name.partition("_")[0]
    config.model.update(width=16, depth=2, num_heads=2)
    config.batch_size, config.optimizer.warmup = 8, 0.0  # a first step at the full rate
    if choice == "mar_b":
        config.space.directory = config.space.shape = None  # encode within the step
        config.model.update(denoiser_width=16, denoiser_depth=1)
        config.sampling.num_steps = 3
    elif choice == "var_d16":
        config.sampling.top_k = 7
    return config


@pytest.mark.parametrize("choice", SMALL)
def test_the_space_of_a_config_is_its_authors_autoencoder(choice, tmp_path):
    task = build(narrowed(choice, tmp_path))
    assert task.space.shape == SMALL[choice][1]
    (frozen,) = task.frozen()
    (loaded,) = frozen.values()
    expected = pretrained.load(tmp_path)[1]
    given = loaded["variables"] if choice == "mar_b" else loaded
    jax.tree.map(np.testing.assert_array_equal, given, expected)


@pytest.mark.slow
@pytest.mark.parametrize("choice", SMALL)
def test_a_step_runs_narrowed(choice, tmp_path):
    """In bfloat16, with all of the config but its sizes."""
    task = build(narrowed(choice, tmp_path))
    state = jax.jit(task.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    batch = {"image": images, "label": np.arange(8)}
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1), *task.frozen())
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_the_largest_var_is_planned_over_64_devices(stand_ins):
    """Nearly all of its 2,010,020,356 parameters are split 64 ways."""
    config = imagenet256_tokens.get_config("var_d30")
    config.space.published = "VAE"
    memory = plan(config, {"fsdp": 64}, "h100")["memory"]
    assert memory["params"] == pytest.approx(4 * 2_010_020_356 / 64, rel=0.03)
    assert memory["optimizer_state"] == pytest.approx(2 * memory["params"], rel=1e-3)
