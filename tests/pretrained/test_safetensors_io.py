import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax.pretrained import load_variables

EXPECTED = {
    "params": {"dense": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}},
    "state": {"mean": jax.ShapeDtypeStruct((), jnp.float32)},
}
NAMES = {"params/dense/kernel": "dense.weight", "state/mean": "mean"}
WEIGHT, MEAN = np.arange(6, dtype=np.float32).reshape(3, 2), np.asarray(0.5, np.float64)


def transpose_kernels(variable, tensor):
    return tensor.transpose(1, 0) if variable.endswith("kernel") else tensor


@pytest.fixture
def load(tmp_path):
    def load(tensors, ignore=lambda name, tensor: False):
        save_file(tensors, tmp_path / "weights.safetensors")
        return load_variables(
            tmp_path / "weights.safetensors", EXPECTED, NAMES.__getitem__, transpose_kernels, ignore
        )

    return load


def test_structure_layout_and_types_are_those_expected(load):
    variables = load({"dense.weight": WEIGHT, "mean": MEAN})
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
        lambda a: (a.shape, a.dtype), EXPECTED
    )
    np.testing.assert_array_equal(variables["params"]["dense"]["kernel"], WEIGHT.T)
    assert variables["state"]["mean"] == 0.5


def test_ignored_tensors_are_told_by_name_and_value(load):
    tensors = {"dense.weight": WEIGHT, "mean": MEAN, "filter": np.ones(2)}
    assert load(tensors, lambda name, tensor: name == "filter" and tensor.sum() == 2)
    with pytest.raises(ValueError, match=r"extra: filter \(2,\)"):
        load(tensors, lambda name, tensor: name == "filter" and tensor.sum() == 3)


def test_one_error_lists_everything(load):
    with pytest.raises(ValueError) as caught:
        load({"dense.weight": WEIGHT.T.copy(), "b": MEAN, "a": MEAN})
    assert str(caught.value).splitlines()[1:] == [
        "misshapen: dense.weight (2, 3) gives (3, 2), for params/dense/kernel (2, 3)",
        "missing: mean, for state/mean ()",
        "extra: a ()",
        "extra: b ()",
    ]


def test_a_tensor_that_cannot_be_converted_is_misshapen(load):
    with pytest.raises(ValueError, match=r"misshapen: dense.weight \(6,\), for params/dense/kernel \(2, 3\)"):
        load({"dense.weight": WEIGHT.reshape(-1), "mean": MEAN})
