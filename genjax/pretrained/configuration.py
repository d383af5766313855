"""Entries of published configurations: their meaning here and their supported values."""

import json
import math
import os
import sys
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Field(NamedTuple):
    """An entry that corresponds to a field of the module.

    Attributes:
        name: the field's name.
        default: the entry's value in a configuration that lacks the entry.
        coded: from the entry's supported values to the field's; None if both are equal.
        kind: the entry's type, such as `int | None`; the default's type if None.
    """

    name: str
    default: Any
    coded: Mapping[Any, Any] | None = None
    kind: Any = None


class Value(NamedTuple):
    """An entry without a field, whose type does not follow from its default.

    Attributes:
        default: the entry's value in a configuration that lacks the entry.
        kind: the entry's type, such as `int | None` or `list[Natural]`.
    """

    default: Any
    kind: Any


class Natural(int):
    """The type of an integer from 0 on. A plain `int` of a configuration is a size, from 1 on."""


class Only:
    """An entry with few supported values, the default first."""

    def __init__(self, *values: Any):
        self.values = values


def default_of(entry: Any) -> Any:
    """Return an entry's value in a configuration that lacks the entry."""
    if isinstance(entry, Field | Value):
        return entry.default
    return entry.values[0] if isinstance(entry, Only) else entry


def kind_of(entry: Any) -> Any:
    """Return the type of an entry's values: the stated type, or the default's type."""
    stated = entry.kind if isinstance(entry, Field | Value) else None
    return _type_of(default_of(entry)) if stated is None else stated


def _type_of(value: Any) -> Any:
    """Return a value's type; a list's last element tells the elements' type, with 0 allowed."""
    if not isinstance(value, list):
        return type(value)
    each = _type_of(value[-1])
    return list[Natural if each is int else each]


def has_type(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has a type; a `float` must be finite."""
    if isinstance(kind, types.UnionType):
        return any(has_type(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        (each,) = typing.get_args(kind)
        return isinstance(value, list | tuple) and all(has_type(element, each) for element in value)
    if kind not in _LEAST:
        return isinstance(value, kind)
    number = isinstance(value, int | float if kind is float else int) and not isinstance(
        value, bool
    )
    return number and _LEAST[kind] <= value < math.inf


def complete(
    config: Mapping[str, Any], entries: Mapping[str, Any], unused: Collection[str]
) -> dict[str, Any]:
    """Return the entries of a configuration that concern a network, completed by defaults.

    Args:
        entries: the known entries, by name: a `Field`, a `Value`, an `Only`, or the entry's
            default, which tells the type.
        unused: names of entries that do not concern the network.

    Raises:
        ValueError: an entry is unknown, or its value has another type or is not supported.
    """
    irrelevant = lambda name: name not in entries and (name in unused or name.startswith("_"))
    used = {name: value for name, value in config.items() if not irrelevant(name)}
    if unknown := {name: used[name] for name in sorted(used.keys() - entries.keys())}:
        raise ValueError(f"the configuration has entries that are not known here: {unknown}")
    config = {name: used.get(name, default_of(entry)) for name, entry in entries.items()}
    for name, entry in entries.items():
        if isinstance(entry, Only):
            expect(config, name, *entry.values)
        elif isinstance(entry, Field) and entry.coded:
            expect(config, name, *entry.coded)
        else:
            expect_kind(config, name, kind_of(entry))
            if kind_of(entry) is float:
                config[name] = float(config[name])
    return config


def expect_kind(config: Mapping[str, Any], name: str, kind: Any) -> None:
    """Check that an entry of a configuration has a type, in the sense of `has_type`.

    Raises:
        ValueError: the entry has another type.
    """
    if not has_type(config[name], kind):
        given = f"{name}={config[name]!r:.60}"
        raise ValueError(f"{given} is not supported; expected {_described(kind)}")


def _described(kind: Any) -> str:
    """Return a type's name for an error."""
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_described, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return f"a list, each element of it {_described(*typing.get_args(kind))}"
    return _DESCRIBED[kind]


_LEAST = {int: 1, Natural: 0, float: -sys.float_info.max}
_DESCRIBED = (
    {int: "an integer from 1 on", Natural: "an integer from 0 on", float: "a finite number"}
    | {bool: "True or False", str: "a string"}
    | {dict: "an object", types.NoneType: "None"}
)


def expect(config: Mapping[str, Any], name: str, *supported: Any) -> None:
    """Check that an entry of a configuration has a supported value; 1 and 0 are no booleans.

    Raises:
        ValueError: the entry has another value; the error lists the supported values.
    """
    given = config[name]
    alike = [value for value in supported if isinstance(value, bool) == isinstance(given, bool)]
    if given not in alike:
        listed = ", ".join(map(repr, supported))
        raise ValueError(f"{name}={given!r} is not supported; only {listed}")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: as for `parse_json`.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """Return the object in a JSON text.

    Args:
        source: the text's name in errors.

    Raises:
        ValueError: the text is no JSON, no object, or has an entry twice.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{max(names, key=names.count)!r} appears twice")
        return entries

    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} is {value!r:.40}; expected an object, {{…}}")
    return value
