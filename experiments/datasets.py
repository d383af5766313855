"""A config's data: a split to look at, and the batches to train on."""

import math
from typing import Any

from jax.sharding import Mesh

from genjax.data import Batches, BucketedBatches, Dataset, aspect_buckets, load_dataset, resized_to
from genjax.training import Task, process_rows


def load_split(config: Any, split: str) -> Dataset:
    """One split of a config's data; where `config.data.buckets` says that sizes vary, all of `config.data.image_shape`."""
    dataset = load_dataset(config.data.name, split, config.data.directory)
    return resized_to(tuple(config.data.image_shape[:2]), dataset) if config.data.get("buckets") else dataset


def training_batches(config: Any, task: Task, mesh: Mesh) -> Batches:
    """The batches that a config is trained on: this process' rows of them.

    With `config.data.buckets`, the arguments of `aspect_buckets` beside the area, which is that of
    `config.data.image_shape`, images may vary in size, and those of a batch share their proportions.
    """
    dataset = load_dataset(config.data.name, config.data.train_split, config.data.directory)
    options = dict(
        transform=task.transform(dataset) if hasattr(task, "transform") else None,
        rows=process_rows(mesh, config.batch_size),
    )
    if config.data.get("buckets"):
        buckets = aspect_buckets(math.prod(config.data.image_shape[:2]), **config.data.buckets)
        return BucketedBatches(dataset, config.batch_size, config.seed, buckets=buckets, **options)
    return Batches(dataset, config.batch_size, config.seed, image_shape=task.image_shape, **options)
