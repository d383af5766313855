"""The folder of a run: what it must be before training starts, and its `config.json`."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from genjax.training.checkpoints import read_facts, saved_steps
from genjax.training.json_files import read_json

# The fields that name a run as a frozen part.
FROZEN = ("run", "source", "generator_run", "teacher")


class Config(dict):
    """A dictionary whose entries are attributes too, as in ml_collections."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"the config has no field {name!r}; it has {', '.join(self)}"
            ) from None


def read_record(workdir: str | os.PathLike) -> Config:
    """Return the `config.json` of a run: its `config`, the environment and who built it.

    If the file is damaged or absent, the copy in the newest checkpoint is returned, with a warning.

    Raises:
        FileNotFoundError: there is no run, or a file is given instead of its folder.
        ValueError: the file is damaged, and no checkpoint has a copy.
    """
    if Path(workdir).is_file():
        raise FileNotFoundError(
            f"{workdir} is a file; give the folder of the run, such as {Path(workdir).parent}"
        )
    path = Path(workdir) / "config.json"
    try:
        record = read_json(path, object_hook=Config)
        if "config" in record:
            return record
        problem = ValueError(f"{path} is damaged, it has no entry config; put back what was there")
    except FileNotFoundError:
        problem = FileNotFoundError(
            f"{path.parent.absolute()} holds no run (no config.json); train one there first, or "
            "start in the folder from which its path was given"
        )
    except ValueError as error:
        problem = error
    checkpoints = Path(workdir) / "checkpoints"
    for step in reversed(saved_steps(checkpoints)):
        if copy := read_facts(checkpoints / f"{step:08d}").get("record"):
            # One location, so that a program which reads the record several times warns once.
            warnings.warn(
                f"{path} is absent or damaged; its copy in checkpoint {step} is read", stacklevel=1
            )
            return json.loads(json.dumps(copy), object_hook=Config)
    raise problem


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested dictionaries: `optimizer.learning_rate`, 0.001."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def frozen_runs(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the newest step of each run that is a frozen part of a config, by its folder.

    Such a run is an autoencoder, a generator, a teacher, or the source of adapters.
    """
    fields = [value for name, value in flatten(config) if name.rpartition(".")[2] in FROZEN]
    folders = sorted(value for value in fields if value and isinstance(value, str))
    found = {folder: saved_steps(Path(folder) / "checkpoints") for folder in folders}
    return {folder: steps[-1] for folder, steps in found.items() if steps}


def environment() -> dict[str, Any]:
    """Return versions of the libraries, the devices, and genjax's commit where it is a checkout.

    `matmul_precision` is JAX's option of that name, None if it is not set.
    """
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "device": device_name(),
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "git_commit": _commit_of(Path(__file__)),
    }


def _commit_of(file: Path) -> str | None:
    """Return the git commit of a file; None if git is not installed or does not track the file.

    An installed genjax often lies in a virtual environment within the checkout of something else.
    """
    ask = lambda *command: subprocess.run(
        ["git", *command], cwd=file.parent, capture_output=True, text=True
    )
    try:
        if ask("ls-files", "--error-unmatch", file.name).returncode:
            return None
    except FileNotFoundError:
        return None
    return ask("describe", "--always", "--dirty", "--abbrev=40").stdout.strip() or None


def device_name() -> str:
    """Return a name such as "1 × cpu (2 cores)" or "4 × NVIDIA H100 80GB HBM3"."""
    kind = jax.devices()[0].device_kind
    cores = f" ({os.cpu_count()} cores)" if jax.default_backend() == "cpu" else ""
    return f"{jax.device_count()} × {kind}{cores}"


def make_workdir(workdir: str | os.PathLike) -> Path:
    """Make the folder of a run where it is absent.

    Raises:
        OSError: it, or the folder of checkpoints in it, cannot be made or written to.
        ValueError: it is empty, as an unset variable of a shell is; it is an address of a bucket,
            or begins with a "~" that the shell left there.
    """
    if not str(workdir):
        raise ValueError("--workdir is empty: give a folder; . is the current one")
    if str(workdir).startswith("~"):
        raise ValueError(
            f"--workdir={workdir} would be a folder named ~, since shells replace no ~ after '=': "
            "write $HOME in its place"
        )
    if re.match("[a-z][a-z0-9+.-]+:/", str(workdir)):
        raise ValueError(
            f"--workdir={workdir} is not a folder; choose a folder on a local or network file "
            "system, and copy it to the bucket afterwards"
        )
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for folder in (workdir, workdir / "checkpoints"):
            if folder.exists():
                probe = folder / f".probe_{jax.process_index()}"
                probe.touch()
                probe.unlink()
    except OSError as error:
        raise OSError(
            f"--workdir={workdir} cannot be written to ({error}); choose another folder"
        ) from error
    return workdir


def _shown(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "not set"


@contextlib.contextmanager
def new_workdir(workdir: str | os.PathLike) -> Iterator[Path]:
    """Make the folder of a run inside; afterwards remove what was made and is still empty.

    So a start that fails leaves no empty folders behind.

    Raises:
        OSError, ValueError: as of `make_workdir`.
    """
    absent = [each for each in (Path(workdir), *Path(workdir).parents) if not each.exists()]
    try:
        yield make_workdir(workdir)
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def record_config(
    workdir: Path,
    config: Mapping[str, Any],
    free_to_differ: Sequence[str],
    advice: Mapping[str, str] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write `config.json` (the first process does) and return what it holds.

    If there is a run in `workdir` already, check first that it has the same config.

    Args:
        config: nested dictionaries of numbers, strings and lists.
        free_to_differ: fields, or parts with all their fields, that may differ on resuming.
        advice: by field, what to do if it differs.
        facts: what else to write beside the config and the `environment`.

    Raises:
        ValueError: the folder holds a run whose config differs in another field, or is lost.
    """
    record = workdir / "config.json"
    config = json.loads(json.dumps(config))  # tuples become lists, as they will when read again
    if record.exists() or saved_steps(workdir / "checkpoints"):
        try:
            old, new = dict(flatten(read_record(workdir).config)), dict(flatten(config))
        except FileNotFoundError:
            raise ValueError(
                f"{workdir} holds checkpoints and no config.json, so their config is unknown; put "
                "the file back, or choose another --workdir"
            ) from None
        free = tuple(f"{each}." for each in free_to_differ)
        differing = [
            f"  {name}: {_shown(old, name)} there, {_shown(new, name)} now"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and not f"{name}.".startswith(free)
        ]
        if differing:
            help_ = [
                text
                for name, text in (advice or {}).items()
                if any(f" {name}:" in d for d in differing)
            ]
            resume = "Choose another --workdir, or set these fields as they were to resume."
            start = "It has no checkpoint, so you lose nothing if you delete the folder."
            first = resume if saved_steps(workdir / "checkpoints") else start
            lines = [f"{workdir} holds a run with another config:", *differing]
            raise ValueError("\n".join([*lines, " ".join([first, *help_])]))
    written = {"config": config, **environment(), **facts}
    if jax.process_index() == 0:
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(written, indent=2) + "\n")
        temporary.rename(record)
    return written
