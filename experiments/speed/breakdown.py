"""Print the costs of a compiled TPU program by kind of operation, and its most expensive ones."""

from collections.abc import Mapping
from typing import Any

_HEADER = (
    f"  {'':20} {'operations':>10} {'runs':>7} {'Gops':>10} {'GB':>9} {'Mcycles':>9} {'ms':>9}"
)


def _numbers(row: Mapping[str, Any]) -> str:
    return (
        f"{row['runs']:7,} {row['operations'] / 1e9:10,.1f} {row['bytes'] / 1e9:9.3f} "
        f"{row['cycles'] / 1e6:9.2f} {1e3 * row['seconds']:9.3f}"
    )


def show_breakdown(found: Mapping[str, Any]) -> None:
    """Print the result of `genjax.devices.breakdown.breakdown` as two tables."""
    print("\nthe compiled program by kind of operation, and the sum of their bounds")
    print(_HEADER)
    for name, row in (found["categories"] | {"total": found["total"]}).items():
        print(f"  {name:20} {row['count']:10,} {_numbers(row)}")
    print("\nthe operations that cost most, with the line of Python that each comes from")
    for row in found["most_expensive"]:
        kind = f"{row['category']}: {row['opcode']}"
        print(f"  {kind:31} {_numbers(row)}   {row['line']}")
        print(f"  {'':31} {row['shapes']}   {row['name']}")
