"""Folders of clips, compared with the frames that were written and with when they are shown."""

import fractions
import json
import sys

import numpy as np
import pytest

from genjax.data import (
    Batches,
    BucketedClips,
    load_animated_emoji,
    load_clips,
    load_dataset,
)
from genjax.data.clip_buckets import cut_to
from genjax.data.dataset import InMemory, OnDisk
from genjax.data.sets import clips
from genjax.data.sets.clips import decode

av = pytest.importorskip("av")

MILLISECOND = fractions.Fraction(1, 1000)
LEVELS = np.linspace(20, 230, 12).astype(np.uint8)
GREYS = np.broadcast_to(LEVELS[:, None, None, None], (12, 16, 24, 3))
# Frames are shown for 0.1 and 0.3 seconds in turn: 2.4 s in all.
TIMES = np.cumsum([0.0] + [0.1, 0.3] * 5 + [0.1])


def write(path, frames, times, codec="ffv1", pixels="bgr0"):
    """Write frames that are shown from given times on, in seconds; ffv1 loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture), format={3: "rgb24", 4: "rgba"}[picture.shape[-1]]
            )
            frame.pts, frame.time_base = round(time * 1000), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def expected(times, count, rate):
    """Return the number of the frame that is shown in the middle of each interval."""
    middles = (np.arange(count) + 0.5) / rate
    return np.searchsorted(times, middles, side="right") - 1


@pytest.mark.parametrize("rate", [3.0, 8.0, 30.0])
@pytest.mark.parametrize("times", [TIMES, np.arange(12) / 10], ids=["variable", "constant"])
@pytest.mark.parametrize("start", [0.0, 1.5])
def test_frames_are_shown_at_their_times(tmp_path, times, rate, start):
    write(tmp_path / "a.mkv", GREYS, times + start)
    count = int(1.1 * rate)
    clip = decode(tmp_path / "a.mkv", 16, count, rate)
    assert clip.shape == (count, 16, 16, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip[:, 8, 8, 0], LEVELS[expected(times, count, rate)])
    assert np.all(clip == clip[:, :1, :1, :1])


@pytest.mark.parametrize(
    "suffix, codec, pixels",
    [(".mp4", "mpeg4", "yuv420p"), (".webm", "libvpx", "yuv420p"), (".gif", "gif", "gray")],
)
def test_common_formats(tmp_path, suffix, codec, pixels):
    """Lossy codecs keep flat grey within a few levels."""
    write(tmp_path / f"a{suffix}", GREYS, TIMES, codec, pixels)
    clip = decode(tmp_path / f"a{suffix}", 16, 8, 4.0).astype(int)
    assert np.abs(clip[..., 1] - LEVELS[expected(TIMES, 8, 4.0), None, None]).max() <= 6


def test_frames_are_resized_and_cropped_in_the_middle(tmp_path):
    """Of 16×24 pixels the middle 16×16 are kept, then blocks of 2×2 become their colour."""
    blocks = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
    write(tmp_path / "a.mkv", blocks.repeat(2, 1).repeat(2, 2), [0.0, 0.1, 0.2])
    np.testing.assert_array_equal(decode(tmp_path / "a.mkv", 8, 2, 10.0), blocks[:2, :, 2:10])


def test_frames_have_the_height_and_width_asked_for_or_their_own(tmp_path):
    """16×24 pixels to 4×12: halved to 8×12, and the middle rows are kept."""
    blocks = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
    stored = blocks.repeat(2, 1).repeat(2, 2)
    write(tmp_path / "a.mkv", stored, [0.0, 0.1, 0.2])
    half = decode(tmp_path / "a.mkv", (8, 12), 2, 10.0).astype(int)
    assert np.abs(half[:, 2:6] - decode(tmp_path / "a.mkv", (4, 12), 2, 10.0)).max() == 0
    assert np.corrcoef(half.ravel(), blocks[:2].ravel())[0, 1] > 0.9  # bicubic, over four pixels
    # The last frame is shown for 1/25 of a second.
    np.testing.assert_array_equal(decode(tmp_path / "a.mkv", None, None, 10.0), stored[:2])
    assert len(decode(tmp_path / "a.mkv", None, None, 20.0)) == 5
    with pytest.raises(ValueError, match="ends after 0.24 s, and frame 1 is due until 1.00 s"):
        decode(tmp_path / "a.mkv", 8, None, 1.0)


def test_buckets_take_varied_clips_of_a_folder(tmp_path, monkeypatch):
    """Three lengths and two proportions. The last frame of a file is too short to be seen."""
    for place, (count, height, width) in enumerate([(12, 16, 24), (5, 24, 16), (2, 16, 24)] * 2):
        frames = np.full((count, height, width, 3), 40 * place, np.uint8)
        write(tmp_path / f"train/{place}.mkv", frames, np.arange(count) / 10)
    options = dict(size=None, num_frames=None, frames_per_second=10.0)
    dataset = load_clips("train", tmp_path, **options)
    assert dataset.image_shape == (None, None, None, 3) and len(dataset.source) == 6
    assert [len(dataset.source[row]["video"]) for row in range(3)] == [11, 4, 1]
    buckets = [(length, *size) for length in (9, 4, 1) for size in ((8, 12), (12, 8))]
    batches = BucketedClips(dataset, 2, 0, buckets=buckets)
    assert {batches[step]["video"].shape[1:] for step in range(3)} == {
        (9, 8, 12, 3),
        (4, 12, 8, 3),
        (1, 8, 12, 3),
    }
    decoded = []
    monkeypatch.setattr(clips, "decode", lambda *inputs: decoded.append(1) or decode(*inputs))
    assert len(cut_to((4, 8, 12), dataset).source) == 4
    assert len(decoded) == 1  # one example; lengths are known since the set was opened
    with pytest.raises(ValueError, match="num_frames is None, and clips with sound have one"):
        load_clips("train", tmp_path, **options, sample_rate=8000)


def test_transparent_frames_lie_over_white(tmp_path):
    """Opaque red, black that is not seen, and black that is half seen."""
    colours = np.array([[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (3, 8, 8, 4))
    write(tmp_path / "a.mkv", frames, [0.0, 0.1, 0.2], pixels="bgra")
    clip = decode(tmp_path / "a.mkv", 8, 2, 10.0)
    np.testing.assert_array_equal(clip[:, 4, 4], [[255, 0, 0], [255, 255, 255]])
    assert decode(tmp_path / "a.mkv", 8, 5, 20.0)[4, 0, 0].tolist() == [127] * 3


FORM = dict(size=16, num_frames=4, frames_per_second=4.0)


def test_captions_and_splits_are_those_of_a_folder(tmp_path):
    rows = []
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            write(tmp_path / split / f"{i}.mkv", GREYS[i:], TIMES[i:])
            rows.append({"file_name": f"{split}/{i}.mkv", "text": [f"{split} {i}", "grey"]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, test = (load_clips(split, tmp_path, **FORM) for split in ("train", "test"))
    assert train.captions == [(f"train {i}", "grey") for i in range(3)]
    assert len(test.source) == 2 and train.num_classes is None and not train.skipped
    assert isinstance(train.source, InMemory) and train.image_shape == (4, 16, 16, 3)
    first = train.source[:]["video"][:, 0, 0, 0, 0]  # 0.125 s after the first frame
    np.testing.assert_array_equal(first, LEVELS[[1, 1, 3]])
    on_disk = load_clips("train", tmp_path, **FORM, preload_bytes=1)
    assert isinstance(on_disk.source, OnDisk)
    np.testing.assert_array_equal(on_disk.source[:]["video"], train.source[:]["video"])
    batch = Batches(train, 2, seed=0, image_shape=(4, 16, 16, 3))[0]
    assert set(batch) == {"video", "index"} and batch["video"].shape == (2, 4, 16, 16, 3)


def test_folders_are_classes_and_the_name_has_the_size(tmp_path):
    frames, times = GREYS[[0] * 12], np.arange(12) / 5  # 17 frames at 8 a second take 2.125 s
    for name in ("a/0.mkv", "a/1.mkv", "b/0.mkv"):
        write(tmp_path / name, frames, times)
    dataset = load_dataset("clips/8", "train", tmp_path)
    assert dataset.class_names == ("a", "b") and dataset.image_shape == (17, 8, 8, 3)
    assert dataset.source[:]["label"].tolist() == [0, 0, 1]


def test_unusable_files_are_named(tmp_path, caplog):
    write(tmp_path / "good.mkv", GREYS, TIMES)
    write(tmp_path / "short.mkv", GREYS[:3], TIMES[:3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("no video at all" * 100)
    whole = (tmp_path / "good.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "notes.txt").write_text("ignored")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    dataset = load_clips("train+test", tmp_path, **FORM)
    assert len(dataset.source) == 1
    assert set(dataset.skipped) == {"short.mkv", "empty.mp4", "text.webm", "cut.mkv", "sound.mp4"}
    options = "num_frames=4, frames_per_second=4.0"  # what to change
    reason = f"ends after 0.44 s, and frame 4 is due until 1.00 s ({options})"
    assert dataset.skipped["short.mkv"] == reason
    assert dataset.skipped["sound.mp4"] == "holds no video"
    assert "Invalid data" in dataset.skipped["empty.mp4"]
    assert "skipped 5 of 6 files" in caplog.text


def write_with_sound(path, start, sound_start, sounds, later=(), times=()):
    """Write twelve frames of 0.1 s from `start` on, and 16-bit sound at 24 kHz.

    Parts `later` of the sound begin at `times`.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=10)
        video.height, video.width, video.pix_fmt = *GREYS.shape[1:3], "bgr0"
        video.time_base = video.codec_context.time_base = MILLISECOND
        audio = container.add_stream("pcm_s16le", rate=24_000)
        audio.layout = "mono"
        for place, picture in enumerate(GREYS):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(start * 1000) + 100 * place, MILLISECOND
            container.mux(video.encode(frame))
        for part, time in zip((sounds, *later), (sound_start, *times), strict=True):
            frame = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base = 24_000, fractions.Fraction(1, 24_000)
            frame.pts = round(time * 24_000)
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0; a clip has 1 or more"),
        ({"frames_per_second": -8.0}, "frames_per_second is -8.0; it must be above 0"),
        ({"frames_per_second": 0.0}, "frames_per_second is 0.0; it must be above 0"),
    ],
)
@pytest.mark.parametrize("load", [load_clips, load_animated_emoji])
def test_clips_without_frames_are_refused(load, options, message, tmp_path):
    """A frame rate below 0 would show the first frame in all places."""
    with pytest.raises(ValueError, match=message):
        load("train", tmp_path, **options)


@pytest.mark.parametrize("size", [0, -4, (16,), (16, 0), 16.0])
def test_a_size_is_one_or_two_sides(size, tmp_path, unchecked_annotations):
    """No file is at fault."""
    with pytest.raises(ValueError, match="size is .*; it is the side of squares"):
        load_clips("train", tmp_path, size=size)


def test_a_size_may_be_a_number_of_numpy(unchecked_annotations):
    resized = clips._resizer(np.int64(16))(np.zeros((20, 30, 3), np.uint8))
    assert resized.shape == (16, 16, 3)


@pytest.mark.parametrize("start, sound_start", [(0.0, 0.0), (1.5, 1.25), (0.5, 0.75)])
def test_sound_begins_with_the_first_frame(tmp_path, start, sound_start):
    """Sample i is written at sound_start + i/24000 s, so the clip's first is known."""
    sounds = np.random.default_rng(0).integers(-9999, 9999, 20_000).astype(np.int16)
    write_with_sound(tmp_path / "a.mkv", start, sound_start, sounds)
    dataset = load_clips("train", tmp_path, **FORM, sample_rate=24_000)
    audio = dataset.source[0]["audio"][:, 0]
    assert audio.shape == (24_000,) and dataset.image_shape == (4, 16, 16, 3)
    first = round((start - sound_start) * 24_000)  # of the sounds, or silence before them
    expected = np.concatenate([np.zeros(max(0, -first)), sounds[max(0, first) :], np.zeros(24_000)])
    np.testing.assert_array_equal(audio, expected[:24_000])
    np.testing.assert_array_equal(
        dataset.source[0]["video"], load_clips("train", tmp_path, **FORM).source[0]["video"]
    )
    doubled = load_clips("train", tmp_path, **FORM, sample_rate=8000, channels=2)
    assert doubled.source[0]["audio"].shape == (8000, 2)


@pytest.mark.parametrize("time", [0.7, 5.0])
def test_sound_after_a_gap_is_heard_at_its_time(tmp_path, time):
    first, second = np.random.default_rng(0).integers(999, 9999, (2, 4800)).astype(np.int16)
    write_with_sound(tmp_path / "a.mkv", 0.0, 0.0, first, [second], [time])
    audio = load_clips("train", tmp_path, **FORM, sample_rate=24_000).source[0]["audio"][:, 0]
    expected = np.zeros(6 * 24_000)
    expected[:4800], expected[round(24_000 * time) :][:4800] = first, second
    np.testing.assert_array_equal(audio, expected[:24_000])


def test_clips_whose_sound_is_unusable_are_named(tmp_path):
    write(tmp_path / "mute.mkv", GREYS, TIMES)
    for name, level in (("silent", 0), ("good", 5000)):
        sounds = np.full(20_000, level, np.int16)
        write_with_sound(tmp_path / f"{name}.mkv", 0.0, 0.0, sounds)
    dataset = load_clips("train+test", tmp_path, **FORM, sample_rate=8000)
    assert set(dataset.skipped) == {"mute.mkv", "silent.mkv"}
    assert dataset.skipped["mute.mkv"] == "holds no sound"
    assert dataset.skipped["silent.mkv"].startswith("is silent")
    assert set(Batches(dataset, 1, seed=0)[0]) == {"video", "audio"}
    with pytest.raises(ValueError, match="4 frames at 7.0 a second last 4571.43 samples"):
        load_clips("train", tmp_path, num_frames=4, frames_per_second=7.0, sample_rate=8000)


def test_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'clips' needs a data_dir .* the folder that holds the c"):
        load_dataset("clips")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_dataset("clips", "train", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no clips: expected files called \*.avi"):
        load_dataset("clips", "train", tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        load_dataset("clips", "train", tmp_path)
