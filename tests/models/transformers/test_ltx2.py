"""Properties of LTX-2's transformer; tests/parity compares it with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.ltx2 import (
    LTX2,
    audio_seconds,
    ltx_2_0,
    ltx_2_3,
    ltx_2_5,
    video_coordinates,
)
from genjax.nn import Text

SIDES, LENGTH = (3, 2, 2), 5
NETWORK = LTX2(width=24, audio_width=16, depth=2, num_heads=2, gated=True)
APPLY = jax.jit(NETWORK.apply)
BOTH = jnp.array([True, True])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.fixture(scope="module")
def inputs():
    x = dict(video=normal(0, 2, *SIDES, 3), audio=normal(1, 2, LENGTH, 4))
    t = dict(video=jnp.array([0.2, 0.7]), audio=jnp.array([0.9, 0.4]))
    text = dict(video=Text(normal(2, 2, 4, 24)), audio=Text(normal(3, 2, 4, 16)))
    return x, t, text


@pytest.fixture(scope="module")
def variables(inputs):
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs)
    draw = lambda a: 0.3 * random.standard_normal(a.shape, np.float32)
    return jax.tree.map(draw, shapes)


def test_isolated_streams_are_those_of_a_network_without_exchange_to_the_last_bit(
    inputs, variables
):
    x, t, text = inputs
    isolated = lambda x, t: APPLY(variables, x, t, text, isolated=BOTH)
    outputs = isolated(x, t)
    without = jax.tree.map(jnp.asarray, variables)
    for direction in ("audio_to_video", "video_to_audio"):
        layer = without["params"]["blocks"]["exchange"][direction]
        layer["projection"] = jax.tree.map(jnp.zeros_like, layer["projection"])
    alone = APPLY(without, x, t, text, isolated=~BOTH)
    together = APPLY(variables, x, t, text, isolated=~BOTH)
    for name, other in (("video", "audio"), ("audio", "video")):
        np.testing.assert_array_equal(outputs[name], alone[name])
        assert np.abs(outputs[name] - together[name]).max() > 1e-2
        changed = isolated(x | {other: x[other][::-1]}, t | {other: 1 - t[other]})
        np.testing.assert_array_equal(changed[name], outputs[name])
        assert np.abs(changed[other] - outputs[other]).max() > 1e-2


def test_flags_are_of_single_examples_and_blocks(inputs, variables):
    flags = lambda *blocks: jnp.array([[False, False], blocks])
    perturb = lambda *blocks: APPLY(variables, *inputs, perturbed=flags(*blocks))
    plain, first, second = perturb(False, False), perturb(True, False), perturb(False, True)
    for name in ("video", "audio"):
        np.testing.assert_array_equal(plain[name][0], first[name][0])
        for pair in ((plain, first), (plain, second), (first, second)):
            assert np.abs(pair[0][name][1] - pair[1][name][1]).max() > 1e-2


def test_latents_lie_where_they_were_encoded_from():
    """Middles of 1, 8, 8, … frames at 25 per second, and of 1, 4, 4, … spectra of 10 ms."""
    coordinates = video_coordinates(3, 2, 1, 25.0)
    np.testing.assert_allclose(coordinates.seconds, [0.02, 0.2, 0.52], rtol=1e-6)
    np.testing.assert_array_equal(coordinates.rows, [16, 48])
    np.testing.assert_allclose(audio_seconds(3), [0.005, 0.03, 0.07], rtol=1e-6)


def count(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


def shapes(module, *text_features):
    x = dict(video=jnp.zeros((1, 1, 1, 1, 128)), audio=jnp.zeros((1, 1, 128)))
    t = dict(video=jnp.zeros(1), audio=jnp.zeros(1))
    text = {n: Text(jnp.zeros((1, 1, f))) for n, f in zip(x, text_features, strict=True)}
    return jax.eval_shape(module.init, jax.random.key(0), x, t, text)["params"]


def test_published_sizes_have_as_many_parameters():
    oldest, newer = shapes(ltx_2_0(), 3840, 3840), shapes(ltx_2_3(), 4096, 2048)
    assert count(oldest) == 18_876_174_592 and count(newer) == 18_988_838_144
    assert count(shapes(ltx_2_5(), 4096, 2048)) == 18_987_859_200
    leaves, _ = jax.tree.flatten_with_path(oldest)
    of_sound = (a.size for path, a in leaves if any("audio" in part.key for part in path))
    assert sum(of_sound) == 5_714_096_256
    block, of_block = oldest["blocks"], lambda tree: count(tree) // 48
    assert of_block(block["video"]["self_attention"]) == 67_133_440
    assert of_block(block["audio"]["self_attention"]) == 16_789_504
    assert of_block(block["exchange"]["audio_to_video"]) == 25_180_160
    assert of_block(block["exchange"]["video_to_audio"]) == 25_178_112
    assert of_block(block["video_mlp"]) == 134_238_208
    assert of_block(block["audio_mlp"]) == 33_564_672
    assert of_block(newer["blocks"]["video"]["self_attention"]) == 67_264_544
    for (stream, width), rows in ((("video", 4096), 6), (("audio", 2048), 6)):
        assert of_block(block[stream]["modulation"]) == rows * width
        assert of_block(block["exchange"][f"{stream}_modulation"]) == 5 * width
        assert of_block(newer["blocks"][stream]["modulation"]) == 9 * width
        assert of_block(newer["blocks"][stream]["text_modulation"]) == 2 * width
