import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.attention.dispatch import choose_attention, plain_attention
from genjax.nn.attention.short import fits_short_attention, short_attention


@pytest.mark.parametrize(
    ("heads", "features", "queries", "keys"),
    [
        (4, 72, 9, 12),  # heads begin and end within registers
        (4, 64, 8, 8),  # two heads in a register, two groups of them
        (2, 128, 8, 8),
        (3, 16, 8, 5),  # all heads in less than a register
    ],
)
def test_values_and_gradients_of_plain_attention(heads, features, queries, keys):
    random = np.random.default_rng(0)
    shapes = [(2, length, heads, features) for length in (queries, keys, keys, queries)]
    *inputs, gradient = (
        jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes
    )

    def both(form):
        output, pullback = jax.vjp(lambda *inputs: form(*inputs, scale=0.3), *inputs)
        return output, *pullback(gradient)

    short = lambda *inputs, scale: short_attention(*inputs, scale, interpret=True)
    for actual, expected in zip(jax.jit(lambda: both(short))(), both(plain_attention), strict=True):
        # Sums of up to 72 products in float32, in another order.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_short_attention_is_for_what_fits_on_a_chip():
    """DiT's and SiT's 256 tokens do; by hand, 7 arrays of 256 × 1,152 in bfloat16 twice, and logits: 9 MB of 12.6."""
    assert fits_short_attention(256, 256, 16, 72)
    choose = lambda length, **options: choose_attention(
        "tpu", (4, length, 16, 72), (4, length, 16, 72), "bfloat16", **options
    )
    assert choose(256) == "short"
    assert choose(512) == "splash"  # 16.5 MB
    assert choose(256, mask_shape=(4, 1, 1, 256)) == "splash"
    # Two heads of 64 fill a register, so a kernel needs no others beside them.
    assert fits_short_attention(512, 512, 16, 64) and not fits_short_attention(1024, 1024, 16, 64)
