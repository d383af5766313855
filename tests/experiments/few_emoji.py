"""Some of the emoji as data sets: `config.data.name = "few_emoji.load"`."""

from dataclasses import replace

import numpy as np

from genjax.data import Dataset, InMemory, load_dataset


def load(split: str) -> Dataset:
    """Return 90 training and 60 held-out emoji with their captions."""
    return _equally_spaced(split, {"train": 90, "test": 60}[split])


def load_batches(split: str) -> Dataset:
    """Return 50 training and 50 held-out emoji: a batch of VGG16's features each."""
    return _equally_spaced(split, 50)


def load_more(split: str) -> Dataset:
    """Return 300 training and 100 held-out emoji: few, but enough for the scorer of names."""
    return _equally_spaced(split, {"train": 300, "test": 100}[split])


def load_fewer(split: str) -> Dataset:
    """Return 40 training and 60 held-out emoji."""
    return _equally_spaced(split, {"train": 40, "test": 60}[split])


def load_clips(split: str) -> Dataset:
    """Return clips of the emoji of `load`: frames 0, 2 and 4 show them, and 1 and 3 are black."""
    still = load(split)
    clips = np.zeros((len(still.source), 5, 32, 32, 3), np.uint8)
    clips[:, ::2] = still.source[:]["image"][:, None]
    return replace(still, source=InMemory({"video": clips}))


def _equally_spaced(split: str, count: int) -> Dataset:
    whole = load_dataset("emoji", split)
    rows = np.arange(count) * len(whole.source) // count
    return replace(
        whole, source=InMemory(whole.source[rows]), captions=[whole.captions[i] for i in rows]
    )
