"""Equivariance of generators: how exactly images move and turn with the input."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from experiments.evaluation.context import Context, Model, in_batches
from experiments.inputs.datasets import labels_of
from genjax.data import to_uint8
from genjax.metrics import equivariance

REACH = 1 / 8  # longest shift, in sides of the image, as in the authors' program
LEAST_SIDE = 16  # of images whose rotation is known anywhere
BATCH = 32  # images made at once
FILM_RADIUS = 2.0  # pixels by which the film moves its images

Transform = Float[np.ndarray, "3 3"]


def shift(x: float, y: float, side: int) -> Transform:
    """Return the transform of the input that moves the image right and down, in pixels."""
    return np.array([[1, 0, -x / side], [0, 1, -y / side], [0, 0, 1]], np.float32)


def turn(angle: float) -> Transform:
    """Return the transform of the input that turns the image by an angle, in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Move:
    """A transform, and how images before and after it are compared.

    Attributes:
        expected: from the image of the unchanged input to what `found` should be, with a mask.
        found: from the image of the transformed input to what is compared, with a mask.
    """

    transform: Transform
    expected: Callable
    found: Callable


def draw_moves(random: np.random.Generator, side: int) -> dict[str, Move]:
    """Draw one move of each metric (Karras et al. 2021, "StyleGAN3", appendix E)."""
    whole = np.rint(random.uniform(-1, 1, 2) * REACH * side).astype(int).tolist()
    x, y = random.uniform(-1, 1, 2) * REACH * side
    angle = random.uniform(-np.pi, np.pi)
    same = lambda images: (images, np.ones(images.shape[1:3], bool))
    by = lambda function, *numbers: lambda images: function(images, *numbers)
    return {
        "eq_t": Move(shift(*whole, side), by(equivariance.translated_by_pixels, *whole), same),
        "eq_t_frac": Move(shift(x, y, side), by(equivariance.translated, x, y), same),
        "eq_r": Move(
            turn(angle),
            by(equivariance.rotated, angle),
            by(equivariance.pseudo_rotated, angle),
        ),
    }


@dataclass(frozen=True)
class Equivariance:
    """Measure EQ-T, EQ-T of fractions and EQ-R in dB, and draw films of moved and turned inputs.

    The generator's input moves by up to an eighth of the side: by whole pixels for `eq_t`, by
    fractions for `eq_t_frac`. For `eq_r` it turns by any angle. The image is compared with the
    moved or turned image of the unchanged input. Errors are pooled over all images (Karras et al.
    2021, "StyleGAN3", equation 25). The generator computes in float32, as in the authors' program.

    The generator must take a transform of its input. StyleGAN3 does, and StyleGAN2 with
    `fourier_input`, the paper's configuration B. A learned constant cannot be moved.

    Attributes:
        draws: moves of each kind. Each is of its own part of the samples.
        columns: images in the films.
        frames: of a film. A film ends where it starts.
    """

    context: Context
    draws: int = 16
    columns: int = 8
    frames: int = 48
    needs: ClassVar[tuple[str, ...]] = ("transformed",)

    def __post_init__(self):
        if min(self.context.data.image_shape[:2]) < LEAST_SIDE:
            raise ValueError(
                f"config.evaluation.measures has Equivariance, which takes images of at least "
                f"{LEAST_SIDE} pixels a side; config.data.image_shape is "
                f"{self.context.data.image_shape}: leave it out"
            )
        if not 1 <= self.draws <= self.context.num_samples:
            raise ValueError(
                "config.evaluation.measures has Equivariance, whose draws must be from 1 to "
                f"num_samples, {self.context.num_samples}; got {self.draws}"
            )

    def __call__(self, model: Model) -> dict[str, Any]:
        context, side = self.context, self.context.data.image_shape[0]
        labels = context.draw_labels(lambda: labels_of(context.data.train().source[:]))
        random = np.random.default_rng(0)
        errors: dict[str, list[tuple[float, int]]] = {}
        for rows in np.array_split(np.arange(len(labels)), self.draws):
            moves = draw_moves(random, side)
            still, *moved = _images(
                model, labels, rows, [np.eye(3), *(move.transform for move in moves.values())]
            )
            for (name, move), images in zip(moves.items(), moved, strict=True):
                (expected, mask), (found, also) = move.expected(still), move.found(images)
                squares = np.square(expected - found)[:, mask & also]
                errors.setdefault(name, []).append((float(squares.sum()), squares.size))
        totals = {name: map(sum, zip(*each, strict=True)) for name, each in errors.items()}
        return {
            **{name: equivariance.decibels(*each) for name, each in totals.items()},
            **self._films(model, labels, side),
            "num_samples": len(labels),
            "labels": context.labels,
            **model.how,
        }

    def _films(self, model: Model, labels: np.ndarray, side: int) -> dict[str, list[Image.Image]]:
        """Return films of the first images: moved on a small circle, and turned once."""
        angles = 2 * np.pi * np.arange(self.frames + 1) / self.frames
        circle = FILM_RADIUS * np.stack([1 - np.cos(angles), np.sin(angles)], axis=1)
        films = {
            "translation": [shift(x, y, side) for x, y in circle],
            "rotation": [turn(angle) for angle in angles],
        }
        rows = np.arange(min(self.columns, len(labels)))
        draw = functools.partial(self.context.space.picture, columns=len(rows))
        return {
            name: [draw(to_uint8(frame)) for frame in _images(model, labels, rows, transforms)]
            for name, transforms in films.items()
        }


def _images(
    model: Model, labels: np.ndarray, rows: np.ndarray, transforms: list[Transform]
) -> Float[np.ndarray, "transforms rows height width channels"]:
    """Return the images of some rows for each transform of their input."""
    many = np.repeat(np.asarray(transforms, np.float32), len(rows), axis=0)
    indices = np.tile(rows, len(transforms))
    transformed = model.functions["transformed"]
    images = in_batches(transformed, labels[indices], indices, many, size=BATCH)
    return images.reshape(len(transforms), len(rows), *images.shape[1:])
