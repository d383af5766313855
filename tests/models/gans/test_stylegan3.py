"""StyleGAN3's counts, layers and equivariance; tests/pretrained compares its outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics import equivariance
from genjax.models.gans.stylegan3 import (
    FourierInput,
    Generator,
    LayerShape,
    stylegan3_r,
    stylegan3_t,
)
from tests.products import precisions


def count(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "make, resolution, parameters",
    [
        (stylegan3_t, 256, 28_472_133),
        (stylegan3_t, 512, 24_873_519),
        (stylegan3_t, 1024, 22_313_167),
        (stylegan3_r, 256, 18_816_387),
        (stylegan3_r, 512, 16_665_594),
        (stylegan3_r, 1024, 15_093_151),
    ],
)
def test_parameter_counts_are_the_authors(make, resolution, parameters):
    network = make(resolution)
    z = jax.ShapeDtypeStruct((1, 512), jnp.float32)
    images, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), z)
    assert images.shape == (1, resolution, resolution, 3)
    assert count(variables["params"]) == parameters
    assert count(variables["params"]["mapping"]) == 525_312
    assert network.num_styles == 16


# Printed by the authors' code: side, channels, sampling rate, cutoff, half-width of the band after
# each layer, and the layer's factors and taps before and after its activation.
T_256 = [
    (36, 512, 16, 2.0, 6.0, 2, 2, 12, 12),
    (36, 512, 16, 2.8284, 5.1716, 2, 2, 12, 12),
    (36, 512, 16, 4.0, 4.0, 2, 2, 12, 12),
    (52, 512, 32, 5.6569, 10.3431, 4, 2, 24, 12),
    (52, 512, 32, 8.0, 8.0, 2, 2, 12, 12),
    (84, 512, 64, 11.3137, 20.6863, 4, 2, 24, 12),
    (84, 512, 64, 16.0, 16.0, 2, 2, 12, 12),
    (148, 512, 128, 22.6274, 41.3726, 4, 2, 24, 12),
    (148, 512, 128, 32.0, 32.0, 2, 2, 12, 12),
    (148, 362, 128, 45.2548, 18.7452, 2, 2, 12, 12),
    (276, 256, 256, 64.0, 64.0, 4, 2, 24, 12),
    (276, 181, 256, 90.5097, 37.4903, 2, 2, 12, 12),
    (276, 128, 256, 128.0, 29.5865, 2, 2, 12, 12),
    (256, 128, 256, 128.0, 29.5865, 2, 2, 12, 12),
    (256, 3, 256, 128.0, 29.5865, 1, 1, 1, 1),
]
T_1024 = [
    (36, 512, 16, 2.0, 6.0, 2, 2, 12, 12),
    (36, 512, 16, 3.1748, 4.8252, 2, 2, 12, 12),
    (52, 512, 32, 5.0397, 10.9603, 4, 2, 24, 12),
    (52, 512, 32, 8.0, 8.0, 2, 2, 12, 12),
    (84, 512, 64, 12.6992, 19.3008, 4, 2, 24, 12),
    (148, 512, 128, 20.1587, 43.8413, 4, 2, 24, 12),
    (148, 512, 128, 32.0, 32.0, 2, 2, 12, 12),
    (276, 323, 256, 50.7968, 77.2032, 4, 2, 24, 12),
    (276, 203, 256, 80.6349, 47.3651, 2, 2, 12, 12),
    (532, 128, 512, 128.0, 128.0, 4, 2, 24, 12),
    (1044, 81, 1024, 203.1873, 308.8127, 4, 2, 24, 12),
    (1044, 51, 1024, 322.5398, 189.4602, 2, 2, 12, 12),
    (1044, 32, 1024, 512.0, 118.3459, 2, 2, 12, 12),
    (1024, 32, 1024, 512.0, 118.3459, 2, 2, 12, 12),
    (1024, 3, 1024, 512.0, 118.3459, 1, 1, 1, 1),
]
R_256 = [
    (36, 1024, 16, 2.0, 6.0, 2, 2, 12, 12),
    (36, 1024, 16, 2.8284, 5.1716, 2, 2, 12, 12),
    (36, 1024, 16, 4.0, 4.0, 2, 2, 12, 12),
    (52, 1024, 32, 5.6569, 10.3431, 4, 2, 24, 12),
    (52, 1024, 32, 8.0, 8.0, 2, 2, 12, 12),
    (84, 1024, 64, 11.3137, 20.6863, 4, 2, 24, 12),
    (84, 1024, 64, 16.0, 16.0, 2, 2, 12, 12),
    (148, 1024, 128, 22.6274, 41.3726, 4, 2, 24, 12),
    (148, 1024, 128, 32.0, 32.0, 2, 2, 12, 12),
    (148, 724, 128, 45.2548, 18.7452, 2, 2, 12, 12),
    (276, 512, 256, 64.0, 64.0, 4, 2, 24, 12),
    (276, 362, 256, 90.5097, 37.4903, 2, 2, 12, 12),
    (276, 256, 256, 128.0, 29.5865, 2, 2, 12, 12),
    (256, 256, 256, 128.0, 29.5865, 2, 2, 12, 12),
    (256, 3, 256, 128.0, 29.5865, 1, 1, 1, 1),
]
R_1024 = [
    (36, 1024, 16, 2.0, 6.0, 2, 2, 12, 12),
    (36, 1024, 16, 3.1748, 4.8252, 2, 2, 12, 12),
    (52, 1024, 32, 5.0397, 10.9603, 4, 2, 24, 12),
    (52, 1024, 32, 8.0, 8.0, 2, 2, 12, 12),
    (84, 1024, 64, 12.6992, 19.3008, 4, 2, 24, 12),
    (148, 1024, 128, 20.1587, 43.8413, 4, 2, 24, 12),
    (148, 1024, 128, 32.0, 32.0, 2, 2, 12, 12),
    (276, 645, 256, 50.7968, 77.2032, 4, 2, 24, 12),
    (276, 406, 256, 80.6349, 47.3651, 2, 2, 12, 12),
    (532, 256, 512, 128.0, 128.0, 4, 2, 24, 12),
    (1044, 161, 1024, 203.1873, 308.8127, 4, 2, 24, 12),
    (1044, 102, 1024, 322.5398, 189.4602, 2, 2, 12, 12),
    (1044, 64, 1024, 512.0, 118.3459, 2, 2, 12, 12),
    (1024, 64, 1024, 512.0, 118.3459, 2, 2, 12, 12),
    (1024, 3, 1024, 512.0, 118.3459, 1, 1, 1, 1),
]


@pytest.mark.parametrize(
    "network, table",
    [
        (stylegan3_t(256), T_256),
        (stylegan3_t(1024), T_1024),
        (stylegan3_r(256), R_256),
        (stylegan3_r(1024), R_1024),
    ],
)
def test_layers_are_the_authors(network, table):
    assert len(network.shapes) == len(table)
    for i, (shape, row) in enumerate(zip(network.shapes, table, strict=True)):
        np.testing.assert_allclose(shape, row[:5], atol=5e-5)
        filters = network.filters(i)
        assert (filters["up"], filters["down"], len(filters["up_taps"])) == (*row[5:7], row[7])
        assert len(filters["down_taps"]) == row[8]
        radial = network.radial and i < network.num_layers - network.num_critical
        assert np.ndim(filters["down_taps"]) == (2 if radial else 1)


def test_only_layers_are_rounded_on_tpus_and_not_where_waves_are():
    """The two layers of the input take w and the waves."""
    waves = FourierInput(LayerShape(16, 4, 8, 2.0, 1.0), jnp.float32)
    inputs = jnp.ones((2, 3)), jnp.eye(3)[None]
    variables = jax.eval_shape(waves.init, jax.random.key(0), *inputs)
    found = precisions(waves.apply, variables, *inputs)
    assert set(found) == {"HIGHEST", "DEFAULT"} and found.count("DEFAULT") == 2


def moved_images(network, seed):
    """Return an untrained network's images, and a function to those of a transformed input."""
    z = jnp.asarray(np.random.default_rng(seed).standard_normal((2, 16), np.float32))
    variables = jax.jit(network.init)(jax.random.key(seed), z)
    w = network.apply(variables, z, method="map")
    synthesize = jax.jit(functools.partial(network.apply, variables, w, method="synthesize"))
    scale = 1 / np.abs(synthesize(transform=jnp.eye(3)[None])).max()
    return lambda *rows: scale * np.asarray(synthesize(transform=jnp.array([rows], jnp.float32)))


SMALL = dict(latent_size=16, w_size=16, num_layers=6, channel_base=512, channel_max=16)


def test_an_untrained_image_moves_with_its_input():
    side = 64
    images = moved_images(Generator(side, **SMALL), 0)
    still = images((1, 0, 0), (0, 1, 0), (0, 0, 1))
    x, y = 3.4, -2.7
    moved = images((1, 0, -x / side), (0, 1, -y / side), (0, 0, 1))
    expected, mask = equivariance.translated(still, x, y)
    # As exactly as the metric moves images: its window of three lobes errs at high frequencies.
    assert equivariance.equivariance(expected, moved, mask) > 50
    assert equivariance.equivariance(still, moved, mask) < 35


def test_configuration_r_turns_with_its_input_and_t_does_not():
    angle, decibels = 0.6, {}
    cosine, sine = np.cos(angle), np.sin(angle)
    for name, options in {"r": dict(kernel_size=1, radial=True), "t": {}}.items():
        images = moved_images(Generator(64, **SMALL, **options), 1)
        still = images((1, 0, 0), (0, 1, 0), (0, 0, 1))
        turned = images((cosine, -sine, 0), (sine, cosine, 0), (0, 0, 1))
        expected, known = equivariance.rotated(still, angle)
        found, also_known = equivariance.pseudo_rotated(turned, angle)
        decibels[name] = equivariance.equivariance(expected, found, known & also_known)
    assert decibels["r"] > 60 and decibels["t"] < 35
