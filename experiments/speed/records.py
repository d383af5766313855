"""Files of measured rows, one for each kind of device, in experiments/speed/results."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genjax.training.workdir import environment

RESULTS = Path(__file__).parent / "results"
# A new row replaces the old row that agrees in all of these fields.
IDENTITY = (
    "config",
    "overrides",
    "program",
    "device",
    "devices",
    "cores",
    "mesh",
    "batch_size",
    "dtype",
    "channels_last",
)


def stamp() -> dict[str, Any]:
    """Return the versions, commit and date for a row."""
    facts = environment()
    return {
        "python": facts["python"],
        "versions": facts["versions"],
        "git_commit": facts["git_commit"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def results_of(device_kind: str) -> Path:
    """Return the path of the file with the rows of a kind of device."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '_', device_kind.lower())}.json"


def merge(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a JSON file, where they replace older rows of the same `IDENTITY`."""
    of = lambda row: [row.get(name) for name in IDENTITY]
    rows = json.loads(json.dumps(rows))  # tuples become lists, as in the file
    old = json.loads(path.read_text()) if path.exists() else []
    kept = [row for row in old if of(row) not in map(of, rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept + rows, indent=1) + "\n")
