"""Decoding with caches on a mesh of four devices."""

import pytest

from tests import virtual_devices

FOUR_DEVICES = """
import functools, jax, jax.numpy as jnp, numpy as np
from genjax.devices import batch_sharding, make_mesh, state_sharding
from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.pixel_transformer import PixelTransformer
from genjax.models.autoregressive.prefixes import ClassPrefix
from genjax.models.autoregressive.var import VAR
from genjax.nn.transformer import empty_cache

def tokens_in_turn(apply, tokens, labels):
    tokens = tokens.reshape(4, -1)
    logits, state = apply(labels, method="prefill")
    def step(state, inputs):
        logits, state = apply(state, *inputs, method="step")
        return state, logits
    places = jnp.arange(tokens.shape[1] - 1)
    state, others = jax.lax.scan(step, state, (tokens[:, :-1].T, places))
    return jnp.concatenate([logits[:, None], others.swapaxes(0, 1)], 1), state

def maps_in_turn(apply, inputs, labels):
    state, outputs = apply(labels, method="start"), []
    for scale, of_scale in enumerate([None, inputs[:, :4]]):
        logits, state = apply(state, of_scale, scale, method="step")
        outputs.append(logits)
    return jnp.concatenate(outputs, 1), state

random, labels = np.random.default_rng(0), jnp.asarray([0, 4, 5, 1])
tokens = jnp.asarray(random.integers(0, 8, (4, 6)))
inputs = jnp.asarray(random.standard_normal((4, 4, 3)), jnp.float32)
sizes = dict(width=16, depth=2, num_heads=2)
CASES = [
    (LlamaGen(8, (2, 3), prefix=ClassPrefix(5), **sizes), tokens, tokens_in_turn, 7),
    (PixelTransformer((2, 3, 1), 8, 6, **sizes), tokens.reshape(4, 2, 3, 1), tokens_in_turn, 6),
    (VAR(8, (1, 2), num_classes=5, **sizes), inputs, maps_in_turn, 5),
]
mesh = make_mesh({"data": 2, "tensor": 2}, 4)
for network, x, in_turn, places in CASES:
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, labels)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    expected = jax.jit(network.apply)(variables, x, labels)
    run = lambda variables, *batch: in_turn(functools.partial(network.apply, variables), *batch)
    with jax.set_mesh(mesh):
        placed = jax.device_put(variables, state_sharding(variables, mesh))
        batch = [jax.device_put(a, batch_sharding(mesh)) for a in (x, labels)]
        logits, state = jax.jit(run)(placed, *batch)
        np.testing.assert_allclose(logits, expected.reshape(logits.shape), rtol=0, atol=1e-5)
        assert np.abs(expected).max() > 0.5
        keys = getattr(state, "layers", state).keys
        assert keys.shape == (2, 4, 2, places, 8), (network, keys.shape)
        for keys in (keys, jax.jit(lambda: empty_cache(*keys.shape).keys)()):
            assert keys.sharding.shard_shape(keys.shape) == (2, 2, 1, places, 8), keys.sharding
"""


@pytest.mark.slow
def test_decoding_on_a_mesh_is_that_of_one_device_with_a_cache_split_by_head():
    virtual_devices.run(["-W", "error", "-c", FOUR_DEVICES], num_devices=4)
