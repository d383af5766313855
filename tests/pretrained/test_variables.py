import json
import os
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax.pretrained import load_variables
from genjax.pretrained.layouts import only_copy
from genjax.pretrained.safetensors_io import open_tensors, replace_weights
from genjax.pretrained.variables import is_finite, save_variables
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


def test_ignored_tensors_are_identified_by_name_and_value(load):
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
    with pytest.raises(
        ValueError, match=r"unusable: dense.weight \(6,\), for params/dense/kernel \(2, 3\)"
    ):
        load({"dense.weight": WEIGHT.reshape(-1), "mean": MEAN})


LAYERS = {
    "params": {"blocks": {"dense": {"kernel": jax.ShapeDtypeStruct((3, 2, 4), jnp.bfloat16)}}}
}


def name_of_layer(variable):
    return "block.{}.weight"


@pytest.fixture
def stack():
    return {
        "params": {
            "blocks": {"dense": {"kernel": jnp.arange(24, dtype=jnp.bfloat16).reshape(3, 2, 4)}}
        }
    }


def test_scanned_layers_are_stacked_and_bfloat16_kept(tmp_path, stack):
    kernel = stack["params"]["blocks"]["dense"]["kernel"]
    torch = {f"block.{i}.weight": np.ascontiguousarray(kernel[i].T) for i in range(3)}
    save_file(torch, tmp_path / "model.safetensors")
    loaded = load_variables(tmp_path, LAYERS, name_of_layer)["params"]["blocks"]["dense"]["kernel"]
    assert loaded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded, kernel)


# One file; files of two tensors with 16 bytes each; files of one tensor.
@pytest.mark.parametrize("shard_bytes", [10**9, 40, 1])
def test_what_is_saved_is_loaded(tmp_path, stack, shard_bytes):
    save_variables(tmp_path, {"a": 1}, stack, name_of_layer, name="model", shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == {10**9: 1, 40: 2, 1: 3}[shard_bytes]
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}
    for index in tmp_path.glob("*.index.json"):
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(stack))
        assert json.loads(index.read_text())["metadata"]["total_size"] == size
    loaded = load_variables(tmp_path, LAYERS, name_of_layer)
    jax.tree.map(np.testing.assert_array_equal, loaded, stack)


def test_layers_may_be_named_one_by_one(tmp_path, stack):
    """This is needed if a stack of scanned layers begins in the middle of the file's count."""
    names = lambda variable: [f"block.{layer}.weight" for layer in (7, 8, 5)]
    save_variables(tmp_path, {}, stack, names)
    kernel = stack["params"]["blocks"]["dense"]["kernel"]
    tensors = open_tensors(tmp_path)
    assert tensors.keys() == {*names("")}
    np.testing.assert_array_equal(tensors["block.5.weight"], kernel[2].T)
    jax.tree.map(np.testing.assert_array_equal, load_variables(tmp_path, LAYERS, names), stack)


@pytest.mark.parametrize("shard_bytes", [10**9, 16])
def test_several_tensors_may_make_a_variable(tmp_path, stack, shard_bytes):
    """Here the tensors are columns of a kernel, layer by layer; a missing one is named."""
    names = lambda variable: tuple(f"block.{{}}.{column}" for column in "abcd")
    split = lambda variable, array: tuple(array.T.copy())
    join = lambda variable, *columns: np.stack(columns, axis=1)
    save_variables(tmp_path, {}, stack, names, split, shard_bytes=shard_bytes)
    tensors, kernel = open_tensors(tmp_path), stack["params"]["blocks"]["dense"]["kernel"]
    assert len(tensors) == 12
    np.testing.assert_array_equal(tensors["block.2.b"], kernel[2, :, 1])
    jax.tree.map(
        np.testing.assert_array_equal, load_variables(tmp_path, LAYERS, names, join), stack
    )
    del tensors["block.1.c"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(
        ValueError, match=r"module:\nmissing: block.1.c, for params/.*/kernel \(2, 4\)$"
    ):
        load_variables(tmp_path / "less.safetensors", LAYERS, names, join)
    fail = lambda variable, *columns: columns[0].reshape(5)
    with pytest.raises(
        ValueError, match=r"\nunusable: block.0.a \(2,\) and 3 more, for params/.*reshape"
    ):
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


def test_files_that_are_cut_short_are_refused(tmp_path, stack):
    save_variables(tmp_path, {}, stack, name_of_layer)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for length in (4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is incomplete|download it again"):
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


def tree(seed):
    """Return two variables of one layout, identified by their values."""
    return dict(a=np.full((2, 3), seed, np.float32), b=np.full(4, seed, np.float32))


TREE = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree(0))
ONE_FILE, SHARDS = 10**9, 16


def read(folder):
    """Return the value that all of a folder's variables share, read as `genjax.pretrained.load`
    does."""
    assert (folder / "config.json").exists()
    (value,) = {
        float(a) for leaf in jax.tree.leaves(load_variables(folder, TREE, str)) for a in leaf.flat
    }
    return value


@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "model"])
@pytest.mark.parametrize(
    "before, after", [(ONE_FILE, SHARDS), (SHARDS, ONE_FILE), (SHARDS, SHARDS)]
)
def test_a_folder_holds_what_was_saved_last_and_nothing_else(name, before, after, tmp_path):
    save_variables(tmp_path / "again", {}, tree(1), str, shard_bytes=before)
    save_variables(tmp_path / "again", {}, tree(2), str, name=name, shard_bytes=after)
    save_variables(tmp_path / "once", {}, tree(2), str, name=name, shard_bytes=after)
    contents = [
        {p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("again", "once")
    ]
    assert read(tmp_path / "again") == 2 and contents[0] == contents[1]


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "before, after", [(ONE_FILE, SHARDS), (SHARDS, ONE_FILE), (SHARDS, SHARDS)]
)
def test_a_save_that_is_killed_leaves_one_set_of_weights_whole(before, after, tmp_path):
    """Kill the save before each change of the folder in turn, which an audit hook sees.

    If the folder then has no configuration, the unfinished folder that the error names holds all
    new files, byte for byte. The next save removes that folder.
    """
    save_variables(tmp_path / "new", {}, tree(2), str, shard_bytes=after)
    new = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    events = ("os.rename", "os.remove", "shutil.rmtree", "open")
    left, outcomes, active = [0], set(), [False]

    def kill(event, arguments):
        if not active[0] or event not in events or str(tmp_path) not in str(arguments[0]):
            return
        left[0] -= 1
        if left[0] < 0:
            active[0] = False
            raise Killed

    sys.addaudithook(kill)
    for count in range(40):
        folder = tmp_path / str(count)
        save_variables(folder, {}, tree(1), str, shard_bytes=before)
        left[0], active[0] = count, True
        try:
            save_variables(folder, {}, tree(2), str, shard_bytes=after)
            outcomes.add("finished")
        except Killed as killed:
            if (folder / "config.json").exists():
                outcomes.add(read(folder))
            else:
                (unfinished,) = folder.glob(".unfinished-*")
                # Unfinished files replace older ones.
                found = [*folder.iterdir(), *unfinished.iterdir()]
                files = {path.name: path.read_bytes() for path in found if path.is_file()}
                assert new.items() <= files.items() and str(unfinished) in killed.__notes__[0]
                outcomes.add("unfinished")
            save_variables(folder, {}, tree(3), str, shard_bytes=after)
            assert read(folder) == 3 and {path.name for path in folder.iterdir()} == new.keys()
        active[0] = False
    assert outcomes == {1, 2, "unfinished", "finished"}


def test_a_save_keeps_what_an_older_one_left_until_it_has_succeeded(tmp_path):
    """After a kill between two moves the old files are the only complete weights."""
    older = tmp_path / ".unfinished-killed"
    older.mkdir()
    with pytest.raises(Killed), replace_weights(tmp_path):
        raise Killed
    assert [path.name for path in tmp_path.iterdir()] == [older.name]
    save_variables(tmp_path, {}, tree(1), str)
    assert read(tmp_path) == 1 and not older.exists()


def test_wrong_names_are_reported_before_any_tensor_is_read(tmp_path):
    """The file is a hole of 256 MiB: its kernels are complete, and a bias after them is missing."""
    path, header = tmp_path / "hole.safetensors", {}
    for i in range(4):
        header[f"layer.{i}"] = dict(
            dtype="F32", shape=[4096, 4096], data_offsets=[i * 2**26, (i + 1) * 2**26]
        )
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 2**28)
    shape = jax.ShapeDtypeStruct((4, 4096, 4096), jnp.float32)
    expected = {"kernel": shape, "other": jax.ShapeDtypeStruct((2,), jnp.float32)}
    expected["tied"] = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)  # two copies in the file
    names = dict(kernel="layer.{}", other="other", tied=("layer.0", "layer.1"))
    convert = lambda variable, *tensors: only_copy(*tensors)
    tracemalloc.start()
    with pytest.raises(ValueError, match="missing: other, for other"):
        load_variables(path, expected, names.__getitem__, convert)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_the_first_twenty_faults_are_listed_and_the_others_counted(load):
    with pytest.raises(ValueError) as caught:
        load({"dense.weight": WEIGHT, "mean": MEAN, **{f"more{i:02}": MEAN for i in range(25)}})
    lines = str(caught.value).splitlines()[1:]
    assert lines == [*(f"extra: more{i:02} ()" for i in range(20)), "… and 5 more"]


def test_integers_are_no_floats(load):
    """Files of quantized networks hold integers, and their scales elsewhere."""
    with pytest.raises(
        ValueError, match=r"unusable: dense.weight \(3, 2\) is int8, for .*is bfloat16$"
    ):
        load({"dense.weight": WEIGHT.astype(np.int8), "mean": MEAN})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_what_is_not_finite_is_refused_by_name(dtype, value, load, tmp_path):
    largest = WEIGHT.astype(dtype)
    largest[1, 1] = jnp.finfo(dtype).max
    assert is_finite(largest) and is_finite(largest[:0])
    broken = largest.copy()
    broken[1, 1] = value
    assert not is_finite(broken) and not is_finite(broken.T)
    with pytest.raises(
        ValueError, match="weights.safetensors has NaN or infinity in dense.weight, read as"
    ):
        load({"dense.weight": broken, "mean": MEAN})


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, jnp.bfloat16, np.float64, jnp.float8_e4m3fn]
)
def test_finite_numbers_are_finite_whatever_their_sum_is(dtype):
    largest = jnp.finfo(dtype).max
    both = np.asarray([largest, largest, -largest, -largest, -largest, 0, largest], dtype)
    for array in (both[:2], both[2:5], both, both[5:6], both[::-2]):
        assert is_finite(array)
    for value in (np.nan, -np.nan):
        assert not is_finite(np.asarray([largest, value, -largest], dtype))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_the_test_of_finite_numbers_needs_no_memory(dtype):
    """Loading would otherwise need a temporary array for each layer."""
    layer = np.ones((1024, 1024), dtype).T
    tracemalloc.start()
    assert is_finite(layer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**14


def test_numbers_beyond_the_type_they_are_read_as_are_refused(load):
    with pytest.raises(ValueError, match="infinity in mean, read as float32"):
        load({"dense.weight": WEIGHT, "mean": np.asarray(1e300)})
