"""A config's data: a split to look at, and the batches to train on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.conditioning import Prompts
from genjax.data import Batches, BucketedBatches, Dataset, aspect_buckets, load_dataset, resized_to
from genjax.training import Task, process_rows
from genjax.training.mesh import batch_sharding


def load_split(config: Any, split: str) -> Dataset:
    """One split of a config's data; where `config.data.buckets` says that sizes vary, all of `config.data.image_shape`."""
    dataset = load_dataset(config.data.name, split, config.data.directory)
    return resized_to(tuple(config.data.image_shape[:2]), dataset) if config.data.get("buckets") else dataset


def abstract_batch(config: Any, task: Task, mesh: Mesh | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a training batch, without its data; on a mesh, with its shardings."""
    floats = config.data.name == "latents" or len(config.data.image_shape) == 1
    dtype = jnp.float32 if floats else jnp.uint8
    shapes = {
        config.data.get("feature", "image"): (tuple(config.data.image_shape), dtype),
        "label": ((), jnp.int32),
    }
    if isinstance(getattr(task, "conditioning", None), Prompts):
        text = jax.eval_shape(task.conditioning.example)
        for name in ("tokens", "pooled", "mask"):
            each = getattr(text, name)
            shapes[name] = each.shape[1:], each.dtype
    sharding = batch_sharding(mesh) if mesh else None
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def training_batches(config: Any, task: Task, mesh: Mesh) -> Batches:
    """The batches that a config is trained on: this process' rows of them.

    With `config.data.buckets`, the arguments of `aspect_buckets` beside the area, which is that of
    `config.data.image_shape`, images may vary in size, and those of a batch share their proportions.

    Raises:
        ValueError: as of `Batches` and `BucketedBatches`; or images vary in size and there are no buckets.
    """
    dataset = load_dataset(config.data.name, config.data.train_split, config.data.directory)
    options = dict(
        transform=task.transform(dataset) if hasattr(task, "transform") else None,
        rows=process_rows(mesh, config.batch_size),
    )
    if config.data.get("buckets"):
        buckets = aspect_buckets(math.prod(config.data.image_shape[:2]), **config.data.buckets)
        return BucketedBatches(dataset, config.batch_size, config.seed, buckets=buckets, **options)
    if None in (dataset.image_shape or ()):
        raise ValueError(
            f"images of {dataset.name} ({dataset.split}) vary in size: set config.data.buckets, such as "
            "dict(multiple=64, max_ratio=2.0), to train on them in batches of equal proportions"
        )
    return Batches(dataset, config.batch_size, config.seed, image_shape=task.image_shape, **options)
