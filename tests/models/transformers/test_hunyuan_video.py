"""Properties of HunyuanVideo-1.5's transformer; tests/parity compares it with diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.hunyuan_video import HunyuanVideo
from genjax.nn import Text

SIDES = (2, 2, 3)
NETWORK = HunyuanVideo(
    depth=2, num_heads=2, rotary_features=(4, 6, 6), refiner_depth=1, takes_end_time=True
)
APPLY = jax.jit(NETWORK.apply)


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal((2, *shape), np.float32))
    text, glyphs = (Text(normal(4, n), None, jnp.arange(4) < jnp.array([[4], [2]])) for n in (5, 6))
    times = jnp.array([0.4, 0.8]), jnp.array([0.1, 0.3])
    return dict(x=normal(*SIDES, 3), t=times[0], text=text, glyphs=glyphs) | dict(
        image=normal(2, 7), end_time=times[1]
    )


@pytest.fixture(scope="module")
def variables(inputs):
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), **inputs))
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def test_padding_changes_nothing(inputs, variables):
    garbage = lambda text: text.replace(
        tokens=jnp.where(text.mask[..., None], text.tokens, 1e3 * jnp.sign(text.tokens))
    )
    others = inputs | {name: garbage(inputs[name]) for name in ("text", "glyphs")}
    outputs, expected = (APPLY(variables, **each) for each in (others, inputs))
    np.testing.assert_array_equal(outputs, expected)


def test_every_condition_matters_to_its_own_example(inputs, variables):
    output = APPLY(variables, **inputs)
    at_first = lambda a: a.at[0].add(0.3 * jnp.cos(jnp.arange(a[0].size)).reshape(a[0].shape))
    for name, value in inputs.items():
        other = jax.tree.map(at_first, value) if name not in ("text", "glyphs") else None
        other = value.replace(tokens=at_first(value.tokens)) if other is None else other
        change = np.abs(APPLY(variables, **inputs | {name: other}) - output).max((1, 2, 3, 4))
        assert change[0] > 1e-3 and change[1] == 0, name


def test_an_end_time_is_given_if_and_only_if_the_network_takes_it(inputs):
    init = lambda network, inputs: jax.eval_shape(lambda: network.init(jax.random.key(0), **inputs))
    with pytest.raises(ValueError, match="takes_end_time=True, and end_time is None"):
        init(NETWORK, inputs | dict(end_time=None))
    with pytest.raises(ValueError, match="takes_end_time=False, and end_time is given"):
        init(NETWORK.clone(takes_end_time=False), inputs)
