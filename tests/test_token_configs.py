"""The configs of ImageNet's codes: their papers' numbers, a step at toy size, and plans."""

import jax
import numpy as np
import pytest

from configs import digits_masked_diffusion, imagenet256_tokens
from experiments.configuration.runs import build
from experiments.plan import plan
from genjax import pretrained
from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.quantizers import VectorQuantizer
from tests.experiments import small_tokenizer

# Learning rate, b2, weight decay, warm-up; batch and steps; guidance scale.
LLAMAGEN = (1e-4, 0.95, 0.05, 0.0), (256, 300 * 5004)
RECIPES = {
    # FoundationVision/LlamaGen:autoregressive/train/train_c2i.py, GETTING_STARTED.md
    "llamagen_b": (*LLAMAGEN, 2.0),
    "llamagen_l": (*LLAMAGEN, 2.0),
    "llamagen_xl": (*LLAMAGEN, 1.75),
    "llamagen_3b": (*LLAMAGEN, 1.65),
    # google-research/maskgit:maskgit/configs/maskgit_class_cond_config.py
    "maskgit": ((1e-4, 0.96, 0.045, 5000.0), (256, 2_000_000), 1.0),
    # kuleshov-group/mdlm:configs/config.yaml, configs/lr_scheduler/constant_warmup.yaml
    "mdlm": ((3e-4, None, 0.0, 2500.0), (512, 1_000_000), 1.0),
}


@pytest.mark.parametrize("choice", RECIPES)
def test_models_of_codes_have_their_papers_numbers(choice):
    config = imagenet256_tokens.get_config(choice)
    rule, sizes, guidance_scale = RECIPES[choice]
    fields = config.optimizer
    assert (fields.learning_rate, fields.get("b2"), fields.weight_decay, fields.warmup) == rule
    assert fields.schedule == "constant"
    assert fields.clip_norm == (None if choice == "maskgit" else 1.0)
    assert (config.batch_size, config.num_steps) == sizes
    assert config.sampling.guidance_scale == guidance_scale
    assert config.conditioning_dropout == 0.1
    decay = 0.999 if choice == "maskgit" else 0.9999  # polyak_decay of base_config.py
    np.testing.assert_allclose(0.5 ** (1 / config.averages.ema.steps), decay, rtol=1e-7)
    if choice == "maskgit":
        assert config.label_smoothing == 0.1
        assert (config.sampling.num_steps, config.sampling.choice_temperature) == (8, 4.5)
        assert (config.model.width, config.model.depth, config.model.num_heads) == (768, 24, 16)
    if choice == "mdlm":
        assert (config.sampling.num_steps, config.sampling.sampler.name) == (128, "ancestral")
        assert (config.model.width, config.model.depth, config.model.num_heads) == (768, 12, 12)
        assert dict(config.times) == dict(name="uniform", variates="stratified")


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["llamagen_b", "maskgit", "mdlm"])
def test_a_step_of_every_architecture_runs_narrowed(choice, tmp_path):
    """In bfloat16, with all of the config but its sizes."""
    small_tokenizer.save(tmp_path)
    config = imagenet256_tokens.get_config(choice)
    side = small_tokenizer.SIDE
    config.data.update(name="digits", image_shape=(side, side, 3), resize=False)
    config.space.published, config.batch_size = str(tmp_path), 16
    config.model.name = config.model.name.removesuffix("_B")
    config.model.update(width=16, depth=1, num_heads=2)
    if choice == "maskgit":
        config.sampling.num_steps = 4  # one for each code
    config.optimizer.warmup = 0.0  # a first step at the full rate
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    batch, key = small_tokenizer.batch(), jax.random.key(1)
    after, metrics = jax.jit(task.update)(state, batch, key, *task.frozen())
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0


def narrow_tokenizer(folder):
    """Save a narrow tokenizer with 16×16 codes of 16,384."""
    network = VQModel(VectorQuantizer(16_384, 8), 4, (4,) * 5, blocks=1, groups=2)
    images = np.zeros((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    pretrained.save(folder, network, zeros)


@pytest.mark.slow
def test_decoding_is_planned_with_its_caches_split_by_head(tmp_path):
    narrow_tokenizer(tmp_path)
    config = imagenet256_tokens.get_config("llamagen_b")
    config.space.published, config.batch_size = str(tmp_path), 64
    one, two = (plan(config, axes, "h100", "sample") for axes in ({"data": 1}, {"tensor": 2}))
    width, depth, inner, places, rows = 768, 12, 2048, 257, 2 * 64  # guidance takes pairs
    # Each pass reads the weights once for a row, and the whole cache for its query.
    blocks = depth * (4 * width**2 + 3 * width * inner + 2 * places * width)
    network = rows * 256 * (blocks + width * 16_384)
    assert network < one["multiply_adds"] < 1.02 * network  # and the narrow tokenizer
    cache = 2 * depth * rows * places * width * 2  # bytes of keys and values in bfloat16
    working = lambda found: found["memory"]["activations and workspace"]
    assert working(one) > cache
    assert working(one) - working(two) > 0.49 * cache
    # Weights and caches are read for each of 256 tokens: 3.35 TB/s.
    assert one["terms"]["memory"] > 256 * (2 * depth * 4 * width**2 + cache) / 3.35e12
    # The outputs of two halves of each block are summed, of one row of a token in bfloat16.
    (sent,) = two["collectives"]
    assert (sent["kind"], sent["count"]) == ("all-reduce", 256 * depth * 2)


@pytest.mark.parametrize(("choice", "evaluations"), [("masked", 4), ("blocks", 8 * 4)])
def test_sampling_of_discrete_diffusion_is_planned(choice, evaluations):
    """64 tokens in 4 steps, or 8 blocks in 4 steps each; guidance takes pairs."""
    config = digits_masked_diffusion.get_config(choice)
    config.sampling.num_steps, config.batch_size = 4, 10
    width, depth, tokens = 64, 3, 64
    times = 9 if choice == "blocks" else 1  # of the blocks and of clean tokens
    of_tokens = tokens * (depth * (12 * width**2 + 2 * tokens * width) + 17 * width)
    of_times = times * ((6 * depth + 3) * width**2 + 256 * width)
    found = plan(config, {"data": 1}, "h100", "sample")
    expected = evaluations * 2 * 10 * (of_tokens + of_times)
    assert found["multiply_adds"] == pytest.approx(expected, rel=1e-2)


def test_tasks_whose_sampling_is_not_planned_are_refused():
    config = imagenet256_tokens.get_config("var_d16")
    names = "Diffusion, DiscreteDiffusion, MaskedTokens, TokenAutoregression"
    with pytest.raises(ValueError, match=f"sampling of {names}, and the task of .* is NextScale"):
        plan(config, {"data": 1}, "h100", "sample")


@pytest.mark.slow
def test_the_largest_transformer_is_planned_over_64_devices(tmp_path):
    """All of its 3,096,659,200 parameters but the norms and the classes are split 64 ways."""
    narrow_tokenizer(tmp_path)
    config = imagenet256_tokens.get_config("llamagen_3b")
    config.space.published = str(tmp_path)
    memory = plan(config, {"fsdp": 64}, "h100")["memory"]
    assert memory["params"] == pytest.approx(4 * 3_096_659_200 / 64, rel=0.03)
    assert memory["optimizer_state"] == pytest.approx(2 * memory["params"], rel=1e-3)
