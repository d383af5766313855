"""A folder of audio files, in classes or with captions, decoded by PyAV."""

import os
from pathlib import Path

import numpy as np

from genjax.data import sounds
from genjax.data.dataset import PRELOAD_BYTES, Dataset
from genjax.data.images import Form, read_files
from genjax.data.sets.folder import find_folder, read_layout, take_entries


def load_sound_folder(
    split: str,
    data_dir: str | os.PathLike | None,
    *,
    sample_rate: int = 16_000,
    seconds: float | None = 2.0,
    channels: int = 1,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return `audio`: the sound of the audio files of a folder, int16 `[samples channels]`.

    The folder's layout, its splits, its captions and its classes are those of `load_folder`, with
    files of the suffixes `genjax.data.sounds.SUFFIXES`.

    Files of any rate are resampled. Longer files are cut, and shorter ones padded with silence.
    `Dataset.conversions` counts what was converted.

    `Dataset.skipped` names files that are silent, clipped, cut off, empty, damaged or no sound, and
    what `load_folder` skips. Opening a split decodes all its files once.

    A folder of real sound needs no account. `npm install supersonic-scsynth-samples` gives 206
    FLAC files (CC0) in `node_modules/supersonic-scsynth-samples`, of which 3 are clipped. Debian's
    spoken names of pictures have a data set of their own, `spoken_stamps`.

    Args:
        data_dir: the folder that holds the files.
        sample_rate: of the sound, in Hz.
        seconds: the length of each example; None keeps the files' lengths.
        channels: 1, or 2 for stereo.
        preload_bytes: sets of at most this size are read into memory.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: the folder does not exist.
        ValueError: `data_dir` is missing, the split is unknown, no file can be read, channels are
            neither 1 nor 2, a number is not positive, or captions are wrong as `load_folder`
            describes.
    """
    _check_format(channels, sample_rate, seconds)
    sounds.require_av("sound_folder")
    root = find_folder("sound_folder", data_dir, "sounds")
    splits, class_names = read_layout(root, "sounds", sounds.SUFFIXES)
    entries = take_entries(split, splits, "sounds")
    options = sample_rate, channels, None if seconds is None else round(seconds * sample_rate)

    def example(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        audio, kinds = sounds.decode(path, *options)
        return {"audio": audio}, kinds

    form = Form({"audio": np.dtype(np.int16)}, f"sounds {options} {sounds.RULES}", example)
    return read_files(
        "sound_folder",
        split,
        entries,
        root,
        class_names or None,
        form,
        preload_bytes=preload_bytes,
    )


def _check_format(channels: int, sample_rate: int, seconds: float | None) -> None:
    if channels not in (1, 2) or sample_rate < 1 or seconds is not None and seconds <= 0:
        raise ValueError(
            "sounds have 1 or 2 channels, and a sample_rate and seconds above 0; got "
            f"channels={channels}, sample_rate={sample_rate}, seconds={seconds}"
        )
