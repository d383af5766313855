"""A folder of video files, in classes or with captions, optionally with sound; decoded by PyAV."""

import bisect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from genjax.data import sounds
from genjax.data.buckets import resize_and_crop
from genjax.data.dataset import PRELOAD_BYTES, Dataset
from genjax.data.images import PIXEL_LIMIT, Form, read_files
from genjax.data.sets.folder import find_folder, read_layout, take_entries
from genjax.data.sounds import require_av
from genjax.data.transforms import center_crop, compose, resize

Size = int | tuple[int, int] | None
SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


def load_clips(
    split: str,
    data_dir: str | os.PathLike | None,
    *,
    size: Size = 64,
    num_frames: int | None = 17,
    frames_per_second: float = 8.0,
    sample_rate: int | None = None,
    channels: int = 1,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return `video`: the first frames of the video files of a folder, RGB. Add `audio` if asked.

    The folder's layout, its splits, its captions and its classes are those of `load_folder`, with
    files of the suffixes `SUFFIXES`.

    A frame shows the middle of its interval of 1/frames_per_second seconds, counted from the file's
    first frame. So files of every frame rate, constant or variable, become clips of one rate. No
    clip is looped or extended. Transparent frames lie over white. Stored rotations are ignored.

    Clips of all frames, and frames as they are stored, may vary. `BucketedClips` makes batches of
    them. A clip is read whole into memory, so cut long files into clips first.

    With a `sample_rate`, `audio` is the sound of the same seconds, int16 `[samples channels]`. Its
    first sample is that of the first frame's time. Where a file's sound begins later or ends
    earlier than its frames, there is silence.

    `Dataset.skipped` names files that are damaged, empty or too short, and what `load_folder`
    skips. With a `sample_rate` it also names files whose sound is absent, silent, clipped or cut
    off (`genjax.data.sounds.decode`). Opening a split decodes all its files once.

    Args:
        data_dir: the folder that holds the clips.
        size: the side of squares, in pixels, made as `resize` and `center_crop` do it; or height
            and width, made as `resize_and_crop` does it; or None for frames as they are stored.
        num_frames: the number of frames of each clip; None for all frames of the file.
        frames_per_second: the frame rate of the clips.
        sample_rate: of the sound, in Hz; None for clips without sound.
        channels: of the sound, 1 or 2.
        preload_bytes: sets of at most this size are read into memory.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: the folder does not exist.
        ValueError: `data_dir` is missing, the split is unknown, no clip can be read, captions are
            wrong as `load_folder` describes, clips with sound do not all last the same whole
            number of samples, or there are no frames, no frame rate or no size.
    """
    require_av("clips")
    check_rate(num_frames, frames_per_second)
    _check_size(size)
    root = find_folder("clips", data_dir, "clips")
    splits, class_names = read_layout(root, "clips", SUFFIXES)
    entries = take_entries(split, splits, "clips")
    form = _form(size, num_frames, frames_per_second, sample_rate, channels)
    return read_files(
        "clips", split, entries, root, class_names or None, form, preload_bytes=preload_bytes
    )


def _form(
    size: Size,
    num_frames: int | None,
    frames_per_second: float,
    sample_rate: int | None,
    channels: int,
) -> Form:
    """Return how files are read as clips, with sound if there is a sample rate."""
    options = size, num_frames, frames_per_second
    length = _num_samples(num_frames, frames_per_second, sample_rate) if sample_rate else 0

    def example(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        video = {"video": decode(path, *options)}
        if not sample_rate:
            return video, ()
        audio, kinds = sounds.decode(path, sample_rate, channels, length, first_time(path))
        return video | {"audio": audio}, kinds

    dtypes = {"video": np.dtype(np.uint8)} | ({"audio": np.dtype(np.int16)} if sample_rate else {})
    description = f"clips {options} {sample_rate, channels} {PIXEL_LIMIT} {sounds.RULES}"
    return Form(dtypes, description, example)


def check_rate(num_frames: int | None, frames_per_second: float) -> None:
    """Raise ValueError if clips have no frames, or their frame rate is not positive."""
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a clip has 1 or more")
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second is {frames_per_second}; it must be above 0")


def _check_size(size: Size) -> None:
    """Raise ValueError unless a size is one or two positive whole numbers, or None."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    whole = all(isinstance(side, int | np.integer) and side > 0 for side in sides)
    if size is not None and not (whole and len(sides) == 2):
        raise ValueError(
            f"size is {size!r}; it is the side of squares, (height, width), or None for frames as "
            "they are stored"
        )


def _num_samples(num_frames: int | None, frames_per_second: float, sample_rate: int) -> int:
    """Return the samples of a clip's sound; raise ValueError if they are no whole number."""
    if num_frames is None:
        raise ValueError("num_frames is None, and clips with sound have one length: set num_frames")
    samples = num_frames * sample_rate / frames_per_second
    if samples != round(samples):
        raise ValueError(
            f"{num_frames} frames at {frames_per_second} a second last {samples:.2f} samples at "
            f"{sample_rate} Hz: choose a sample_rate that gives a whole number"
        )
    return round(samples)


def first_time(path: str | os.PathLike) -> float:
    """Return the time of a file's first frame in seconds of the file's clock."""
    import av

    with av.open(str(path)) as container:
        return next(container.decode(container.streams.video[0])).time


def decode(
    path: str | os.PathLike, size: Size, num_frames: int | None, frames_per_second: float
) -> np.ndarray:
    """Return a file's first frames as bytes `[frames height width 3]`; see `load_clips`.

    Raises:
        ValueError: the file holds no video, frames without times or too many pixels, or ends early.
        Exception: whatever PyAV raises for a damaged file.
    """
    import av

    resized = _resizer(size)
    middle = lambda place: (place + 0.5) / frames_per_second
    places = range(num_frames or sys.maxsize)
    clip, end = [], 0.0
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("holds no video")
        stream = container.streams.video[0]
        if stream.width * stream.height > PIXEL_LIMIT:
            raise ValueError(f"{stream.width}x{stream.height} pixels, more than {PIXEL_LIMIT}")
        for frame, end in _timed(container.decode(stream), stream):
            if (due := bisect.bisect_left(places, end, key=middle)) > len(clip):
                clip += [resized(_colours(frame))] * (due - len(clip))
            if len(clip) == num_frames:
                break
    if len(clip) < (least := num_frames or 1):
        raise ValueError(
            f"ends after {end:.2f} s, and frame {least} is due until "
            f"{least / frames_per_second:.2f} s ({num_frames=}, {frames_per_second=})"
        )
    return np.stack(clip)


def _resizer(size: Size) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that brings frames to a size, of `load_clips`."""
    if size is None:
        return lambda frame: frame
    if isinstance(size, int | np.integer):
        square, unused = compose(resize(size), center_crop(size)), np.random.default_rng(0)
        return lambda frame: square({"image": frame}, unused)["image"]
    return lambda frame: resize_and_crop(frame, tuple(size))[0]


def _timed(frames: Iterable, stream) -> Iterator[tuple]:
    """Yield each frame and the time until which it is shown, in seconds from the first frame's.

    The next frame ends a frame. The last frame lasts as long as the file says, else an interval of
    the mean frame rate.
    """
    shown, first = None, None
    for frame in frames:
        if frame.time is None:
            raise ValueError("a frame has no time")
        first = frame.time if first is None else first
        if shown is not None:
            yield shown, frame.time - first
        shown = frame
    if shown is not None:
        stored = shown.duration and shown.duration * shown.time_base
        duration = stored or (1 / stream.average_rate if stream.average_rate else 0)
        yield shown, shown.time - first + float(duration)


def _colours(frame) -> np.ndarray:
    """Return a frame as RGB bytes `[height width 3]`; transparent frames lie over white."""
    from PIL import Image

    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    picture = Image.fromarray(frame.to_ndarray(format="rgba"))
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
