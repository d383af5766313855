"""The task of autoencoders on sound: its loss, and its independence of devices and stops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration.runs import build
from genjax.autoencoding import multi_scale_mel
from genjax.training import Checkpoints
from tests.experiments.autoencoder_run import BATCH_SIZE, SOUND, START, batch, small_config
from tests.experiments.tasks.test_autoencoding import (
    KEY,
    QUICK,
    assert_close,
    assert_eight_devices_do_as_one,
    gradient,
    made,
    same,
)


def written_out(choice):
    """Return all losses of a choice and of its discriminator, by whole derivatives."""
    config, task, *_ = made(choice)
    network, judge, adversary = task.network, task.adversary.network, config.adversary
    weights = dict(config.weights)
    square = lambda parts, target: sum(jnp.mean((part - target) ** 2) / 2 for part in parts)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compute(state, sound, key):
        x = sound / 2.0**15
        noise_key = jax.random.split(key)[1]
        of_judge = lambda params, sound: judge.apply({"params": params}, sound)

        def terms_and_reconstruction(params):
            apply = functools.partial(network.apply, {"params": params})
            z = apply(x, method="encode")
            if choice == "codec":
                quantized = apply(z, method="quantize")
                return quantized.losses, apply(quantized.latents, method="decode")
            mean, log_variance = z
            nats = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
            z = mean + jnp.exp(log_variance) ** 0.5 * jax.random.normal(noise_key, mean.shape)
            bands = apply(x, method=lambda module, x: module.vocoder.encode(x))
            decoded = apply(z, method="decode_bands")
            mel = jnp.abs(bands - decoded).mean() / network.mel_deviation
            return {"divergence": nats.sum() / x.size, "mel": mel}, apply(z, method="decode")

        def total(params):
            terms, y = terms_and_reconstruction(params)
            distance = multi_scale_mel(x, y, 8000, (32, 64), (4, 6)).mean()
            (_, real), (logits, fake) = (of_judge(state.discriminator.params, s) for s in (x, y))
            layers = zip(sum(real, []), sum(fake, []), strict=True)
            matching = sum(jnp.abs(r - f).mean() for r, f in layers)
            displeasure = square(logits, 1.0)
            metrics = {f"loss/{name}": value for name, value in terms.items()} | {
                "loss/reconstruction": distance,
                "loss/adversarial": displeasure,
                "loss/feature_matching": matching,
            }
            loss = distance + sum(weights[name] * value for name, value in terms.items())
            return loss + adversary.weight * (displeasure + 2 * matching), (metrics, y)

        def of_discriminator(params):
            (real, _), (fake, _) = (of_judge(params, sound) for sound in (x, y))
            return square(real, 1.0) + square(fake, 0.0)

        (loss, (metrics, y)), by_params = jax.value_and_grad(total, has_aux=True)(
            state.autoencoder.params
        )
        value, by_judge = jax.value_and_grad(of_discriminator)(state.discriminator.params)
        return metrics | {"loss": loss, "loss/discriminator": value}, by_params, by_judge

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["codec", "mel"])
def test_the_gradients_are_those_of_the_written_out_losses(choice):
    config, _, _, first, update = made(choice)
    state = first.replace(step=jnp.int32(START))
    sound = batch(config, 0)["audio"]
    after, metrics = update(state, {"audio": sound}, KEY)
    expected, by_params, by_judge = written_out(choice)(state, sound, KEY)
    for name, value in expected.items():  # float32 sums in another order
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert_close(gradient(after.autoencoder, state.autoencoder), by_params, rtol=1e-4)
    assert_close(gradient(after.discriminator, state.discriminator), by_judge, rtol=1e-4)
    assert metrics["weight/adversarial"] == 0.5 and len(expected) == 7


@pytest.mark.parametrize("choice", SOUND)
def test_every_autoencoder_of_sound_makes_a_step(choice):
    config = small_config(choice)
    task = build(config)
    state = jax.eval_shape(task.init, KEY)
    after, metrics = jax.eval_shape(task.update, state, batch(config, 0), KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    terms = {name for name in metrics if name.startswith("loss/")}
    terms -= {f"loss/{name}" for name in config.weights if name != "perceptual"}
    judged = {"adversarial", "feature_matching", "discriminator", "reconstruction"}
    assert terms == {f"loss/{name}" for name in judged}


@pytest.mark.slow
def test_before_its_start_the_discriminator_stays_and_counts_nothing():
    config, _, _, state, update = made("mel")
    after, metrics = update(state, batch(config, 0), KEY)
    terms = ("loss/reconstruction", 1.0), ("loss/divergence", 0.1), ("loss/mel", 0.5)
    expected = sum(weight * metrics[name] for name, weight in terms)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert same(after.discriminator, state.discriminator)
    assert not same(after.autoencoder.params, state.autoencoder.params)


@pytest.mark.slow
def test_on_eight_devices_it_is_as_on_one():
    """Residual codes and log-mel bands, each against both parts of the discriminator."""
    assert_eight_devices_do_as_one("codec", "mel")


@pytest.mark.slow
def test_resumed_in_the_middle_it_is_bitwise_the_same(tmp_path):
    """The discriminator starts after the interruption."""
    this = made("codec")
    middle, _ = this.after(this.state, 1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, middle)
        checkpoints.wait()
        resumed = jax.device_get(checkpoints.restore(1, jax.eval_shape(this.task.init, KEY)))
    end, history = this.after(middle, 2, start=1)
    resumed, again = this.after(resumed, 2, start=1)
    assert same(history, again) and same(end, resumed)
    assert not same(end.discriminator.params, middle.discriminator.params)


def test_held_out_sounds_are_reconstructed_from_their_means():
    _, task, _, state, _ = made("mel")
    originals = np.random.default_rng(0).integers(-(2**14), 2**14, (3, 256, 1), np.int16)
    generate = jax.jit(
        task.generate, static_argnames=("weights", "trajectory"), compiler_options=QUICK
    )
    found = generate(state, KEY, np.arange(4), np.array([0, 1, 2, 3]), originals)
    variables = state.autoencoder.variables
    expected = jax.jit(task.network.apply, compiler_options=QUICK)(variables, originals / 2**15)
    np.testing.assert_allclose(found, np.asarray(expected)[[0, 1, 2, 0]], rtol=1e-4, atol=1e-5)
    data = task.space.to_data(found)
    assert data.dtype == jnp.int16 and data.shape == (4, 256, 1)


def test_a_length_that_is_no_whole_number_of_frames_is_refused():
    config = small_config("codec")
    config.data.image_shape = (BATCH_SIZE * 25 + 1, 1)
    with pytest.raises(ValueError, match="201 samples; pad it to a multiple of 4"):
        build(config)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["codec", "oobleck", "mel"])  # "mel" has a vocoder
def test_a_short_training_lowers_the_distance(choice):
    """Tones of random pitch, without a discriminator; codes take longer."""
    num_steps, learning_rate = (200, 1e-2) if choice == "codec" else (150, 3e-3)
    config = small_config(choice)
    config.adversary.weight = 0.0
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=learning_rate, eps=1e-8)
    task = build(config)
    assert task.adversary is None
    update = jax.jit(task.update)
    state, distances = made(choice).state.replace(discriminator=None), []
    time = np.arange(256)[:, None] / 8000
    for step in range(num_steps):
        pitch = np.random.default_rng(step).uniform(200, 2000, (BATCH_SIZE, 1, 1))
        sound = np.int16(8000 * np.sin(2 * np.pi * pitch * time))
        state, metrics = update(state, {"audio": sound}, jax.random.fold_in(KEY, step))
        distances.append(float(metrics["loss/reconstruction"]))
    assert np.mean(distances[-10:]) < 0.7 * np.mean(distances[:10])
