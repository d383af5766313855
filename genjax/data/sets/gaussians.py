"""Points in the plane around a few centres, where a generator's lost modes are easy to see."""

import functools

import numpy as np

from genjax.data.dataset import Dataset, InMemory, take

_ANGLES = 2 * np.pi * np.arange(8) / 8
_SIDE = np.linspace(-4.0, 4.0, 5)

MODES = {
    "grid_of_gaussians": (np.stack(np.meshgrid(_SIDE, _SIDE), -1).reshape(-1, 2), 0.05),
    "ring_of_gaussians": (2 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1), 0.02),
}
"""Centres `[modes 2]` and standard deviation of each set: 25 on a grid, and 8 on a circle."""

SIZES = {"train": 50_000, "test": 10_000}


def points_of(name: str, split: str) -> Dataset:
    """Return a set of Gaussians: `image` is a point, float32 `[2]`, and `label` its mode.

    All modes have equally many points. The points are drawn from a fixed seed.

    Raises:
        ValueError: the split is unknown.
    """
    centres, deviation = MODES[name]

    def draw(part: str) -> np.ndarray:
        generator = np.random.default_rng(list(SIZES).index(part))
        labels = np.arange(SIZES[part]) % len(centres)
        points = centres[labels] + deviation * generator.standard_normal((len(labels), 2))
        return generator.permutation(np.column_stack([points, labels]))

    rows = np.concatenate(take(split, {part: functools.partial(draw, part) for part in SIZES}))
    arrays = {"image": rows[:, :2].astype(np.float32), "label": rows[:, 2].astype(np.int32)}
    return Dataset(name, split, InMemory(arrays), num_classes=len(centres))
