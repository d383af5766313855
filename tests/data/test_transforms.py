import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import (
    Batches,
    Dataset,
    center_crop,
    compose,
    flip_example,
    flip_images,
    random_crop,
    resize,
    sound_to_float,
    sound_to_int16,
    to_float,
    to_uint8,
)
from genjax.data.dataset import OnDisk

every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_every_byte_makes_the_round_trip(array):
    floats = to_float(array(every_byte))
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    back = to_uint8(floats)
    assert type(back) is type(array(every_byte)) and back.dtype == np.uint8
    np.testing.assert_array_equal(back, every_byte)
    np.testing.assert_array_equal(
        jax.jit(lambda images: to_uint8(to_float(images)))(every_byte), every_byte
    )


def test_to_uint8_rounds_and_clips():
    pixels = np.array(
        [-3.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.0, 3.0], np.float32
    ).reshape(1, 6, 1)
    np.testing.assert_array_equal(to_uint8(pixels).ravel(), [0, 0, 0, 1, 255, 255])
    assert to_uint8(jnp.full((1, 1, 1), 1.0, jnp.bfloat16)) == 255


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_every_sample_of_sound_makes_the_round_trip(array):
    samples = np.arange(-(2**15), 2**15, dtype=np.int16)[:, None]
    floats = sound_to_float(array(samples))
    assert floats.dtype == np.float32 and (floats.min(), floats.max()) == (-1, 1 - 2**-15)
    np.testing.assert_array_equal(sound_to_int16(floats), samples)
    others = np.array([-3.0, 0.6 * 2**-15, -0.6 * 2**-15, 1.0, 3.0], np.float32)[:, None]
    expected = np.array([-(2**15), 1, -1, 2**15 - 1, 2**15 - 1])[:, None]
    np.testing.assert_array_equal(sound_to_int16(array(others)), expected)


@pytest.mark.parametrize(
    ("convert", "dtype", "message"),
    [
        (to_float, np.float32, "expected images of bytes, uint8; got float32: convert it first"),
        (to_float, np.int64, "got int64"),
        (to_float, bool, "got bool"),
        (to_uint8, np.uint8, "expected images of floats in .*; got uint8"),
        (sound_to_float, np.float32, "expected sounds of 16 bits, int16; got float32"),
        (sound_to_int16, np.int16, "expected sounds of floats in .*; got int16"),
    ],
)
def test_what_is_converted_already_is_refused(convert, dtype, message):
    """Floats would all become −1, and bytes all white."""
    with pytest.raises(ValueError, match=message):
        convert(np.ones((2, 2, 1), dtype))


def noise(height, width, channels=3):
    return np.random.default_rng(height * width).integers(
        0, 256, (height, width, channels), dtype=np.uint8
    )


def apply(transform, image, seed=0):
    return transform({"image": image, "label": np.int32(3)}, np.random.default_rng(seed))["image"]


def filtered(image, weights_of):
    """Filter rows, then columns, rounded to bytes after each, as Pillow does."""
    for axis in (1, 0):
        image = np.moveaxis(np.tensordot(weights_of(axis), image, (1, axis)), 0, axis)
        image = np.floor(image + 0.5).clip(0, 255)
    return image


def distances(length, new):
    """Return distances from new pixels' centres to old ones', in new pixels: [new, length]."""
    return (np.arange(length) + 0.5) * new / length - (np.arange(new)[:, None] + 0.5)


def box(length):
    """Return weights [length // 2, length] of the mean of the old pixels in a new pixel."""
    distance = distances(length, length // 2)
    weights = ((distance > -0.5) & (distance <= 0.5)).astype(float)
    return weights / weights.sum(1, keepdims=True)


def cubic(length, new):
    """Return weights [new, length] of R. Keys' kernel (1981), a = -1/2, widened for shrinking."""
    distance = np.abs(distances(length, new)) * min(length / new, 1.0)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    "height, width, size, expected_shape, halvings",
    [
        (20, 31, 16, (16, 25), 0),
        (64, 96, 16, (16, 24), 2),
        (70, 50, 12, (17, 12), 2),  # 70x50, 35x25, 17x12
        (9, 7, 14, (18, 14), 0),  # enlarged
        (16, 40, 16, (16, 40), 0),
        (31, 33, 16, (16, 17), 0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_box_halving_then_bicubic(
    height, width, size, expected_shape, halvings, channels
):
    image = noise(height, width, channels)
    expected = image.astype(float)
    for _ in range(halvings):
        expected = filtered(expected, lambda axis: box(expected.shape[axis]))  # noqa: B023
    if expected.shape[:2] != expected_shape:
        expected = filtered(
            expected, lambda axis: cubic(expected.shape[axis], expected_shape[axis])
        )
    resized = apply(resize(size), image)
    assert resized.shape == (*expected_shape, channels) and resized.dtype == np.uint8
    # Pillow's weights have 22 bits, so ties may be rounded differently.
    np.testing.assert_allclose(resized, expected, atol=1)
    assert (resized != expected).mean() < 0.02


def test_imagenet_preparation():
    image = noise(150, 90)
    prepared = apply(compose(resize(32), center_crop(32)), image)
    whole = apply(resize(32), image)  # 75x45, then 53x32
    assert whole.shape == (53, 32, 3)
    np.testing.assert_array_equal(prepared, whole[10:42])


def test_crops():
    image = noise(7, 9)
    np.testing.assert_array_equal(apply(center_crop(4), image), image[1:5, 2:6])
    places = set()
    for seed in range(400):
        crop = apply(random_crop(5), image, seed)
        (place,) = (
            (top, left)
            for top in range(3)
            for left in range(5)
            if (image[top : top + 5, left : left + 5] == crop).all()
        )
        places.add(place)
    assert len(places) == 3 * 5
    np.testing.assert_array_equal(apply(random_crop(7), image[:, :7]), image[:, :7])
    for crop in (center_crop(8), random_crop(8)):
        with pytest.raises(
            ValueError, match=r"shape \(7, 9, 3\) is smaller than the crop of 8: resize\(8\) first"
        ):
            apply(crop, image)


@pytest.mark.parametrize("transform", [resize(4), center_crop(4), random_crop(4), flip_example])
def test_what_is_no_single_image_is_refused(transform):
    for image in (noise(7, 9)[..., 0], noise(7, 9)[None], noise(0, 9)):
        with pytest.raises(ValueError, match=r"image has shape .*expected \[height width channels"):
            apply(transform, image)


def test_flip_of_an_example_keeps_the_rest():
    image = noise(3, 4)
    flips = []
    for seed in range(200):
        example = flip_example({"image": image, "label": np.int32(3)}, np.random.default_rng(seed))
        assert example["label"] == 3
        flips.append((example["image"] == image[:, ::-1]).all())
        assert flips[-1] or (example["image"] == image).all()
    assert 70 < sum(flips) < 130  # four standard deviations of 7 around 100


def test_flip_of_images_on_the_device():
    images = jnp.asarray(np.stack([noise(3, 4)] * 200))
    flipped = np.asarray(jax.jit(flip_images)(jax.random.key(0), images))
    assert flipped.dtype == np.uint8
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == images).all((1, 2, 3)) != mirrored).all()
    assert 70 < mirrored.sum() < 130
    other = np.asarray(flip_images(jax.random.key(1), images))
    assert (other != flipped).any()
    clips = jnp.stack([images, images[::-1] // 2], axis=1)  # all frames of a clip alike
    flipped = flip_images(jax.random.key(0), clips)
    np.testing.assert_array_equal(
        flipped, jnp.where(mirrored[:, None, None, None, None], clips[:, :, :, ::-1], clips)
    )


def test_transforms_make_batches_of_images_of_any_size():
    records = [{"image": noise(20 + i, 40 - i)} for i in range(8)]
    photos = Dataset(
        "photos", "train", OnDisk(records, {"image": np.dtype(np.uint8)}), (None, None, 3)
    )
    batches = Batches(
        photos,
        8,
        0,
        transform=compose(resize(18), random_crop(16), flip_example),
        image_shape=(16, 16, 3),
    )
    assert batches[0]["image"].shape == (8, 16, 16, 3)
    np.testing.assert_array_equal(next(batches.iterate(3))["image"], batches[3]["image"])
