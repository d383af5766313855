import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.walks import STEPS, latent_walk
from genjax.diffusion import slerp


def test_an_example_walks_on_its_own_sphere_whatever_is_beside_it():
    """Its norm goes from 3 to 3, and its angle from 0 to π/2 in equal steps."""
    stops = jax.random.normal(jax.random.key(0), (2, 8, 2))
    stops = stops.at[:, 0].set(3 * jnp.eye(2))
    found = latent_walk(lambda z: z, stops, slerp)[:, 0]
    angle = np.linspace(0, np.pi / 2, STEPS + 1)
    np.testing.assert_allclose(found, 3 * np.stack([np.cos(angle), np.sin(angle)], 1), atol=1e-5)
