import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.attention.dispatch import choose_attention, plain_attention
from genjax.nn.attention.short import query_block, short_attention


@pytest.mark.parametrize(
    ("heads", "features", "queries", "keys", "block"),
    [
        (4, 72, 9, 12, 9),  # heads begin and end within registers
        (4, 64, 8, 8, 8),  # two heads in a register, two groups of them
        (2, 128, 24, 8, 8),  # three blocks of queries, whose gradients by keys are summed
        (3, 16, 8, 5, 4),  # all heads in less than a register
        (1, 128, 256, 8, 256),  # a block whose queries are taken 128 at a time
    ],
)
def test_values_and_gradients_of_plain_attention(heads, features, queries, keys, block):
    random = np.random.default_rng(0)
    shapes = [(2, length, heads, features) for length in (queries, keys, keys, queries)]
    *inputs, gradient = (
        jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes
    )

    def both(form):
        output, pullback = jax.vjp(lambda *inputs: form(*inputs, scale=0.3), *inputs)
        return output, *pullback(gradient)

    short = lambda *inputs, scale: short_attention(*inputs, scale, block=block, interpret=True)
    for actual, expected in zip(jax.jit(lambda: both(short))(), both(plain_attention), strict=True):
        # Sums of up to 72 products in float32, in another order.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_short_attention_is_for_what_fits_on_a_chip():
    """DiT's 256 tokens fit: 7 arrays of 256 × 1,152 in bfloat16 twice, sums, and logits: 11.4 MB.

    Of 16 MiB on a TPU v4, 12.6 MB are for these.
    """
    assert query_block(256, 256, 16, 72) == 256
    choose = lambda length, **options: choose_attention(
        "tpu", (4, length, 16, 72), (4, length, 16, 72), "bfloat16", **options
    )
    assert choose(256) == "short"
    assert choose(512) == "splash"  # 18.3 MB, and 128 queries and 512 keys still 15.6 MB
    assert choose(256, mask_shape=(4, 1, 1, 256)) == "splash"
    # Two heads of 64 fill a register, so a kernel needs no others beside them.
    assert query_block(512, 512, 16, 64) == 512 and query_block(1024, 1024, 16, 64) == 512


def test_more_memory_takes_more_keys():
    """FLUX.1's 4,608 tokens fit on a TPU v5p (64 MiB) but not v4; Wan 2.1's 32,760 on neither."""
    assert query_block(4608, 4608, 24, 128) is None
    assert query_block(4608, 4608, 24, 128, 64 * 2**20) == 512
    assert query_block(4609, 4608, 24, 128, 64 * 2**20) is None  # no block divides
    assert query_block(32760, 32760, 12, 128, 64 * 2**20) is None
