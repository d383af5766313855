"""Encode a data set into the latents that a config of latent diffusion trains on.

    python -m experiments.encode --config=configs/emoji_latent_flow.py

Reads `config.data`, encodes it by the autoencoder of `config.space`, and writes array_record files
to `config.space.directory`. Started again, the command resumes where it stopped. Several processes
(--coordinator, see --help) share the work.
"""

import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType
from jaxtyping import PyTree

from experiments.configuration import kinds
from experiments.inputs.autoencoders import encode
from experiments.inputs.datasets import Data
from experiments.inputs.spaces import Latents
from experiments.launch import runtime
from experiments.launch.config_flag import define_config
from experiments.launch.runtime import run_program, user_errors
from genjax.data import Dataset, to_float
from genjax.data.sets.latents import (
    ORIGIN,
    SUMMARY,
    part_paths,
    raw_latents,
    write_captions,
    write_latents,
    write_summary,
)
from genjax.devices.mesh import batch_sharding, replicated
from genjax.metrics import channel_statistics
from genjax.training.progress import ProgressBar

CONFIG = define_config("The experiment of latent diffusion.")
flags.adopt_module_key_flags(runtime)


class Examples:
    """The images of a data set, then, with `flip`, their mirror images."""

    def __init__(self, dataset: Dataset, flip: bool):
        self.source, self.flip = dataset.source, flip

    def __len__(self) -> int:
        return len(self.source) * (2 if self.flip else 1)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        mirrored, index = divmod(row, len(self.source))
        example = self.source[index]
        image = example["image"]
        return image[:, ::-1] if mirrored else image, example.get("label", 0)


def prepare(config: Any) -> tuple[Latents, Data]:
    """Check where the latents shall go, and record there what they are of.

    Raises:
        ValueError: the config's space is no folder of latents, or the folder holds other files.
    """
    space, data = (
        kinds.SPACE.bind(config.space, "space", data=config.data),
        Data.from_config(config),
    )
    if not getattr(space, "directory", None):
        raise ValueError(
            f"config.space is {config.space.name} without a directory: this program writes what a "
            "config with space.name 'Latents' reads, into its space.directory"
        )
    folder = Path(space.directory)
    origin = {"space": _origin(config.space), "data": dict(config.data)}
    origin = json.loads(json.dumps(origin))  # tuples become lists, as they will when read again
    path = folder / ORIGIN
    if path.exists():
        if (there := json.loads(path.read_text())) != origin:
            raise ValueError(
                f"{folder} holds latents of {there}, not of {origin}: take another folder, or "
                "empty it"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"config.space.directory is {folder}, into which latents shall go, and it holds other "
            "files: take an empty folder; that of the images is --config.data.directory"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(origin, indent=2) + "\n")
    return space, data


def _origin(space: Any) -> dict[str, Any]:
    """Return what of a space decides what the latents are."""
    return {name: space.get(name) for name in ("run", "weights", "published")}


def run(config: Any) -> Path:
    """Encode both splits; return the folder."""
    with user_errors():
        space, data = prepare(config)
        variables = space.autoencoder.variables()
        splits = {data.train_split: data.train(), data.held_out_split: data.held_out()}
    folder = Path(space.directory)
    flips = {data.train_split: config.data.flip, data.held_out_split: False}
    examples = {split: Examples(dataset, flips[split]) for split, dataset in splits.items()}
    encoder = Encoder(space.autoencoder.network, variables, config.space.get("batch_size", 64))
    done = 0
    with ProgressBar("encoding", 0, sum(map(len, examples.values())), "examples") as progress:
        for split, each in examples.items():
            encoded = lambda rows, each=each: encoder(each, rows)
            index, count = jax.process_index(), jax.process_count()
            for part in write_latents(
                folder, split, len(each), encoded, process=index, processes=count
            ):
                done += part
                progress.update(done)
    counts = {split: len(each) for split, each in examples.items()}
    missing = [
        path
        for split in counts
        for path in part_paths(folder, split, counts[split])
        if not path.exists()
    ]
    if missing:  # of other processes, the last of which to end finds all
        print(f"{len(missing)} parts are still to come from other processes", flush=True)
        return folder
    shape = encoder.shape(next(iter(examples.values()))[0][0].shape)
    summarize(folder, data.train_split, splits, counts, shape)
    print(f"{counts} latents of shape {shape}: {folder / SUMMARY}", flush=True)
    return folder


class Encoder:
    """Encodes examples in batches, split over this process' devices.

    Args:
        batch_size: examples at once, rounded up to a multiple of the devices.
    """

    def __init__(self, network: nn.Module, variables: PyTree, batch_size: int):
        devices = jax.local_devices()
        mesh = jax.make_mesh(
            (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
        )
        self.size = batch_size + -batch_size % len(devices)
        self.variables = jax.device_put(variables, replicated(mesh))
        self.step = jax.jit(
            lambda variables, x: encode(network, variables, to_float(x)),
            in_shardings=(replicated(mesh), batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, examples: Examples, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Return latents and labels of some examples."""
        latents, labels = [], []
        for start in range(rows.start, rows.stop, self.size):
            batch = [examples[row] for row in range(start, min(start + self.size, rows.stop))]
            images = np.stack(
                [image for image, _ in batch] + [batch[0][0]] * (self.size - len(batch))
            )
            latents.append(np.asarray(self.step(self.variables, images))[: len(batch)])
            labels += [label for _, label in batch]
        return np.concatenate(latents), np.asarray(labels)

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one example's latents."""
        images = jax.ShapeDtypeStruct((self.size, *image_shape), np.uint8)
        return jax.eval_shape(self.step, self.variables, images).shape[1:]


def summarize(
    folder: Path,
    train_split: str,
    splits: dict[str, Dataset],
    counts: dict[str, int],
    shape: tuple[int, ...],
) -> None:
    """Write captions, and the summary with the moments by which latents are standardized."""
    statistics = channel_statistics(raw_latents(folder, train_split, counts[train_split], shape))
    for split, dataset in splits.items():
        if dataset.captions is not None:
            write_captions(
                folder, split, list(dataset.captions) * (counts[split] // len(dataset.source))
            )
    dataset = splits[train_split]
    summary = {
        "shape": list(shape),
        "mean": statistics.mean.tolist(),
        "deviation": statistics.deviation.tolist(),
        "correlation": statistics.correlation.tolist(),
        "splits": counts,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names or ()),
    }
    write_summary(folder, summary)


def main() -> None:
    try:
        run(CONFIG.value)
    except OSError as error:
        sys.exit(f"error: {error}\nStart the same command again to go on.")


if __name__ == "__main__":
    run_program(main)
