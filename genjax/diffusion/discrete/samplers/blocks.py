"""Block diffusion: sequences that grow by blocks, each sampled given the blocks before it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.diffusion.discrete.losses import shape_of_times
from genjax.diffusion.discrete.processes import DiscreteProcess, Tokens
from genjax.diffusion.discrete.samplers.ancestral import ancestral
from genjax.diffusion.discrete.samplers.steps import Keys, fold, num_evaluations
from genjax.diffusion.discrete.targets import Denoiser


def blockwise(
    denoiser: Denoiser,
    process: DiscreteProcess,
    noise: Tokens,
    times: Float[Array, " times"],
    *,
    keys: Keys,
    trajectory: bool = False,
    block_length: int,
    sampler: Callable[..., Int[Array, " ..."]] = ancestral,
) -> Int[Array, " ..."]:
    """Finish each block of tokens before the next one, each by `sampler`.

    Arriola et al. 2025, BD3LM. LLaDA2 samples blocks of 32 by `confident`. Blocks follow each other
    in raster order. Every step evaluates the denoiser on the whole sequence, whose later blocks are
    still noise. Its times have the shape of `noise`: the clean end in earlier blocks and the noise
    end in later ones. A network trained on blocks does not attend to later blocks.

    Args:
        times: of each block.
        block_length: the number of tokens in a block.
        sampler: called as `(denoiser, process, noise, times, keys=…, trajectory=…)`, with its
            options bound.
        denoiser, process, noise, keys, trajectory: as for `ancestral`.

    Raises:
        ValueError: blocks do not divide the sequence.
    """
    batch, num_blocks = shape_of_times(noise, block_length)
    block = jnp.arange(num_blocks * block_length) // block_length

    def add_block(x, number):
        start = number * block_length
        put = lambda part: jax.lax.dynamic_update_slice_in_dim(x, part, start, 1)
        take = lambda whole: jax.lax.dynamic_slice_in_dim(whole, start, block_length, 1)

        def block_denoiser(x_t, t):
            ends = jnp.where(block < number, process.clean_end, process.domain[1])
            t = jnp.where(block == number, t[:, None], ends)
            log_p = denoiser(put(x_t).reshape(noise.shape), t.reshape(noise.shape))
            return take(log_p.reshape(*x.shape, -1))

        found = sampler(
            block_denoiser, process, take(x), times, keys=fold(keys, number), trajectory=trajectory
        )
        if not trajectory:
            return put(found), None
        return put(found[-1]), jax.vmap(put)(found[1:])

    last, states = jax.lax.scan(add_block, noise.reshape(batch, -1), jnp.arange(num_blocks))
    if not trajectory:
        return last.reshape(noise.shape)
    return jnp.concatenate([noise[None], states.reshape(-1, *noise.shape)])


def _evaluations(
    length: int, num_steps: int, block_length: int, sampler: Callable = ancestral
) -> int:
    return length // block_length * num_evaluations(sampler, block_length, num_steps)


blockwise.num_evaluations = _evaluations
