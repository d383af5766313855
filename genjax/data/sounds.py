"""Sound of audio and video files, checked, resampled and converted to one number of channels.

PyAV decodes the files. A file that is unfit for training raises ValueError with the reason: it is
silent, clipped, cut off or no sound at all.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int16

SUFFIXES = (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav")
# Sound whose largest amplitude is below −60 dB of full scale is silent.
SILENCE = 1e-3
# Sound is clipped if its peak is at full scale and this share of its samples stays there, or beyond
# full scale, for a run of `PLATEAU` samples. Square waves of a lower peak are not clipped.
FULL_SCALE, PLATEAU, CLIPPED = 0.98, 4, 1e-3
RULES = 3  # a new number for new rules, so that stored results of the old ones are not used
# Seconds by which a file may end before it says, and parts of it may be late: codecs pad and delay.
MISSING = 0.1


class Sound(NamedTuple):
    """Decoded sound.

    Attributes:
        samples: in [−1, 1].
        rate: in Hz.
        start: of the first sample, in seconds of the file's clock.
    """

    samples: Float[np.ndarray, "samples channels"]
    rate: int
    start: float


def require_av(name: str) -> None:
    """Raise ImportError with the command that installs PyAV, if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"dataset {name!r} decodes its files with PyAV, which is not installed: pip install av"
        ) from error


def decode(
    path: str | os.PathLike,
    sample_rate: int,
    channels: int = 1,
    length: int | None = None,
    start: float | None = None,
) -> tuple[Int16[np.ndarray, "samples channels"], tuple[str, ...]]:
    """Return a file's sound, and the kinds of conversion applied.

    Several channels become one by their mean. One channel becomes two equal ones. Files of more
    than two channels become their mean in both.

    Args:
        sample_rate: in Hz.
        channels: 1 or 2.
        length: samples to return; a file that is longer is cut, and a shorter one padded with
            silence. None for the whole file.
        start: time of the first sample in seconds of the file's clock; None for the file's own.

    Raises:
        ValueError: the file holds no sound, is cut off before the last sample that is needed, or
            what is returned is silent, clipped or not finite.
        Exception: whatever PyAV raises for a damaged file.
    """
    sound = read(path, None if length is None else length / sample_rate, start)
    samples, kinds, stored = _from(sound, start), [], None
    if length is not None:
        stored = math.ceil(length * sound.rate / sample_rate)
        if len(samples) != stored:
            kinds.append("cut" if len(samples) > stored else "padded with silence")
        samples = np.pad(samples, ((0, max(0, stored - len(samples))), (0, 0)))
    if not np.all(np.isfinite(samples)):
        raise ValueError("holds samples that are not finite")
    _check(samples[:stored])  # what follows is only for the resampling filter at the cut
    if samples.shape[1] != channels:
        kinds.append(f"{samples.shape[1]} to {channels} channels")
        samples = samples.mean(axis=1, keepdims=True).repeat(channels, axis=1)
        if np.abs(samples[:stored]).max() < SILENCE:
            raise ValueError("is silent: its channels cancel each other in their mean")
    if sound.rate != sample_rate:
        kinds.append(f"{sound.rate} to {sample_rate} Hz")
    length = length or round(len(samples) * sample_rate / sound.rate)
    return fit_int16(samples, sound.rate, sample_rate, length), tuple(kinds)


def read(
    path: str | os.PathLike, seconds: float | None = None, start: float | None = None
) -> Sound:
    """Return a file's sound as it is stored, at least these seconds of it if it has them.

    Where the file leaves out more than `MISSING` seconds, there is silence.

    Args:
        seconds: None for the whole file.
        start: time from which the seconds count, as of `decode`.

    Raises:
        ValueError: the file holds no sound, or is cut off before the end of these seconds.
        Exception: whatever PyAV raises for a damaged file.
    """
    import av

    parts, first, end = [], None, 0.0
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise ValueError("holds no sound")
        stream = container.streams.audio[0]
        planar = av.AudioResampler(format="fltp")  # of the file's own rate and channels
        for frame in container.decode(stream):
            if first is None:
                first, rate = frame.time or 0.0, frame.sample_rate
                wanted = first if start is None else start
                needed = math.inf if seconds is None else seconds + wanted - first
            late = (first if frame.time is None else frame.time) - first - end
            if late > MISSING:
                late = min(late, needed + 2 * MISSING - end)
                parts.append(np.zeros((frame.layout.nb_channels, round(late * rate)), np.float32))
                end += late
            parts += [part.to_ndarray() for part in planar.resample(frame)]
            end += frame.samples / rate
            if end > needed + MISSING:
                break
        else:
            _check_end(Path(path), stream, end)
    if not parts:
        raise ValueError("holds no sound")
    return Sound(np.concatenate(parts, axis=1).T, rate, first)


def _check_end(path: Path, stream, seconds: float) -> None:
    """Raise ValueError if a file, all of whose seconds were decoded, has lost its end."""
    with open(path, "rb") as file:
        head, size = file.read(2**20), path.stat().st_size
        file.seek(max(0, size - 2**16))
        tail = file.read()
    due = float((stream.duration or 0) * stream.time_base)
    # ADTS, and MP3 without one of these headers, store no duration: FFmpeg estimates it.
    estimated = stream.container.format.name == "aac" or (
        stream.container.format.name == "mp3"
        and not any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))
    )
    if not estimated and seconds < due - MISSING:
        raise ValueError(f"is cut off: ends after {seconds:.2f} s of {due:.2f} s")
    stored = int.from_bytes(head[4:8], "little")
    # Programs that cannot go back to the header write 2³¹ − 4,096 or more (espeak-ng, FFmpeg).
    if head[:4] == b"RIFF" and 0 < stored < 2**31 - 2**12 and stored + 8 > size:
        raise ValueError(f"is cut off: has {size} bytes of {stored + 8}")
    if head[:4] == b"OggS" and not tail[tail.rfind(b"OggS") + 5] & 4:
        raise ValueError(f"is cut off: ends after {seconds:.2f} s, before the stream's last page")


def _from(sound: Sound, start: float | None) -> Float[np.ndarray, "samples channels"]:
    """Return the samples from a time on, after silence if the sound starts later."""
    missing = 0 if start is None else round((sound.start - start) * sound.rate)
    return np.pad(sound.samples[max(0, -missing) :], ((max(0, missing), 0), (0, 0)))


def _check(samples: Float[np.ndarray, "samples channels"]) -> None:
    """Raise ValueError if sound is silent or clipped."""
    peak = np.abs(samples).max(initial=0)
    if peak < SILENCE:
        raise ValueError(f"is silent: no sample of {len(samples)} exceeds {SILENCE}")
    if peak < FULL_SCALE:
        return
    # Within half a step of 16 bits of the peak. Samples beyond 1, as floats have, will be cut to 1.
    highest = np.abs(samples) > min(peak, 1) * (1 - 2**-14)
    runs = np.lib.stride_tricks.sliding_window_view(highest, min(PLATEAU, len(samples)), axis=0)
    if (share := runs.all(axis=-1).mean()) > CLIPPED:
        raise ValueError(
            f"is clipped: {share:.1%} of its samples are in runs of {PLATEAU} at the peak, or "
            "beyond full scale"
        )


def resample(
    samples: Float[np.ndarray, "samples channels"], rate: int, sample_rate: int
) -> Float[np.ndarray, "resampled channels"]:
    """Return sound at another rate, ⌈samples·sample_rate/rate⌉ samples, on the host.

    A linear-phase filter removes what the lower rate cannot hold, and delays nothing.
    """
    from scipy.signal import resample_poly  # slow to import

    divisor = math.gcd(rate, sample_rate)
    return resample_poly(samples, sample_rate // divisor, rate // divisor)


def fit_int16(
    samples: Float[np.ndarray, "samples channels"], rate: int, sample_rate: int, length: int
) -> Int16[np.ndarray, "length channels"]:
    """Return sound at another rate as 16-bit samples, cut to a length or followed by silence."""
    sound = to_int16(resample(samples, rate, sample_rate))[:length]
    return np.pad(sound, ((0, length - len(sound)), (0, 0)))


def to_int16(
    samples: Float[np.ndarray, "samples channels"],
) -> Int16[np.ndarray, "samples channels"]:
    """Return sound in [−1, 1] as int16."""
    return np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
