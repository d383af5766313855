import json

import numpy as np
from PIL import Image

from genjax.training.pictures import (
    histograms,
    image_grid,
    save_animation,
    save_curves,
    save_grid,
    scatter,
)


def test_images_stand_row_by_row(tmp_path):
    images = np.zeros((5, 16, 16, 3), np.uint8)
    images[..., 0] = 10 * np.arange(5)[:, None, None]
    save_grid(tmp_path / "grid.png", images, columns=2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    side = 2 * 16 + 2  # enlarged to 32 pixels, one pixel of frame
    assert pixels.shape == (3 * side, 2 * side, 3)
    centres = pixels[side // 2 :: side, side // 2 :: side, 0]
    np.testing.assert_array_equal(
        centres, [[0, 10], [20, 30], [40, 128]]
    )  # the last place is empty


def test_grey_images_and_large_ones_keep_their_size():
    assert image_grid(np.zeros((4, 64, 64, 1), np.uint8), columns=4).size == (4 * 66, 66)


def test_an_animation_has_a_frame_per_time(tmp_path):
    frames = np.linspace(0, 255, 6).astype(np.uint8)[:, None, None, None, None] * np.ones(
        (1, 4, 8, 8, 1), np.uint8
    )
    save_animation(tmp_path / "a.gif", [image_grid(frame, columns=2) for frame in frames])
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 6
        shades = []
        for index in range(6):
            animation.seek(index)
            shades.append(animation.convert("L").getpixel((16, 16)))
    np.testing.assert_allclose(shades, np.linspace(0, 255, 6), atol=3)  # GIF has 256 colours


def test_an_animation_of_more_pixels_than_a_gif_can_have_is_reduced(tmp_path):
    """A thousand rows of 256 pixels."""
    frames = [Image.new("L", (258, 258_000), shade) for shade in (0, 255)]
    save_animation(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.size == (17, 16_125) and animation.n_frames == 2  # a 16th, rounded up


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
