"""Files that play: sound as WAV, and clips with sound as MP4 or WebM."""

import os
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16, UInt8

from genjax.data.transforms import sound_to_int16

Sound = Int16[np.ndarray, "samples channels"] | Float[np.ndarray, "samples channels"]
CODECS = {".mp4": ("libx264", "aac"), ".webm": ("libvpx-vp9", "libopus")}
# AAC and Opus both take this rate. Sound of another rate is resampled for the file.
FILE_RATE = 48_000
MIN_SIDE = 256  # pixels; players blur small frames when they enlarge them


def write_wav(path: str | os.PathLike, sound: Sound, sample_rate: int) -> None:
    """Write sound as a WAV of 16 bits.

    Args:
        sound: int16, or floats in [−1, 1]; beyond them floats are clipped.
        sample_rate: in Hz.

    Raises:
        ValueError: sound has not two axes.
    """
    if sound.ndim != 2:
        raise ValueError(f"sound has shape {sound.shape}; a file takes [samples channels]")
    samples = sound if sound.dtype == np.int16 else sound_to_int16(sound)
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


def join_sounds(
    sounds: Int16[np.ndarray, "count samples channels"], sample_rate: int, pause: float = 0.25
) -> Int16[np.ndarray, "all_samples channels"]:
    """Return sounds one after another, with silence between them.

    Args:
        pause: the silence after each sound, in seconds.
    """
    padded = np.pad(sounds, ((0, 0), (0, round(pause * sample_rate)), (0, 0)))
    return padded.reshape(-1, sounds.shape[-1])


def write_clip(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "frames height width colours"],
    frames_per_second: float,
    sound: Sound | None = None,
    sample_rate: int | None = None,
) -> None:
    """Write a clip, with sound if given, as MP4 (H.264 and AAC) or WebM (VP9 and Opus).

    Frame and sound begin at time 0. Small frames are enlarged by a whole number. Frames and sound
    are compressed, so what is read back differs a little.

    Args:
        path: ends in .mp4 or .webm.
        video: RGB or grey levels.
        sound: one or two channels, as of `write_wav`.
        sample_rate: of the sound, in Hz.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: the path has another suffix; video is not one video; or sound comes
            without its rate, without a sample or with more than two channels.
    """
    suffix = Path(path).suffix
    if suffix not in CODECS:
        raise ValueError(f"a clip's file ends in {' or '.join(CODECS)}, not in {suffix!r}: {path}")
    if np.ndim(video) != 4 or np.shape(video)[-1] not in (1, 3):
        raise ValueError(f"video has shape {np.shape(video)}, not [frames height width 1 or 3]")
    if sound is not None and not sample_rate:
        raise ValueError("sound is given without a sample_rate: give the rate in Hz")
    if sound is not None and not (sound.ndim == 2 and len(sound) and sound.shape[1] in (1, 2)):
        raise ValueError(
            f"sound has shape {sound.shape}; a clip takes one sample or more of 1 or 2 channels"
        )
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "clips are written with PyAV, which is not installed: pip install av"
        ) from error
    codec, audio_codec = CODECS[suffix]
    frames = _enlarged(np.asarray(video))
    with av.open(os.fspath(path), "w") as container:
        pictures = container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator())
        pictures.height, pictures.width, pictures.pix_fmt = *frames.shape[1:3], "yuv420p"
        pictures.options = {"crf": "18"}
        # FFmpeg turns RGB into YCbCr by BT.601. Players assume BT.709 for large videos by default.
        pictures.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
        pictures.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[sound.shape[1]]
            sounds = container.add_stream(audio_codec, rate=FILE_RATE, layout=layout)
        for frame in frames:
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
        if sound is not None:
            for frame in _audio_frames(sound, sample_rate, layout, sounds.format.name):
                container.mux(sounds.encode(frame))
            container.mux(sounds.encode())


def _enlarged(video: np.ndarray) -> UInt8[np.ndarray, "frames rows columns 3"]:
    """Return RGB frames with sides of at least `MIN_SIDE` and even sides, as H.264 needs them."""
    zoom = max(1, -(-MIN_SIDE // min(video.shape[1:3])))
    frames = np.broadcast_to(video, (*video.shape[:3], 3)).repeat(zoom, 1).repeat(zoom, 2)
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    return np.ascontiguousarray(np.pad(frames, ((0, 0), *odd, (0, 0)), mode="edge"))


def _audio_frames(sound: Sound, sample_rate: int, layout: str, form: str) -> list:
    """Return the sound at the file's rate, in the form that the encoder takes."""
    import av

    samples = sound if sound.dtype == np.int16 else sound_to_int16(sound)
    packed = np.ascontiguousarray(samples).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, 0
    resampler = av.AudioResampler(format=form, layout=layout, rate=FILE_RATE)
    return resampler.resample(frame) + resampler.resample(None)
