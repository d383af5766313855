"""Inception-v3 compared with torchvision's; test_fid_packages.py has FID's form of it.

Measured: features and logits differ by less than 2e-6 of their largest value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import inception_v3

from genjax.pretrained.inception import load


def randomize(model):
    """Set weights so that differences between two images survive some twenty layers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = (3 / np.prod(parameter.shape[1:])) ** 0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(name.endswith("bn.weight") + deviation * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model.eval()


def outputs(model, images):
    """Return features and logits of images [batch height width 3]."""
    features = []
    hook = model.avgpool.register_forward_hook(
        lambda module, inputs, output: features.append(output)
    )
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    hook.remove()
    return features[0].flatten(1).numpy(), logits.numpy()


def assert_close(ours, theirs):
    assert theirs.std(axis=0).mean() > 0.02 * theirs.std() and ours.dtype == jnp.float32
    # float32 on both sides: some fifty layers, each rounded by about 1e-7
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_torchvision_agrees(tmp_path):
    theirs = randomize(inception_v3(weights=None, init_weights=False))
    save_file(theirs.state_dict(), tmp_path / "inception.safetensors")
    module, variables = load(tmp_path / "inception.safetensors")
    patches = np.random.default_rng(0).uniform(-1, 1, (2, 5, 4, 3)).astype(np.float32)
    images = patches.repeat(27, axis=1).repeat(26, axis=2)
    ours = jax.jit(module.apply)(variables, images)
    for output, expected in zip(ours, outputs(theirs, images), strict=True):
        assert_close(output, expected)


def test_faults(tmp_path):
    network = inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    tensors["other"] = tensors.pop("Mixed_7c.branch3x3dbl_3b.conv.weight")
    np.savez(tmp_path / "inception.npz", **tensors)
    with pytest.raises(
        ValueError, match=r"missing: Mixed_7c.branch3x3dbl_3b.conv.weight[^$]*extra: other"
    ):
        load(tmp_path / "inception.npz")
