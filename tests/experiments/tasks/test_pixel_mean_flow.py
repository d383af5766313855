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
from genjax.distillation import flow_maps
from genjax.metrics.lpips import LPIPS

FLOW = RectifiedFlow()
X = jax.random.normal(jax.random.key(0), (32, 16, 16, 1))


def student(network, distance=None):
    nothing = dict(averaged=None, null=jnp.zeros(()), teacher=None, progress=0.0)
    return PixelStudent(
        network=network,
        condition=jnp.zeros(len(X)),
        told=jnp.zeros(len(X)),
        dropped=jnp.zeros(len(X), bool),
        process=FLOW,
        target=targets.clean,
        times=times.uniform,
        distance=distance,
        **nothing,
    )


def test_the_average_velocity_makes_the_samplers_jumps():
    """x_t + (s − t)·u is the flow map of the same network for the target `clean`, for t > 0.05."""
    network = lambda x, t, c, end_time: jnp.sin(x) * (1 + t - end_time)[:, None, None, None]
    t, s = jnp.linspace(0.1, 1.0, 32), jnp.linspace(0.0, 0.9, 32)
    told = lambda x, t, s: network(x, t, None, s)
    jump = flow_maps.flow_map(told, FLOW, targets.clean)
    u = student(network).apply(X, t, s, None)
    np.testing.assert_allclose(X + (s - t)[:, None, None, None] * u, jump(X, t, s), atol=1e-5)


def test_the_perceptual_term_counts_what_the_network_says_of_the_data():
    """A network that is wrong by 1 everywhere: 0.4·d/(d + 0.01), d = 1, before t = 0.8 alone."""
    network = lambda x, t, c, end_time: X + 1.0
    distance = lambda generated, real: jnp.abs(generated - real).mean((1, 2, 3))
    losses = {}
    for weight in (0.0, 0.4):
        method = PixelMeanFlow(perceptual=weight, diagonal=0.0)
        losses[weight], t = method(jax.random.key(1), student(network, distance), X)
    assert t.min() > 0.05 and t.min() < 0.8 < t.max()
    expected = np.where(t < 0.8, 0.4 / 1.01, 0.0)
    np.testing.assert_allclose(losses[0.4] - losses[0.0], expected, atol=1e-4)


@functools.cache
def narrow_lpips():
    lpips, images = LPIPS(widths=(2, 2, 2, 2, 2)), jnp.zeros((1, 16, 16, 3))
    return lpips, lpips.init(jax.random.key(0), images, images)


@pytest.mark.parametrize("perceptual", [0.0, 0.4])
def test_a_step_moves_the_student_and_not_lpips(perceptual, monkeypatch):
    narrow = functools.partial(LPIPS, widths=(2, 2, 2, 2, 2))
    monkeypatch.setattr(pixel_mean_flow, "LPIPS", narrow)
    monkeypatch.setattr(pixel_mean_flow, "load_lpips", narrow_lpips)
    config = digits_distillation.get_config("PixelMeanFlow")
    config.model.update(patch_size=8, width=16, depth=1, num_heads=2, unroll=1)
    config.data.update(image_shape=(16, 16, 1), resize=True)
    config.method.perceptual, config.num_steps = perceptual, 2  # no warm-up
    task = build(config)
    state, frozen = jax.jit(task.init)(jax.random.key(0)), task.frozen()
    before = jax.tree.map(np.copy, frozen)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(8)}
    after, metrics = jax.jit(task.update)(state, batch, jax.random.key(1), *frozen)
    assert np.isfinite(metrics["loss"])
    assert jnp.abs(state.params["head"]["kernel"] - after.params["head"]["kernel"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
    assert shapes(task.abstract_frozen()) == shapes(frozen)
    assert bool(frozen) == bool(perceptual)


def test_what_does_not_fit_is_said_before_any_compute():
    config = digits_distillation.get_config("PixelMeanFlow")
    config.method.perceptual = 0.4
    with pytest.raises(ValueError, match="a side of 8 pixels, and LPIPS needs 16"):
        build(config)
    config = digits_distillation.get_config("PixelMeanFlow")
    config.target.name = "velocity"
    with pytest.raises(ValueError, match="config.target is velocity, but the network of pixel"):
        build(config)
