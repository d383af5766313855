"""Writers: where a run's metrics and pictures go besides `metrics.jsonl`.

A config turns one on by its name, `--config.writers.tensorboard=TensorBoard`, or by a dotted path
of your own. A writer imports its package when it is opened, so what is off is never imported.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Stream(Protocol):
    """An open writer."""

    def write(self, step: int, metrics: Mapping[str, float | Image.Image]) -> None:
        """Write the numbers and pictures of a step, by name."""

    def close(self) -> None:
        """Write what is left, and end."""


class Writer(Protocol):
    """The part that a config names: opens a `Stream` where a run starts or is resumed."""

    def open(self, folder: str | os.PathLike, step: int, config: Mapping[str, Any]) -> Stream:
        """Return the stream of a run.

        Args:
            folder: of the run.
            step: from which the run starts or is resumed.
            config: of the run.
        """


def _require(package: str, writer: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"config.writers has {writer}, which needs the package {package}: pip install {package}"
        )


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir=runs`.

    Raises:
        ImportError: the package is not installed.
    """

    def __post_init__(self):
        _require("tensorboard", "TensorBoard")

    def open(self, folder: str | os.PathLike, step: int, config: Mapping[str, Any]) -> Stream:
        from genjax.training.tensorboard import Events

        return Events(folder, step)


@dataclass(frozen=True)
class WeightsAndBiases:
    """A run at Weights & Biases, named as the folder; a resumed run goes on there.

    Weights & Biases drops steps that it has already. These are the steps that a resumed run
    repeats, with the same numbers.

    Attributes:
        project, entity: where the run appears; the package's own defaults if None.
        mode: "online", "offline" or "disabled"; the package's own default if None.

    Raises:
        ImportError: the package is not installed.
    """

    project: str | None = "genjax"
    entity: str | None = None
    mode: str | None = None

    def __post_init__(self):
        _require("wandb", "WeightsAndBiases")

    def open(self, folder: str | os.PathLike, step: int, config: Mapping[str, Any]) -> Stream:
        import wandb

        folder = Path(folder)
        identity = folder / "wandb_id.txt"
        known = identity.read_text().strip() if identity.exists() and step else None
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            id=known,
            resume="allow" if known else None,
        )
        identity.write_text(f"{run.id}\n")
        return _WandbStream(run, wandb.Image)


@dataclass(frozen=True)
class _WandbStream:
    run: Any
    image: Callable[[Image.Image], Any]

    def write(self, step: int, metrics: Mapping[str, float | Image.Image]) -> None:
        is_picture = lambda value: isinstance(value, Image.Image)
        values = {
            name: self.image(value) if is_picture(value) else value
            for name, value in metrics.items()
        }
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()
