import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.maskgit import MaskGIT
from genjax.models.autoregressive.var import VAR
from genjax.nn import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualVectorQuantizer,
    VectorQuantizer,
)
from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.nn.tokens import TokenLayout

QUANTIZERS = [
    (VectorQuantizer(16, 3), (4, 4), 16),
    (ResidualVectorQuantizer(2, 16, 3), (4, 4, 2), 16),
    (FiniteScalarQuantizer((4, 3)), (4, 4), 12),
    (LookupFreeQuantizer(5), (4, 4), 32),
    (BinarySphericalQuantizer(5), (4, 4), 32),
    (MultiScaleQuantizer(16, 3, (1, 2, 4)), (21,), 16),
]


@pytest.mark.parametrize(
    ("quantizer", "shape", "vocabulary"),
    QUANTIZERS,
    ids=[type(quantizer).__name__ for quantizer, *_ in QUANTIZERS],
)
def test_sequences_go_back_to_the_codes_of_any_quantizer(quantizer, shape, vocabulary):
    layout = TokenLayout(shape, vocabulary)
    latents = jax.random.normal(jax.random.key(1), (2, 4, 4, quantizer.features))
    quantized, _ = jax.jit(quantizer.init_with_output)(jax.random.key(0), latents)
    sequence = layout.sequence(quantized.indices)
    assert sequence.shape == (2, layout.length) and 0 <= sequence.min()
    assert sequence.max() < layout.vocabulary
    np.testing.assert_array_equal(layout.codes(sequence), quantized.indices)


def test_levels_of_a_place_follow_one_another():
    layout = TokenLayout((2, 3, 2), 12)
    codes = jnp.arange(12).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(layout.sequence(codes)[0], np.arange(12))
    assert layout.grid == (2, 6)


def test_a_transformer_for_other_tokens_is_refused_before_compute():
    size = dict(width=8, depth=1, num_heads=1)
    grid, maps = TokenLayout((4, 6), 16), TokenLayout((21,), 16, (1, 2, 4))
    for network in (LlamaGen, MaskGIT):
        grid.check(network(16, (4, 6), **size))
        with pytest.raises(
            ValueError, match=f"tokenizer has vocabulary 16, and the {network.__name__} 12"
        ):
            grid.check(network(12, (4, 6), **size))
        with pytest.raises(ValueError, match=r"has grid \(4, 6\), and the \w+ \(6, 4\): set"):
            grid.check(network(16, (6, 4), **size))
    maps.check(VAR(16, (1, 2, 4), **size))
    with pytest.raises(ValueError, match=r"has sides \(1, 2, 4\), and the VAR \(1, 3, 4\)"):
        maps.check(VAR(16, (1, 3, 4), **size))
    with pytest.raises(ValueError, match=r"has sides \(1, 2, 4\), and the LlamaGen None"):
        maps.check(LlamaGen(16, (4, 6), **size))
