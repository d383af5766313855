"""Refuse fields that nothing reads, and values of a wrong type, in a config file."""

import difflib
import functools
import numbers
import sys
import typing
from collections.abc import Collection, Iterator, Mapping
from types import UnionType
from typing import Any

from ml_collections import ConfigDict

from experiments.configuration import base, kinds
from genjax import parts

# The values that a field of each type accepts, and their name in an error.
ACCEPTED = {
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "text"),
    tuple: ((tuple, list), "several values"),
    dict: ((ConfigDict, type(None)), "fields of its own"),
    type(None): (type(None), "None"),
}


@functools.cache
def known_fields() -> dict[str, set[type]]:
    """Return the types of all fields that genjax reads, by path.

    A part that may have any field, because it is empty in some family, has `dict` among its types.
    Where the part is made, its fields are checked. A task or a space states its own fields in
    `config_fields`, each with its type in place of a value.
    """
    known: dict[str, set[type]] = {}
    modules = parts.modules_in(kinds.TASK.places + kinds.SPACE.places)
    found = [part for module in modules for part in parts.public(module).values()]
    own = [ConfigDict(part.config_fields) for part in found if hasattr(part, "config_fields")]
    for config in base.configs_of_all_fields() + own:
        for path in field_paths(config):
            owner, name = _split(path)
            parent = value_at(config, owner)
            types = {parent.get_type(name)}
            if isinstance(parent[name], type | UnionType):
                types = set(typing.get_args(parent[name])) or {parent[name]}
            elif parent[name] is None:
                types.add(type(None))
            elif isinstance(parent[name], ConfigDict) and not parent[name]:
                types.add(dict)
            known[path] = known.get(path, set()) | types
    return known


def check_fields(config: ConfigDict, file: str, flags: Collection[str] = ()) -> None:
    """Check that all fields of a config exist outside of named parts, and have values of a type.

    Where a named part is made, its own fields are checked. A task or a space of the user's own may
    read more fields, and fields of other types.

    Args:
        flags: the fields whose values are those of flags, not of the file.

    Raises:
        ValueError: a field does not exist, or has a value of another type.
    """
    known, free, own = known_fields(), _free_parts(config), _has_own_parts(config)
    for path in () if own else field_paths(config):
        value = value_at(config, path)
        if path in known and _split(path)[0] not in free:
            if not any(_fits(value, kind) for kind in known[path]):
                place = "" if path in flags else f" in {file}"
                allowed = _allowed(path) + (_default(path) if value is None else "")
                raise ValueError(f"config.{path} is {_shown(value)}{place}; {allowed}")
    for path in unknown_fields(config):
        _refuse(path, config, file)


def unknown_fields(config: Mapping[str, Any] | ConfigDict) -> list[str]:
    """Return the paths of fields that do not exist outside of named parts."""
    known, free, found = known_fields(), _free_parts(config), []
    for path in field_paths(config):
        if path not in known and not {_split(path)[0]} & {*free, *found}:
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


def nearest(path: str, paths: Collection[str]) -> str | None:
    """Return the field that a wrong path most likely means: a similar name, or one elsewhere."""
    owner, name = _split(path)
    siblings = {_split(each)[1]: each for each in paths if _split(each)[0] == owner}
    if close := difflib.get_close_matches(name, siblings, n=1, cutoff=0.7):
        return siblings[close[0]]
    elsewhere = [each for each in paths if _split(each)[1] == name and each != owner]
    inside = [each for each in elsewhere if each.endswith(f".{path}")]
    for among, cutoff in ((inside, 0.0), (elsewhere, 0.5), (paths, 0.75)):
        if close := difflib.get_close_matches(path, among, n=1, cutoff=cutoff):
            return close[0]
    return None


def field_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields. A part comes before its fields."""
    for name in config:
        yield prefix + name
        if hasattr(config[name], "keys"):
            yield from field_paths(config[name], f"{prefix}{name}.")


def value_at(config: Any, path: str) -> Any:
    """Return a field by its path, the config itself for an empty one, None if there is none."""
    for name in filter(None, path.split(".")):
        config = config.get(name) if hasattr(config, "keys") else None
    return config


def _split(path: str) -> tuple[str, str]:
    """Return the path of the part that holds a field, and the field's name."""
    owner, _, name = path.rpartition(".")
    return owner, name


def _free_parts(config: Any) -> set[str]:
    """Return the paths of parts that may have any field: named ones, and those in them."""
    known, free = known_fields(), set()
    for path in field_paths(config):
        if hasattr(part := value_at(config, path), "keys"):
            named = "name" in part and path != "data"
            # A GAN's model has networks in place of a name.
            has_parts = f"{path}.name" in known and any(f"{path}.{name}" in known for name in part)
            empty = dict in known.get(path, set()) and not has_parts
            if named or empty or _split(path)[0] in free:
                free.add(path)
    return free


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, ACCEPTED[kind][0] if kind in ACCEPTED else kind)


def _shown(value: Any) -> str:
    return repr(value.to_dict() if isinstance(value, ConfigDict) else value)


def _allowed(path: str) -> str:
    """Return what a field takes in place of a wrong value."""
    types = known_fields()[path]
    words = [text for kind, (_, text) in ACCEPTED.items() if kind in types]
    if ConfigDict in types and len(words) < 2:
        return "it has fields of its own, so set those"
    return f"it must be {' or '.join(words)}"


def _default(path: str) -> str:
    """Return what to do in place of None, if a field's default is a number."""
    found = [value_at(config, path) for config in base.configs_of_all_fields()]
    number = next((each for each in found if isinstance(each, numbers.Real)), None)
    return "" if number is None else f". Remove the line to have the default, {number}"


def _refuse(path: str, config: ConfigDict, file: str) -> None:
    """Raise for an unknown field. A config with own parts gets a warning if the name is close."""
    known, owner = known_fields(), _split(path)[0]
    there = [each for each in field_paths(config) if each in known]
    siblings = [each for each in there if _split(each)[0] == owner]
    suggestion = nearest(path, there) or nearest(path, known)
    given = f"config.{path} is {_shown(value_at(config, path))}"
    if not _has_own_parts(config):
        hint = f"there are {', '.join(siblings)}."
        if suggestion:
            hint = f"did you mean config.{suggestion}?"
        raise ValueError(
            f"{given} in {file}, and there is no such field; {hint} Correct the name, or remove "
            "the field"
        )
    if suggestion in siblings:
        text = f"{given} in {file}, which is no field of genjax; did you mean config.{suggestion}?"
        print(f"warning: {text}", file=sys.stderr)


def _has_own_parts(config: Any) -> bool:
    """Return whether the task or the space is not of genjax. A wrong name is refused later."""
    for kind, field in ((kinds.TASK, "task"), (kinds.SPACE, "space.name")):
        name = value_at(config, field)
        try:
            module = parts.find(name, kind.places, "").__module__ if name else "genjax."
        except (TypeError, ValueError):
            return isinstance(name, str)
        if not module.startswith(("genjax.", "experiments.")):
            return True
    return False
