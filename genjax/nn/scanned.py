"""Blocks of equal shape one after the other, as one scan."""

import flax.linen as nn
import jax


def scanned(
    block: type[nn.Module], depth: int, unroll: int = 1, remat_policy: str | None = None
) -> type[nn.Module]:
    """The module of `depth` blocks with stacked parameters; its call is a block's, `(x, *shared) -> (x, outputs)`.

    Args:
        block: `(x, *shared) -> (x, output)`, each given the same `shared`.
        unroll: blocks per iteration; `depth` compiles slowest and runs fastest.
        remat_policy: name of a `jax.checkpoint_policies` policy for rematerialising blocks; None keeps every activation.
    """
    if remat_policy is not None:
        policy = getattr(jax.checkpoint_policies, remat_policy)
        # Only a loop keeps XLA from merging what is computed again with what was computed first.
        block = nn.remat(block, policy=policy, prevent_cse=unroll >= depth)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},  # these of who asks for them, as attention's weights
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
        unroll=unroll,
    )
