"""LPIPS compared with the authors' PyTorch package, its linear layers and torchvision's VGG16."""

from types import SimpleNamespace
from unittest import mock

import jax
import lpips as reference
import numpy as np
import pytest
import torch
from torchvision.models import vgg

from genjax.data import load_dataset, to_float
from genjax.models.encoders.vgg16 import vgg16_features
from genjax.pretrained.lpips import load_lpips


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The authors' LPIPS with our VGG16, which it would download; our LPIPS, and its variables."""
    ours, variables = load_lpips(tmp_path_factory.mktemp("weights") / "lpips.safetensors")
    # Without the classifier, which LPIPS does not use: 0.5 GiB of random weights.
    features = SimpleNamespace(features=vgg.make_layers(vgg.cfgs["D"]))
    with mock.patch.object(reference.pretrained_networks.tv, "vgg16", lambda **_: features):
        theirs = reference.LPIPS(net="vgg", version="0.1", pnet_rand=True, verbose=False).eval()
    convs = [layer for layer in theirs.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    with torch.no_grad():
        for conv, name in zip(convs, sorted(variables["params"]["vgg16"]), strict=True):
            kernel, bias = (variables["params"]["vgg16"][name][part] for part in ("kernel", "bias"))
            conv.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1)))
            conv.bias.copy_(torch.tensor(bias))
    return theirs, jax.jit(ours.apply), variables


def channel_first(images):
    return torch.tensor(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))


def image_pairs():
    """Compare emoji with other emoji, emoji with noisy emoji, and noise with noise."""
    emoji = to_float(load_dataset("emoji", "test").source[:2]["image"])
    generator = np.random.default_rng(0)
    noisy = (emoji + 0.1 * generator.standard_normal(emoji.shape)).astype(np.float32)
    noise = generator.uniform(-1, 1, (2, 1, 37, 50, 3)).astype(np.float32)
    return {
        "emoji": (emoji, emoji[::-1]),
        "noisy emoji": (emoji, noisy),
        "16 pixels": (emoji[:, :16, 8:24], noisy[:, :16, 8:24]),
        "odd sides": tuple(noise),
    }


PAIRS = image_pairs()


def test_linear_layers_are_those_of_the_authors(networks):
    theirs, _, variables = networks
    for stage, layer in enumerate(theirs.lins, 1):
        np.testing.assert_array_equal(
            variables["params"][f"linear{stage}"], layer.model[-1].weight.detach().ravel()
        )


@pytest.mark.parametrize("kind", PAIRS)
def test_distances_agree(networks, kind):
    theirs, ours, variables = networks
    x, y = PAIRS[kind]
    with torch.no_grad():
        expected = theirs(channel_first(x), channel_first(y)).numpy().ravel()
    distances = ours(variables, x, y)
    assert expected.min() > 0.005
    # float32 on both sides: thirteen convolutions, sums of up to 4,608 products; 4e-7 was measured.
    np.testing.assert_allclose(distances, expected, rtol=3e-6)


def test_gradients_agree(networks):
    theirs, ours, variables = networks
    x, y = PAIRS["16 pixels"]
    inputs = channel_first(x).requires_grad_()
    theirs(inputs, channel_first(y)).sum().backward()
    expected = inputs.grad.numpy().transpose(0, 2, 3, 1)
    gradient = jax.jit(jax.grad(lambda x, y, variables: ours(variables, x, y).sum()))(
        x, y, variables
    )
    # 6e-7 was measured
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_features_agree(networks):
    theirs, _, variables = networks
    images = PAIRS["emoji"][0]
    with torch.no_grad():
        expected = (
            theirs.net(theirs.scaling_layer(channel_first(images))).relu5_3.mean((2, 3)).numpy()
        )
    features = jax.jit(vgg16_features)({"params": variables["params"]["vgg16"]}, images)
    assert features.shape == (2, 512) and np.std(expected) > 0.01
    np.testing.assert_allclose(features, expected, rtol=0, atol=5e-6 * expected.max())
