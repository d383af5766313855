"""Latents or codes of a data set, and a teacher's pairs, in a folder that training reads."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments.configuration import kinds
from experiments.configuration.numbers import check_numbers
from experiments.inputs.autoencoders import encode
from experiments.inputs.datasets import Data, check_mirrored
from experiments.launch.runtime import user_errors
from experiments.launch.teacher_pairs import TeacherPairs
from genjax.data import Dataset, sound_to_float, to_float
from genjax.data.sets.latents import (
    COUNTS,
    PARAMETERS,
    SUMMARY,
    check_origin,
    part_paths,
    parts_of,
    raw_latents,
    write_captions,
    write_latents,
    write_origin,
    write_summary,
)
from genjax.devices.mesh import batch_sharding, make_mesh, replicated
from genjax.metrics import channel_statistics
from genjax.pretrained.variables import parameters_digest
from genjax.training.progress import ProgressBar


class Examples:
    """The images, clips or sounds of a data set, then, with `flip`, the images' mirror images.

    Args:
        feature: "image", "video" or "audio".
    """

    def __init__(self, dataset: Dataset, flip: bool, feature: str):
        self.source, self.flip, self.feature = dataset.source, flip, feature

    def __len__(self) -> int:
        return len(self.source) * (2 if self.flip else 1)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        mirrored, index = divmod(row, len(self.source))
        example = self.source[index]
        pixels = example[self.feature]
        return pixels[..., ::-1, :] if mirrored else pixels, example.get("label", 0)


class EncodedData:
    """The latents, or the codes, of both splits of a config's data set.

    Attributes:
        folder: where they are written.
        origin: what they are made of.
        counts: how many, by split.
        shape: of one example's latents or codes.

    Raises:
        ValueError: the config's space is no folder of latents or codes; or as of `check_mirrored`.
    """

    def __init__(self, config: Any):
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        data = Data.from_config(config)
        if not getattr(space, "directory", None):
            raise ValueError(
                f"config.space is {config.space.name} without a directory: this program writes "
                "what a config with space.name 'Latents' or 'Tokens' reads, into its "
                "space.directory"
            )
        self.folder = Path(space.directory)
        variables, size = space.autoencoder.variables(), of_video(config).get("batch_size", 64)
        self.splits = {data.train_split: data.train(), data.held_out_split: data.held_out()}
        condition = kinds.CONDITION.bind(config.condition, "condition", data=data)
        check_mirrored(self.splits[data.train_split], condition, config.data.flip)
        flips = {data.held_out_split: False, data.train_split: config.data.flip}  # may be one split
        self.examples = {
            split: Examples(dataset, flips[split], data.feature)
            for split, dataset in self.splits.items()
        }
        self.counts = {split: len(each) for split, each in self.examples.items()}
        # A run of the same name may have been trained anew since, and a folder of images may have
        # got more of them.
        facts = {PARAMETERS: parameters_digest(variables), COUNTS: self.counts}
        self.origin = origin_of(config) | facts
        check_origin(self.folder, self.origin)
        self.vocabulary = getattr(space, "vocabulary", None)
        latents = functools.partial(encode, space.autoencoder.network)
        self.encoder = Encoder(
            space.autoencoder.encode_codes if self.vocabulary else latents, variables, size
        )
        self.shape = self.encoder.shape(self.examples[data.train_split][0][0])

    def __call__(self, split: str, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Return latents and labels of some examples of a split."""
        return self.encoder(self.examples[split], rows)

    def summarize(self) -> None:
        """Write captions, and the summary with moments of latents or the vocabulary of codes."""
        for split, dataset in self.splits.items():
            if dataset.captions is not None:
                copies = self.counts[split] // len(dataset.source)
                write_captions(self.folder, split, list(dataset.captions) * copies)
        train_split, dataset = next(iter(self.splits.items()))
        if self.vocabulary:
            facts = {"vocabulary": self.vocabulary}
        else:
            facts = moments_of(self.folder, train_split, self.counts[train_split], self.shape)
        summary = {
            "shape": list(self.shape),
            **facts,
            "splits": self.counts,
            "num_classes": dataset.num_classes,
            "class_names": list(dataset.class_names or ()),
        }
        write_summary(self.folder, summary)


def of_video(config: ConfigDict) -> ConfigDict:
    """Return the fields of the space that is encoded: of clips with sound, that of the video."""
    return config.space.get("video") or config.space


def origin_of(config: ConfigDict) -> dict[str, Any]:
    """Return what decides the latents of a config: the autoencoder, and the data."""
    of_space = {name: of_video(config).get(name) for name in ("run", "weights", "published")}
    data = config.data.to_dict()
    if not data.get("options"):  # folders from before every config had options have no such entry
        data.pop("options", None)
    return {"space": of_space, "data": data}


def write(config: Any) -> Path:
    """Write what a config trains on, as far as it is missing; return the folder."""
    with user_errors():
        check_numbers(config)
        source = TeacherPairs(config) if config.get("pairs") else EncodedData(config)
        write_origin(source.folder, source.origin)
    folder, counts = source.folder, source.counts
    process = jax.process_index(), jax.process_count()
    parts = {split: parts_of(folder, split, count, *process) for split, count in counts.items()}
    sizes = {path: len(rows) for own in parts.values() for path, rows in own.items()}
    done = sum(size for path, size in sizes.items() if path.exists())
    with ProgressBar("encoding", done, sum(sizes.values()), "examples") as progress:
        for split, own in parts.items():
            for size in write_latents(own, functools.partial(source, split)):
                done += size
                progress.update(done)
    paths = [path for split in counts for path in part_paths(folder, split, counts[split])]
    if missing := sum(not path.exists() for path in paths):
        # The other processes write these parts, and the last one to end finds all.
        print(f"{missing} parts are still to come from other processes", flush=True)
        return folder
    source.summarize()
    print(f"{counts} examples of shape {source.shape}: {folder / SUMMARY}", flush=True)
    return folder


class Encoder:
    """Encodes examples in batches, split over this process' devices.

    Args:
        encode: maps variables and data in [−1, 1] to latents or codes.
        batch_size: examples at once, rounded up to a multiple of the devices.
    """

    def __init__(self, encode: Callable, variables: PyTree, batch_size: int):
        devices = jax.local_devices()
        self.size = batch_size + -batch_size % len(devices)
        mesh = make_mesh({"data": -1}, self.size, devices)
        self.variables = jax.device_put(variables, replicated(mesh))
        self.step = jax.jit(
            lambda variables, x: encode(variables, as_floats(x)),
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

    def shape(self, example: np.ndarray) -> tuple[int, ...]:
        """Return the shape of one example's latents."""
        examples = jax.ShapeDtypeStruct((self.size, *example.shape), example.dtype)
        return jax.eval_shape(self.step, self.variables, examples).shape[1:]


def as_floats(data: Array) -> Array:
    """Return images, clips or sound, as they are stored, in [−1, 1]."""
    return sound_to_float(data) if data.dtype == np.int16 else to_float(data)


def moments_of(
    folder: Path, split: str, count: int, shape: tuple[int, ...]
) -> dict[str, list[float]]:
    """Return the moments of the latents by channel."""
    statistics = channel_statistics(raw_latents(folder, split, count, shape))
    names = "mean", "deviation", "correlation"
    return {name: getattr(statistics, name).tolist() for name in names}
