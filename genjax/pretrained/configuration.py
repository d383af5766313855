"""Entries of published configurations: what they mean here, and which values are supported."""

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
    """An entry that is a field of the module.

    Attributes:
        name: of the field.
        default: the value that the entry has where a configuration lacks it.
        coded: values of the field for the supported ones of the entry; None if they are equal.
        kind: type of the entry, such as `int | None`; the default's type if None.
    """

    name: str
    default: Any
    coded: Mapping[Any, Any] | None = None
    kind: Any = None


class Value(NamedTuple):
    """An entry that is no field, and whose default alone does not tell its type.

    Attributes:
        default: the value that the entry has where a configuration lacks it.
        kind: type of the entry, such as `int | None` or `list[Natural]`.
    """

    default: Any
    kind: Any


class Natural(int):
    """The type of an integer from 0 on. An `int` of a configuration is a size, from 1 on."""


class Only:
    """An entry with few supported values, the default first."""

    def __init__(self, *values: Any):
        self.values = values


def default_of(entry: Any) -> Any:
    """Return the value that an entry has where a configuration lacks it."""
    if isinstance(entry, Field | Value):
        return entry.default
    return entry.values[0] if isinstance(entry, Only) else entry


def kind_of(entry: Any) -> Any:
    """Return the type of an entry's values: the one that the entry states, or its default's."""
    stated = entry.kind if isinstance(entry, Field | Value) else None
    return _type_of(default_of(entry)) if stated is None else stated


def _type_of(value: Any) -> Any:
    """Return a value's type; a list's last element tells the type of all, where 0 is allowed."""
    if not isinstance(value, list):
        return type(value)
    each = _type_of(value[-1])
    return list[Natural if each is int else each]


def is_of(value: Any, kind: Any) -> bool:
    """Return whether a value of JSON is of a type, which for a `float` means finite."""
    if isinstance(kind, types.UnionType):
        return any(is_of(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        (each,) = typing.get_args(kind)
        return isinstance(value, list | tuple) and all(is_of(element, each) for element in value)
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
        entries: what is known: a `Field`, a `Value`, an `Only`, or the default of an entry, which
            tells its type.
        unused: names of what does not concern the network.

    Raises:
        ValueError: an entry is not known, or its value is of another type or not supported.
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
    """Check that an entry of a configuration is of a type, as `is_of` has it.

    Raises:
        ValueError: it is of another.
    """
    if not is_of(config[name], kind):
        given = f"{name}={config[name]!r:.60}"
        raise ValueError(f"{given} is not supported; expected {_described(kind)}")


def _described(kind: Any) -> str:
    """Return how an error names a type."""
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
        ValueError: it has another; the supported ones are listed.
    """
    given = config[name]
    alike = [value for value in supported if isinstance(value, bool) == isinstance(given, bool)]
    if given not in alike:
        listed = ", ".join(map(repr, supported))
        raise ValueError(f"{name}={given!r} is not supported; only {listed}")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Raises:
        ValueError: as `parse_json`.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """Return the object that a text in JSON says.

    Args:
        source: how an error names the text.

    Raises:
        ValueError: the text is no JSON, no object, or says an entry twice; with the source's name.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{max(names, key=names.count)!r} is there twice")
        return entries

    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} is {value!r:.40}; expected an object, {{…}}")
    return value
