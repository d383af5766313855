"""Lossy codecs of sound, Opus and MP3, as references for learned codecs of the same bitrate.

PyAV encodes and decodes, by FFmpeg's libopus and libmp3lame.
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16

from genjax.data.sounds import require_av, resample, to_int16

# Encoder, container, the only rate that it takes in Hz (None for the sound's own), and options.
CODECS = {
    "opus": ("libopus", "ogg", 48_000, {"vbr": "off"}),
    "mp3": ("libmp3lame", "mp3", None, {}),
}
SILENCE = 0.1  # seconds after each sound, in which an encoder ends


class Compressed(NamedTuple):
    """Decoded sound of a lossy codec.

    Attributes:
        samples: at the original's rate, of the original's length.
        bitrate: bits of all packets over the seconds that they stand for, which include 0.1 s of
            silence after the sound. Containers do not count.
    """

    samples: Int16[np.ndarray, "samples channels"]
    bitrate: float


def compress(
    samples: Int16[np.ndarray, "samples channels"], sample_rate: int, codec: str, bitrate: int
) -> Compressed:
    """Encode and decode a sound.

    FFmpeg knows the codec's delay and removes it. Sound is resampled to 48 kHz for Opus, and back.

    Args:
        sample_rate: in Hz; for MP3 one of its rates.
        codec: "opus" or "mp3".
        bitrate: to aim at, in bits per second. Codecs have a lowest one, and short sounds cost more
            than long ones.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: the codec is unknown.
        Exception: whatever PyAV raises where the codec does not take the rate or the channels.
    """
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r} is unknown: it is one of {', '.join(CODECS)}")
    require_av("compress")
    encoder, form, codec_rate, options = CODECS[codec]
    rate = codec_rate or sample_rate
    padded = np.pad(samples, ((0, round(SILENCE * sample_rate)), (0, 0)))
    if rate != sample_rate:
        padded = to_int16(resample(padded / 2**15, sample_rate, rate))
    file, size, duration = _encode(padded, rate, encoder, form, bitrate, options)
    decoded = _decode(file, form)
    if rate != sample_rate:
        decoded = resample(decoded, rate, sample_rate)
    decoded = np.pad(decoded, ((0, max(0, len(samples) - len(decoded))), (0, 0)))
    return Compressed(to_int16(decoded[: len(samples)]), 8 * size / duration)


def _encode(
    samples: Int16[np.ndarray, "samples channels"],
    rate: int,
    encoder: str,
    form: str,
    bitrate: int,
    options: dict[str, str],
) -> tuple[io.BytesIO, int, float]:
    """Return the file, and the bytes and seconds of its packets."""
    import av

    file, size, duration = io.BytesIO(), 0, 0.0
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(encoder, rate=rate, layout=layout)
        stream.bit_rate, stream.options = bitrate, options
        packed = np.ascontiguousarray(samples).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        for part in (*resampler.resample(frame), None):
            for packet in stream.encode(part):
                size += packet.size
                duration += float(packet.duration * packet.time_base)
                container.mux(packet)
    file.seek(0)
    return file, size, duration


def _decode(file: io.BytesIO, form: str) -> np.ndarray:
    """Return the samples of a file in [−1, 1], `[samples channels]`."""
    import av

    with av.open(file, format=form) as container:
        planar = av.AudioResampler(format="fltp")
        parts = [
            part.to_ndarray()
            for frame in container.decode(audio=0)
            for part in planar.resample(frame)
        ]
    return np.concatenate(parts, axis=1).T
