"""A folder of video files, in classes or with captions, decoded by PyAV."""

import bisect
import os
from collections.abc import Iterable, Iterator

import numpy as np

from genjax.data.dataset import PRELOAD_BYTES, Dataset, take
from genjax.data.images import PIXEL_LIMIT, Form, read_files
from genjax.data.sets.folder import find_folder, read_layout
from genjax.data.transforms import center_crop, compose, resize

SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


def load_clips(
    split: str,
    data_dir: str | os.PathLike | None,
    *,
    size: int = 64,
    num_frames: int = 17,
    frames_per_second: float = 8.0,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """Return `video`: the first frames of the video files of a folder, RGB.

    The folder's layout, its splits, its captions and its classes are those of `load_folder`, with
    files of the suffixes `SUFFIXES`.

    A frame shows the middle of its interval of 1/frames_per_second seconds, counted from the file's
    first frame. So files of every frame rate, constant or variable, become clips of one rate. No
    clip is looped or extended. Frames are resized and cropped to squares as `resize` and
    `center_crop` do it. Transparent frames are laid over white. Stored rotations are ignored.

    `Dataset.skipped` names files that are damaged, empty or too short, and what `load_folder`
    skips. Opening a split decodes all its files once.

    Args:
        data_dir: the folder that holds the clips.
        size: the side of a frame, in pixels.
        num_frames: the number of frames of each clip.
        frames_per_second: the frame rate of the clips.
        preload_bytes: sets of at most this size are read into memory.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: the folder does not exist.
        ValueError: `data_dir` is missing, the split is unknown, no clip can be read, or a captions
            file is malformed.
    """
    require_av()
    root = find_folder("clips", data_dir, "clips")
    splits, class_names = read_layout(root, "clips", SUFFIXES)
    members = {name: lambda entries=entries: entries for name, entries in splits.items()}
    entries = [entry for part in take(split, members) for entry in part]
    options = size, num_frames, frames_per_second
    form = Form(
        "video", f"clips {options} {PIXEL_LIMIT}", lambda path: (decode(path, *options), ())
    )
    return read_files(
        "clips", split, entries, root, class_names or None, form, preload_bytes=preload_bytes
    )


def require_av() -> None:
    """Raise ImportError with the command that installs PyAV, if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "dataset 'clips' decodes videos with PyAV, which is not installed: pip install av"
        ) from error


def decode(
    path: str | os.PathLike, size: int, num_frames: int, frames_per_second: float
) -> np.ndarray:
    """Return a file's first frames as bytes `[num_frames size size 3]`; see `load_clips`.

    Raises:
        ValueError: the file holds no video, frames without times or too many pixels, or ends early.
        Exception: whatever PyAV raises for a damaged file.
    """
    import av

    squared, unused = compose(resize(size), center_crop(size)), np.random.default_rng(0)
    middles = ((np.arange(num_frames) + 0.5) / frames_per_second).tolist()
    clip, end = [], 0.0
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("holds no video")
        stream = container.streams.video[0]
        if stream.width * stream.height > PIXEL_LIMIT:
            raise ValueError(f"{stream.width}x{stream.height} pixels, more than {PIXEL_LIMIT}")
        for frame, end in _timed(container.decode(stream), stream):
            if (due := bisect.bisect_left(middles, end)) > len(clip):
                picture = squared({"image": _colours(frame)}, unused)["image"]
                clip += [picture] * (due - len(clip))
            if len(clip) == num_frames:
                break
    if len(clip) < num_frames:
        raise ValueError(
            f"ends after {end:.2f} s, and frame {num_frames} is due until "
            f"{num_frames / frames_per_second:.2f} s"
        )
    return np.stack(clip)


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
