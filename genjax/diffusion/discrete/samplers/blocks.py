"""Block diffusion: sequences that grow by blocks, each sampled given the blocks before it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.diffusion.discrete.processes import DiscreteProcess
from genjax.diffusion.discrete.samplers.steps import Keys, fold
from genjax.diffusion.discrete.targets import Denoiser


def blockwise(sampler: Callable[..., Int[Array, " ..."]], block_length: int) -> Callable:
    """Make a sampler that finishes each block before the next one, each by `sampler`.

    Arriola et al. 2025, BD3LM. LLaDA2 samples blocks of 32 by `confident`. Every step
    evaluates the denoiser on the whole sequence, whose later blocks are still noise. Its times are
    `[batch length]`: the clean end in earlier blocks and the noise end in later ones. A network
    trained on blocks does not attend to later blocks.

    Args:
        sampler: called as `(denoiser, process, noise, times, keys=…)`.
        block_length: the number of tokens in a block.

    Raises:
        ValueError: when called, if blocks do not divide the sequence.
    """

    def sample(
        denoiser: Denoiser,
        process: DiscreteProcess,
        noise: Int[Array, " batch length"],
        times: Float[Array, " times"],
        *,
        keys: Keys,
        **options: Any,
    ) -> Int[Array, " batch length"]:
        length = noise.shape[1]
        if length % block_length:
            raise ValueError(
                f"blocks of {block_length} tokens do not divide a sequence of {length}; change "
                "block_length or the sequence"
            )

        def add_block(x, number):
            start = number * block_length
            block = jnp.arange(length) // block_length

            def block_denoiser(x_t, t):
                whole = jax.lax.dynamic_update_slice_in_dim(x, x_t, start, 1)
                ends = jnp.where(block < number, process.clean_end, process.domain[1])
                t = jnp.where(block == number, t[:, None], ends)
                log_p = denoiser(whole, t)
                return jax.lax.dynamic_slice_in_dim(log_p, start, block_length, 1)

            x_t = jax.lax.dynamic_slice_in_dim(x, start, block_length, 1)
            x_0 = sampler(block_denoiser, process, x_t, times, keys=fold(keys, number), **options)
            return jax.lax.dynamic_update_slice_in_dim(x, x_0, start, 1), None

        return jax.lax.scan(add_block, noise, jnp.arange(length // block_length))[0]

    return sample
