"""Layers in a loop, and layers whose activations are computed again in the backward pass."""

from typing import Any

import flax.linen as nn
import jax

products_saveable = jax.checkpoint_policies.save_only_these_names(
    "product", "attention", "statistics"
)
"""Keeps what `Dense` and attention's kernels return, and the statistics of norms.

Unlike JAX's policies for products it keeps them after the bias is added, and what is no product to
JAX. The backward pass computes again what is elementwise, and nothing else.
"""


def rematerialized(
    block: type[nn.Module], remat_policy: str | None, *, in_loop: bool = False
) -> type[nn.Module]:
    """Return `block` with its activations computed again in the backward pass.

    Args:
        remat_policy: "products_saveable" or the name of another policy of
            `jax.checkpoint_policies`, which says what is kept. None keeps every activation.
        in_loop: whether a loop runs the block. Only a loop keeps XLA from merging what is computed
            again with what was computed first.
    """
    if remat_policy is None:
        return block
    own = {"products_saveable": products_saveable}
    policy = own.get(remat_policy) or getattr(jax.checkpoint_policies, remat_policy)
    return nn.remat(block, policy=policy, prevent_cse=not in_loop)


def scanned(
    block: type[nn.Module],
    depth: int,
    unroll: int = 1,
    remat_policy: str | None = None,
    in_axes: Any = nn.broadcast,
) -> type[nn.Module]:
    """Return the module of `depth` blocks with stacked parameters, called as one block is.

    Args:
        block: a module that maps `(x, *inputs)` to `(x, output)`. Outputs are stacked on axis 0.
            What blocks change in place, such as a `transformer.Cache`, is carried beside x.
        unroll: blocks per iteration; `depth` compiles slowest and runs fastest.
        remat_policy: as of `rematerialized`.
        in_axes: one for all inputs or a tuple of one for each. `nn.broadcast` gives every block the
            same input; 0 gives block i the i-th slice.
    """
    # "intermediates" exist only for callers that request them.
    return nn.scan(
        rematerialized(block, remat_policy, in_loop=unroll < depth),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=unroll,
    )
