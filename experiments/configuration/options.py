"""Parts and intervals on the command line, and parts in reports.

A flag has the form "name,option=value" or "LOW:HIGH", and a report "name(option=value)".
"""

import ast
import contextlib
from collections.abc import Mapping
from typing import Any

from experiments.configuration.kinds import Kind


def named(text: str | None, flag: str, kind: Kind) -> dict[str, Any] | None:
    """Return a config's fields of "name,option=value,…"; None if the flag is not given.

    Raises:
        ValueError: an option is not of this form, or the kind has no such part or option.
    """
    if text is None:
        return None
    name, *options = text.split(",")
    fields = {"name": name}
    for option in options:
        try:
            key, value = option.split("=")
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"--{flag}={text} must be a name and options, as in name,option=1.5, but has "
                f"{option!r}"
            ) from None
        if key in fields:
            raise ValueError(f"--{flag}={text} names {key} twice: keep one of them")
        fields[key] = value
    kind.check_flag(fields, flag)
    return fields


def interval(text: str, flag: str) -> tuple[float, float]:
    """Return the two numbers of "LOW:HIGH"; raise ValueError for another form."""
    with contextlib.suppress(ValueError):
        low, high = map(float, text.split(":"))
        if low < high:
            return low, high
    raise ValueError(f"--{flag}={text} must be LOW:HIGH, as 0.2:0.8")


def described(fields: Mapping[str, Any]) -> str:
    """Return what a config names with its arguments, as one would call it: "ddim(eta=0.5)"."""
    inner = lambda value: described(value) if "name" in getattr(value, "keys", set)() else value
    arguments = ", ".join(
        f"{name}={inner(value)}" for name, value in fields.items() if name != "name"
    )
    return f"{fields['name']}({arguments})" if arguments else fields["name"]
