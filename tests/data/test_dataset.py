import numpy as np
import pytest

from genjax.data import Dataset, InMemory, load_dataset
from genjax.data.dataset import OnDisk, held_out, select, take

NUMBERS = {"train": lambda: np.arange(1437), "test": lambda: np.arange(360)}


@pytest.mark.parametrize(
    "split",
    [
        "train",
        *(
            "train[:80%]",
            "train[80%:]",
            "train[33.3%:66.6%]",
            "train[-7%:]",
            "train[:-25.5%]",
        ),
        *("train[10:200]", "train[-30:]", "test[:-359]", "test[0:]"),
        *("train+test", "test[:10%] + train[-5:]"),
    ],
)
def test_split_language_is_that_of_tensorflow_datasets(split, data_dir, digits):
    parts = {
        name: load_dataset("digits", name, data_dir).source.arrays["image"] for name in NUMBERS
    }
    chosen = np.concatenate(take(split, {name: lambda name=name: parts[name] for name in parts}))
    np.testing.assert_array_equal(
        chosen, load_dataset("digits", split, data_dir).source.arrays["image"]
    )


@pytest.mark.parametrize("length", [1, 4, 14, 20])
def test_both_sides_of_a_percentage_from_the_end_are_the_whole(length):
    """Also if it is less than half an example."""
    parts = take("train[:-10%]+train[-10%:]", {"train": lambda: range(length)})
    assert [i for part in parts for i in part] == [*range(length)]


@pytest.mark.parametrize(
    "split, message",
    [
        ("valid", r"Unknown split 'valid': expected one of \['test', 'train'\], .*'train\[:80%\]'"),
        ("train[80%]", "Unknown split"),
        ("train[:80%", "Unknown split"),
        ("train[1.5:]", "Unknown split"),
        ("train+", "Unknown split"),
        ("train[:1438]", r"'train\[:1438\]' of 1437 examples: 1438 lies beyond"),
        ("test[-101%:]", "lies beyond"),
        ("test[50%:50%]", "holds no example"),
        ("test[:0]+train[9:3]", "holds no example"),
    ],
)
def test_splits_that_do_not_exist(split, message):
    with pytest.raises(ValueError, match=message):
        take(split, NUMBERS)


def test_held_out_is_stratified_and_depends_on_names_alone():
    names, labels = (
        [f"example {i}" for i in range(336)],
        [i % 3 if i < 300 else 3 for i in range(336)],
    )
    held = held_out(names, labels, 10)
    # A tenth of 100, and of 36, rounded.
    assert np.bincount(np.array(labels)[held]).tolist() == [10, 10, 10, 4]
    order = np.random.default_rng(0).permutation(336)
    np.testing.assert_array_equal(
        held_out([names[i] for i in order], [labels[i] for i in order], 10), held[order]
    )
    # Pinned: if an example changed its split, old models would be tested on their training data.
    assert np.flatnonzero(held)[:5].tolist() == [5, 12, 17, 22, 23]
    fewer = held_out(names[1:], labels[1:], 10)
    assert (fewer != held[1:]).sum() <= 1


def test_your_own_arrays():
    images = np.zeros((5, 4, 6, 3), np.uint8)
    dataset = Dataset("mine", "train", InMemory({"image": images}))
    assert (
        dataset.image_shape == (4, 6, 3)
        and dataset.num_classes is None
        and dataset.captions is None
    )
    assert Dataset("numbers", "train", InMemory({"x": images})).image_shape is None
    labels = InMemory({"image": images, "label": np.array([0, 1, 1, 2, 0])})
    assert Dataset("mine", "train", labels, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=r"int64 from 0 to 2, and num_classes is 2.* from 0 to 1$"):
        Dataset("mine", "train", labels, num_classes=2)
    unlabelled = InMemory({"image": images, "label": np.array([0, 1, -1, 0, 0])})
    with pytest.raises(ValueError, match="int64 from -1 to 1, and num_classes is 2"):
        Dataset("mine", "train", unlabelled, num_classes=2)
    halves = InMemory({"image": images, "label": np.full(5, 0.5)})
    with pytest.raises(ValueError, match="float64 from 0.5 to 0.5, .* must be whole numbers"):
        Dataset("mine", "train", halves, num_classes=2)
    short = InMemory({"image": images, "label": np.zeros(4, int)})
    with pytest.raises(ValueError, match=r"differ in length: 5 of 'image', 4 of 'label'$"):
        Dataset("mine", "train", short)
    column = InMemory({"image": images, "label": np.zeros((5, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"have shape \(5, 1\): give one number for each example"):
        Dataset("mine", "train", column, num_classes=3)


def test_one_of_picture_and_sound_keeps_the_labels():
    videos, sounds = np.zeros((2, 3, 4, 4, 1), np.uint8), np.zeros((2, 9, 1), np.int16)
    arrays = {"audio": sounds, "video": videos, "label": np.zeros(2, np.int32)}
    kinds = {name: array.dtype for name, array in arrays.items()}
    records = [{name: array[i] for name, array in arrays.items()} for i in range(2)]
    both = Dataset("mine", "train", InMemory(arrays))
    assert both.image_shape == (3, 4, 4, 1)
    for source in (InMemory(arrays), OnDisk(records, kinds)):
        dataset = Dataset("mine", "train", source, (3, 4, 4, 1))
        for feature, shape in (("video", (3, 4, 4, 1)), ("audio", (9, 1))):
            part = select(feature, dataset)
            assert part.source[0].keys() == {feature, "label"} and part.image_shape == shape
        assert select("image", dataset) is dataset
    varying = Dataset("mine", "train", OnDisk(records, kinds), (3, None, None, 1))
    assert select("video", varying).image_shape == (3, None, None, 1)
    alone = Dataset("mine", "train", OnDisk(records, {"video": kinds["video"]}), (None, 4, 4, 1))
    assert select("video", alone) is alone


def test_an_example_has_a_tuple_of_texts():
    """Of a bare text the first letter would be the caption."""
    images = InMemory({"image": np.zeros((5, 4, 6, 3), np.uint8)})
    assert Dataset("mine", "train", images, captions=[("",)] * 4 + [["a", "b"]]).captions
    with pytest.raises(ValueError, match="4 captions for the 5 examples of mine"):
        Dataset("mine", "train", images, captions=[("a",)] * 4)
    for wrong in ("a cat", (), np.str_("a cat")):
        with pytest.raises(ValueError, match="captions of example 4 of mine .* a tuple of one"):
            Dataset("mine", "train", images, captions=[("a",)] * 4 + [wrong])


def test_a_dictionary_is_no_source(unchecked_annotations):
    """Its length is the number of features, not of examples."""
    with pytest.raises(ValueError, match="source of mine is a dictionary: give InMemory"):
        Dataset("mine", "train", {"image": np.zeros((5, 4, 4, 1))})
