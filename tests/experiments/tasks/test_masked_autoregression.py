"""The task of masked autoregression: its loss, its samples and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration import base
from experiments.configuration.runs import build
from experiments.tasks.masked_autoregression import Objective
from genjax.data import load_dataset

SIZE, KEY = 32, jax.random.key(1)


def small_config():
    """Return a config of digits as 16 patches of 4 pixels, revealed in 5 steps."""
    config = base.masked_autoregression("small", name="digits", image_shape=(8, 8, 1))
    config.patch_size = config.repeats = 2
    config.model.update(width=16, depth=1, num_heads=2, buffer=2)
    config.model.update(denoiser_width=16, denoiser_depth=1)
    config.batch_size = SIZE
    config.optimizer.update(schedule="constant", warmup=0.0, learning_rate=1e-2)
    config.sampling.update(num_steps=5, token_steps=3)
    return config


def batch():
    digits = load_dataset("digits").source[np.arange(SIZE)]
    return {name: jnp.asarray(digits[name]) for name in ("image", "label")}


@functools.cache
def trained_a_little():
    """Return a small task, its state after thirty steps, and their losses."""
    task = build(small_config())
    state, update = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.update)
    losses = []
    for step in range(30):
        state, metrics = update(state, batch(), jax.random.fold_in(KEY, step))
        losses.append(float(metrics["loss"]))
    return task, state, losses


generate = jax.jit(
    lambda task, state, *args, **options: task.generate(state, KEY, *args, **options),
    static_argnums=0,
    static_argnames=("weights", "trajectory"),
)


def inputs(**changes):
    task, _, _ = trained_a_little()
    config = small_config()
    config.sampling.update(changes)
    return task.sampling_inputs(config.sampling)


@pytest.mark.slow
def test_the_first_loss_is_that_of_a_velocity_of_zero_and_falls():
    """E[(z − x)²] = 1 + E[x²], within four deviations of the draw."""
    _, _, losses = trained_a_little()
    x = np.asarray(batch()["image"]) / 127.5 - 1
    draws = SIZE * 64 * 0.867 * 2  # of masked pixels, which share images but not noise
    deviation = np.sqrt(np.var(x**2) + 2 + 4 * np.mean(x**2)) / np.sqrt(draws)
    assert abs(losses[0] - 1 - np.mean(x**2)) < 4 * deviation
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_some_conditions_are_dropped_and_each_token_is_noised_as_often_as_the_config_says():
    """The share of null conditions is within 4.5 deviations."""
    config, count, shapes = small_config(), 3000, {}
    config.conditioning_dropout = 0.3
    labels, x = jnp.ones(count, int), jnp.ones((count, 2, 1))

    def apply(x, *others, method):
        shapes[method] = x.shape
        if method == "denoise":
            return x
        mask, condition = others
        assert abs(np.mean(condition == 9) - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / count)
        assert np.all((condition == 9) | (condition == 1))
        return condition[:, None]

    Objective.from_config(config)(KEY, apply, x, labels, 9)
    assert shapes == {"states": (count, 2, 1), "denoise": (2 * count, 2, 1)}


@pytest.mark.slow
def test_samples_depend_on_their_own_index_and_their_film_reveals_each_token_once():
    task, state, _ = trained_a_little()
    options = inputs()
    labels = jnp.arange(3)
    films = np.asarray(generate(task, state, labels, jnp.arange(3), *options, trajectory=True))
    assert films.shape == (5, 3, 8, 8, 1)
    others = jnp.array([9, 1, 0]), jnp.array([7, 1, 0])
    shifted = generate(task, state, *others, *options, trajectory=True)
    # Sums of matrix products may be in another order in another place of the batch.
    np.testing.assert_allclose(shifted[:, 1], films[:, 1], atol=1e-5)
    patches = films.reshape(5, 3, 4, 2, 4, 2).transpose(0, 1, 2, 4, 3, 5).reshape(5, 3, 16, 4)
    drawn = np.any(patches != 0, axis=-1)
    # floor(16·cos(π/2·k/5)) stay masked after step k.
    np.testing.assert_array_equal(drawn.sum(-1), np.repeat([[1], [4], [7], [12], [16]], 3, 1))
    for before, after in zip(patches, patches[1:], strict=False):
        was = np.any(before != 0, axis=-1)
        np.testing.assert_array_equal(after[was], before[was])
    assert len({drawn[2, i].tobytes() for i in range(3)}) > 1  # orders of their own


@pytest.mark.slow
def test_temperature_scales_the_noise_of_steps_but_not_the_first_noise():
    """As the authors' `p_sample`: an ODE sampler draws no other noise, so nothing changes."""
    _, state, _ = trained_a_little()
    labels, indices = jnp.array([3, 3]), jnp.array([0, 1])
    for sampler, same in (("euler", True), ("ddpm", False)):
        task = build(small_config_of_one_step(sampler))
        cold, warm = (
            np.asarray(generate(task, state, labels, indices, *inputs(temperature=temperature)))
            for temperature in (0.0, 1.0)
        )
        assert np.array_equal(cold, warm) == same
        assert np.abs(cold[0] - cold[1]).max() > 0.1  # by their first noise


@pytest.mark.slow
def test_guidance_of_one_is_conditional():
    """The null class has no part."""
    _, state, _ = trained_a_little()
    one_step = build(small_config_of_one_step())
    labels, indices = jnp.array([3, 3]), jnp.array([0, 1])
    embedding = state.params["label_embedding"]["embedding"]
    other = state.replace(
        params=state.params
        | {"label_embedding": {"embedding": embedding.at[10].add(jnp.arange(16.0))}}  # null class
    )
    for scale, same in ((1.0, True), (2.0, False)):
        options = inputs(guidance_scale=scale)
        first, second = (generate(one_step, s, labels, indices, *options) for s in (state, other))
        assert np.allclose(first, second, atol=1e-5) == same


@pytest.mark.slow
def test_guidance_grows_with_the_share_of_drawn_tokens():
    """The first of 16 tokens has a scale of 1 + 16/16 where the last has 17.

    All tokens are masked before it, as they are where one step draws all at a scale of 2. Both
    programs draw the same first noise for it.
    """
    task, state, _ = trained_a_little()
    one_step = build(small_config_of_one_step())
    options = inputs(guidance_scale=17.0)
    labels, indices = jnp.array([3, 5, 7]), jnp.arange(3)
    first = np.asarray(generate(task, state, labels, indices, *options, trajectory=True))[0, 0]
    options = inputs(guidance_scale=2.0)
    whole = np.asarray(generate(one_step, state, labels[:2], indices[:2], *options))[0]
    assert np.sum(first != 0) == 4
    np.testing.assert_allclose(first[first != 0], whole[first != 0], atol=1e-5)


@pytest.mark.slow
def test_at_a_scale_of_0_no_token_sees_the_class():
    task, state, _ = trained_a_little()
    options = inputs(guidance_scale=0.0)
    sample = lambda label: generate(task, state, jnp.full(3, label), jnp.arange(3), *options)
    np.testing.assert_allclose(sample(3), sample(5), atol=1e-5)


def small_config_of_one_step(sampler="euler"):
    config = small_config()
    config.sampling.num_steps, config.sampling.sampler = 1, dict(name=sampler)
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(patch_size=3), r"config.patch_size is 3, and .* \[8, 8, 1\]"),
        (dict(model__name="MARR"), "config.model.name is 'MARR'.*MAR"),
        (dict(model__num_heads=3), "num_heads is 3 and config.model.width 16"),
        (dict(sampling__num_steps=17), "16 tokens are revealed in 1 to 16 steps; got num_steps=17"),
        (dict(sampling__schedule="cosin"), "config.sampling.schedule is 'cosin'.*cosine"),
        (dict(sampling__temperature=-0.1), "temperature is at least 0"),
        (dict(sampling__sampler=dict(name="adaptive")), "'adaptive', whose noise has no temp"),
        (dict(sampling__guidance_interval=(0.2, 0.8)), "Autoregression guides at all times"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    config = small_config()
    for path, value in changes.items():
        *part, field = path.split("__")
        (config[part[0]] if part else config)[field] = value
    with pytest.raises(ValueError, match=words):
        build(config)


def test_an_opened_run_refuses_a_negative_temperature():
    config, task = small_config(), build(small_config())
    config.sampling.temperature = -0.5
    with pytest.raises(ValueError, match="temperature is at least 0, and 0 is greedy; got -0.5"):
        task.sampling_inputs(config.sampling)
