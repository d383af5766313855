"""Properties of LTX-Video's transformer; tests/parity compares it with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.ltx_video import LTXVideo, video_coordinates
from genjax.nn import Text

SIDES = (3, 2, 4)
NETWORK = LTXVideo(width=32, depth=2, num_heads=2, out_channels=3)
APPLY = jax.jit(NETWORK.apply)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(1), 2)
    text = Text(jax.random.normal(keys[0], (2, 5, 7)))
    return jax.random.normal(keys[1], (2, *SIDES, 3)), jnp.array([0.2, 0.7]), text


@pytest.fixture(scope="module")
def variables(inputs):
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs)
    params = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    for norm in ("query_norm", "key_norm"):  # so that attention is far from an average
        params["params"]["blocks"]["self_attention"][norm]["scale"] += 1.5
    return params


def test_the_initialised_network_returns_zeros(inputs):
    output, _ = jax.jit(NETWORK.init_with_output)(jax.random.key(0), *inputs)
    assert output.shape == inputs[0].shape and np.all(output == 0)


def test_equal_times_of_all_frames_are_one_time(inputs, variables):
    x, t, text = inputs
    per_frame = jnp.repeat(t[:, None], SIDES[0], axis=1)
    outputs, expected = APPLY(variables, x, per_frame, text), APPLY(variables, x, t, text)
    # The same numbers in other programs: rounding alone.
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    others = APPLY(variables, x, per_frame.at[0, 1].set(0.9), text)
    change = np.abs(others - outputs).max((2, 3, 4))
    assert change[0, 1] > 1e-2 and np.all(change[1] == 0)


def test_a_shift_of_all_coordinates_changes_nothing(inputs, variables):
    """Queries meet keys by the differences of their coordinates."""
    coordinates = video_coordinates(*SIDES)
    place = lambda shift: jax.tree.map(lambda a, b: a + b, coordinates, type(coordinates)(*shift))
    at = lambda *shift: APPLY(variables, *inputs, place(shift))
    # Angles go up to 1.6e4, where float32's unit in the last place is 1e-3; few are so large.
    expected, slower = at(0.0, 0.0, 0.0), APPLY(variables, *inputs, video_coordinates(*SIDES, 12.5))
    change = lambda outputs: np.abs(outputs - expected).max() / np.abs(expected).max()
    assert change(at(2.0, 64.0, 512.0)) < 1e-3 < 1e-2 < change(slower)


def test_a_frame_rate_is_no_constant_of_the_program(inputs, variables):
    @jax.jit
    def at(frame_rate):
        return NETWORK.apply(variables, *inputs, video_coordinates(*SIDES, frame_rate))

    outputs = [at(rate) for rate in (24.0, 30.0)]
    assert at._cache_size() == 1 and np.abs(outputs[0] - outputs[1]).max() > 1e-2


def test_causal_coordinates_begin_with_one_frame():
    causal = video_coordinates(3, 1, 1, 2.0, causal=True)
    np.testing.assert_array_equal(causal.seconds, [0.0, 0.5, 4.5])
    np.testing.assert_array_equal(video_coordinates(3, 1, 2, 2.0).seconds, [0.0, 4.0, 8.0])
    np.testing.assert_array_equal(video_coordinates(3, 1, 2, 2.0).columns, [0.0, 32.0])
