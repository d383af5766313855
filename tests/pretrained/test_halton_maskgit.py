"""The Halton MaskGIT compared with outputs of its authors' PyTorch code.

data/README_halton_maskgit.md says how the outputs were made.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import arccos_counts, orders
from genjax.models.autoregressive.halton_maskgit import HaltonMaskGIT, halton_large
from genjax.pretrained.halton_maskgit import load
from genjax.pretrained.published import example

DATA = Path(__file__).with_name("data")
ARRAYS = np.load(DATA / "halton_maskgit.npz")
MODULE = HaltonMaskGIT(11, (3, 3), 16, 2, 2, num_classes=5, registers=2)


def test_logits_agree():
    variables = load(DATA / "halton_maskgit.safetensors", MODULE)
    logits = jax.jit(MODULE.apply)(variables, ARRAYS["tokens"], ARRAYS["labels"])
    # float32 on both sides: some 50 operations, each rounded by about 1e-7.
    scale = np.abs(ARRAYS["logits"]).max()
    np.testing.assert_allclose(logits, ARRAYS["logits"], rtol=0, atol=1e-5 * scale)


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(DATA / "halton_maskgit.safetensors")
    save_file(tensors | {"head.weight": tensors["head.weight"] + 1}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="copy 1 differs"):
        load(tmp_path / "a.safetensors", MODULE)


def test_the_published_network_has_480_million_parameters():
    module = halton_large()
    inputs = example(576, dtype=jnp.int32), example(dtype=jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == 479_984_641  # of the authors' code


@pytest.mark.parametrize("side", [3, 16, 24])
def test_orders_are_the_authors(side):
    np.testing.assert_array_equal(orders.halton((side, side, 1)), ARRAYS[f"order_{side}"])


def test_channels_of_a_pixel_follow_one_another():
    pixels = orders.halton((2, 3, 1))
    np.testing.assert_array_equal(
        orders.halton((2, 3, 3)).reshape(6, 3), 3 * pixels[:, None] + np.arange(3)
    )


def test_counts_are_the_authors():
    """After half of the steps a third is known, 192. Their float32 rounds it down to 191."""
    expected = ARRAYS["known"].copy()
    assert expected[15] == 191
    expected[15] = 192
    np.testing.assert_array_equal(arccos_counts(576, 32), expected)
    np.testing.assert_array_equal(arccos_counts(4, 4), [1, 2, 3, 4])  # at least one a step
