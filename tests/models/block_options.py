"""Options of networks of scanned blocks, read in the traced program, which nothing compiles."""

import re

import jax
import jax.numpy as jnp
import numpy as np


def check_block_options(network, variables, *inputs, products, loops=1, kinds=1):
    """Check that `unroll`, `remat_policy` and `dtype` reach the blocks.

    tests/nn/test_scanned.py computes unrolled and rematerialized blocks.

    Args:
        products: how many products are bfloat16: of embeddings and of all kinds of blocks. A layer
            has one, and an attention one, of weights and values.
        loops: how many scans the network has.
        kinds: how many kinds of blocks, in a scan or not.
    """
    options = dict(unroll=2, remat_policy="nothing_saveable", dtype=jnp.bfloat16)

    def init(*inputs):
        output, made = network.clone(**options).init_with_output(jax.random.key(0), *inputs)
        return jax.tree.leaves(output), made

    program, (outputs, made) = jax.make_jaxpr(init, return_shape=True)(*inputs)
    patterns = r":bf16\[[\d,]+\] = dot_general", " unroll=2", "policy=<function nothing_saveable"
    counts = [len(re.findall(pattern, str(program))) for pattern in patterns]
    np.testing.assert_equal(counts, [products, loops, kinds])
    assert {a.dtype for a in jax.tree.leaves((outputs, made))} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)
