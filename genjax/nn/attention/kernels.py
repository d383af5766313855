"""Attention by third-party kernels: cuDNN's for NVIDIA GPUs and JAX's for TPUs.

Both take a mask of keys alone, `[#batch 1 1 keys]`, and no bias. Both can be differentiated once,
in reverse mode only. JAX's takes segments without times too. If a query may attend nowhere, its
output is finite and means nothing.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from genjax.nn.attention.chunked import Keys, Queries, pad_keys, scaled
from genjax.nn.attention.segments import Segments

KeyMask = Bool[Array, "#batch 1 1 keys"] | None
_LANES = 128  # a TPU's registers are this wide, and the kernel's blocks multiples of it
_LONGEST_BLOCK = 512  # of queries and of keys: what the kernel's published users take


def cudnn_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: KeyMask = None,
    scale: float | None = None,
    *,
    implementation: str = "cudnn",
) -> Queries:
    """Flash attention (Dao et al. 2022) of cuDNN, in bfloat16 or float16.

    cuDNN knows how many keys are there, not which. Attention does not depend on their order, so
    those that the mask admits go first. (A mask as a bias would need memory for all pairs, and
    cuDNN a gradient for it.) Odd lengths are filled up, since JAX does not differentiate them.

    Args:
        implementation: of `jax.nn.dot_product_attention`; "xla" runs anywhere.
    """
    queries = query.shape[1]
    query = jnp.pad(query, ((0, 0), (0, queries % 2), (0, 0), (0, 0)))
    key, value, mask, _ = pad_keys(key, value, mask, None, 2)
    lengths = None
    if mask is not None:
        admitted = jnp.broadcast_to(mask[:, 0, 0], key.shape[:2])
        order = jnp.argsort(~admitted, axis=1)[:, :, None, None]
        key, value = (jnp.take_along_axis(a, order, axis=1) for a in (key, value))
        lengths = jnp.maximum(jnp.sum(admitted, axis=1, dtype=jnp.int32), 1)
    output = jax.nn.dot_product_attention(
        query, key, value, scale=scale, key_value_seq_lengths=lengths, implementation=implementation
    )
    return output[:, :queries]


def splash_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    mask: KeyMask | Segments = None,
    scale: float | None = None,
    *,
    interpret: bool = False,
) -> Queries:
    """Splash attention, JAX's flash attention for TPUs, in bfloat16 or float32.

    Lengths are filled up to whole blocks. Lowered for a TPU alone, unless `interpret`, which runs
    anywhere and slowly.
    """
    # An experimental module, which others need not load.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries = query.shape[1]
    block_q, block_kv = _block(queries), _block(key.shape[1])
    key, value, mask, _ = pad_keys(key, value, mask, None, block_kv)
    query = jnp.pad(scaled(query, scale), ((0, 0), (0, -queries % block_q), (0, 0), (0, 0)))
    dtype = jnp.result_type(query, key, value)
    query, key, value = (jnp.swapaxes(a, 1, 2).astype(dtype) for a in (query, key, value))
    batch, heads, padded_queries, _ = query.shape
    segments = None
    if mask is not None:  # only tokens of the same segment attend to one another
        if not isinstance(mask, Segments):
            mask = Segments(jnp.ones((1, 1, queries, 1), jnp.int32), mask.astype(jnp.int32))
        of_queries = jnp.pad(mask.queries[:, 0, :, 0], ((0, 0), (0, padded_queries - queries)))
        of_keys = mask.keys[:, 0, 0]
        segments = splash.SegmentIds(
            *(jnp.broadcast_to(a, (batch, a.shape[1])) for a in (of_queries, of_keys))
        )
    everything = splash.FullMask((padded_queries, key.shape[2]))
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([everything] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    output = jax.vmap(kernel)(query, key, value, segments)
    return jnp.swapaxes(output, 1, 2)[:, :queries]


def _block(length: int) -> int:
    """Return the least multiple of a register's width of which the fewest cover the length."""
    blocks = math.ceil(length / _LONGEST_BLOCK)
    return _LANES * math.ceil(length / (_LANES * blocks))
