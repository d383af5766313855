"""Entries of published configurations: what they mean here, and which values are supported."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Field(NamedTuple):
    """An entry that is a field of the module.

    Attributes:
        name: of the field.
        default: the value that the entry has where a configuration lacks it.
        coded: values of the field for the supported ones of the entry; None if they are equal.
    """

    name: str
    default: Any
    coded: Mapping[Any, Any] | None = None


class Only:
    """An entry with few supported values, the default first."""

    def __init__(self, *values: Any):
        self.values = values


def default_of(entry: Any) -> Any:
    """Return the value that an entry has where a configuration lacks it."""
    if isinstance(entry, Field):
        return entry.default
    return entry.values[0] if isinstance(entry, Only) else entry


def complete(
    config: Mapping[str, Any], entries: Mapping[str, Any], unused: Collection[str]
) -> dict[str, Any]:
    """Return the entries of a configuration that concern a network, completed by defaults.

    Args:
        entries: what is known: a `Field`, an `Only`, or the default of an entry with any value.
        unused: names of what does not concern the network.

    Raises:
        ValueError: an entry is not known, or its value is not supported.
    """
    irrelevant = lambda name: name not in entries and (name in unused or name.startswith("_"))
    used = {name: value for name, value in config.items() if not irrelevant(name)}
    if unknown := {name: used[name] for name in sorted(used.keys() - entries.keys())}:
        raise ValueError(f"the configuration has entries that are not known here: {unknown}")
    config = {name: used.get(name, default_of(entry)) for name, entry in entries.items()}
    for name, entry in entries.items():
        if isinstance(entry, Only):
            expect(config, name, *entry.values)
        if isinstance(entry, Field) and entry.coded:
            expect(config, name, *entry.coded)
    return config


def expect(config: Mapping[str, Any], name: str, *supported: Any) -> None:
    """Check that an entry of a configuration has a supported value.

    Raises:
        ValueError: it has another; the supported ones are listed.
    """
    if config[name] not in supported:
        listed = ", ".join(map(repr, supported))
        raise ValueError(f"{name}={config[name]!r} is not supported; only {listed}")


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
