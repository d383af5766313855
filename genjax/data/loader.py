"""Batches by step number.

A batch is a function of (seed, step, global index). An endless stream of epochs is cut into
batches, and each process takes its rows of each batch. Any step is available at once, on any number
of processes.
"""

import functools
import itertools
import sys
import time
from collections.abc import Iterator

import numpy as np

from genjax.data.dataset import PICTURES, Dataset, InMemory, num_threads, stack
from genjax.data.transforms import Example, Transform


class Batches:
    """The endless sequence of a dataset's batches, by step or prefetched.

    `batches[step]` is a dict of arrays `[rows ...]` with the examples of this process, and
    `batches.iterate(start)` yields prefetched batches. Every epoch is a fresh permutation; a batch
    may end one epoch and begin the next.

    NumPy draws a permutation and gathers a batch of 64 digits in 10 µs. Shuffling and batching
    single examples in grain took 1.6 ms. So grain runs over the steps, and prefetches what is not
    in memory.

    Args:
        dataset: from `load_dataset`, or your own arrays: `Dataset(name, split, InMemory(arrays))`.
            If the set has captions, examples and batches also have an `index` (int32):
            `dataset.captions[index]`.
        batch_size: the batch size of all processes together.
        seed: decides the order and the random transforms.
        transform: `transform(example, generator) -> example` on the host, one example at a time.
            Use a transform for images that vary in size, and for work that the device cannot do.
            The transform decides what a batch holds. Its NumPy generator depends only on (seed,
            position in the stream).
        image_shape: (height, width, channels) or, for videos, (time, height, width, channels) that
            the network takes. If given, the shape is checked here.
        rows: this process's rows of each batch (`genjax.devices.process_rows`); by default all.
        shuffle: False keeps the stored order in every epoch.

    Raises:
        ValueError: `seed` is negative; `batch_size` exceeds the dataset; images have another shape
            than `image_shape`, or vary in size without a transform.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        transform: Transform | None = None,
        image_shape: tuple[int, ...] | None = None,
        rows: np.ndarray | None = None,
        shuffle: bool = True,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.transform = transform
        self.rows = np.arange(batch_size) if rows is None else rows
        self.shuffle = shuffle

        title, length = f"{dataset.name} ({dataset.split})", len(dataset.source)
        if seed < 0:
            raise ValueError(f"the seed of batches of {title} is {seed}; take 0 or more")
        if not 0 < batch_size <= length:
            raise ValueError(
                f"batch size {batch_size} for the {length} examples of {title}: take 1 to {length}"
            )
        if transform is None and None in (dataset.image_shape or ()):
            raise ValueError(
                f"examples of {title} vary in size: give a transform that makes them equal"
            )
        if image_shape is not None:
            given = dataset.image_shape
            if transform is not None:
                example = self._transformed(0, 0)
                given = next(example[name].shape for name in PICTURES if name in example)
            if given != tuple(image_shape):
                raise ValueError(
                    f"images of {title} have shape {given}, the network takes "
                    f"{tuple(image_shape)}: configure the network for this shape, take another "
                    "dataset, or give a transform"
                )

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        if step < 0:
            raise IndexError(f"batches have no step {step}: they begin with step 0, without end")
        positions = step * self.batch_size + self.rows
        indices = self._indices(positions)
        if self.transform is None:
            return self._examples(indices)
        places = zip(indices.tolist(), positions.tolist(), strict=True)
        return stack([self._transformed(*each) for each in places])

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yield `self[start]`, `self[start + 1]`, … up to `stop`, or without end.

        Threads of grain prefetch batches that must be read, decoded or transformed. Batches in
        memory are gathered directly: passing them between threads cost 2 % of the default
        experiment's time.

        Raises:
            ImportError: grain is needed and not installed (`self[step]` works without grain).
        """
        if isinstance(self.dataset.source, InMemory) and self.transform is None:
            steps = itertools.count(start) if stop is None else range(start, stop)
            return map(self.__getitem__, steps)
        try:
            import grain
        except ImportError as error:
            raise ImportError(
                f"batches are prefetched by grain ({error}): pip install grain"
            ) from error
        steps = grain.MapDataset.range(start, sys.maxsize if stop is None else stop)
        threads = num_threads()  # grain's default buffer of 500 batches would fill the memory
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        return iter(steps.map(self.__getitem__).to_iter_dataset(options))

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices of the examples at ascending positions of the stream."""
        epochs, offsets = np.divmod(positions, len(self.dataset.source))
        orders = range(epochs[0], epochs[-1] + 1)
        return np.concatenate([self._order(epoch)[offsets[epochs == epoch]] for epoch in orders])

    def _order(self, epoch: int) -> np.ndarray:
        length = len(self.dataset.source)
        return _permutation(self.seed, epoch, length) if self.shuffle else np.arange(length)

    def _transformed(self, index: int, position: int) -> Example:
        generator = np.random.default_rng((1, self.seed, position))
        return self.transform(self._examples(index), generator)

    def _examples(self, index: int | np.ndarray) -> Example:
        examples = self.dataset.source[index]
        if np.ndim(index) == 0:  # a view of the data, in which a transform may write
            examples = {name: np.array(value) for name, value in examples.items()}
        if self.dataset.captions is None:
            return examples
        return examples | {"index": np.asarray(index, np.int32)}


def reading_rate(batches: Batches, num_steps: int) -> float:
    """Return this process's examples per second over the first `num_steps` batches, start included.

    To measure how fast files are decoded, keep the set on disk: `load_dataset(…, preload_bytes=0)`.
    """
    start = time.perf_counter()
    count = sum(len(next(iter(batch.values()))) for batch in batches.iterate(0, num_steps))
    return count / (time.perf_counter() - start)


@functools.lru_cache(maxsize=4)  # threads run ahead into the next epoch
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((0, seed, epoch)).permutation(length)
