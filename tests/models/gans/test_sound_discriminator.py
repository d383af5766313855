import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.gans.sound_discriminator import (
    DAC_BANDS,
    PeriodDiscriminator,
    SoundDiscriminator,
    SpectrumDiscriminator,
)

KEY = jax.random.key(0)


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


def test_sizes_are_those_of_the_papers_layers():
    """HiFi-GAN's five periods, and EnCodec's three resolutions, counted from the layer lists."""
    layers = [(1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5)]
    layers += [(1024, 1, 3)]
    period = sum(taps * inputs * outputs + 2 * outputs for inputs, outputs, taps in layers)
    layers = [(2, 32, 27), (32, 32, 27), (32, 32, 27), (32, 32, 27), (32, 32, 9), (32, 1, 9)]
    spectrum = sum(taps * inputs * outputs + 2 * outputs for inputs, outputs, taps in layers)
    network = SoundDiscriminator()
    sound = jnp.zeros((1, 8192, 1))
    params = jax.eval_shape(network.init, KEY, sound)["params"]
    assert size({name: params[name] for name in params if "period" in name}) == 5 * period
    assert 5 * period == 41_105_770  # 41,092,165 without the gains of weight norm
    assert size({name: params[name] for name in params if "spectrum" in name}) == 3 * spectrum
    assert 3 * spectrum == 283_494
    logits, features = jax.eval_shape(lambda p: network.apply({"params": p}, sound), params)
    assert len(logits) == len(features) == 8
    assert all(len(layers) == 5 for layers in features)  # all but the last, whose are the logits
    assert logits[0].shape == (1, 51, 2)  # 8192 / 2 samples, four times a third, rounded up


def test_a_period_never_mixes_samples_of_another_phase():
    """Only the logits of its own phase move with a sample."""
    judge = PeriodDiscriminator(3, (4, 4, 4))
    sound = jax.random.normal(KEY, (1, 90, 1))
    variables = judge.init(KEY, sound)
    moved = judge.apply(variables, sound.at[0, 32].add(1.0))[0] != judge.apply(variables, sound)[0]
    assert np.asarray(moved).any((0, 1)).tolist() == [False, False, True]


def test_bands_of_frequency_have_layers_of_their_own():
    """A tone of the lowest band changes the features of no other band, but for its sidelobes."""
    judge = SpectrumDiscriminator(64, 4, (1,), DAC_BANDS, 0.1)
    time = jnp.arange(256) / 64
    tone = jnp.sin(2 * jnp.pi * time)[None, :, None]  # of bin 1; band 0 has bins 0, 1 and 2
    variables = judge.init(KEY, tone)
    (logits, features), (_, silent) = (judge.apply(variables, x) for x in (tone, 0 * tone))
    assert len(features) == 5 * 3 and logits.shape == (1, 13, 18)
    change = [np.abs(a - b).max() for a, b in zip(features, silent, strict=True)]
    assert change[0] > 0.1 and max(change[3:]) < 1e-5
