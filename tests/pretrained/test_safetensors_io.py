"""Which files and folders are valid, and how one set of weights replaces another."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax.pretrained.safetensors_io import first_of, open_tensors, replace_weights


def write(path, header, data=b"", length=None):
    """Write a file whose header is any object or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(dtype, shape, start, stop):
    return dict(dtype=dtype, shape=shape, data_offsets=[start, stop])


FLOAT = entry("F32", [1], 0, 4)


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (
            b'{"a": ',
            0,
            "the header of .*weights.safetensors is not valid JSON: Expecting value",
        ),
        (b'{"\xff": 1}', 0, "the header of .* is not valid JSON: .*codec can't decode"),
        (b'["a"]', 0, r"the header of .* is \['a'\]; expected an object"),
        (b"[" * 100_000, 0, "the header of .* is not valid JSON"),
        (b'{"a": {}, "b": 1, "a": {}}', 0, "the header of .*: 'a' appears twice"),
        ({"a": 3}, 0, "a is 3; expected dtype, shape and two data_offsets"),
        (
            {"a": dict(dtype="F32", shape=[1])},
            4,
            "a is .*; expected dtype, shape and two data_offsets",
        ),
        ({"a": entry("F32", [1], 0, None)}, 4, "expected counts from 0 on"),
        ({"a": entry("F32", [1.0], 0, 4)}, 4, "expected counts from 0 on"),
        ({"a": entry("F32", [-1], 0, 4)}, 4, r"a has shape \[-1\]"),
        ({"a": entry("F32", [1], -4, 0)}, 4, r"data_offsets \[-4, 0\]; expected counts from 0 on"),
        ({"a": entry("F32", [2], 0, 4)}, 4, r"a has 4 bytes, and F32 of shape \[2\] has 8"),
        ({"a": entry("F4", [2], 0, 1)}, 1, "a is of type 'F4'; known are F64, F32"),
        ({"a": entry([], [2], 0, 1)}, 1, r"a is of type \[\]; known are F64, F32"),
        (
            {"a": FLOAT, "b": entry("F32", [1], 8, 12)},
            12,
            "b begins at byte 8, .* before it ends at 4",
        ),
        (
            {"a": FLOAT, "b": entry("F32", [1], 0, 4)},
            4,
            "b begins at byte 0, .* before it ends at 4",
        ),
        ({"a": entry("F32", [1], 4, 8)}, 8, "a begins at byte 4, .* before it ends at 0"),
        ({"a": FLOAT}, 5, "has 5 bytes of numbers, but its header promises 4: download it again"),
        ({"a": FLOAT}, 3, "has 3 bytes of numbers, but its header promises 4: download it again"),
    ],
)
def test_a_wrong_header_is_one_line_with_the_file(header, size, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    write(path, header, bytes(size))
    with pytest.raises(ValueError, match=message) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_longer_than_the_file_is_none(tmp_path):
    write(tmp_path / "a", {}, length=2**63)
    with pytest.raises(ValueError, match="not a safetensors file, or is incomplete"):
        open_tensors(tmp_path / "a")


@pytest.mark.parametrize("code, dtype", [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")])
def test_floats_of_eight_bits_are_read(code, dtype, tmp_path):
    values = np.asarray([0.5, -3.0, 448.0 if "4" in dtype else 57344.0]).astype(jnp.dtype(dtype))
    write(tmp_path / "a", {"x": entry(code, [3], 0, 3)}, values.tobytes())
    tensor = open_tensors(tmp_path / "a")["x"]
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor.astype(float), values.astype(float))


def write_index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(dict(weight_map=weight_map)))


def test_all_missing_shards_are_named(tmp_path):
    write_index(tmp_path, dict(a="one.safetensors", b="two.safetensors", c="three.safetensors"))
    save_file({"b": np.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(FileNotFoundError, match="are missing: one.safetensors, three.safetensors$"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/other.safetensors", "sub/other", ".."]
)
def test_an_index_names_files_of_its_folder_only(outside, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": np.ones(1)}, tmp_path / "other.safetensors")
    write_index(folder, dict(a=outside))
    with pytest.raises(ValueError, match=f"names files outside its folder: {outside}$"):
        open_tensors(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_named(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="model.safetensors.index.json (is|has no)"):
        open_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({"a": np.ones(1), name: np.ones(1)}, tmp_path / name)
    write_index(tmp_path, dict(one="one", two="two"))
    with pytest.raises(ValueError, match="two holds tensors that an earlier shard holds too: a"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (
            ["model.fp16.safetensors"],
            "rename model.fp16.safetensors to model.safetensors",
        ),
        (
            [
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            ],
            "rename diffusion_pytorch_model.safetensors.index.fp16.json to "
            "diffusion_pytorch_model.safetensors.index.json",
        ),
    ],
)
def test_a_variant_alone_is_refused_with_the_name_that_is_read(files, advice, tmp_path):
    for name in files:
        (tmp_path / name).write_text("")
    with pytest.raises(FileNotFoundError, match=f"It holds a variant: {advice}$"):
        open_tensors(tmp_path)


def test_a_folder_with_two_sets_of_weights_is_refused(tmp_path):
    for name in ("model", "diffusion_pytorch_model"):
        save_file({"a": np.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ValueError, match="more than once, diffusion_pytorch_model.safetensors, model.saf"
    ):
        open_tensors(tmp_path)


def test_the_first_faults_are_listed_and_the_others_counted():
    faults = [str(number) for number in range(23)]
    assert first_of(faults).splitlines() == [*faults[:20], "… and 3 more"]
    assert first_of(faults[:20]).splitlines() == faults[:20]


def test_weights_are_replaced_and_other_files_stay(tmp_path):
    stale = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    ]
    kept = ["README.md", "model.fp16.safetensors", "model_of_others.safetensors"]
    for name in [*stale, *kept, "config.json"]:
        (tmp_path / name).write_text("old")
    killed = tmp_path / ".unfinished-killed"
    killed.mkdir()
    (killed / "model.safetensors").write_text("half")
    with replace_weights(tmp_path) as unfinished:
        (unfinished / "diffusion_pytorch_model.safetensors").write_text("new")
        assert (tmp_path / "config.json").read_text() == "old"
        (unfinished / "config.json").write_text("new")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    new = dict.fromkeys(["diffusion_pytorch_model.safetensors", "config.json"], "new")
    assert files == new | dict.fromkeys(kept, "old")
