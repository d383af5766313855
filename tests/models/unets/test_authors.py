"""The U-Nets compared with outputs of EDM's code with the same weights (data/README.md)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.unets.adm import ADM
from genjax.models.unets.song_unet import SongUNet
from genjax.nn.fir import BINOMIAL

SMALL = dict(multipliers=(1, 2), blocks=1, attention_levels=(1,), num_classes=5)
DDPM = functools.partial(SongUNet, width=16, augmentation_features=9, **SMALL)
NETWORKS = {
    "ddpmpp": DDPM(),
    "ncsnpp": DDPM(fourier_scale=16.0, taps=BINOMIAL, residual_input=True),
    "adm": ADM(width=64, time_scale=1.0, **SMALL),
}


def inputs(name):
    """Return images, times, labels including the null class, and an augmentation."""
    random = np.random.RandomState(1)
    x = random.standard_normal((2, 8, 8, 3)).astype(np.float32)
    augmentation = random.standard_normal((2, 9)).astype(np.float32)
    given = [x, np.array([-0.7, 0.9], np.float32), np.array([3, 5]), augmentation]
    return [jnp.asarray(a) for a in (given[:3] if name == "adm" else given)]


def draw_params(name):
    """Return weights of size 1/√fan_in, drawn by one generator in the order of paths."""
    shapes = jax.eval_shape(NETWORKS[name].init, jax.random.key(0), *inputs(name))["params"]
    random = np.random.RandomState(0)

    def draw(path, a):
        offset = float(path[-1].key == "scale")
        deviation = 0.3 if a.ndim == 1 else np.prod(a.shape[:-1]) ** -0.5
        return jnp.asarray(offset + deviation * random.standard_normal(a.shape), jnp.float32)

    return jax.tree.map_with_path(draw, shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_code_of_edm(name):
    options = {"xla_backend_optimization_level": 0}  # halves the compilation time
    apply = jax.jit(NETWORKS[name].apply, compiler_options=options)
    output = apply({"params": draw_params(name)}, *inputs(name))
    theirs = np.load(Path(__file__).parent / "data/edm_outputs.npz")[name]
    # Some 40 layers in float32; 1e-6 was measured.
    np.testing.assert_allclose(output, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
