import json

import matplotlib.axes
import numpy as np
import pytest
from PIL import Image

from genjax.training import pictures
from genjax.training.pictures import (
    histograms,
    image_grid,
    label_rows,
    line_label,
    needs_logarithm,
    panels,
    read_rows,
    save_animation,
    save_curves,
    save_grid,
    save_picture,
    scatter,
    spectrograms,
)


def test_images_stand_row_by_row(tmp_path):
    images = np.zeros((5, 16, 16, 3), np.uint8)
    images[..., 0] = 10 * np.arange(5)[:, None, None]
    save_grid(tmp_path / "grid.png", images, columns=2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    side = 4 * 16 + 2  # enlarged to 64 pixels, one pixel of frame
    assert pixels.shape == (3 * side, 2 * side, 3)
    centres = pixels[side // 2 :: side, side // 2 :: side, 0]
    np.testing.assert_array_equal(
        centres, [[0, 10], [20, 30], [40, 128]]
    )  # the last place is empty


def test_grey_images_and_large_ones_keep_their_size():
    assert image_grid(np.zeros((4, 64, 64, 1), np.uint8), columns=4).size == (4 * 66, 66)


@pytest.mark.parametrize("height, width", [(8, 8), (20, 30), (30, 20), (28, 28)])
def test_cells_have_at_least_64_pixels_and_repeat_pixels(height, width):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    pixels = np.asarray(image_grid(images, columns=2, padding=0))
    zoom = pixels.shape[0] // height
    assert 64 <= zoom * min(height, width) < 64 + min(height, width)
    np.testing.assert_array_equal(
        pixels, np.kron(np.concatenate(images, 1), np.ones((zoom, zoom, 1), np.uint8))
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_stand_left_of_their_rows(tmp_path, channels):
    picture = image_grid(np.full((6, 8, 8, channels), 200, np.uint8), columns=2)
    names = ["cat", "dog", "a very long prompt " * 9]
    labelled = label_rows(picture, names)
    left = labelled.width - picture.width
    assert labelled.mode == picture.mode and labelled.height == picture.height
    np.testing.assert_array_equal(np.asarray(labelled)[:, left:], np.asarray(picture))
    ink = np.asarray(labelled.convert("L"))[:, :left] < 100
    assert not ink[:, :3].any() and not ink[:, -3:].any()  # nothing is cut off
    rows = ink.reshape(3, 66, left).any(axis=2)
    assert rows[:2, 20:46].any(axis=1).all()  # a line of text in the middle of its row
    assert not rows[:2, :16].any() and not rows[:2, 50:].any()
    assert rows[2].sum() > 2 * rows[0].sum()  # three lines
    save_picture(tmp_path / "a.png", labelled)
    with Image.open(tmp_path / "a.png") as read:
        assert read_rows(read) == names  # whole
    assert label_rows(picture, ()) is picture and read_rows(picture) == []


def test_an_animation_has_a_frame_per_time(tmp_path):
    frames = np.linspace(0, 255, 6).astype(np.uint8)[:, None, None, None, None] * np.ones(
        (1, 4, 8, 8, 1), np.uint8
    )
    save_animation(tmp_path / "a.gif", [image_grid(frame, columns=2) for frame in frames])
    for suffix in ("gif", "webp"):
        with Image.open(tmp_path / f"a.{suffix}") as animation:
            assert animation.n_frames == 6 and animation.info["loop"] == 0  # without end
            shades, milliseconds = [], []
            for index in range(6):
                animation.seek(index)
                shades.append(animation.convert("L").getpixel((16, 16)))
                milliseconds.append(animation.info["duration"])
        assert milliseconds == [60] * 5 + [1500]
        np.testing.assert_allclose(shades, np.linspace(0, 255, 6), atol=3)  # GIF has 256 colours


@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_a_film_is_smaller_as_webp_and_has_as_many_frames(tmp_path, kind):
    """Noise turns into data along straight lines, as in rectified flow."""
    random = np.random.default_rng(0)
    if kind == "digits":  # a few large pixels in shades of grey
        data, noise = random.choice([-1, 1], (4, 8, 8, 1)), random.standard_normal((4, 8, 8, 1))
    else:
        waves = np.sin(np.arange(96) / 9)[:, None, None] * np.cos(np.arange(96) / 5)[:, None]
        data = np.broadcast_to(waves, (4, 96, 96, 3))
        noise = random.standard_normal(data.shape)
    mixed = [(1 - t) * data + t * noise for t in np.linspace(1, 0, 9)]
    frames = [np.clip(127.5 * (x + 1), 0, 255).astype(np.uint8) for x in mixed]
    save_animation(tmp_path / "a.gif", [image_grid(each, columns=2) for each in frames])
    gif, webp = tmp_path / "a.gif", tmp_path / "a.webp"
    assert webp.stat().st_size < gif.stat().st_size
    with Image.open(gif) as one, Image.open(webp) as other:
        assert one.n_frames == other.n_frames == 9 and one.size == other.size
        other.seek(8)
        last = np.asarray(other.convert("RGB"), float)
    expected = np.asarray(image_grid(frames[-1], columns=2).convert("RGB"), float)
    assert np.sqrt(np.mean((last - expected) ** 2)) < 8  # 30 dB: hard to see


def test_an_animation_of_more_pixels_than_a_gif_can_have_is_reduced(tmp_path):
    """A thousand rows of 256 pixels."""
    frames = [Image.new("L", (258, 258_000), shade) for shade in (0, 255)]
    save_animation(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.size == (17, 16_125) and animation.n_frames == 2  # a 16th, rounded up


def test_metrics_share_panels():
    names = [
        "step_time",
        "loss/t_0_0.5",
        "loss",
        "loss/t_0.5_1",
        "norm/update/head",
        "norm/update/total",
    ]
    assert panels(names) == {
        "loss by time": ["loss/t_0_0.5", "loss/t_0.5_1"],
        "loss": ["loss"],
        "step_time": ["step_time"],
        "norm/update": ["norm/update/head", "norm/update/total"],
    }
    assert list(panels(names))[:2] == ["loss by time", "loss"]
    parts = panels(["loss", "loss/divergence", "loss/reconstruction"])
    assert list(parts) == ["loss", "parts of the loss"]
    players = ["loss/generator", "loss/discriminator"]  # without a loss of its own
    assert panels(players) == {"loss": players}
    assert line_label("loss/t_0_0.125") == "t 0–0.125" and line_label("norm/time_in") == "time in"


def test_a_logarithmic_axis_is_for_values_of_several_sizes():
    assert needs_logarithm([1e-3, 2e-3, 1.0, 1.5e-3])
    assert not needs_logarithm([1.0, 2.0, 3.0, 4.0]) and not needs_logarithm([-1.0, 0.1, 100.0])


def test_norms_are_not_among_the_curves(tmp_path, monkeypatch):
    rows = [{"step": s, "seconds": s, "loss": 1 / s, "norm/update/head": 1.0} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = []
    axes = matplotlib.axes.Axes
    monkeypatch.setattr(axes, "set_title", lambda self, title: titles.append(title))
    save_curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")
    assert titles == ["loss"]


@pytest.mark.parametrize("text", ["", '{"step": 1, "seconds": 1, "norm/update/head": 1.0}\n'])
def test_no_curves_are_drawn_before_there_are_any(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    save_curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")
    assert not (tmp_path / "curves.png").exists()


def test_curves_draw_metrics_that_come_at_different_steps(tmp_path):
    rows = [{"step": s, "seconds": s, "loss": 1 / s} for s in (1, 2, 3)] + [
        {"step": 3, "seconds": 3, "quality": 1.0}
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")
    with Image.open(tmp_path / "curves.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # something is drawn


def dark(picture):
    """The share of pixels that are not white, by columns."""
    return (np.asarray(picture.convert("L")) < 250).mean(0)


def test_shares_of_several_sizes_are_on_a_logarithmic_axis(monkeypatch):
    scales = []
    axes = matplotlib.axes.Axes
    monkeypatch.setattr(axes, "set_yscale", lambda self, scale: scales.append(scale))
    edges = np.linspace(-2, 2, 41)
    spike, wide = np.eye(40)[20], np.full(40, 1 / 40)
    histograms({"generated": spike, "training": wide}, edges)
    assert scales == ["log"]
    histograms({"generated": wide, "training": wide}, edges)
    assert scales == ["log"]


def test_points_and_histograms_are_drawn_where_they_are():
    left, right = (scatter(np.full((50, 2), side)) for side in (-3.0, 3.0))
    difference = dark(left) - dark(right)
    places = np.flatnonzero(difference)
    assert difference[places[0]] > 0 > difference[places[-1]]
    edges = np.linspace(-2, 2, 5)
    low, high = (histograms({"a": np.eye(4)[bin]}, edges) for bin in (0, 3))
    middle = len(dark(low)) // 2
    assert (dark(low) - dark(high))[:middle].sum() > 1 and (dark(high) - dark(low))[
        middle:
    ].sum() > 1


def test_a_tone_is_a_line_at_its_pitch():
    """A sine of 1 kHz at −45 dB. The top of the picture is half of the sample rate, 4 kHz."""
    tone = 10 ** (-45 / 20) * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    levels = pictures._levels(tone, 256)[2:-3]  # frames within the sound
    np.testing.assert_allclose(levels[:, 32], -45, atol=1e-3)  # 1 kHz in steps of 8000/256 Hz
    np.testing.assert_array_equal(levels.argmax(1), 32)
    sounds = np.rint(2**15 * np.stack([tone, 0 * tone])).astype(np.int16)[..., None]
    drawn = np.asarray(spectrograms(sounds, 1, 8000), int).sum(-1)
    heard, silence = drawn[1:65, 1:161], drawn[67:131, 1:161]
    assert abs(63 - heard.sum(1).argmax() - 1000 / 4000 * 64) <= 1
    assert silence.max() == silence.min() == heard.min()
