import numpy as np
import pytest

from genjax.pretrained.layouts import (
    from_torch,
    layer_names,
    only_copy,
    prefixed,
    replace_words,
    to_torch,
)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 2, 4), (5, 3, 2, 4, 1)])
def test_kernels_have_inputs_and_outputs_at_the_end(shape):
    tensor = np.random.default_rng(0).random(shape)
    array = from_torch("params/dense/kernel", tensor)
    assert array.shape == (*shape[2:], 3, 5)
    np.testing.assert_array_equal(array[..., 2, 4], tensor[4, 2])
    np.testing.assert_array_equal(to_torch("params/dense/kernel", array), tensor)
    assert from_torch("params/dense/bias", tensor) is tensor


def test_features_of_patches_are_rows_columns_and_channels():
    """Our networks flatten a patch as `[row column channel]`."""
    variable, random = "params/patch_embedding/kernel", np.random.default_rng(0)
    tensor, patch = random.random((7, 3, 2, 2)), random.random((2, 2, 3))
    matrix = from_torch(variable, tensor)
    expected = np.einsum("wcij,ijc->w", tensor, patch)  # a convolution at a single place
    np.testing.assert_allclose(patch.reshape(-1) @ matrix, expected)
    np.testing.assert_array_equal(to_torch(variable, matrix, patch_size=2), tensor)
    # A matrix that embeds patches in PyTorch too is only transposed.
    np.testing.assert_array_equal(from_torch(variable, tensor[:, :, 0, 0]), tensor[:, :, 0, 0].T)
    np.testing.assert_array_equal(to_torch(variable, matrix), matrix.T)


def test_copies_that_differ_are_refused():
    a, b = np.arange(3.0), np.arange(3.0)
    assert only_copy(a, b) is a
    b[1] = 7
    with pytest.raises(ValueError, match="copy 2 differs from copy 0"):
        only_copy(a, a.copy(), b)


def test_layers_have_weights_and_biases():
    layers = prefixed("blocks/", "layers.{}.", {"mlp": "fc", "table": "table"})
    names = layer_names(layers | {"qkv": ("q", "k"), "run": [("a", "b"), "c"]})
    assert names("params/blocks/mlp/kernel") == "layers.{}.fc.weight"
    assert names("params/blocks/mlp/bias") == "layers.{}.fc.bias"
    assert names("params/blocks/table") == "layers.{}.table"
    assert names("params/qkv/kernel") == ("q.weight", "k.weight")
    assert names("params/run/bias") == [("a.bias", "b.bias"), "c.bias"]


def test_words_are_replaced_as_a_whole():
    patterns = {r"block(\d+)": r"b\1", "kernel|scale": "weight"}
    assert replace_words(["block12", "subblock1", "scale"], patterns) == [
        "b12",
        "subblock1",
        "weight",
    ]
