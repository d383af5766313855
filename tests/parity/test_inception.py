"""Inception-v3 compared with torchvision's blocks, in torchvision's form and in that of FID.

Measured: features and logits differ by less than 2e-6 of their largest value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import avg_pool2d, max_pool2d
from torchvision.models import inception, inception_v3

from genjax.models.encoders.inception import Inception, inception_features
from genjax.pretrained.inception import load


def mean_of_pixels(x, **window):
    return avg_pool2d(x, count_include_pad=False, **window)


def pooling(monkeypatch, block, pool):
    """Make a block pool by another function than `avg_pool2d`."""
    forward = block.forward

    def with_pool(x):
        with monkeypatch.context() as patch:
            patch.setattr(inception.F, "avg_pool2d", pool)
            return forward(x)

    block.forward = with_pool


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


@pytest.fixture(scope="module")
def fid():
    return randomize(
        inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    )


def test_torchvision_agrees(tmp_path):
    theirs = randomize(inception_v3(weights=None, init_weights=False))
    save_file(theirs.state_dict(), tmp_path / "inception.safetensors")
    module, variables = load(tmp_path / "inception.safetensors")
    patches = np.random.default_rng(0).uniform(-1, 1, (2, 5, 4, 3)).astype(np.float32)
    images = patches.repeat(27, axis=1).repeat(26, axis=2)
    ours = jax.jit(module.apply)(variables, images)
    for output, expected in zip(ours, outputs(theirs, images), strict=True):
        assert_close(output, expected)


def test_features_of_fid_agree(tmp_path, fid, monkeypatch):
    """Start from pictures' bytes, with the poolings of pytorch-fid and torch-fidelity."""
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        pooling(monkeypatch, getattr(fid, f"Mixed_{name}"), mean_of_pixels)
    pooling(monkeypatch, fid.Mixed_7c, max_pool2d)
    np.savez(
        tmp_path / "inception.npz",
        **{name: tensor.numpy() for name, tensor in fid.state_dict().items()},
    )
    module, variables = load(tmp_path / "inception.npz")
    assert module == Inception()

    pictures = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 3)).astype(np.uint8)
    resized = pictures.astype(float)
    # Output i of 299 lies at i·side/299. Beyond the last pixel its value continues.
    for axis in (1, 2):
        side = resized.shape[axis]
        line = lambda values, side=side: np.interp(
            np.arange(299) * side / 299, np.arange(side), values
        )
        resized = np.apply_along_axis(line, axis, resized)
    features, logits = outputs(fid, ((resized - 128) / 128).astype(np.float32))
    ours, unbiased = jax.jit(inception_features)(variables, pictures / np.float32(127.5) - 1)
    assert_close(ours, features)
    assert_close(unbiased, logits - fid.fc.bias.detach().numpy())


def test_faults(tmp_path, fid):
    tensors = {name: tensor.numpy() for name, tensor in fid.state_dict().items()}
    tensors["other"] = tensors.pop("Mixed_7c.branch3x3dbl_3b.conv.weight")
    np.savez(tmp_path / "inception.npz", **tensors)
    with pytest.raises(
        ValueError, match=r"missing: Mixed_7c.branch3x3dbl_3b.conv.weight[^$]*extra: other"
    ):
        load(tmp_path / "inception.npz")
