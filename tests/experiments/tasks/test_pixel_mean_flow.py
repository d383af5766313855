"""Pixel mean flow: its network is an average velocity, and its perceptual term counts near data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_distillation
from experiments.configuration.runs import build
from experiments.tasks import pixel_mean_flow
from experiments.tasks.pixel_mean_flow import PixelMeanFlow, PixelStudent
from genjax.diffusion import RectifiedFlow, targets, times
from genjax.distillation import distances, flow_maps, mean_flow
from genjax.distillation.pixel_mean_flow import average_velocity, random_crops
from genjax.metrics.lpips import LPIPS
from tests.experiments.random_runs import random_state

FLOW = RectifiedFlow()
X = jax.random.normal(jax.random.key(0), (32, 16, 16, 1))


def known(x):
    """The images, as often as a batch has them."""
    return jnp.tile(X, (len(x) // len(X), 1, 1, 1))


def student(network, distance=None):
    nothing = dict(averaged=None, null=jnp.zeros(()), teacher=None, progress=0.0)
    return PixelStudent(
        network=network,
        condition=jnp.zeros(len(X)),
        condition_with_dropout=jnp.zeros(len(X)),
        dropped=jnp.zeros(len(X), bool),
        process=FLOW,
        target=targets.clean,
        times=times.uniform,
        distance=distance,
        **nothing,
    )


def test_the_average_velocity_makes_the_samplers_jumps():
    """x_t + (s − t)·u is the flow map of the same network for the target `clean`, for t > 0.05."""
    network = lambda x, t, s, c=None: jnp.sin(x) * (1 + t - s)[:, None, None, None]
    t, s = jnp.linspace(0.1, 1.0, 32), jnp.linspace(0.0, 0.9, 32)
    jump = flow_maps.flow_map(network, FLOW, targets.clean)
    u = average_velocity(network)(X, t, s)
    np.testing.assert_allclose(X + (s - t)[:, None, None, None] * u, jump(X, t, s), atol=1e-5)


def test_the_perceptual_term_counts_what_the_network_says_of_the_data():
    """A network that is wrong by 1 everywhere: 0.4·d/(d + 0.01), d = 1, before t = 0.8 alone."""
    network = lambda x, t, c, **told: (known(x) + 1.0, known(x) + 1.0)
    distance = lambda generated, real: jnp.abs(generated - real).mean((1, 2, 3))
    losses = {}
    for weight in (0.0, 0.4):
        method = PixelMeanFlow(perceptual=weight, diagonal=0.0, crop=8)
        losses[weight], t = method(jax.random.key(1), student(network, distance), X)
    assert t.min() > 0.05 and t.min() < 0.8 < t.max()
    expected = np.where(t < 0.8, 0.4 / 1.01, 0.0)
    np.testing.assert_allclose(losses[0.4] - losses[0.0], expected, atol=1e-4)


def test_a_network_that_knows_the_image_has_no_loss_near_the_data():
    """Below t = 0.05, where z − x is not what a bounded answer can be."""
    near = lambda key, process, count, **_: (jnp.full(count, 0.02), jnp.full(count, 0.02))
    knows = lambda x, t, s, *told: (average_velocity(lambda *_: known(x))(x, t, s),) * 2
    loss, _ = mean_flow.guided_mean_flow_loss(
        jax.random.key(1),
        knows,
        X,
        jnp.zeros(len(X)),
        jnp.zeros(len(X)),
        jnp.zeros(len(X), bool),
        pairs=near,
        smallest=0.05,
        distance=distances.squared,
    )
    # float32: x_t − x is a difference of numbers near 1, divided by 0.05.
    np.testing.assert_allclose(loss, 0, atol=1e-9)


def test_crops_are_the_same_rectangles_of_both_images():
    """The pixels say where they are. Corners lie inside; areas and ratios are as asked."""
    rows, columns = np.mgrid[:64, :64] + 0.5
    places = jnp.broadcast_to(jnp.stack([rows, columns], -1) / 64, (200, 64, 64, 2))
    crop = jax.jit(lambda images: random_crops(jax.random.key(0), images, 32))
    one = np.asarray(crop(places))
    np.testing.assert_array_equal(one, crop(places))
    # The middle rows are free of what cubic kernels do at borders.
    steps = (one[:, 24, 24] - one[:, 8, 8]) * 2  # sides, as shares of the image's
    areas, ratios = steps.prod(-1), steps[:, 1] / steps[:, 0]
    # Sides are whole pixels of 64, at least 16: half a pixel is 3 % of a side.
    assert 0.08 * 0.94 < areas.min() < 0.2 and 0.8 < areas.max() < 1.0 + 1e-5
    assert 0.75 * 0.94 < ratios.min() < 0.85 and 1.2 < ratios.max() < 4 / 3 * 1.06
    assert 0 <= one.min() and one.max() <= 1


@functools.cache
def narrow_lpips():
    lpips, images = LPIPS(widths=(2, 2, 2, 2, 2)), jnp.zeros((1, 16, 16, 3))
    return lpips, jax.jit(lpips.init)(jax.random.key(0), images, images)


@pytest.mark.slow
def test_a_step_moves_the_student_and_not_lpips(monkeypatch):
    narrow = functools.partial(LPIPS, widths=(2, 2, 2, 2, 2))
    monkeypatch.setattr(pixel_mean_flow, "LPIPS", narrow)
    monkeypatch.setattr(pixel_mean_flow, "load_lpips", narrow_lpips)
    config = digits_distillation.get_config("PixelMeanFlow")
    config.model.update(patch_size=8, width=16, depth=2, num_heads=2)
    config.data.update(image_shape=(16, 16, 1), resize=True)
    config.method.update(perceptual=0.4, crop=16)
    config.num_steps = 2  # no warm-up
    task = build(config)
    state, frozen = random_state(task), task.frozen()
    before = jax.tree.map(np.copy, frozen)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(8)}
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1), *frozen)
    assert np.isfinite(metrics["loss"])
    kernel = lambda state: np.asarray(state.params["average_out"]["kernel"])
    assert np.abs(kernel(state) - kernel(after)).max() > 0
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
    assert shapes(task.abstract_frozen()) == shapes(frozen)
    config.method.perceptual = 0.0
    assert build(config).frozen() == ()


def test_what_does_not_fit_is_said_before_any_compute():
    config = digits_distillation.get_config("PixelMeanFlow")
    config.method.perceptual = 0.4
    with pytest.raises(ValueError, match="a side of 8 pixels, and LPIPS needs 16"):
        build(config)
    config = digits_distillation.get_config("PixelMeanFlow")
    config.target.name = "velocity"
    with pytest.raises(
        ValueError, match="config.target is velocity, but a network of PixelMeanFlow predicts clean"
    ):
        build(config)
