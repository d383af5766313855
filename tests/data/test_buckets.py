import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from genjax.data import (
    BucketedBatches,
    Dataset,
    InMemory,
    aspect_buckets,
    image_sizes,
    load_folder,
    resized_to,
    squared,
)
from genjax.data.buckets import nearest_buckets, resize_and_crop, stored_size
from genjax.data.dataset import OnDisk
from genjax.models.transformers.flux import Flux
from genjax.models.transformers.mmdit import MMDiT
from genjax.models.transformers.pixart import PixArt
from genjax.nn import Text

WIDE, SQUARE, HIGH = BUCKETS = (4, 12), (8, 8), (12, 4)
COUNTS = 7, 10, 5  # examples nearest to each bucket
BATCH = 4


def photos() -> Dataset:
    """Pictures of many sizes in separate buckets; pixels and label hold the example's number."""
    random = np.random.default_rng(0)
    ratios = np.repeat([1 / 3, 1, 3], COUNTS) * random.uniform(0.8, 1.25, sum(COUNTS))
    random.shuffle(ratios)
    records = [
        {
            "image": np.full((round(20 * ratio**0.5), round(20 / ratio**0.5), 3), i, np.uint8),
            "label": i,
        }
        for i, ratio in enumerate(ratios)
    ]
    source = OnDisk(records, {"image": np.dtype(np.uint8), "label": np.dtype(np.int32)})
    return Dataset("photos", "train", source, (None, None, 3))


def noisy(example, generator):
    return {**example, "noise": generator.random()}


def make(batch_size=BATCH, seed=3, **options):
    options = dict(buckets=BUCKETS, transform=noisy, random_crop=True) | options
    return BucketedBatches(photos(), batch_size, seed, **options)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def gradient(height, width):
    """Red grows from top to bottom and green from left to right, both linearly from 0 to 250."""
    rows, columns = np.linspace(0, 250, height)[:, None], np.linspace(0, 250, width)[None]
    image = np.stack([*np.broadcast_arrays(rows, columns), np.zeros((height, width))], -1)
    return image.round().astype(np.uint8)


def test_the_buckets_of_sdxl():
    """Podell et al. 2023, appendix I, by shorter side; only the authors' code has 1344×704."""
    longer = {
        512: (1856, 1920, 1984, 2048),
        576: (1664, 1728, 1792),
        640: (1536, 1600),
        704: (1344, 1408, 1472),
        768: (1280, 1344),
        832: (1152, 1216),
        896: (1088, 1152),
        960: (1024, 1088),
        1024: (1024,),
    }
    pairs = {(short, side) for short, sides in longer.items() for side in sides}
    buckets = aspect_buckets(1024**2, 64, 4.0)
    assert set(buckets) == pairs | {pair[::-1] for pair in pairs} and len(buckets) == 41
    assert buckets[0] == (512, 2048) and buckets[-1] == (2048, 512)
    assert set(aspect_buckets(512**2, 32, 2.0)) == {
        (height // 2, width // 2) for height, width in buckets if 0.5 <= height / width <= 2
    }


def test_the_nearest_bucket():
    """The distance of ratios a and b is the larger of a/b and b/a, here without rounding."""
    buckets = aspect_buckets(64**2, 8, 3.0)
    # More sizes than are compared at a time.
    sizes = np.random.default_rng(0).integers(20, 400, (1500, 2))
    for (height, width), number in zip(
        sizes.tolist(), nearest_buckets(sizes, buckets), strict=True
    ):
        quotients = [Fraction(height * b[1], width * b[0]) for b in buckets]
        distances = [max(quotient, 1 / quotient) for quotient in quotients]
        assert distances[number] == min(distances)


def test_of_equal_ratios_the_nearest_area():
    buckets = (64, 96), (32, 48), (32, 32), (16, 24), (20, 50)
    sizes = np.array([[40, 60], [48, 72], [60, 80], [10, 15], [24, 30]])
    # 40/32 < 64/40, but 64/48 < 48/32; the area of 24×30 is nearer to 16×24's than to 32×48's
    assert nearest_buckets(sizes, buckets).tolist() == [1, 0, 0, 3, 3]


@pytest.fixture
def folder(tmp_path):
    """Files of four formats, upright and, where the format allows, rotated by a quarter turn.

    EXIF says so, or XMP.
    """
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "train").mkdir()
    for suffix in ("jpg", "webp"):
        xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        Image.fromarray(gradient(50, 30)).save(tmp_path / f"train/marked.{suffix}", xmp=xmp)
    for number, suffix in enumerate(("jpg", "png", "webp", "tiff", "bmp")):
        Image.fromarray(gradient(20 + number, 30)).save(tmp_path / f"train/upright.{suffix}")
        if suffix != "bmp":
            Image.fromarray(gradient(40 + number, 30)).save(
                tmp_path / f"train/turned.{suffix}", exif=turned
            )
    return tmp_path


def test_the_size_of_a_png_with_xmp_needs_no_pixels(tmp_path):
    """Half of the file is missing."""
    info = PngImagePlugin.PngInfo()
    rotated = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", rotated)
    noise = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path, pnginfo=info)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert stored_size(path) == (30, 50)


def test_sizes_of_files_by_their_headers(folder, monkeypatch):
    dataset = load_folder("train", folder)
    expected = [dataset.source[i]["image"].shape[:2] for i in range(len(dataset.source))]
    assert {shape[0] for shape in expected} == {30, *range(20, 25)}  # some were rotated
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # nothing can be decoded
    sizes = image_sizes(dataset)
    assert sizes.dtype == np.int32 and list(map(tuple, sizes.tolist())) == expected


def test_sizes_of_other_sets():
    dataset = photos()
    expected = [record["image"].shape[:2] for record in dataset.source.records]
    assert list(map(tuple, image_sizes(dataset).tolist())) == expected
    same = Dataset("same", "train", InMemory({"image": np.zeros((5, 4, 6, 3), np.uint8)}))
    assert image_sizes(same).tolist() == [[4, 6]] * 5


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("size", [(100, 100), (60, 200), (199, 61), (33, 21), (41, 90), (24, 36)])
def test_crops_show_what_they_say(size, random):
    """A bicubic filter preserves linear functions, so a pixel tells its original place."""
    bucket = 24, 36
    generator = np.random.default_rng(1) if random else None
    pixels, corner = resize_and_crop(gradient(*size), bucket, generator)
    assert pixels.shape == (*bucket, 3)
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    for axis in (0, 1):
        side = round(size[axis] * scale)
        assert 0 <= corner[axis] <= side - bucket[axis]
        if not random:
            assert corner[axis] == (side - bucket[axis]) // 2
        place = (corner[axis] + np.arange(bucket[axis]) + 0.5) * size[axis] / side - 0.5
        # The filter does not reach an edge.
        inner = (place > 2 / scale + 1) & (place < size[axis] - 2 / scale - 2)
        expected = 250 * place / (size[axis] - 1)
        shown = np.moveaxis(pixels[..., axis].astype(float), axis, 0)[inner]
        assert inner.sum() > 10
        # Bytes are rounded before and after, and a filter whose weights sum to 1 may overshoot as
        # much.
        np.testing.assert_allclose(
            shown, np.broadcast_to(expected[inner, None], shown.shape), atol=1.5
        )


def test_an_image_of_the_buckets_size_stays_as_it_is():
    for channels in (1, 3):
        image = np.random.default_rng(0).integers(0, 256, (24, 36, channels), dtype=np.uint8)
        pixels, corner = resize_and_crop(image, (24, 36))
        np.testing.assert_array_equal(pixels, image)
        assert corner == (0, 0)


def test_random_crops_are_uniform():
    generator = np.random.default_rng(0)
    corners = [resize_and_crop(gradient(8, 12), (8, 8), generator)[1] for _ in range(500)]
    assert {top for top, _ in corners} == {0}
    # Five places, 100 expected each, with a standard deviation of 9.
    assert np.all(np.abs(np.bincount([left for _, left in corners], minlength=5) - 100) < 40)


def test_batches_are_a_function_of_the_step():
    batches = make()
    for start in (0, 7, 1_000_000):
        stream = itertools.islice(make().iterate(start), 4)
        for step, batch in enumerate(stream, start):
            assert_equal(batch, batches[step])
            assert batch["image"].shape == (BATCH, *batches.bucket(step), 3)
    assert [len(batch["label"]) for batch in batches.iterate(2, stop=4)] == [BATCH, BATCH]
    noise = np.concatenate([batches[step]["noise"] for step in range(10)])
    assert len(np.unique(noise)) == 10 * BATCH
    assert any(np.any(make()[step]["label"] != make(seed=4)[step]["label"]) for step in range(2))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_rows_make_up_the_whole(count):
    parts = [make(rows=rows) for rows in np.split(np.arange(BATCH), count)]
    for step in range(12):
        pieces = [part[step] for part in parts]
        assert_equal(
            make()[step], {n: np.concatenate([piece[n] for piece in pieces]) for n in pieces[0]}
        )


def test_what_a_batch_holds():
    batches = make()
    records = batches.dataset.source.records
    seen = set()
    for step in range(22):
        batch, bucket = batches[step], batches.bucket(step)
        assert batch["size"].dtype == batch["crop"].dtype == batch["label"].dtype == np.int32
        for image, label, size, crop in zip(
            *map(batch.get, ("image", "label", "size", "crop")), strict=True
        ):
            assert np.all(image == label)
            assert tuple(size) == records[label]["image"].shape[:2]
            ratio = size[0] / size[1]
            assert bucket == BUCKETS[np.searchsorted([3**-0.5, 3**0.5], ratio)]
            scale = max(bucket / size)
            assert np.all(crop >= 0) and np.all(crop + bucket <= np.round(size * scale))
            seen.add(tuple(crop))
    assert len(seen) > 3


def test_mirrored_images_have_the_crop_of_the_mirrored_image():
    image = gradient(8, 15)
    dataset = Dataset("mine", "train", InMemory({"image": image[None]}))
    mirror = lambda example, generator: {**example, "image": example["image"][:, ::-1]}
    batch = BucketedBatches(dataset, 1, 0, buckets=[(8, 8)], transform=mirror, random_crop=True)[0]
    left = batch["crop"][0, 1]
    np.testing.assert_array_equal(batch["image"][0], image[:, ::-1][:, left : left + 8])


def test_captioned_sets_have_an_index():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)
    dataset = Dataset("mine", "train", InMemory({"image": images}), captions=[("a",)] * 4)
    batch = BucketedBatches(dataset, 4, 0, buckets=[(2, 2)])[0]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_epochs():
    """The reference is a walk from the beginning that keeps each bucket's remainder."""
    batches = make()
    left, step, orders = [0, 0, 0], 0, []
    seen = np.zeros(sum(COUNTS), int)
    streams = {bucket: [] for bucket in BUCKETS}
    for epoch in range(1, 9):
        numbers = [(rest + count) // BATCH for rest, count in zip(left, COUNTS, strict=True)]
        left = [(rest + count) % BATCH for rest, count in zip(left, COUNTS, strict=True)]
        order = [batches.bucket(step + i) for i in range(sum(numbers))]
        assert [order.count(bucket) for bucket in BUCKETS] == numbers
        orders.append(order)
        for bucket in order:
            labels = batches[step]["label"]
            streams[bucket] += labels.tolist()
            np.add.at(seen, labels, 1)  # a batch may end one epoch and begin the next
            step += 1
        assert set(seen) <= {epoch - 1, epoch}
        if epoch % 4 == 0:  # every fourth epoch leaves no remainder
            assert set(seen) == {epoch}
    assert len(set(map(tuple, orders))) > 4
    # Buckets are mixed.
    assert any(order != sorted(order, key=order.index) for order in orders)
    for stream, count in zip(streams.values(), COUNTS, strict=True):
        epochs = np.reshape(stream, (8, count))
        assert len({tuple(epoch) for epoch in epochs}) >= 7  # five examples have 120 orders
        assert len({frozenset(epoch) for epoch in epochs}) == 1 and len(set(epochs[0])) == count


def test_one_program_for_each_bucket():
    shapes = []

    @jax.jit
    def program(images):
        shapes.append(images.shape)
        return images.sum()

    batches = make(transform=None)
    for step in range(22):
        program(batches[step]["image"])
    assert sorted(shapes) == sorted((BATCH, *bucket, 3) for bucket in BUCKETS)


@pytest.mark.parametrize(
    "network",
    [
        PixArt(patch_size=2, width=12, depth=2, num_heads=3, base_size=4, size_conditioning=True),
        MMDiT(patch_size=2, width=16, depth=2, num_heads=2, max_size=6),
        Flux(num_double_blocks=1, num_single_blocks=1, num_heads=2, rotary_features=(2, 2, 4)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_networks_take_two_buckets_with_the_same_variables(network):
    text = Text(jnp.zeros((2, 5, 7)), jnp.zeros((2, 7)))
    size = {"size": jnp.ones((2, 2))} if isinstance(network, PixArt) else {}
    call = lambda function, first, bucket: jax.eval_shape(
        functools.partial(function, t=jnp.zeros(2), text=text, **size),
        first,
        jnp.zeros((2, *bucket, 3)),
    )
    variables = call(network.init, jax.random.key(0), WIDE)
    # Flax raises an error if a parameter should have another shape.
    assert call(network.apply, variables, HIGH).shape == (2, *HIGH, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(buckets=[]), "no buckets: give a list"),
        (dict(batch_size=6), r"batch size 6 exceeds .*\(12, 4\): 5.*at most 5"),
        (dict(batch_size=99), "batch size 99 for the 22 examples of photos"),
        (dict(sizes=np.ones((3, 2), np.int32)), "sizes of 3 images for the 22 examples of photos"),
        (
            dict(dataset=Dataset("points", "train", InMemory({"x": np.zeros((9, 2))}))),
            "buckets are for images; the image_shape of points .train. is None",
        ),
        (
            dict(dataset=Dataset("latents", "train", InMemory({"image": np.zeros((9, 4, 4, 3))}))),
            "images of latents .train. are float64; only bytes",
        ),
    ],
)
def test_errors(arguments, message):
    defaults = dict(dataset=photos(), batch_size=BATCH, seed=0, buckets=BUCKETS)
    with pytest.raises(ValueError, match=message):
        BucketedBatches(**defaults | arguments)


def test_without_the_bucket_that_is_too_small_its_examples_go_to_another():
    batches = make(batch_size=7, buckets=BUCKETS[:2])
    labels = np.concatenate([batches[step]["label"] for step in range(22)])  # 7 epochs
    assert np.all(np.bincount(labels) == 7)


@pytest.mark.usefixtures("unchecked_annotations")
def test_sizes_are_rows_of_positive_numbers():
    for sizes in (np.zeros((0, 2), int), np.array([5, 7]), np.array([[5, 0]])):
        with pytest.raises(ValueError, match=r"expected \[examples 2\] of 1 or more"):
            nearest_buckets(sizes, [(4, 4)])


def test_no_such_buckets():
    with pytest.raises(
        ValueError, match="no multiples of 64 make an area of 0.9 to 1 times 1000 pixels"
    ):
        aspect_buckets(1000, 64, 4.0)


def test_a_set_resized_to_one_size():
    dataset = photos()
    resized = resized_to((12, 8), dataset)
    assert resized.image_shape == (12, 8, 3) and len(resized.source) == len(dataset.source)
    for index in np.array([2, 0, 5]), slice(1, 4):
        images = resized.source[index]["image"]
        chosen = np.arange(len(dataset.source))[index]
        expected = [resize_and_crop(dataset.source[int(i)]["image"], (12, 8))[0] for i in chosen]
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(resized.source[index]["label"], chosen)
    with pytest.raises(ValueError, match="buckets are for images"):
        resized_to((8, 8), Dataset("points", "train", InMemory({"x": np.zeros((3, 2))})))


def test_a_set_of_squares_is_prepared_as_the_literature_does():
    """Square means halve 16×48 pixels; bicubic resizing and a center crop follow."""
    image = np.broadcast_to(
        np.arange(16, dtype=np.uint8)[:, None, None] // 2 * 2, (16, 48, 3)
    ).copy()
    image[:, :16] = 255  # beyond the middle
    dataset = Dataset(
        "photos", "train", InMemory({"image": image[None], "label": np.zeros(1, np.int32)})
    )
    found = squared(8, dataset)
    assert found.image_shape == (8, 8, 3)
    expected = np.broadcast_to(2 * np.arange(8, dtype=np.uint8)[:, None, None], (8, 8, 3))
    np.testing.assert_array_equal(found.source[0]["image"], expected)
    assert found.source[:]["label"].tolist() == [0]
