"""A record of the measures made at a run's last step, so that the same command repeats none."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Findings:
    """The figures of measures at one step, in a file; those of an earlier step are forgotten.

    A measure counts as made as long as the config is the same, apart from the other measures. The
    first of several processes reads and writes, and decides for all.
    """

    def __init__(self, path: Path, config: Any):
        self._path, self._config = path, config.to_dict()

    def find(self, step: int, name: str) -> dict[str, Any] | None:
        """Return the figures of a measure; None if it has not been made, {} on other processes."""
        made = self._read(step).get(name, {})
        figures = made.get("figures") if made.get("config") == self._digest(name) else None
        if jax.process_count() == 1:
            return figures
        found = multihost_utils.broadcast_one_to_all(np.array(figures is not None))
        return (figures or {}) if found else None

    def add(self, step: int, name: str, figures: dict[str, Any]) -> None:
        """Write down what a measure has found."""
        made = self._read(step) | {name: {"config": self._digest(name), "figures": figures}}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"step": step, "made": made}) + "\n")
        temporary.replace(self._path)

    def forget(self) -> None:
        """Forget all measures."""
        self._path.unlink(missing_ok=True)

    def _read(self, step: int) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text())
            return dict(record["made"]) if record["step"] == step else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def _digest(self, name: str) -> str:
        evaluation = self._config["evaluation"]
        own = evaluation | {"measures": evaluation["measures"].get(name)}
        text = json.dumps(self._config | {"evaluation": own}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
