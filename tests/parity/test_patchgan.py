"""PatchGAN compared with the same network of PyTorch's layers, in training and in evaluation."""

import jax
import numpy as np
import pytest
import torch

from genjax.models.gans.patchgan import Discriminator

WIDTH, GROUPS = 4, 2


def pytorch(layers, groups):
    """Return the `NLayerDiscriminator` of pix2pix, without biases before batch norms."""
    torch_nn = torch.nn
    torch.manual_seed(0)
    features = [WIDTH * min(2**i, 8) for i in range(layers + 1)]
    modules = [torch_nn.Conv2d(3, WIDTH, 4, 2, 1), torch_nn.LeakyReLU(0.2)]
    for i in range(1, layers + 1):
        stride = 2 if i < layers else 1
        modules += [
            torch_nn.Conv2d(features[i - 1], features[i], 4, stride, 1, bias=groups is not None)
        ]
        modules += [
            torch_nn.BatchNorm2d(features[i])
            if groups is None
            else torch_nn.GroupNorm(groups, features[i])
        ]
        modules += [torch_nn.LeakyReLU(0.2)]
    network = torch_nn.Sequential(*modules, torch_nn.Conv2d(features[-1], 1, 4, 1, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            offset = 0.5 if parameter.ndim == 1 else 0.0
            parameter.copy_(offset + 0.3 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return network


def convert(network):
    parameters, statistics, convs, norms = {}, {}, 0, 0
    array = lambda tensor: tensor.detach().numpy().copy()
    for module in network:
        if isinstance(module, torch.nn.Conv2d):
            name = f"conv_{convs}" if module.out_channels > 1 else "head"
            parameters[name] = {"kernel": array(module.weight).transpose(2, 3, 1, 0)}
            if module.bias is not None:
                parameters[name]["bias"] = array(module.bias)
            convs += 1
        elif not isinstance(module, torch.nn.LeakyReLU):
            norms += 1
            parameters[f"norm_{norms}"] = {
                "scale": array(module.weight),
                "bias": array(module.bias),
            }
            if isinstance(module, torch.nn.BatchNorm2d):
                statistics[f"norm_{norms}"] = {
                    "mean": array(module.running_mean),
                    "var": array(module.running_var),
                }
    return {"params": parameters} | ({"batch_stats": statistics} if statistics else {})


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layers, groups", [(4, None), (2, GROUPS)])
def test_agrees(layers, groups, train):
    """Four layers have the same width twice: eight times the first."""
    theirs = pytorch(layers, groups)
    variables = convert(theirs)
    images = np.random.default_rng(0).standard_normal((3, 61, 54, 3), np.float32)
    with torch.no_grad():
        expected = theirs.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2)))[:, 0].numpy()
    network = Discriminator(WIDTH, layers, groups)
    apply = jax.jit(
        lambda images: network.apply(variables, images, train=train, mutable=["batch_stats"])
    )
    logits, state = apply(images)
    # float32 throughout: some ten products and norms, each with a relative error of about 1e-7.
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    if groups is None and train:
        # PyTorch's variance is unbiased, see test_dcgan.py.
        updated = convert(theirs)["batch_stats"]
        for name, statistics in state["batch_stats"].items():
            np.testing.assert_allclose(statistics["mean"], updated[name]["mean"], atol=1e-5)
