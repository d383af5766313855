"""Plane waves: their places, their band, and how they move and turn."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax.nn.plane_waves import draw_waves, plane_waves, transform_waves
from tests.products import precisions


def test_frequencies_fill_a_disc():
    """Half of the area lies within 1/√2 of the radius, and half on each side of an axis."""
    frequencies, phases = draw_waves(jax.random.key(0), 20_000, 3.0)
    radii = np.linalg.norm(frequencies, axis=1)
    assert radii.max() <= 3
    np.testing.assert_allclose(np.mean(radii < 3 / np.sqrt(2)), 0.5, atol=0.02)
    np.testing.assert_allclose(np.mean(frequencies > 0, axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(
        [phases.min(), phases.mean(), phases.max()], [-0.5, 0, 0.5], atol=0.01
    )


def test_a_wave_of_one_cycle():
    """It goes from left to right, and its phase 0 is in the middle of the grid."""
    waves = plane_waves(jnp.array([[[1.0, 0.0]]]), jnp.zeros((1, 1)), 4, 4)
    sines = np.sin(2 * np.pi * np.array([-3, -1, 1, 3]) / 8)
    np.testing.assert_allclose(waves[0, :, :, 0], np.tile(sines, (4, 1)), atol=1e-6)


def test_transformed_waves_are_waves_at_transformed_places():
    frequencies, phases = draw_waves(jax.random.key(1), 5, 2.0)
    transform = jnp.array([[0.6, -0.8, 0.3], [0.8, 0.6, -0.1], [0, 0, 1]])
    found = plane_waves(*transform_waves(frequencies[None], phases[None], transform[None]), 6, 8)
    places = (np.arange(6) - 2.5) / 8
    x, y = np.meshgrid(places, places)
    old = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.asarray(transform).T
    expected = np.sin(2 * np.pi * (old[..., :2] @ np.asarray(frequencies).T + phases))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_no_wave_is_rounded_on_tpus():
    """A shift by an eighth of 1,024 pixels would be off by up to a quarter of one."""
    frequencies, phases = draw_waves(jax.random.key(1), 5, 2.0)

    def moved(transform):
        return plane_waves(*transform_waves(frequencies[None], phases[None], transform), 4, 4)

    assert set(precisions(moved, jnp.eye(3)[None])) == {"HIGHEST"}
