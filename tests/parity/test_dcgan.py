"""DCGAN compared with the same network of PyTorch's layers, in training and in evaluation.

PyTorch flattens channel-first maps in another order. So the first and the last layer, convolutions
in PyTorch, are products with rearranged kernels here.
"""

import jax
import numpy as np
import pytest
import torch

from genjax.models.gans.dcgan import Discriminator, Generator

BATCH, LATENT, WIDTH, START, DOUBLINGS = 5, 6, 4, 3, 3
SIDE = START * 2**DOUBLINGS


def randomized(layers):
    torch.manual_seed(0)
    network = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in network.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(offset + 0.3 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return network


def norm(layer):
    parameters = {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}
    return parameters, {
        "mean": layer.running_mean.numpy().copy(),
        "var": layer.running_var.numpy().copy(),
    }


@pytest.fixture
def generators():
    torch_nn = torch.nn
    features = [WIDTH * 2**i for i in reversed(range(DOUBLINGS))]
    layers = [torch_nn.ConvTranspose2d(LATENT, features[0], START, 1, 0, bias=False)]
    for inputs, outputs in zip(features, [*features[1:], 3], strict=True):
        layers += [torch_nn.BatchNorm2d(inputs), torch_nn.ReLU(True)]
        layers += [torch_nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
    theirs = randomized([*layers, torch_nn.Tanh()])

    parameters, statistics = {}, {}
    # [in, out, row, column], as in all of PyTorch's transposed convolutions.
    weight = theirs[0].weight.detach().numpy()
    parameters["project"] = {"kernel": weight.transpose(0, 2, 3, 1).reshape(LATENT, -1)}
    for i in range(DOUBLINGS):
        parameters[f"norm_{i}"], statistics[f"norm_{i}"] = norm(theirs[1 + 3 * i])
        # PyTorch's layer is the gradient of a correlation and flips the kernel; ours correlates.
        weight = theirs[3 + 3 * i].weight.detach().numpy()[:, :, ::-1, ::-1]
        parameters[f"conv_{i}"] = {"kernel": weight.transpose(2, 3, 0, 1)}
    ours = Generator(width=WIDTH, start=START, doublings=DOUBLINGS, latent_size=LATENT)
    return theirs, ours, {"params": parameters, "batch_stats": statistics}


@pytest.fixture
def discriminators():
    torch_nn = torch.nn
    features = [WIDTH * 2**i for i in range(DOUBLINGS)]
    layers = [torch_nn.Conv2d(3, WIDTH, 4, 2, 1, bias=False), torch_nn.LeakyReLU(0.2)]
    for inputs, outputs in zip(features[:-1], features[1:], strict=True):
        layers += [torch_nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)]
        layers += [torch_nn.BatchNorm2d(outputs), torch_nn.LeakyReLU(0.2)]
    theirs = randomized([*layers, torch_nn.Conv2d(features[-1], 1, START, 1, 0, bias=False)])

    # PyTorch has [out, in, row, column].
    kernel = lambda layer: layer.weight.detach().numpy().transpose(2, 3, 1, 0)
    parameters, statistics = {"conv_0": {"kernel": kernel(theirs[0])}}, {}
    for i in range(1, DOUBLINGS):
        parameters[f"conv_{i}"] = {"kernel": kernel(theirs[3 * i - 1])}
        parameters[f"norm_{i}"], statistics[f"norm_{i}"] = norm(theirs[3 * i])
    parameters["head"] = {"kernel": kernel(theirs[-1]).reshape(-1, 1)}
    ours = Discriminator(width=WIDTH, doublings=DOUBLINGS)
    return theirs, ours, {"params": parameters, "batch_stats": statistics}


def assert_agree(output, expected):
    # float32 throughout: some ten products and norms, each with a relative error of about 1e-7.
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(output, expected, atol=5e-6 * np.abs(expected).max(), rtol=0)


def assert_statistics_agree(statistics, old, theirs, counts):
    """PyTorch divides a batch's variance by n − 1 before averaging it; Flax divides by n."""
    norms = [layer for layer in theirs if isinstance(layer, torch.nn.BatchNorm2d)]
    for name, layer, count in zip(sorted(statistics), norms, counts, strict=True):
        np.testing.assert_allclose(statistics[name]["mean"], layer.running_mean, atol=1e-5)
        batch = (statistics[name]["var"] - 0.9 * old[name]["var"]) * count / (count - 1)
        np.testing.assert_allclose(0.9 * old[name]["var"] + batch, layer.running_var, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_generators_agree(generators, train):
    theirs, ours, variables = generators
    z = np.random.default_rng(0).standard_normal((BATCH, LATENT), np.float32)
    with torch.no_grad():
        expected = (
            theirs.train(train)(torch.from_numpy(z)[:, :, None, None]).numpy().transpose(0, 2, 3, 1)
        )
    apply = jax.jit(
        lambda variables, z: ours.apply(variables, z, train=train, mutable=["batch_stats"])
    )
    samples, state = apply(variables, z)
    assert samples.shape == (BATCH, SIDE, SIDE, 3)
    assert_agree(samples, expected)
    counts = [BATCH * (START * 2**i) ** 2 for i in range(DOUBLINGS)]
    if train:
        assert_statistics_agree(state["batch_stats"], variables["batch_stats"], theirs, counts)


@pytest.mark.parametrize("train", [False, True])
def test_discriminators_agree(discriminators, train):
    theirs, ours, variables = discriminators
    images = np.random.default_rng(0).standard_normal((BATCH, SIDE, SIDE, 3), np.float32)
    with torch.no_grad():
        expected = (
            theirs.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2)))
            .numpy()
            .reshape(BATCH)
        )
    apply = jax.jit(
        lambda variables, images: ours.apply(
            variables, images, train=train, mutable=["batch_stats"]
        )
    )
    logits, state = apply(variables, images)
    assert_agree(logits, expected)
    counts = [BATCH * (SIDE // 2 ** (i + 1)) ** 2 for i in range(1, DOUBLINGS)]
    if train:
        assert_statistics_agree(state["batch_stats"], variables["batch_stats"], theirs, counts)
