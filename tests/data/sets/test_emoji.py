import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import genjax
from genjax.data import Batches, InMemory, load_dataset
from genjax.data.sets import emoji as emoji_module
from genjax.data.sets.emoji import EMBEDDED, build_embedded

# The counts in emoji.json of emoji-datasource-google 16.0.0.
CATEGORIES = {
    "Activities": 85,
    "Animals & Nature": 159,
    "Component": 5,
    "Flags": 270,
    "Food & Drink": 131,
    "Objects": 264,
    "People & Body": 386,
    "Smileys & Emotion": 169,
    "Symbols": 224,
    "Travel & Places": 218,
}


@pytest.fixture(scope="module")
def embedded():
    return load_dataset("emoji", "train+test")


def image_of(dataset, name):
    (index,) = (i for i, captions in enumerate(dataset.captions) if captions[0] == name)
    return dataset.source[index]["image"].astype(float)


def test_the_embedded_set_is_whole(embedded):
    assert len(embedded.source) == 1911 and embedded.image_shape == (32, 32, 3)
    assert embedded.source.arrays["image"].dtype == np.uint8
    counts = Counter(embedded.class_names[label] for label in embedded.source.arrays["label"])
    assert counts == CATEGORIES and embedded.class_names == tuple(sorted(CATEGORIES))
    assert embedded.num_classes == 10
    names = [captions[0] for captions in embedded.captions]
    assert len(set(names)) == 1911 and all(
        all(text.strip() for text in texts) for texts in embedded.captions
    )
    contrast = np.ptp(embedded.source.arrays["image"].reshape(1911, -1), axis=1)
    # "light skin tone" and similar emoji are plain squares; all others are pictures.
    assert all(
        c > 40 for c, name in zip(contrast, names, strict=True) if not name.endswith("skin tone")
    )


@pytest.mark.parametrize(
    "name, category, synonym, colour",
    [
        ("grinning face", "Smileys & Emotion", "smile", "r"),
        ("red heart", "Smileys & Emotion", "love", "r"),
        ("green apple", "Food & Drink", "fruit", "g"),
        ("blue square", "Symbols", "blue", "b"),
        ("flag: Japan", "Flags", "JP", "r"),
        ("red circle", "Symbols", "geometric", "r"),
    ],
)
def test_name_and_picture_belong_together(embedded, name, category, synonym, colour):
    image = image_of(embedded, name)
    middle = image[12:20, 12:20].mean((0, 1))
    assert "rgb"[middle.argmax()] == colour and np.ptp(middle) > 60, middle
    index = [captions[0] for captions in embedded.captions].index(name)
    assert synonym in embedded.captions[index][1:]
    assert embedded.class_names[embedded.source[index]["label"]] == category


def test_transparency_is_white(embedded):
    assert image_of(embedded, "red circle")[[0, 0, -1, -1], [0, -1, 0, -1]].min() == 255


def test_splits_are_stratified_and_share_no_picture(embedded):
    train, test = load_dataset("emoji"), load_dataset("emoji", "test")
    assert len(train.source) + len(test.source) == 1911
    assert not {c[0] for c in train.captions} & {c[0] for c in test.captions}
    tested = np.bincount(test.source.arrays["label"], minlength=10)
    # Groups of equal pictures stay together. A group has at most four: Norway's flag is also Bouvet
    # Island's.
    assert np.abs(tested - np.array(list(CATEGORIES.values())) / 5).max() <= 4
    pictures = [
        {image.tobytes() for image in split.source.arrays["image"]} for split in (train, test)
    ]
    assert not pictures[0] & pictures[1] and len(pictures[0]) < len(train.source)


def test_split_language(embedded):
    parts = [load_dataset("emoji", split) for split in ("train[:30%]", "train[30%:]", "test")]
    assert [c for part in parts for c in part.captions] == embedded.captions
    with pytest.raises(ValueError, match="Unknown split 'valid': expected one of .'test', 'train'"):
        load_dataset("emoji", "valid")


def test_batches_say_where_their_captions_are():
    test = load_dataset("emoji", "test")
    batch = Batches(test, 32, seed=0)[5]
    assert set(batch) == {"image", "label", "index"} and batch["index"].dtype == np.int32
    for index, image in zip(batch["index"], batch["image"], strict=True):
        np.testing.assert_array_equal(image_of(test, test.captions[index][0]), image)
    named = Batches(
        test,
        32,
        seed=0,
        transform=lambda e, _: {"length": np.array(len(test.captions[e["index"]]))},
    )
    assert named[5]["length"].tolist() == [len(test.captions[index]) for index in batch["index"]]


def test_it_needs_no_data_library():
    code = (
        "import sys, genjax.data as d; d.load_dataset('emoji'); "
        "print({'tensorflow_datasets', 'grain'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(genjax.__file__).parents[1],
    )
    assert run.stdout == "set()\n", run.stderr


def test_the_wheel_holds_it_and_its_licence(tmp_path):
    checkout = Path(genjax.__file__).parents[1]
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    packed = tmp_path / "genjax/data/sets/embedded"
    assert sorted(os.listdir(packed)) == ["LICENSE", "emoji.json", "emoji.png"]
    licence = (packed / "LICENSE").read_text(encoding="utf-8")
    for words in (
        "Apache License, Version 2.0",
        "copyright Google",
        "Miles Johnson",
        "Cal Henderson",
    ):
        assert words in licence
    assert sum(file.stat().st_size for file in packed.iterdir()) < 3e6
    assert len(list(EMBEDDED.iterdir())) == 3


COLOURS = {  # code: (name, category, RGBA, short name)
    "1F534": ("RED CIRCLE", "Symbols", (255, 0, 0, 255), "red_circle"),
    "1F44B": ("WAVING HAND SIGN", "People & Body", (255, 200, 0, 128), "wave"),
    "1F1F3-1F1F4": ("Norway Flag", "Flags", (0, 0, 255, 255), "flag-no"),
    "1F1E7-1F1FB": ("Bouvet Island Flag", "Flags", (0, 0, 255, 255), "flag-bv"),
}


@pytest.fixture
def packages(tmp_path):
    """Both packages in miniature."""
    images = tmp_path / "emoji-datasource-google/img/google/64"
    images.mkdir(parents=True)
    (tmp_path / "emojibase-data/en").mkdir(parents=True)
    items, described = [], []

    def paint(name, colour):
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        image.paste(colour, (0, 0, 33, 64))  # ends within a pixel of the half-size image
        image.save(images / name)

    for order, (code, (name, category, colour, short)) in enumerate(COLOURS.items()):
        item = dict(
            name=name, unified=code, category=category, short_names=[short], image=f"{code}.png"
        )
        if code == "1F44B":
            item["unified"] += "-FE0F"
            item["skin_variations"] = {
                tones: {"unified": f"{code}-{tones}", "image": f"{code}-{tones}.png"}
                for tones in ("1F3FB", "1F3FB-1F3FF")
            }
            for variant in item["skin_variations"].values():
                paint(variant["image"], (90, 60, 30, 255))
        paint(item["image"], colour)
        items.append(item | {"sort_order": order})
        described.append({"hexcode": code, "label": f"label of {code}", "tags": ["one", "two"]})
    (tmp_path / "emoji-datasource-google/emoji.json").write_text(json.dumps(items[::-1]))
    (tmp_path / "emojibase-data/en/data.json").write_text(json.dumps(described))
    for package in ("emoji-datasource-google", "emojibase-data"):
        (tmp_path / package / "package.json").write_text('{"version": "9.8.7"}')
        (tmp_path / package / "LICENSE").write_text(f"terms of {package}")
    return tmp_path


def test_the_full_set_from_its_packages(packages):
    dataset = load_dataset("emoji", "train+test", packages)
    assert sorted(dataset.captions) == sorted(
        [
            ("label of 1F534", "one", "two"),
            ("label of 1F44B", "one", "two"),
            ("label of 1F44B: light skin tone", "one", "two", "light skin tone"),
            (
                "label of 1F44B: light skin tone, dark skin tone",
                *("one", "two", "light skin tone", "dark skin tone"),
            ),
            ("label of 1F1F3-1F1F4", "one", "two"),
            ("label of 1F1E7-1F1FB", "one", "two"),
        ]
    )
    assert dataset.image_shape == (64, 64, 3) and isinstance(dataset.source, InMemory)
    assert dataset.class_names == ("Flags", "People & Body", "Symbols")
    assert dataset.conversions == {"transparency over white": 6}
    hand = image_of(dataset, "label of 1F44B")
    assert hand[5, 5].tolist() == [255, round(200 * 128 / 255 + 255 * 127 / 255), 127]
    assert hand[5, 60].tolist() == [255, 255, 255]


def test_without_synonyms_the_names_are_those_of_unicode(packages):
    (packages / "emojibase-data/en/data.json").unlink()
    captions = load_dataset("emoji", "train+test", packages).captions
    assert ("norway flag", "flag-no") in captions
    assert ("waving hand sign: light skin tone", "wave", "light skin tone") in captions


@pytest.mark.parametrize("tested", COLOURS)
def test_a_group_stays_together(packages, monkeypatch, tested):
    """All tones of one emoji, and all emoji of one picture, are in one split."""
    pick = lambda names, labels, one_in: np.array(
        [name.removesuffix("-FE0F") == tested for name in names]
    )
    monkeypatch.setattr(emoji_module, "held_out", pick)
    if tested == "1F1E7-1F1FB":  # Bouvet Island has the flag of Norway, which comes earlier
        with pytest.raises(ValueError, match="holds no example"):
            load_dataset("emoji", "test", packages)
        return
    names = {captions[0] for captions in load_dataset("emoji", "test", packages).captions}
    together = {"1F1F3-1F1F4": {"1F1F3-1F1F4", "1F1E7-1F1FB"}}.get(tested, {tested})
    assert {name.split(":")[0] for name in names} == {f"label of {code}" for code in together}
    assert len(names) == {"1F44B": 3, "1F1F3-1F1F4": 2}.get(tested, 1)


def test_building_the_embedded_set(packages, tmp_path, monkeypatch):
    build_embedded(packages, tmp_path / "out")
    licence = (tmp_path / "out/LICENSE").read_text()
    assert "terms of emojibase-data" in licence and "emoji-datasource-google 9.8.7" in licence
    full = load_dataset("emoji", "train+test", packages)
    full_test = load_dataset("emoji", "train", packages).captions
    monkeypatch.setattr(emoji_module, "EMBEDDED", tmp_path / "out")
    small = load_dataset("emoji", "train+test")
    assert small.captions == [
        captions for captions in full.captions if "skin tone" not in captions[0]
    ]
    assert load_dataset("emoji", "train").captions == [
        c for c in full_test if "skin tone" not in c[0]
    ]
    for captions in small.captions:
        large = image_of(full, captions[0])
        halved = (large[::2, ::2] + large[1::2, ::2] + large[::2, 1::2] + large[1::2, 1::2]) / 4
        assert np.abs(image_of(small, captions[0]) - halved).max() <= 0.5


def test_no_package_says_how_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="expected .*emoji.json.*npm install emoji-datasource-google"
    ):
        load_dataset("emoji", data_dir=tmp_path)
