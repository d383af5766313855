"""Measure what the choices of an evaluation protocol change in a Fréchet distance."""

import functools
import io
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.evaluation.context import in_batches
from genjax import metrics
from genjax.data import load_dataset
from genjax.models.encoders.vgg16 import vgg16_features
from genjax.nn.resize import area, bilinear, corner_bilinear, resize
from genjax.pretrained.lpips import load_lpips

COUNTS = 6  # numbers of images, each twice the next
Bytes = UInt8[np.ndarray, "images height width channels"]
Values = Float[np.ndarray, "images height width channels"]  # 0 … 255


def images_of(name: str, split: str) -> Bytes:
    """Return the images of a split in a fixed random order."""
    source = load_dataset(name, split).source
    return source[np.random.default_rng(0).permutation(len(source))]["image"]


def antialiased(images: Values, side: int) -> Values:
    """Resize by Pillow's bicubic interpolation, as clean-fid does, not rounded after."""
    shape = (len(images), side, side, images.shape[-1])
    resized = jax.image.resize(jnp.asarray(images, jnp.float32), shape, "cubic")
    return np.asarray(resized).clip(0, 255)


def by(matrix: Callable, images: Values, side: int) -> Values:
    """Resize by a function of `genjax.nn.resize`."""
    return np.asarray(resize(jnp.asarray(images, jnp.float32), side, side, matrix))


def jpeg(images: Bytes, quality: int) -> Bytes:
    """Return images as they come back from JPEG files of Pillow."""

    def stored(image):
        buffer = io.BytesIO()
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer)).reshape(image.shape)

    return np.stack([stored(image) for image in images])


def unrounded(images: Bytes) -> Values:
    """Return values that rounding would take to these bytes, uniform between the halves."""
    return images + np.random.default_rng(0).uniform(-0.5, 0.5, images.shape)


CHOICES: dict[str, Callable[[Bytes, int], Values]] = {
    "PNG, uint8, antialiased bicubic (clean-fid)": antialiased,
    "float samples, not rounded to uint8": lambda x, side: antialiased(unrounded(x), side),
    "rounded to uint8 after resizing": lambda x, side: antialiased(x, side).round(),
    "JPEG of quality 95": lambda x, side: antialiased(jpeg(x, 95), side),
    "JPEG of quality 75": lambda x, side: antialiased(jpeg(x, 75), side),
    "bilinear, not antialiased (pytorch-fid)": functools.partial(by, bilinear),
    "TensorFlow 1's bilinear (FID, torch-fidelity)": functools.partial(by, corner_bilinear),
}


def measure_choices(
    samples: Bytes, reference: Bytes, side: int, features: Callable[[Values], np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Return distances by each choice: made for the samples alone, and for both sets.

    Args:
        features: of images with values 0 … 255, `[images features]`.
    """
    usual, *_ = CHOICES.values()
    fixed = features(usual(reference, side))
    rows = {}
    for name, choice in CHOICES.items():
        chosen = features(choice(samples, side))
        rows[name] = (
            metrics.frechet_distance(chosen, fixed),
            metrics.frechet_distance(chosen, features(choice(reference, side))),
        )
    return rows


def measure_counts(samples: Bytes, reference: Bytes) -> dict[str, float]:
    """Return distances of equally many images, and their extrapolation, of pixels at 8×8."""
    pixels = lambda x: by(area, x / np.float32(127.5) - 1, 8).reshape(len(x), -1)
    a, b = pixels(samples), pixels(reference)
    count = min(len(a), len(b))
    counts = [count >> i for i in range(COUNTS) if count >> i > 1]
    distances = {f"{n:,}": metrics.frechet_distance(a[:n], b[:n]) for n in reversed(counts)}
    if count < 4 * a.shape[1]:
        return distances
    line = metrics.extrapolated_frechet_distance(a[:count], b[:count])
    reach = metrics.bootstrap_interval(
        metrics.frechet_distance, a[:count], b[:count], resamples=200
    )
    return distances | {"∞": line.distance, "95 % from": reach[0], "95 % to": reach[1]}


def vgg16() -> Callable[[Values], np.ndarray]:
    """Return the features of VGG16, in batches."""
    variables = {"params": load_lpips()[1]["params"]["vgg16"]}
    program = jax.jit(vgg16_features)
    of_batch = lambda images: program(variables, images / np.float32(127.5) - 1)
    return lambda images: in_batches(of_batch, images.astype(np.float32))


def markdown(rows: dict[str, tuple[float, float]]) -> str:
    """Return a table of distances, and of how far each is from the first row's."""
    (_, usual), *_ = rows.values()
    lines = ["| choice | samples alone | both sets |", "|---|---|---|"]
    for name, distances in rows.items():
        cells = [f"{value:.3g} ({100 * (value / usual - 1):+.1f} %)" for value in distances]
        lines.append(f"| {name} | {' | '.join(cells).replace('-', '−')} |")
    return "\n".join(lines)
