import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.vocoder_ltx import (
    AliasFreeSnake,
    ExtendedVocoderLTX,
    VocoderLTX,
    extended_vocoder_ltx,
    hann_interpolation,
    kaiser_low_pass,
    upsample_waveform,
)
from genjax.nn import chunking
from genjax.nn.chunking import decode_chunked
from genjax.nn.windows import apply_windows


# Of FIELD's table.
@pytest.mark.parametrize(
    ("build", "count", "rate"),
    [(VocoderLTX, 55_592_802, 24_000), (extended_vocoder_ltx, 128_537_448, 48_000)],
)
def test_parameter_counts(build, count, rate):
    spectrogram = jax.ShapeDtypeStruct((1, 3, 64, 2), np.float32)
    waveform, variables = jax.eval_shape(build().init_with_output, jax.random.key(0), spectrogram)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert build().sample_rate == rate
    assert waveform.shape == (1, 3 * rate // 100, 2)  # a frame is 10 ms


def test_a_sine_is_interpolated():
    time = np.arange(400) / 400
    tone = lambda time: np.sin(2 * np.pi * 40 * time)[None, :, None].astype(np.float32)
    expected = tone(np.arange(1200) / 1200)
    ours = jax.jit(upsample_waveform, static_argnums=1)(tone(time), 3)
    # Away from the ends, where the waveform is constant beyond them. A sinc of 6 zero crossings
    # leaves about a thousandth.
    np.testing.assert_allclose(ours[:, 30:-30], expected[:, 30:-30], atol=2e-3)
    assert len(hann_interpolation(3)) == 43


def test_snake_makes_no_frequencies_that_alias():
    """The square of a tone of .35 has a frequency of .7, which would alias to .3."""
    module, time = AliasFreeSnake(jnp.float32), np.arange(256)
    x = np.sin(2 * np.pi * 0.35 * time)[None, :, None].astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    np.testing.assert_allclose(variables["constants"]["doubling"], kaiser_low_pass(), atol=1e-7)
    inner = slice(20, 220)
    share = lambda y: abs(np.exp(-2j * np.pi * 0.3 * time[inner]) @ np.asarray(y)[0, inner, 0])
    # Measured: a quarter of the plain activation's alias, within the filters' wide transition.
    assert share(jax.jit(module.apply)(variables, x)) < 0.3 * share(x + np.sin(x) ** 2)


@pytest.mark.parametrize(("final", "bound"), [("tanh", 1), ("clamp", 1), (None, 30)])
def test_the_output_is_brought_into_its_range(final, bound):
    module = VocoderLTX(1, 4, (2,), (4,), (3,), ((1,),), final=final)
    spectrogram = 30 * jnp.ones((1, 5, 3, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), spectrogram)
    variables = jax.tree.map(lambda a: jnp.ones(a.shape), variables)
    waveform = module.apply(variables, spectrogram)
    assert waveform.shape == (1, 10, 1) and waveform.max() >= bound


PLAIN = VocoderLTX(1, 8, (2, 3), (4, 5), (3, 5), ((1, 2), (1,)))
SNAKES = VocoderLTX(1, 4, (4,), (6,), (3,), ((1,),), slope=None, final=None, sample_rate=10)
EXTENDED = ExtendedVocoderLTX(
    SNAKES, SNAKES.clone(strides=(4,), kernel_sizes=(8,), sample_rate=20), size=6, hop=2, bins=3
)


@pytest.mark.parametrize("module", [PLAIN, EXTENDED], ids=["plain", "extended"])
def test_windows_are_the_whole(module, monkeypatch):
    """With margins that are not much too wide: three frames less are too few."""
    frames, random = 2 * module.decoder_margin + 12, np.random.default_rng(0)
    spectrogram = random.standard_normal((1, frames, 3, 1), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), spectrogram)
    draw = lambda a: 0.4 * random.standard_normal(a.shape, np.float32)
    variables = jax.tree.map(draw, shapes)
    whole = jax.jit(module.apply)(variables, spectrogram)
    assert whole.shape[1] == frames * module.factor
    monkeypatch.setattr(chunking, "PLACES", 5 * module.factor)

    @jax.jit
    def in_windows(variables, spectrogram):
        return decode_chunked(module, variables, spectrogram, method="__call__")

    # The same float32 sums, in another order.
    tolerance = dict(rtol=0, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_allclose(in_windows(variables, spectrogram), whole, **tolerance)
    apply = functools.partial(module.apply, variables)
    less = dict(size=5, margin=module.decoder_margin - 3, scale=module.factor)
    narrower = jax.jit(functools.partial(apply_windows, apply, **less))(spectrogram)
    assert np.abs(narrower - whole).max() > 2 * tolerance["atol"]


def test_variables_of_bfloat16_give_a_waveform_of_float32():
    part = VocoderLTX(1, 4, (2,), (4,), (3,), ((1,),), slope=None, sample_rate=10)
    extension = part.clone(strides=(4,), sample_rate=20)
    module = ExtendedVocoderLTX(part, extension, size=4, hop=2, bins=3)
    spectrogram = jax.ShapeDtypeStruct((1, 5, 3, 1), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), spectrogram)
    halves = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), shapes)
    waveform = jax.eval_shape(module.apply, halves, spectrogram)
    assert (waveform.shape, waveform.dtype) == ((1, 20, 1), jnp.float32)
