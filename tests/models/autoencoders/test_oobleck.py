"""Stable Audio Open's autoencoder: windows and gradients; tests/parity compares with diffusers'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.oobleck import AutoencoderOobleck
from genjax.nn.windows import apply_windows

MODULE = AutoencoderOobleck(
    latent_channels=2, width=4, decoder_width=4, multiples=(1, 2, 2), strides=(2, 4, 8)
)
FACTOR, FRAMES = 64, 41
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def variables():
    """Return variables in which every part matters: α, β and biases are not zero."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(MODULE.init, KEY, jnp.zeros((1, FACTOR, 2)))

    def draw(path, leaf):
        scale, mean = (0.3, path[-1].key == "gain") if leaf.ndim == 1 else (1, 0)
        return mean + np.float32(scale) * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(draw, shapes)


WAVEFORM = jax.random.uniform(jax.random.key(1), (1, FACTOR * FRAMES, 2), minval=-1)
LATENTS = jax.random.normal(jax.random.key(2), (1, FRAMES, 2))
encode, decode = (
    jax.jit(functools.partial(MODULE.apply, method=method)) for method in ("encode", "decode")
)


def in_windows(variables, x, method):
    scales = dict(encode=dict(stride=FACTOR), decode=dict(scale=FACTOR))[method]
    function = functools.partial(MODULE.apply, variables, method=method)
    margin = dict(encode=MODULE.encoder_margin, decode=MODULE.decoder_margin)[method]
    return apply_windows(function, x, size=4, margin=margin, **scales)


def test_margins_are_how_far_outputs_depend_on_inputs(variables):
    """Compare with the derivatives of a weighted sum of all outputs in the middle frame."""
    middle = FRAMES // 2

    @jax.jit
    def dependence(variables, latents, waveform):
        def decoded(latents):
            samples = MODULE.apply(variables, latents, method="decode")
            samples = samples.reshape(FRAMES, -1)[middle]
            return samples @ jax.random.normal(KEY, samples.shape)

        encoded = lambda x: MODULE.apply(variables, x, method="encode")[0][0, middle].sum()
        gradients = jax.grad(decoded)(latents), jax.grad(encoded)(waveform)
        return [jnp.abs(a.reshape(FRAMES, -1)).max(-1) > 0 for a in gradients]

    for depends, margin in zip(
        dependence(variables, LATENTS, WAVEFORM),
        (MODULE.decoder_margin, MODULE.encoder_margin),
        strict=True,
    ):
        assert margin == np.abs(np.flatnonzero(depends) - middle).max()


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_windows_are_the_whole(variables, method):
    x = dict(encode=WAVEFORM, decode=LATENTS)[method]
    whole = dict(encode=encode, decode=decode)[method](variables, x)
    windows = jax.jit(functools.partial(in_windows, method=method))(variables, x)
    for ours, expected in zip(jax.tree.leaves(windows), jax.tree.leaves(whole), strict=True):
        # The same float32 sums, in the order that the compiler chooses for each length.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_memory_of_windows_does_not_grow_with_the_length(variables):
    def workspace(frames):
        latents = jax.ShapeDtypeStruct((1, frames, 2), jnp.float32)
        program = jax.jit(functools.partial(in_windows, method="decode"))
        return program.lower(variables, latents).compile().memory_analysis().temp_size_in_bytes

    short, long = workspace(64), workspace(512)  # measured 99 kB both; 2,099 kB without windows
    assert long < 1.05 * short


def test_gradients_are_finite_and_every_parameter_matters(variables):
    @jax.jit
    @jax.grad
    def gradient(variables):
        mean, log_variance = MODULE.apply(variables, WAVEFORM[:, : 8 * FACTOR], method="encode")
        return jnp.sum(MODULE.apply(variables, mean, method="decode") ** 2) + jnp.sum(
            log_variance**2
        )

    for path, leaf in jax.tree.leaves_with_path(gradient(variables)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-3, path


def test_a_waveform_shorter_than_a_frame_is_refused():
    with pytest.raises(ValueError, match="63 samples has no latents at 64 samples per frame"):
        jax.eval_shape(MODULE.init, KEY, jnp.zeros((1, 63, 2)))


def test_bfloat16_keeps_parameters_and_outputs_float32():
    module = MODULE.clone(dtype=jnp.bfloat16)
    outputs = jax.eval_shape(module.init_with_output, KEY, WAVEFORM)
    moments = jax.eval_shape(functools.partial(module.apply, method="encode"), outputs[1], WAVEFORM)
    assert {a.dtype for a in jax.tree.leaves((outputs, moments))} == {jnp.dtype("float32")}


def test_other_channels_and_integers_are_refused(unchecked_annotations):
    """Flax would make a network of 1 channels, whose output has 2."""
    with pytest.raises(ValueError, match="have 1 channels; this network takes 2"):
        jax.eval_shape(MODULE.init, KEY, jnp.zeros((1, 64, 1)))
    with pytest.raises(ValueError, match="waveforms are floats .*; got int16"):
        jax.eval_shape(MODULE.init, KEY, jnp.zeros((1, 64, 2), jnp.int16))
