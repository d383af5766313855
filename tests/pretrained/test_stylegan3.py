"""StyleGAN3 compared with outputs of its authors' PyTorch code (data/README_stylegan3.md)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax.models.gans.stylegan3 import Generator
from genjax.pretrained.stylegan3 import load_generator

DATA = Path(__file__).with_name("data")
SIZES = dict(latent_size=10, w_size=14, num_layers=5, channel_base=64, channel_max=12)
GENERATORS = {
    "t": Generator(32, **SIZES),
    "r": Generator(32, num_classes=4, kernel_size=1, radial=True, clamp=1.5, **SIZES),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_agrees(name):
    module, arrays = GENERATORS[name], dict(np.load(DATA / f"stylegan3_{name}.npz"))
    variables = load_generator(DATA / f"stylegan3_{name}.safetensors", module)
    labels = arrays["labels"] if module.num_classes else None
    map = functools.partial(jax.jit(functools.partial(module.apply, method="map")), variables)

    # float32 on both sides: a dozen layers of filters, each rounded by about 1e-7.
    def assert_close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())

    w = map(arrays["z"], labels)
    assert_close(w, arrays["w"])
    cut = map(arrays["z"], labels, truncation=jnp.float32(0.7), truncation_cutoff=3)
    assert_close(cut, arrays["w_cut"])

    @jax.jit
    def synthesize(variables, w, transform):
        call = functools.partial(module.apply, variables, w, method="synthesize")
        _, updates = call(mutable=["moving_average"], train=True)
        return call(), call(transform=transform), updates["moving_average"]

    channel_last = lambda images: images.transpose(0, 2, 3, 1)
    images, moved, averages = synthesize(variables, w, arrays["transform"][None])
    assert_close(images, channel_last(arrays["images"]))
    assert_close(moved, channel_last(arrays["moved"]))
    assert np.abs(moved - images).max() > 0.1 * np.abs(images).max()
    power = [averages[f"layers_{i}"]["power"] for i in range(len(module.shapes))]
    assert_close(np.stack(power), arrays["power"])


def test_other_filters_are_refused(tmp_path):
    tensors = load_file(DATA / "stylegan3_t.safetensors")
    name = next(name for name in tensors if name.endswith("up_filter"))
    save_file(tensors | {name: tensors[name] + np.float32(0.01)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"extra: {name}"):
        load_generator(tmp_path / "a.safetensors", GENERATORS["t"])
