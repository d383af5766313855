"""StyleGAN2 compared with outputs of its authors' PyTorch code (data/README.md)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax.models.gans.stylegan2 import Discriminator, Generator
from genjax.pretrained.stylegan2 import load_discriminator, load_generator

DATA = Path(__file__).with_name("data")
SIZES = dict(mapping_layers=3, channel_base=160, channel_max=12)
generator = functools.partial(Generator, latent_size=10, w_size=14, **SIZES)
discriminator = functools.partial(Discriminator, **SIZES)
GENERATORS = {
    "generator_skip": generator(32),
    "generator_skip_conditional": generator(16, num_classes=5, clamp=1.5),
    "generator_resnet": generator(16, num_classes=5, architecture="resnet", clamp=1.5),
    "generator_original": generator(16, architecture="original", clamp=None),
}
DISCRIMINATORS = {
    "discriminator_resnet": discriminator(32),
    "discriminator_resnet_conditional": discriminator(16, num_classes=5, clamp=1.5),
    "discriminator_skip": discriminator(16, num_classes=5, architecture="skip", clamp=1.5),
    "discriminator_original": discriminator(16, architecture="original", clamp=None),
}


def load(name):
    arrays = dict(np.load(DATA / f"stylegan2_{name}.npz"))
    return DATA / f"stylegan2_{name}.safetensors", arrays


def assert_close(ours, theirs):
    # float32 on both sides: a dozen layers, each rounded by about 1e-7.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_agrees(name):
    module = GENERATORS[name]
    path, arrays = load(name)
    variables = load_generator(path, module)
    z, labels = arrays["z"], arrays["labels"] if module.num_classes else None
    map = functools.partial(jax.jit(functools.partial(module.apply, method="map")), variables)
    synthesize = jax.jit(functools.partial(module.apply, method="synthesize"))

    assert_close(map(z, labels), arrays["w"])
    assert_close(map(z, labels, truncation=jnp.float32(0.7)), arrays["w_truncated"])
    w = map(z, labels, truncation=jnp.float32(0.5), truncation_cutoff=3)
    assert_close(w, arrays["w_cut"])

    channel_last = lambda images: images.transpose(0, 2, 3, 1)
    assert_close(synthesize(variables, w), channel_last(arrays["images_cut"]))
    without_noise = variables | {"noise": jax.tree.map(jnp.zeros_like, variables["noise"])}
    assert_close(synthesize(without_noise, w), channel_last(arrays["images_cut_without_noise"]))
    assert_close(synthesize(variables, map(z, labels)), channel_last(arrays["images"]))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_agrees(name):
    module = DISCRIMINATORS[name]
    path, arrays = load(name)
    variables = load_discriminator(path, module)
    images, labels = arrays["images"], arrays["labels"] if module.num_classes else None
    apply = jax.jit(module.apply)
    assert_close(apply(variables, images, labels), arrays["logits"])
    assert_close(
        apply(variables, images[:3], None if labels is None else labels[:3]),
        arrays["logits_of_three"],
    )


def test_faults_are_listed_together(tmp_path):
    tensors = load_file(DATA / "stylegan2_discriminator_skip.safetensors")
    del tensors["b16.conv0.bias"]
    tensors["b8.conv1.weight"] = tensors["b8.conv1.weight"][:, :-1]
    tensors["b4.fc.weight"] = tensors["b4.fc.weight"][:, :-1]  # no longer fits 4×4 features
    # The filter differs from the module's.
    tensors["b4.resample_filter"] = np.ones((4, 4), np.float32) / 16
    save_file(tensors, tmp_path / "file")
    with pytest.raises(ValueError) as caught:
        load_discriminator(tmp_path / "file", DISCRIMINATORS["discriminator_skip"])
    lines = str(caught.value).splitlines()[1:]
    faults = {" ".join(line.split()[:2]).rstrip(",") for line in lines}
    assert faults == {
        "missing: b16.conv0.bias",
        "misshapen: b8.conv1.weight",
        "unusable: b4.fc.weight",
        "extra: b4.resample_filter",
    }
    assert len(lines) == 4
    with pytest.raises(ValueError, match=r"extra: b8.fromrgb.weight \(12, 3, 1, 1\)"):
        load_discriminator(
            DATA / "stylegan2_discriminator_skip.safetensors", discriminator(16, num_classes=5)
        )
