"""Emoji with their names and synonyms: real pairs of picture and text."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genjax.data.dataset import PRELOAD_BYTES, Dataset, InMemory, held_out, take
from genjax.data.images import Entry, decode, read_images

PACKAGE, TAGS = "emoji-datasource-google", "emojibase-data"
EMBEDDED = Path(__file__).with_name("embedded")
COLUMNS = 44  # pictures in a row of the embedded sheet
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
NOTICE = """\
emoji.png holds the emoji images of Noto Emoji, copyright Google, taken from {image_package},
laid over white and reduced from 64x64 to 32x32 pixels. They are licensed under the
Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0); Noto's flags are in the
public domain or otherwise exempt. emoji.json holds categories from {image_package} and
names and tags from {tag_package}, whose licences follow.
"""


@dataclass(frozen=True)
class _Emoji:
    path: Path
    names: tuple[str, ...]
    category: str
    tones: str  # codes of the skin tones; empty for a base emoji
    test: bool


def load_emoji(
    split: str, data_dir: str | os.PathLike | None = None, *, preload_bytes: int = PRELOAD_BYTES
) -> Dataset:
    """Return emoji as RGB images over white, with ten categories as labels, and captions.

    An emoji's captions are its name, then its tags. Without `data_dir` the set is the 1,911 base
    emoji of 32×32 pixels that come with genjax. With `data_dir` the set is all 3,786 emoji of 64×64
    pixels, skin tones included.

    One emoji in five of each category is in the split `test` and the others in `train`, chosen by
    the SHA-256 of the emoji's code. Emoji of the same picture, and all skin tones of one emoji, are
    in the same split, at both sizes.

    Args:
        data_dir: a folder of npm packages, such as the `node_modules` that `npm install
            emoji-datasource-google@16.0.0 emojibase-data@17.0.0` makes. Without the second package
            an emoji has its older Unicode name, and its short names are its tags.
        preload_bytes: sets of at most this size are read into memory.

    Raises:
        FileNotFoundError: `data_dir` holds no package of emoji.
        ValueError: the split is unknown.

    Source: Noto Emoji by Google (Apache License 2.0); names and tags: Unicode CLDR by way of
    emojibase (MIT).
    """
    if data_dir:
        source = Path(data_dir).expanduser()
        emoji = list(_read_packages(source))
        class_names = tuple(sorted({item.category for item in emoji}))
        kept = _take(split, [item.test for item in emoji])
        entries = [
            Entry(emoji[i].path, class_names.index(emoji[i].category), emoji[i].names)
            for i in kept.tolist()
        ]
        return read_images(
            "emoji", split, entries, source, class_names, preload_bytes=preload_bytes
        )

    from PIL import Image

    emoji = json.loads((EMBEDDED / "emoji.json").read_text(encoding="utf-8"))
    class_names = tuple(sorted({item["category"] for item in emoji}))
    labels = np.array([class_names.index(item["category"]) for item in emoji], np.int32)
    with Image.open(EMBEDDED / "emoji.png") as sheet:
        pixels = np.asarray(sheet)
    images = pixels.reshape(-1, 32, COLUMNS, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    kept = _take(split, [item["test"] for item in emoji])
    return Dataset(
        name="emoji",
        split=split,
        source=InMemory({"image": images[kept], "label": labels[kept]}),
        num_classes=len(class_names),
        class_names=class_names,
        captions=[tuple(emoji[i]["names"]) for i in kept.tolist()],
    )


def build_embedded(source: str | os.PathLike, out: str | os.PathLike = EMBEDDED) -> None:
    """Make the embedded set of base emoji from the two npm packages, unpacked in `source`.

    Each image is laid over white, and each 2×2 pixels are averaged. `emoji.png` receives a sheet of
    the images, row by row, `emoji.json` their names, categories and splits, and `LICENSE` the
    licences.
    """
    from PIL import Image

    source, out = Path(source), Path(out)
    emoji = [item for item in _read_packages(source) if not item.tones]
    rows = -(-len(emoji) // COLUMNS)
    images = np.full((rows * COLUMNS, 32, 32, 3), 255, np.uint8)
    for image, item in zip(images, emoji, strict=False):
        pixels, _ = decode(item.path)
        image[:] = np.rint(pixels.reshape(32, 2, 32, 2, 3).mean((1, 3)))
    sheet = (
        images.reshape(rows, COLUMNS, 32, 32, 3).swapaxes(1, 2).reshape(rows * 32, COLUMNS * 32, 3)
    )
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out / "emoji.png", optimize=True)
    rows = [dict(names=item.names, category=item.category, test=item.test) for item in emoji]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (out / "emoji.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    versions = {
        package: f"{package} "
        f"{json.loads((source / package / 'package.json').read_text())['version']}"
        for package in (PACKAGE, TAGS)
    }
    licences = [
        f"\n{versions[package]}:\n\n{(source / package / 'LICENSE').read_text()}"
        for package in versions
    ]
    notice = NOTICE.format(image_package=versions[PACKAGE], tag_package=versions[TAGS])
    (out / "LICENSE").write_text(notice + "".join(licences), encoding="utf-8")


def _take(split: str, test: list[bool]) -> np.ndarray:
    members = {
        "train": lambda: np.flatnonzero(~np.array(test)),
        "test": lambda: np.flatnonzero(test),
    }
    return np.concatenate(take(split, members))


def _read_packages(source: Path) -> Iterator[_Emoji]:
    """Yield all emoji in Unicode's order, each base emoji followed by its skin tones."""
    listing = source / PACKAGE / "emoji.json"
    if not listing.exists():
        raise FileNotFoundError(
            f"no emoji in {source}: expected {listing}, which `npm install {PACKAGE}@16.0.0 "
            f"{TAGS}@17.0.0` puts into its node_modules; without a data_dir, "
            "load_dataset('emoji') gives 1,911 embedded emoji"
        )
    items = sorted(
        json.loads(listing.read_text(encoding="utf-8")), key=lambda item: item["sort_order"]
    )
    tagging = source / TAGS / "en/data.json"
    described = json.loads(tagging.read_text(encoding="utf-8")) if tagging.exists() else []
    tags = {_without_selector(item["hexcode"]): item for item in described}

    folder = source / PACKAGE / "img/google/64"
    pictures, groups = {}, {}  # emoji of one picture are one group, named by the first emoji
    for item in items:
        path = folder / item["image"]
        picture = path.read_bytes() if path.exists() else item["unified"]
        groups[item["unified"]] = pictures.setdefault(picture, item["unified"])
    categories = {item["unified"]: item["category"] for item in items}
    names = list(pictures.values())
    tested = dict(
        zip(names, held_out(names, [categories[n] for n in names], one_in=5).tolist(), strict=True)
    )

    for item in items:
        name = item["name"].lower()
        synonyms = [short.replace("_", " ") for short in item["short_names"]]
        if found := tags.get(_without_selector(item["unified"])):
            name, synonyms = found["label"], found.get("tags", [])
        images = {"": item} | item.get("skin_variations", {})
        for tones, image in images.items():
            texts = [TONES[tone] for tone in dict.fromkeys(tones.split("-")) if tone]
            whole = f"{name}: {', '.join(texts)}" if texts else name
            yield _Emoji(
                path=folder / image["image"],
                names=tuple(dict.fromkeys([whole, *synonyms, *texts])),
                category=item["category"],
                tones=tones,
                test=tested[groups[item["unified"]]],
            )


def _without_selector(code: str) -> str:
    """Return a code without the variation selector, which the two packages set differently."""
    return code.replace("-FE0F", "")
