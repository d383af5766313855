"""A config's data: a split to look at, and the batches to train on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.inputs.conditions import Classes, Prompts
from genjax.data import (
    Batches,
    BucketedBatches,
    Dataset,
    aspect_buckets,
    load_dataset,
    resized_to,
    squared,
)
from genjax.devices import process_rows
from genjax.devices.mesh import batch_sharding
from genjax.training import Task


def load_split(config: Any, split: str) -> Dataset:
    """One split of a config's data, with `config.data.resize` or `config.data.buckets` all of `config.data.image_shape`."""
    dataset = load_dataset(config.data.name, split, config.data.directory)
    size, resize = tuple(config.data.image_shape[:2]), config.data.get("resize")
    if resize and size[0] == size[1]:
        return squared(size[0], dataset)
    return resized_to(size, dataset) if resize or config.data.get("buckets") else dataset


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
        ValueError: as of `Batches` and `BucketedBatches`; images of another shape than the task's, or another number of
            classes than `config.data.num_classes`.
    """
    data = config.data
    if data.get("buckets"):
        dataset = load_dataset(data.name, data.train_split, data.directory)
    else:
        dataset = load_split(config, data.train_split)
        _check_shape(config, task, dataset)
    _check_classes(config, task, dataset)
    options = dict(
        transform=task.transform(dataset) if hasattr(task, "transform") else None,
        rows=process_rows(mesh, config.batch_size),
    )
    if data.get("buckets"):
        buckets = aspect_buckets(math.prod(data.image_shape[:2]), **data.buckets)
        return BucketedBatches(dataset, config.batch_size, config.seed, buckets=buckets, **options)
    return Batches(dataset, config.batch_size, config.seed, image_shape=task.image_shape, **options)


def _check_shape(config: Any, task: Task, dataset: Dataset) -> None:
    """Raises ValueError if the images have another shape than the task's."""
    data, given = config.data, dataset.image_shape
    if given == task.image_shape:
        return
    varies, ways = None in (given or ()), []
    if given and not varies:
        ways.append(f"set --config.data.image_shape={','.join(map(str, given))}, and the network for it")
    if data.get("resize") is False and data.name != "latents":
        ways.append(
            "set --config.data.resize=True, to resize and crop images to config.data.image_shape as they are read"
        )
    if varies and hasattr(task, "conditioning"):
        ways.append(
            "in a config of your own set config.data.buckets = dict(multiple=64, max_ratio=2.0), to train on batches of equal "
            "proportions"
        )
    raise ValueError(
        f"images of {dataset.name} ({dataset.split}) {'vary in size' if varies else f'have shape {given}'}, the network "
        f"takes {task.image_shape}: {'; or '.join(ways) or 'bring them to one size first'}"
    )


def _check_classes(config: Any, task: Task, dataset: Dataset) -> None:
    """Raises ValueError if the task is told classes, and the data have not as many as it expects."""
    of_gan = getattr(task, "conditional", False)
    if not of_gan and not isinstance(getattr(task, "conditioning", None), Classes):
        return
    there, expected = dataset.num_classes, config.data.num_classes
    unconditional = " --config.conditional=False" if of_gan and there is None else ""
    if expected != (there or 1) or unconditional:
        raise ValueError(
            f"{dataset.name} ({dataset.split}) has {there or 'no'} classes, and config.data.num_classes is {expected}: set "
            f"--config.data.num_classes={there or 1}{unconditional}"
        )
