"""Adaptive discriminator augmentation, ADA (Karras et al. 2020).

"Training generative adversarial networks with limited data". Real and generated images are changed
at random before the discriminator sees them, each change with probability p. As long as p is below
about 0.8, the generator does not learn the changes (section 2.2). p follows the overfitting of the
discriminator, which r_t measures: the mean sign of its logits of real images. r_t should stay at
0.6 (section 3).

    change = draw(key, p, image.shape)
    image = apply(image, change)
    p = adjusted(p, jnp.sign(logits_of_real).mean(), images=batch_size)

`ADA` does all of this in a training step, and `Adaptation` is its state.

All geometric changes are one matrix and all colour changes another, so each of the two acts only
once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which loads its parts when they are used: `scipy.signal` is slow to import
from jaxtyping import Array, Float, Int, Key, Real

from genjax.adversarial.augmentation import check_image
from genjax.filters import filter_axis, resample_axis

Number = float | int | Real[Array, ""]
Image = Float[Array, "height width channels"]

# Low-pass filters of Daubechies' symlets of 6 and 2 vanishing moments, of norm 1.
SYM6 = np.array(
    [0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633]
    + [0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252]
    + [-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148]
)
SYM2 = np.array([-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025])
BANDS = 4  # of frequencies that are amplified apart
POWER = np.array([10, 1, 1, 1]) / 13  # expected of natural images in each band
LUMA = np.array([1, 1, 1, 0]) / np.sqrt(3)
# TPUs round the factors of products of default precision to bfloat16, which moves pixels.
product = functools.partial(jnp.matmul, precision="highest")


class Strengths(NamedTuple):
    """Factors of p for each group of changes; 0 leaves the group out.

    The defaults, "bgc", serve all of the authors' data sets.
    """

    blitting: float = 1.0  # flips, quarter turns, moves by whole pixels
    geometry: float = 1.0  # scales, turns, moves by fractions
    color: float = 1.0
    filtering: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0


class Change(NamedTuple):
    """The changes of one image.

    Attributes:
        geometry: from places (x, y, 1) of the new image to those of the old one, in pixels, with
            (0, 0) in the centre.
        color: from a pixel's (red, green, blue, 1) to its new ones.
        gains: factors of the bands of frequencies, from the lowest.
        noise: what is added.
        hole: centre (x, y) and size of a box that becomes 0, in sides of the image.
    """

    geometry: Float[Array, "3 3"]
    color: Float[Array, "4 4"]
    gains: Float[Array, " bands"]
    noise: Float[Array, "height width _"]
    hole: Float[Array, "3"]


def draw(
    key: Key[Array, ""],
    probability: Number,
    shape: tuple[int, int, int],
    strengths: Strengths,
) -> Change:
    """Draw the changes of an image, each with a probability (appendix B, table 3).

    Args:
        shape: height, width and channels.
    """
    height, width, _ = shape
    keys = iter(jax.random.split(key, 40))
    uniform = lambda *shape: jax.random.uniform(next(keys), shape, minval=-1.0)
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    happens = lambda p: jax.random.uniform(next(keys)) < p
    chosen = lambda p, value, neutral: jnp.where(happens(p), value, neutral)
    below = lambda count: jax.random.randint(next(keys), (), 0, count)
    sides = jnp.array([width, height])

    p = probability * strengths.blitting
    flip, turns = chosen(p, below(2), 0), chosen(p, below(4), 0)
    pixels = chosen(p, jnp.round(uniform(2) / 8 * sides), 0.0)
    p = probability * strengths.geometry
    turned = 1 - jnp.sqrt(jnp.clip(1 - p, 0, 1))  # so that one of two turns happens with p
    scale, stretch = (chosen(p, jnp.exp2(0.2 * normal()), 1.0) for _ in range(2))
    before, after = (chosen(turned, jnp.pi * uniform(), 0.0) for _ in range(2))
    fractions = chosen(p, normal(2) / 8 * sides, 0.0)
    geometry = geometry_of(flip, turns, pixels, scale, before, stretch, after, fractions)

    p = probability * strengths.color
    brightness, contrast = chosen(p, 0.2 * normal(), 0.0), chosen(p, jnp.exp2(normal() / 2), 1.0)
    luma_flip = chosen(p, below(2), 0)
    hue, saturation = chosen(p, jnp.pi * uniform(), 0.0), chosen(p, jnp.exp2(normal()), 1.0)
    color = color_of(brightness, contrast, luma_flip, hue, saturation)

    p = probability * strengths.filtering
    gains = gains_of([chosen(p, jnp.exp2(normal()), 1.0) for _ in range(BANDS)])
    deviation = chosen(probability * strengths.noise, 0.1 * jnp.abs(normal()), 0.0)
    size = chosen(probability * strengths.cutout, 0.5, 0.0)
    centre = (uniform(2) + 1) / 2
    return Change(geometry, color, gains, deviation * normal(*shape), jnp.append(centre, size))


def apply(image: Image, change: Change, strengths: Strengths) -> Image:
    """Return the changed image; groups with a strength of 0 cost nothing.

    Raises:
        ValueError: the image has neither 1 nor 3 channels.
    """
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"an image has {image.shape[-1]} channels; ADA changes 1 or 3")
    if strengths.blitting or strengths.geometry:
        image = _warp(image, change.geometry)
    if strengths.color:
        image = _recolor(image, change.color)
    if strengths.filtering:
        image = _amplify(image, change.gains)
    image = image + change.noise if strengths.noise else image
    return _cut(image, change.hole) if strengths.cutout else image


def adjusted(
    probability: Number,
    r_t: Number,
    images: Number,
    target: float = 0.6,
    images_to_one: float = 5e5,
) -> Float[Array, ""]:
    """Return p after some images: larger if r_t is above its target, else smaller, never below 0.

    Args:
        r_t: mean sign of the discriminator's logits of real training images, since the last change.
        images: number of real images since the last change.
        images_to_one: number of images in which p can rise from 0 to 1.
    """
    return jnp.maximum(probability + jnp.sign(r_t - target) * images / images_to_one, 0.0)


class Adaptation(NamedTuple):
    """The state of adaptive augmentation.

    Attributes:
        probability: p.
        signs: sum of the signs of the logits of real images since p was last adjusted.
        images: number of these images.
    """

    probability: Float[Array, ""]
    signs: Float[Array, ""]
    images: Float[Array, ""]


@dataclass(frozen=True)
class ADA:
    """Random changes of images, whose probability p keeps r_t at its target.

    Each image of a batch has its own changes:

        change = functools.partial(ada, probability=adaptation.probability)
        changed = augment(jax.random.split(key, len(real)), real, [change])
        signs = jnp.sign(discriminator(changed))  # of real images
        adaptation = ada.update(adaptation, step, signs.mean(), images=len(real))

    Attributes:
        changes: groups of changes, the names of `Strengths`.
        target: the r_t to keep.
        images_to_one: number of images in which p can rise from 0 to 1. The authors take 500,000,
            and 100,000 when they fine-tune.
        every: steps from one adjustment of p to the next.

    Raises:
        ValueError: a group does not exist, `every` is below 1, `target` is not between −1 and 1, or
            `images_to_one` is not positive.
    """

    changes: tuple[str, ...] = ("blitting", "geometry", "color")
    target: float = 0.6
    images_to_one: float = 500_000.0
    every: int = 4

    def __post_init__(self):
        if unknown := set(self.changes) - set(Strengths._fields):
            raise ValueError(
                f"ADA has no changes {min(unknown)!r}; there are {', '.join(Strengths._fields)}"
            )
        if self.every < 1:
            raise ValueError(f"ADA adjusts p every {self.every} steps; it must be at least 1")
        if not -1 < self.target < 1:
            raise ValueError(f"ADA's target is {self.target}; a mean sign is between -1 and 1")
        if self.images_to_one <= 0:
            raise ValueError(f"ADA's images_to_one is {self.images_to_one}; it must be positive")

    def init(self) -> Adaptation:
        """Return the state before the first step, with p = 0."""
        return Adaptation(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    def __call__(self, key: Key[Array, ""], image: Image, probability: Number) -> Image:
        """Return an image after changes that each happen with the probability p.

        Args:
            image: one image in [−1, 1], `[height width channels]`.

        Raises:
            ValueError: the image has neither 1 nor 3 channels, or is a batch.
        """
        check_image(image)
        strengths = Strengths(*(float(group in self.changes) for group in Strengths._fields))
        return apply(image, draw(key, probability, image.shape, strengths), strengths)

    def update(
        self, adaptation: Adaptation, step: int | Int[Array, ""], r_t: Number, images: int
    ) -> Adaptation:
        """Return the state after a step; p is adjusted after each `every` steps.

        Args:
            step: number of steps before this one.
            r_t: mean sign of the discriminator's logits of this step's real images.
            images: number of these images.
        """
        signs, images = adaptation.signs + images * r_t, adaptation.images + images
        p = adjusted(
            adaptation.probability, signs / images, images, self.target, self.images_to_one
        )
        adjusts = (step + 1) % self.every == 0
        collected = Adaptation(adaptation.probability, signs, images)
        return jax.tree.map(
            lambda new, old: jnp.where(adjusts, new, old),
            self.init()._replace(probability=p),
            collected,
        )


# From numbers to matrices and gains.


def geometry_of(
    flip: Number,
    turns: Number,
    pixels: Float[Array, "2"],
    scale: Number,
    before: Number,
    stretch: Number,
    after: Number,
    fractions: Float[Array, "2"],
) -> Float[Array, "3 3"]:
    """Return `Change.geometry` of changes that follow one another.

    Args:
        flip: 1 mirrors left and right.
        turns: by quarters of a circle.
        pixels, fractions: what the image is moved by, (x, y).
        scale: factor of both sides.
        before, after: angles of turns before and after the stretch.
        stretch: factor of the width, and one over it of the height.
    """
    inverses = [
        _scaled(1 - 2 * flip, 1.0),
        _turned(jnp.pi / 2 * turns),
        _moved(-pixels),
        _scaled(1 / scale, 1 / scale),
        _turned(before),
        _scaled(1 / stretch, stretch),
        _turned(after),
        _moved(-fractions),
    ]
    return functools.reduce(product, inverses)


def color_of(
    brightness: Number, contrast: Number, luma_flip: Number, hue: Number, saturation: Number
) -> Float[Array, "4 4"]:
    """Return `Change.color` of changes that follow one another.

    Args:
        brightness: what is added to all channels.
        contrast: factor of all channels.
        luma_flip: 1 mirrors at the plane of no brightness.
        hue: angle of a turn around the axis of greys.
        saturation: factor of the distance from the axis of greys.
    """
    grey = jnp.asarray(np.outer(LUMA, LUMA), jnp.float32)
    x, y, z, _ = LUMA
    cross = jnp.array([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0]], jnp.float32)
    last = jnp.diag(jnp.array([0.0, 0.0, 0.0, 1.0]))
    chroma = jnp.eye(4) - last - grey
    added = jnp.eye(4).at[:3, 3].set(brightness)
    scaled = jnp.diag(jnp.append(jnp.full(3, contrast), 1.0))
    turned = grey + last + jnp.cos(hue) * chroma + jnp.sin(hue) * cross  # Rodrigues
    return functools.reduce(
        product,
        [
            grey + (jnp.eye(4) - grey) * saturation,
            turned,
            jnp.eye(4) - 2 * luma_flip * grey,
            scaled,
            added,
        ],
    )


def gains_of(amplifications: Sequence[Number]) -> Float[Array, " bands"]:
    """Return `Change.gains` of one factor for each band, each normalized to unit power."""
    gains = jnp.ones(BANDS)
    for band, factor in enumerate(amplifications):
        each = jnp.ones(BANDS).at[band].set(factor)
        gains = gains * each / jnp.sqrt(jnp.sum(POWER * each**2))
    return gains


def _scaled(x: Number, y: Number) -> Float[Array, "3 3"]:
    return jnp.diag(jnp.stack([jnp.float32(x), jnp.float32(y), jnp.float32(1)]))


def _turned(angle: Number) -> Float[Array, "3 3"]:
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.eye(3).at[:2, :2].set(jnp.array([[cosine, -sine], [sine, cosine]]))


def _moved(by: Float[Array, "2"]) -> Float[Array, "3 3"]:
    return jnp.eye(3).at[:2, 2].set(by)


# From images to images.


def _warp(image: Image, geometry: Float[Array, "3 3"]) -> Image:
    """Move the pixels of an image, reflected beyond its borders, between two symlet filters."""
    height, width, _ = image.shape
    ends = (height - 1,) * 2, (width - 1,) * 2, (0, 0)
    large = _resample(jnp.pad(image, ends, mode="reflect"), SYM6, up=2, padding=(6, 5))
    # Places of the pixels of the upsampled new image, with three more on each side.
    sides = 2 * (height + 6), 2 * (width + 6)
    y, x = jnp.meshgrid(*((jnp.arange(n) - (n - 1) / 2) for n in sides), indexing="ij")
    places = jnp.stack([(x + 0.5) / 2, (y + 0.5) / 2, jnp.ones_like(x)])
    old_x, old_y, _ = jnp.einsum("ij,jhw->ihw", geometry, places, precision="highest")
    middle = lambda place, n: 2 * place - 0.5 + (n - 1) / 2
    at = middle(old_y, large.shape[0]), middle(old_x, large.shape[1])
    return _resample(_interpolated(large, *at), SYM6[::-1], down=2, padding=(-1, -1))


def _interpolated(
    image: Image, y: Float[Array, "rows columns"], x: Float[Array, "rows columns"]
) -> Float[Array, "rows columns channels"]:
    """Interpolate linearly between pixels, and between the border and 0 beyond it.

    One slice reads the four neighbours of a place. On XLA's CPU backend, the gradient then takes a
    quarter of the time that a gather for each neighbour takes.
    """
    height, width, channels = image.shape
    padded = jnp.pad(image, ((1, 2), (1, 2), (0, 0)))
    y, x = jnp.clip(y, -1, height) + 1, jnp.clip(x, -1, width) + 1
    top, left = jnp.floor(y), jnp.floor(x)
    neighbours = lambda i, j: jax.lax.dynamic_slice(padded, (i, j, 0), (2, 2, channels))
    four = jax.vmap(jax.vmap(neighbours))(top.astype(int), left.astype(int))
    weights = lambda place, start: jnp.stack([start + 1 - place, place - start], axis=-1)
    of_both = weights(y, top), weights(x, left)
    return jnp.einsum("hwi,hwj,hwijc->hwc", *of_both, four, precision="highest")


def _resample(
    image: Image, taps: np.ndarray, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)
) -> Float[Array, "new_height new_width channels"]:
    """Insert zeros, filter both axes by taps of sum 1, and keep every `down`-th pixel."""
    for axis in (0, 1):
        image = resample_axis(image, taps / taps.sum() * up, axis, up, down, padding)
    return image


def _recolor(image: Image, color: Float[Array, "4 4"]) -> Image:
    if image.shape[-1] == 1:  # hue and saturation do not change a mean over channels
        mean = color[:3].mean(axis=0)
        return image * mean[:3].sum() + mean[3]
    return product(image, color[:3, :3].T) + color[:3, 3]


@functools.cache
def _bank() -> Float[np.ndarray, "bands taps"]:
    """Return the filters of the bands: of symlets of two moments, an octave each, of sum 1."""
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = SYM2 * (-1.0) ** np.arange(len(SYM2))
    high = np.convolve(high, high[::-1]) / 2
    bank = np.eye(BANDS, 1)
    for band in range(1, BANDS):
        spread = np.zeros((BANDS, 2 * bank.shape[1] - 1))
        spread[:, ::2] = bank
        bank = scipy.signal.convolve(spread, low[None])
        start = (bank.shape[1] - len(high)) // 2
        bank[band, start : start + len(high)] += high
    return bank


def _amplify(image: Image, gains: Float[Array, " bands"]) -> Image:
    weights = product(gains, jnp.asarray(_bank(), jnp.float32))
    reach = len(weights) // 2
    for axis in (0, 1):
        ends = [(0, 0)] * 3
        ends[axis] = (reach, reach)
        padded = jnp.pad(image, ends, mode="reflect")
        image = filter_axis(padded, weights[::-1], axis, up=1, down=1, padding=(0, 0))
    return image


def _cut(image: Image, hole: Float[Array, "3"]) -> Image:
    far = [
        jnp.abs((jnp.arange(side) + 0.5) / side - centre) >= hole[2] / 2
        for side, centre in zip(image.shape[:2], (hole[1], hole[0]), strict=True)
    ]
    return image * (far[0][:, None] | far[1])[..., None]
