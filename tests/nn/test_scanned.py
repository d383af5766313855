import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.devices.cost import multiply_adds
from genjax.nn import Dense, scanned
from genjax.nn.modulation import layer_norm
from genjax.nn.scanned import rematerialized

DEPTH, FEATURES = 4, 8
RANDOM = np.random.default_rng(0)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, own=0.0, shared=0.0):
        h = jnp.tanh(nn.Dense(FEATURES, name="dense")(x) + own)
        self.sow("intermediates", "inner", h)
        return x + h + shared, own + 1


@pytest.mark.parametrize("unroll", [1, 2, DEPTH, 2 * DEPTH])
@pytest.mark.parametrize("remat_policy", [None, "nothing_saveable"])
def test_blocks_are_applied_in_a_row(unroll, remat_policy):
    """Each with its parameters and its slice of the inputs of axis 0, all with the shared ones."""
    axes = (0, nn.broadcast)
    module = scanned(Block, DEPTH, unroll, remat_policy, in_axes=axes)(name="blocks")
    x, own = RANDOM.standard_normal((2, 3, FEATURES)), RANDOM.standard_normal(DEPTH)
    x, own = jnp.asarray(x, jnp.float32), jnp.asarray(own, jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x, own, 0.5)
    apply = jax.jit(lambda v: module.apply(v, x, own, 0.5, mutable=["intermediates"]))
    (output, outputs), state = apply(variables)

    dense = variables["params"]["dense"]
    kernels, biases = np.asarray(dense["kernel"]), np.asarray(dense["bias"])
    assert kernels.shape == (DEPTH, FEATURES, FEATURES) and not np.allclose(kernels[0], kernels[1])
    expected, inner = np.asarray(x), []
    for i in range(DEPTH):
        inner.append(np.tanh(expected @ kernels[i] + biases[i] + own[i]))
        expected = expected + inner[-1] + 0.5
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(outputs, own + 1)
    np.testing.assert_allclose(state["intermediates"]["inner"][0], inner, atol=1e-5)


@pytest.mark.parametrize("in_loop", [True, False])
def test_rematerialized_blocks_are_computed_twice(in_loop):
    x = jnp.ones((2, FEATURES))
    variables = Block().init(jax.random.key(0), x)

    def cost(block):
        loss = lambda variables: jnp.sum(block().apply(variables, x)[0])
        return multiply_adds(jax.value_and_grad(loss), variables)

    assert rematerialized(Block, None) is Block
    # Forward, the gradient by the kernel, and forward again.
    assert cost(rematerialized(Block, "nothing_saveable", in_loop=in_loop)) == 1.5 * cost(Block)
    assert cost(rematerialized(Block, "everything_saveable", in_loop=in_loop)) == cost(Block)


class NormedBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + jnp.tanh(Dense(FEATURES, name="dense")(layer_norm()(x))), None


def test_products_and_statistics_are_saved_and_nothing_else():
    """Of a block: its input, the product after its bias, and mean and deviation of each token."""
    x = jnp.ones((2, 3, FEATURES))
    variables = NormedBlock().init(jax.random.key(0), x)
    block = rematerialized(NormedBlock, "products_saveable")()
    saved = jax.eval_shape(
        lambda *args: jax.vjp(lambda *args: block.apply(*args)[0], *args)[1], variables, x
    )
    sizes = [2 * 3, 2 * 3, x.size, x.size, FEATURES**2]  # the last of these is the kernel
    assert sorted(a.size for a in jax.tree.leaves(saved)) == sizes
