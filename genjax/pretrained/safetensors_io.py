"""Safetensors files and folders: checked by headers, mapped to memory, replaced as a whole."""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from genjax.pretrained.configuration import parse_json, read_json

NAMES = ("diffusion_pytorch_model", "model")  # of the weights in a folder, without extension
_TYPES = (
    dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", C64="complex64", BOOL="bool")
    | dict(I64="int64", I32="int32", I16="int16", I8="int8")
    | dict(U64="uint64", U32="uint32", U16="uint16", U8="uint8")
    | dict(F8_E4M3="float8_e4m3fn", F8_E5M2="float8_e5m2", F8_E8M0="float8_e8m0fnu")
    | dict(F8_E4M3FNUZ="float8_e4m3fnuz", F8_E5M2FNUZ="float8_e5m2fnuz")
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERSION = (
    "import glob, torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for f in "
    "glob.glob('{pickles}') for k, v in torch.load(f, 'cpu', weights_only=True).items()}}, "
    "'{file}')"
)
_UNFINISHED = ".unfinished-"


def open_tensors(path: str | os.PathLike, prefer: str | None = None) -> dict[str, np.ndarray]:
    """Map the tensors of a safetensors file or folder to memory, without reading them.

    A folder holds one file, or several files with their index.

    Args:
        prefer: the one of `NAMES` to read if a folder holds weights of both.

    Raises:
        FileNotFoundError: the files or some shards are missing; the error names all of them.
        ValueError: a file is cut short, or its header or the index is invalid.
    """
    path = Path(path)
    if not path.is_dir():
        return _map_file(path)
    candidates = [f"{name}.safetensors{end}" for name in NAMES for end in ("", ".index.json")]
    found = [name for name in candidates if (path / name).exists()]
    found = [name for name in found if name.startswith(f"{prefer}.")] or found
    if not found:
        raise FileNotFoundError(_missing_weights(path))
    if len(found) > 1:
        raise ValueError(
            f"{path} holds weights more than once, {', '.join(found)}: keep one of them"
        )
    if not found[0].endswith(".index.json"):
        return _map_file(path / found[0])
    tensors = {}
    for shard in _shards(path / found[0]):
        mapped = _map_file(shard)
        if twice := sorted(mapped.keys() & tensors.keys()):
            raise ValueError(f"{shard} holds tensors that an earlier shard holds too: {twice[0]}")
        tensors |= mapped
    return tensors


def _missing_weights(folder: Path) -> str:
    """Return why a folder has no readable weights, and what to do about variants and pickles."""
    files = " nor ".join(f"{name}.safetensors" for name in NAMES)
    fault = f"{folder} holds neither {files}, nor an index of several; other formats are not read"
    if variants := _variants(folder):
        renamed = ", or ".join(f"{name} to {plain}" for name, plain in variants.items())
        return f"{fault}. It holds a variant: rename {renamed}"
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        return fault
    stem = pickles[0].partition(".")[0].partition("-")[0]
    name = NAMES[0] if stem == NAMES[0] else NAMES[1]
    pattern = f"{stem}*{Path(pickles[0]).suffix}"
    command = _CONVERSION.format(pickles=pattern, file=f"{name}.safetensors")
    return (
        f"{fault}. It holds {', '.join(pickles)}, pickled; convert it in that folder "
        f'where PyTorch is installed: python -c "{command}"'
    )


def _variants(folder: Path) -> dict[str, str]:
    """Return variants of weights, such as model.fp16.safetensors, and the names that are read.

    The shards of a variant stay as they are: the variant's index names them.
    """
    ends = [
        (stem, end)
        for name in NAMES
        for stem, end in ((name, ".safetensors"), (f"{name}.safetensors.index", ".json"))
    ]
    return {
        path.name: stem + end
        for stem, end in ends
        for path in sorted(folder.glob(f"{stem}.*{end}"))
        if "-of-" not in path.name
    }


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from names of tensors to names of files")
    files = sorted(set(weight_map.values()))
    if outside := [file for file in files if Path(file).name != file or file == ".."]:
        raise ValueError(f"{index} names files outside its folder: {', '.join(outside)}")
    if missing := [file for file in files if not (index.parent / file).is_file()]:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(missing)}")
    return [index.parent / file for file in files]


def open_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Return the metadata in a file's header: the texts beside its tensors."""
    return _read_header(Path(path))[0].get("__metadata__") or {}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header, and the position at which the numbers begin.

    A file holds the header's length in 8 bytes, the header in JSON, and the numbers.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError(f"{path} is not a safetensors file, or is incomplete")
        return parse_json(file.read(length), f"the header of {path}"), 8 + length


def _map_file(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a file to memory, so that each tensor is read at its use.

    The library's own NumPy reader does not know bfloat16.
    """
    header, begin = _read_header(path)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if fault := _entry_fault(entry):
            raise ValueError(f"{path} has a wrong header: {name} {fault}")
    end = _end_of(path, header)
    size = path.stat().st_size - begin
    if end != size:
        raise ValueError(
            f"{path} has {size} bytes of numbers, but its header promises {end}: download it again"
        )
    data = np.memmap(path, np.uint8, "r", begin) if size else np.empty(0, np.uint8)
    return {
        name: data[slice(*entry["data_offsets"])]
        .view(jnp.dtype(_TYPES[entry["dtype"]]))
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


def _entry_fault(entry: Any) -> str | None:
    """Return what is wrong with a tensor's entry in a header, or None."""
    try:
        dtype, shape, (start, end) = (entry[key] for key in ("dtype", "shape", "data_offsets"))
        counts = [*shape, start, end]
    except (KeyError, TypeError, ValueError):
        return f"is {entry!r}; expected dtype, shape and two data_offsets"
    if not all(type(count) is int and count >= 0 for count in counts):
        return f"has shape {shape} and data_offsets [{start}, {end}]; expected counts from 0 on"
    if not isinstance(dtype, str) or dtype not in _TYPES:
        return f"is of type {dtype!r}; known are {', '.join(_TYPES)}"
    if (size := math.prod(shape) * jnp.dtype(_TYPES[dtype]).itemsize) != end - start:
        return f"has {end - start} bytes, and {dtype} of shape {shape} has {size}"
    return None


def _end_of(path: Path, header: Mapping[str, Any]) -> int:
    """Return the position at which the last tensor ends.

    Raises:
        ValueError: tensors overlap, or there are unused bytes between them.
    """
    end = 0
    for (start, stop), name in sorted((e["data_offsets"], name) for name, e in header.items()):
        if start != end:
            fault = f"begins at byte {start}, and the tensor before it ends at {end}"
            raise ValueError(f"{path} has a wrong header: {name} {fault}")
        end = stop
    return end


def first_of(faults: Sequence[str], count: int = 20) -> str:
    """Return the first faults, one per line, and the number of further faults."""
    more = [f"… and {len(faults) - count} more"] if len(faults) > count else []
    return "\n".join([*faults[:count], *more])


@contextlib.contextmanager
def replace_weights(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder, whose files replace all weights of `folder` and its configuration.

    The files are moved after all of them are written. The old `config.json` is removed first and
    the new one is moved last. So a folder with `config.json` is always complete, even if the
    process is killed. Other files stay.

    An error during writing leaves `folder` unchanged. After an error or a kill during moving, the
    remaining files stay in `folder`/.unfinished-… until the next save succeeds. Save to a folder
    from one process at a time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leftovers = list(folder.glob(f"{_UNFINISHED}*"))
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    try:
        _move_weights(unfinished, folder)
    except BaseException as error:
        error.add_note(
            f"{folder} is half replaced. Save again; or move the files of {unfinished} there, "
            "config.json last, and delete the older weights beside them"
        )
        raise
    for done in [unfinished, *leftovers]:
        shutil.rmtree(done, ignore_errors=True)


def _move_weights(unfinished: Path, folder: Path) -> None:
    """Replace the weights of `folder`; old files are deleted after all new ones are in place."""
    new = {file.name for file in unfinished.iterdir()}
    (folder / "config.json").unlink(missing_ok=True)
    for name in sorted(new - {"config.json"}):
        (unfinished / name).replace(folder / name)
    for name in NAMES:
        for ending in (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json"):
            for file in folder.glob(name + ending):
                if file.name not in new:
                    file.unlink()
    if "config.json" in new:
        (unfinished / "config.json").replace(folder / "config.json")
