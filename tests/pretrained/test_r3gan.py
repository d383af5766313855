"""R3GAN compared with outputs of its authors' code, stored with weights (data/README_r3gan.md)."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax.models.gans.r3gan import Discriminator, Generator
from genjax.pretrained.r3gan import load_discriminator, load_generator

DATA = Path(__file__).parent / "data"
STAGES = {
    "unconditional": dict(widths=(8, 8, 4), cardinalities=(4, 2, 1), blocks=(1, 2, 1)),
    "conditional": dict(
        widths=(6, 4),
        cardinalities=(3, 2),
        blocks=(2, 1),
        expansion=3,
        num_classes=5,
        embedding_features=4,
    ),
}


def generator(kind):
    return Generator(latent_size=6, **STAGES[kind])


def discriminator(kind):
    fields = {
        name: value[::-1] if isinstance(value, tuple) else value
        for name, value in STAGES[kind].items()
    }
    return Discriminator(**fields | (dict(embedding_features=7) if kind == "conditional" else {}))


@pytest.fixture(scope="module", params=STAGES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def reference(kind):
    with np.load(DATA / f"r3gan_{kind}.npz") as file:
        return dict(file)


def assert_agree(output, expected):
    # float32 on both sides: about twenty products and sums, each rounded by 6e-8 relative.
    assert np.abs(expected).std() > 0.05
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_generator_agrees_with_the_authors(kind, reference):
    variables = load_generator(DATA / f"r3gan_{kind}_generator.safetensors", generator(kind))
    samples = jax.jit(generator(kind).apply)(variables, reference["z"], reference.get("labels"))
    assert_agree(samples, reference["samples"])


def test_discriminator_agrees_with_the_authors(kind, reference):
    variables = load_discriminator(
        DATA / f"r3gan_{kind}_discriminator.safetensors", discriminator(kind)
    )
    logits = jax.jit(discriminator(kind).apply)(
        variables, reference["images"], reference.get("labels")
    )
    assert_agree(logits, reference["logits"])


def test_another_filter_or_configuration_is_refused(tmp_path):
    path = DATA / "r3gan_unconditional_generator.safetensors"
    tensors = load_file(path)
    filters = [name for name in tensors if name.endswith("Resampler.Kernel")]
    assert len(filters) == 2
    tensors[filters[0]] = np.full((4, 4), 1 / 16, np.float32)
    save_file(tensors, tmp_path / "box.safetensors")
    with pytest.raises(ValueError, match=rf"extra: {filters[0]} \(4, 4\)$"):
        load_generator(tmp_path / "box.safetensors", generator("unconditional"))

    wider = dataclasses.replace(generator("unconditional"), blocks=(1, 3, 1))
    with pytest.raises(
        ValueError, match=r"missing: Model.MainLayers.1.Layers.3.LinearLayer1.Layer.weight"
    ):
        load_generator(path, wider)
