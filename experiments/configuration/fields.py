"""Refuse fields of a config file that nothing reads, and values that are of no type of a field."""

import difflib
import functools
import numbers
import sys
from collections.abc import Collection, Iterator, Mapping
from operator import getitem
from typing import Any

from ml_collections import ConfigDict

from experiments.configuration import base, kinds
from genjax import parts

# What a field of each type takes, and in words.
TAKES = {
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "text"),
    tuple: ((tuple, list), "several values"),
    dict: (type(None), "fields of its own"),
    type(None): (type(None), "None"),
}


@functools.cache
def known_fields() -> dict[str, set[type]]:
    """Return the types of all fields that genjax reads, by path.

    Those of a part that may have any field, because it is empty in some family, include `dict`.
    """
    known: dict[str, set[type]] = {}
    for config in base.every_field():
        for path, parent in _fields(config):
            name = path.rpartition(".")[2]
            types = {parent.get_type(name)}
            if parent[name] is None:
                types.add(type(None))
            elif isinstance(parent[name], ConfigDict) and not parent[name]:
                types.add(dict)
            known[path] = known.get(path, set()) | types
    return known


def check_fields(config: ConfigDict, file: str) -> None:
    """Check that all fields of a config exist outside of named parts, and have values of a type.

    Where a named part is made, its own fields are checked.

    Raises:
        ValueError: a field does not exist, or has a value of another type.
    """
    for path in unknown_fields(config):
        _refuse(path, config, file)
    known, free = known_fields(), _free_parts(config)
    for path, parent in _fields(config):
        owner, _, name = path.rpartition(".")
        value, types = parent[name], known.get(path)
        fits = types is None or any(_fits(value, kind) for kind in types)
        if not fits and not (value is None and owner in free):
            raise ValueError(f"config.{path} is {_shown(value)} in {file}; {_allowed(path)}")


def unknown_fields(config: Mapping[str, Any] | ConfigDict) -> list[str]:
    """Return the paths of fields that do not exist outside of named parts."""
    known, free, found = known_fields(), _free_parts(config), []
    for path, _ in _fields(config):
        if path not in known and not {path.rpartition(".")[0]} & {*free, *found}:
            found.append(path)
    return found


def ignored_fields(config: Mapping[str, Any]) -> list[str]:
    """Return the paths of fields that nothing reads. Own parts may read any field."""
    return [] if _has_own_parts(config) else unknown_fields(config)


def missing_field(error: Exception) -> str | None:
    """Return the field whose absence ml_collections or `Config` reports; None for other errors."""
    if not isinstance(error, AttributeError) or not error.args:
        return None
    if isinstance(error.args[0], KeyError):
        return "; ".join(str(error.args[0].args[0]).splitlines())
    return None


def nearest(path: str, there: Collection[str]) -> str | None:
    """Return the field that a wrong path most likely means: a similar name, or one elsewhere."""
    owner, _, name = path.rpartition(".")
    beside = {each.rpartition(".")[2]: each for each in there if each.rpartition(".")[0] == owner}
    if close := difflib.get_close_matches(name, beside, n=1, cutoff=0.7):
        return beside[close[0]]
    elsewhere = [each for each in there if f".{each}".endswith(f".{name}") and each != owner]
    inside = [each for each in elsewhere if each.endswith(f".{path}")]
    return next(iter(difflib.get_close_matches(path, inside or elsewhere, n=1, cutoff=0.0)), None)


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the paths of all fields, and what each is a field of; parts before their fields."""
    for name in config:
        yield prefix + name, config
        if hasattr(config[name], "keys"):
            yield from _fields(config[name], f"{prefix}{name}.")


def _free_parts(config: Any) -> set[str]:
    """Return the paths of parts that may have any field: named ones, and those in them."""
    known, free = known_fields(), set()
    for path, parent in _fields(config):
        owner, _, name = path.rpartition(".")
        if hasattr(parent[name], "keys"):
            named = "name" in parent[name] and path != "data"
            if named or owner in free or dict in known.get(path, set()):
                free.add(path)
    return free


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, TAKES[kind][0] if kind in TAKES else kind)


def _shown(value: Any) -> str:
    return repr(value.to_dict() if isinstance(value, ConfigDict) else value)


def _allowed(path: str) -> str:
    """Return what a field takes in place of a wrong value."""
    types = known_fields()[path]
    words = [text for kind, (_, text) in TAKES.items() if kind in types]
    if ConfigDict in types and len(words) < 2:
        return "it has fields of its own, so set those"
    return f"it must be {' or '.join(words)}"


def _refuse(path: str, config: ConfigDict, file: str) -> None:
    """Refuse a field that does not exist; of a config with own parts, warn if its name is close.

    A task or a space of the user's own may read more fields.
    """
    known, owner = known_fields(), path.rpartition(".")[0]
    there = [each for each, _ in _fields(config) if each in known]
    beside = [each for each in there if each.rpartition(".")[0] == owner]
    meant = nearest(path, there) or nearest(path, known)
    given = f"config.{path} is {_shown(functools.reduce(getitem, path.split('.'), config))}"
    if not _has_own_parts(config):
        hint = f"did you mean config.{meant}?" if meant else f"there are {', '.join(beside)}."
        raise ValueError(
            f"{given} in {file}, and there is no such field; {hint} Correct the name, or remove "
            "the field"
        )
    if meant in beside:
        text = f"{given} in {file}, which is no field of genjax; did you mean config.{meant}?"
        print(f"warning: {text}", file=sys.stderr)


def _has_own_parts(config: Any) -> bool:
    """Return whether the task or the space is not of genjax. A wrong name is refused later."""
    named = (kinds.TASK, config.get("task")), (kinds.SPACE, (config.get("space") or {}).get("name"))
    for kind, name in named:
        try:
            module = parts.find(name, kind.places, "").__module__ if name else "genjax."
        except ValueError:
            return True
        if not module.startswith(("genjax.", "experiments.")):
            return True
    return False
