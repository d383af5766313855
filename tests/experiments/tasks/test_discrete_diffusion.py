"""The task of discrete diffusion: its first loss, its bound, its samples and what it refuses."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_masked_diffusion
from experiments.configuration.runs import build
from experiments.evaluation.bounds import BoundBits
from experiments.evaluation.context import Context, Model
from experiments.inputs.datasets import Data
from genjax.data import load_dataset

SIZE = 16


class OneLogit(nn.Module):
    """A network that returns one number for each token."""

    @nn.compact
    def __call__(self, x, t, condition):
        return x * self.param("scale", nn.initializers.ones, ())


def small_config(choice):
    config = digits_masked_diffusion.get_config(choice)
    config.model.update(width=16, depth=1, unroll=1)
    config.batch_size, config.sampling.num_steps = SIZE, 3
    config.optimizer.update(schedule="constant", warmup=0.0, learning_rate=1e-2)
    return config


@pytest.fixture(params=digits_masked_diffusion.CHOICES, scope="module")
def small(request):
    config = small_config(request.param)
    task = build(config)
    return config, task, jax.jit(task.init)(jax.random.key(0))


def batch():
    digits = load_dataset("digits").source[np.arange(SIZE)]
    return {name: jnp.asarray(digits[name]) for name in ("image", "label")}


def test_the_first_loss_is_that_of_equally_likely_levels(small):
    """ln 17 nats per pixel, since logits are 0 at first; an update lowers it."""
    _, task, state = small
    update = jax.jit(task.update)
    losses = []
    for step in range(8):
        state, metrics = update(state, batch(), jax.random.fold_in(jax.random.key(1), step))
        losses.append(float(metrics["loss"]))
    # 16 images of 64 pixels at stratified times: the standard deviation is about 4 %.
    assert abs(losses[0] / np.log(17) - 1) < 0.16
    assert np.mean(losses[-3:]) < 0.95 * np.log(17)
    assert len([name for name in metrics if name.startswith("loss/t_")]) == 8


def test_bits_per_dimension_of_equally_likely_levels(small):
    """log2 17 bits, within four standard errors, by the evaluator that the config names."""
    config, task, state = small
    context = Context(Data.from_config(config), task.space, task.condition, num_samples=1)
    report = BoundBits(context, num_images=40, batch_size=20)(Model(task, state, config.sampling))
    assert report["likelihood_images"] == 40
    error = abs(report["bits_per_dimension"] - np.log2(17))
    assert error < 4 * report["bits_per_dimension_error"] < 0.8


def test_the_bound_of_one_class_does_not_read_the_labels_of_the_data():
    """They are not classes of the network. The label 1 would be its null class."""
    config = small_config("masked")
    config.condition.num_classes = 1
    task = build(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    values = np.random.default_rng(0)
    draw = lambda a: values.standard_normal(a.shape).astype(a.dtype)
    state = state.replace(params=jax.tree.map(draw, state.params))
    bound = task.functions(state, SimpleNamespace(weights="params"))["bound"]
    images, indices = np.asarray(batch()["image"]), np.arange(SIZE)
    expected = bound(images, np.zeros(SIZE, int), indices)
    assert np.all(np.isfinite(expected))
    np.testing.assert_array_equal(bound(images, np.asarray(batch()["label"]), indices), expected)


def test_samples_are_levels_and_start_from_noise(small):
    config, task, state = small
    generate = jax.jit(task.generate, static_argnames=("weights", "trajectory"))
    inputs = task.sampling_inputs(config.sampling)
    labels, indices = jnp.arange(4), jnp.arange(4)
    key = jax.random.key(2)
    states = generate(state, key, labels, indices, *inputs, trajectory=True)
    assert states.shape == (1 + task.num_evaluations(config.sampling), 4, 8, 8, 1)
    levels = (states[-1] + 1) * 8
    np.testing.assert_array_equal(levels, np.round(levels))
    assert 0 <= levels.min() and levels.max() <= 16
    masked = states[0] > 1  # the mask is one level beyond white
    assert np.all(masked) if config.process.name == "Masked" else not np.any(masked)
    # Sample 3 does not depend on its batch.
    others = generate(state, key, labels + 3, indices + 3, *inputs, trajectory=True)
    np.testing.assert_array_equal(others[:, 0], states[:, 3])


@pytest.mark.parametrize("choice", ["masked", "uniform"])
def test_score_entropy_trains_a_network_of_scores(choice):
    """A step can be traced; SEDD's loss has no meaning for logits of tokens."""
    config = small_config(choice)
    config.loss.name, config.target.name = "score_entropy_loss", "score"
    task = build(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    _, metrics = jax.eval_shape(task.update, state, batch(), jax.random.key(1))
    assert metrics["loss"].shape == ()
    config.target.name = "clean"
    with pytest.raises(ValueError, match=r"config.loss names .*the target is clean; take"):
        build(config)


def sample(config, count=2):
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    labels = jnp.arange(count)
    inputs = task.sampling_inputs(config.sampling)
    return jax.jit(task.generate)(state, jax.random.key(2), labels, labels, *inputs)


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (dict(name="first_hitting"), 64),
        (dict(name="remasking", rate=dict(name="rescaled", eta=0.5)), 3),
        (dict(name="remasking", rate="rescaled"), 3),
        (dict(name="confident", quota=dict(name="in_total"), temperature=0.5), 3),
        (dict(name="confident", quota="in_total"), 3),
    ],
    ids=str,
)
def test_samplers_are_named_with_their_options(sampler, evaluations):
    """The number of evaluations is that of the sampler, and sampling can be traced."""
    config = small_config("masked")
    config.sampling.sampler = sampler
    task = build(config)
    assert task.num_evaluations(config.sampling) == evaluations
    assert jax.eval_shape(lambda: sample(config)).shape == (2, 8, 8, 1)


def test_a_path_of_several_noises_is_a_config():
    """Masks with uniform tokens between: a step and samples can be traced, and it has no bound."""
    config = small_config("masked")
    noises = [dict(name=name, vocabulary_size=17) for name in ("Masked", "Uniform")]
    config.process = dict(name="Path", noises=noises, schedule=dict(name="Bump"))
    config.loss.name, config.sampling.sampler.name = "simple_loss", "flow"
    task = build(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    jax.eval_shape(task.update, state, batch(), jax.random.key(1))
    assert jax.eval_shape(lambda: sample(config)).shape == (2, 8, 8, 1)
    assert "bound" not in task.functions(state, config.sampling)
    config.sampling.sampler.name = "ancestral"
    with pytest.raises(ValueError, match="config.sampling.sampler .* a Path has several noises"):
        build(config)
    config.loss.name = "bound_loss"
    with pytest.raises(ValueError, match="config.loss names .* a Path has several noises"):
        build(config)
    config.process.noises[1]["vocabulary_size"] = 16
    with pytest.raises(ValueError, match=r"a Path of 17 tokens has noises of \[17, 16\]"):
        build(config)


def test_a_temperature_of_0_takes_the_most_likely_tokens():
    """All logits are 0 at first, and then the first level is taken everywhere: black."""
    config = small_config("masked")
    config.sampling.temperature = 0.0
    np.testing.assert_array_equal(sample(config), -1)
    config.sampling.temperature = -1.0
    with pytest.raises(ValueError, match="a temperature is at least 0"):
        build(config)


def test_what_does_not_fit_is_named():
    config = small_config("blocks")
    config.loss.block_length = 4
    with pytest.raises(ValueError, match="loss.block_length is 4 and .*sampler.block_length 8"):
        build(config)
    config = small_config("blocks")
    config.loss.block_length = config.sampling.sampler.block_length = 7
    with pytest.raises(ValueError, match="blocks of 7 tokens do not divide a sequence of 64"):
        build(config)
    config = small_config("masked")
    config.space.name = "Pixels"
    with pytest.raises(ValueError, match=r"config.space.name is 'Pixels', which has no tokens"):
        build(config)
    config = small_config("masked")
    config.process.schedule.name = "cosine"
    with pytest.raises(ValueError, match="config.process.schedule.name is 'cosine'; .*Cosine"):
        build(config)
    config = small_config("masked")
    config.model = dict(name="tests.experiments.tasks.test_discrete_diffusion.OneLogit")
    with pytest.raises(ValueError, match=r"OneLogit, which returns \[1, 8, 8, 1\] .* every token"):
        build(config)
    config = small_config("blocks")
    config.model = dict(name="tests.experiments.tasks.test_discrete_diffusion.OneLogit")
    with pytest.raises(ValueError, match=r"OneLogit, which .* and clean tokens after the condit"):
        build(config)
