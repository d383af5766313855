import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax.pretrained import load_variables
from genjax.pretrained.safetensors_io import open_tensors, save_variables
from tests import virtual_devices

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


def test_a_tensor_that_cannot_be_converted_is_unusable(load):
    with pytest.raises(ValueError, match=r"unusable: dense.weight \(6,\), for params/dense/kernel \(2, 3\)"):
        load({"dense.weight": WEIGHT.reshape(-1), "mean": MEAN})


LAYERS = {"params": {"blocks": {"dense": {"kernel": jax.ShapeDtypeStruct((3, 2, 4), jnp.bfloat16)}}}}


def name_of_layer(variable):
    return "block.{}.weight"


@pytest.fixture
def stack():
    return {"params": {"blocks": {"dense": {"kernel": jnp.arange(24, dtype=jnp.bfloat16).reshape(3, 2, 4)}}}}


def test_scanned_layers_are_stacked_and_bfloat16_kept(tmp_path, stack):
    kernel = stack["params"]["blocks"]["dense"]["kernel"]
    torch = {f"block.{i}.weight": np.ascontiguousarray(kernel[i].T) for i in range(3)}
    save_file(torch, tmp_path / "model.safetensors")
    loaded = load_variables(tmp_path, LAYERS, name_of_layer)["params"]["blocks"]["dense"]["kernel"]
    assert loaded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded, kernel)


@pytest.mark.parametrize("shard_bytes", [10**9, 40, 1])  # one file; two tensors of 16 bytes each; one each
def test_what_is_saved_is_loaded(tmp_path, stack, shard_bytes):
    save_variables(tmp_path, {"a": 1}, stack, name_of_layer, name="model", shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == {10**9: 1, 40: 2, 1: 3}[shard_bytes]
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}
    loaded = load_variables(tmp_path, LAYERS, name_of_layer)
    jax.tree.map(np.testing.assert_array_equal, loaded, stack)


def test_layers_may_be_named_one_by_one(tmp_path, stack):
    """As where one stack of scanned layers begins in the middle of the file's count."""
    names = lambda variable: [f"block.{layer}.weight" for layer in (7, 8, 5)]
    save_variables(tmp_path, {}, stack, names)
    kernel = stack["params"]["blocks"]["dense"]["kernel"]
    tensors = open_tensors(tmp_path)
    assert tensors.keys() == {*names("")}
    np.testing.assert_array_equal(tensors["block.5.weight"], kernel[2].T)
    jax.tree.map(np.testing.assert_array_equal, load_variables(tmp_path, LAYERS, names), stack)


@pytest.mark.parametrize("shard_bytes", [10**9, 16])
def test_several_tensors_may_make_a_variable(tmp_path, stack, shard_bytes):
    """Here columns of a kernel, layer by layer; one of them missing is named."""
    names = lambda variable: tuple(f"block.{{}}.{column}" for column in "abcd")
    split = lambda variable, array: tuple(array.T.copy())
    join = lambda variable, *columns: np.stack(columns, axis=1)
    save_variables(tmp_path, {}, stack, names, split, shard_bytes=shard_bytes)
    tensors, kernel = open_tensors(tmp_path), stack["params"]["blocks"]["dense"]["kernel"]
    assert len(tensors) == 12
    np.testing.assert_array_equal(tensors["block.2.b"], kernel[2, :, 1])
    jax.tree.map(np.testing.assert_array_equal, load_variables(tmp_path, LAYERS, names, join), stack)
    del tensors["block.1.c"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"module:\nmissing: block.1.c, for params/.*/kernel \(2, 4\)$"):
        load_variables(tmp_path / "less.safetensors", LAYERS, names, join)
    fail = lambda variable, *columns: columns[0].reshape(5)
    with pytest.raises(ValueError, match=r"\nunusable: block.0.a \(2,\) and 3 more, for params/.*reshape"):
        load_variables(tmp_path, LAYERS, names, fail)


def test_a_name_too_few_is_no_shorter_stack(tmp_path, stack):
    save_variables(tmp_path, {}, stack, name_of_layer)
    with pytest.raises(ValueError, match="longer than argument 1"):
        load_variables(tmp_path, LAYERS, lambda variable: ["block.0.weight", "block.1.weight"])


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, sys
from genjax.pretrained import load_variables
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
sharding = jax.sharding.NamedSharding(mesh, jax.P(None, None, "fsdp"))
expected = {"kernel": jax.ShapeDtypeStruct((3, 2, 4), jnp.bfloat16, sharding=sharding)}
kernel = load_variables(sys.argv[1], expected, lambda variable: "block.{}.weight")["kernel"]
assert kernel.sharding == sharding
assert {part.data.shape for part in kernel.addressable_shards} == {(3, 2, 1)}
np.testing.assert_array_equal(kernel, np.arange(24).reshape(3, 2, 4))
"""


def test_parts_lie_where_the_sharding_says(tmp_path, stack):
    save_variables(tmp_path, {}, stack, name_of_layer)
    virtual_devices.run(["-c", SHARDED, tmp_path], num_devices=8)


def test_files_that_are_cut_short_are_told_from_whole_ones(tmp_path, stack):
    save_variables(tmp_path, {}, stack, name_of_layer)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for length in (4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole one|download it again"):
            load_variables(tmp_path, LAYERS, name_of_layer)


def test_folders_without_safetensors_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="other formats are not read"):
        load_variables(tmp_path, LAYERS, name_of_layer)


def test_a_number_stays_a_number(tmp_path):
    scale = {"scale": np.float32(2.5).reshape(())}
    save_variables(tmp_path, {}, scale, lambda variable: variable)
    expected = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    loaded = load_variables(tmp_path, expected, lambda variable: variable)["scale"]
    assert loaded.shape == () and loaded == 2.5
