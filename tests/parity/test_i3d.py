"""I3D compared with its PyTorch original, written out here in torch's primitives.

The original is Piergiovanni's pytorch-i3d; its names are those of the public weights. `AUTHOR` is
what its own code (commit 05783d1) answers to the weights and clips of this test. Measured: logits
differ by less than 1e-6 of their largest value.
"""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from genjax.models.encoders.i3d import i3d_features
from genjax.pretrained.i3d import load

# Inputs, and outputs of b0, b1a, b1b, b2a, b2b and b3b, of each module.
MODULES = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
CLASSES = 7
AUTHOR = np.array(
    [
        [44.36419, 15.164593, -5.7394485, -48.854168, 82.575516, 30.857357, 12.922579],
        [41.4224, 14.033438, -5.8717155, -42.65781, 77.461426, 29.776676, 10.267284],
    ]
)


def tensors():
    """Return random tensors with the names of the original, which keep differences visible."""
    kernels = {
        "Conv3d_1a_7x7": (64, 3, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (192, 64, 3),
    }
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in MODULES.items():
        kernels |= {
            f"{name}.b0": (b0, inputs, 1),
            f"{name}.b1a": (b1a, inputs, 1),
            f"{name}.b1b": (b1b, b1a, 3),
            f"{name}.b2a": (b2a, inputs, 1),
            f"{name}.b2b": (b2b, b2a, 3),
            f"{name}.b3b": (b3b, inputs, 1),
        }
    torch.manual_seed(0)
    made = {}
    for name, (outputs, inputs, side) in kernels.items():
        kernel = torch.randn(outputs, inputs, side, side, side) * (3 / (inputs * side**3)) ** 0.5
        made |= {
            f"{name}.conv3d.weight": kernel,
            f"{name}.bn.weight": 1 + 0.2 * torch.randn(outputs),
            f"{name}.bn.bias": 0.2 * torch.randn(outputs),
            f"{name}.bn.running_mean": 0.2 * torch.randn(outputs),
            f"{name}.bn.running_var": 0.5 + torch.rand(outputs),
            f"{name}.bn.num_batches_tracked": torch.tensor(3),
        }
    made["logits.conv3d.weight"] = torch.randn(CLASSES, 1024, 1, 1, 1) / 32
    made["logits.conv3d.bias"] = torch.randn(CLASSES)
    return made


def same_padding(x, window, strides):
    """Pad with zeros as the original computes it, the odd one at the end."""
    pads = []
    for size, side, stride in reversed(list(zip(x.shape[2:], window, strides, strict=True))):
        total = max(side - (stride if size % stride == 0 else size % stride), 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


def pool(x, window, strides):
    return functional.max_pool3d(same_padding(x, window, strides), window, strides)


def unit(weights, name, x, stride=1):
    kernel = weights[f"{name}.conv3d.weight"]
    x = functional.conv3d(same_padding(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
    moments = [weights[f"{name}.bn.{each}"] for each in ("running_mean", "running_var")]
    affine = [weights[f"{name}.bn.{each}"] for each in ("weight", "bias")]
    return functional.batch_norm(x, *moments, *affine, eps=1e-3).relu()


def original(weights, x):
    """Return logits `[batch classes time]` of videos `[batch channels time height width]`."""
    x = pool(unit(weights, "Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = unit(weights, "Conv3d_2c_3x3", unit(weights, "Conv3d_2b_1x1", x))
    for name in MODULES:
        if name == "Mixed_3b":
            x = pool(x, (1, 3, 3), (1, 2, 2))
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        branch = lambda number, x, name=name: unit(weights, f"{name}.{number}", x)
        x = torch.cat(
            [
                branch("b0", x),
                branch("b1b", branch("b1a", x)),
                branch("b2b", branch("b2a", x)),
                branch("b3b", pool(x, (3, 3, 3), (1, 1, 1))),
            ],
            dim=1,
        )
    x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
    x = functional.conv3d(x, weights["logits.conv3d.weight"], weights["logits.conv3d.bias"])
    return x.squeeze(3).squeeze(3)


def test_features_agree(tmp_path):
    """Start from small grey clips; 10 frames end in an odd number of maps, padded at both ends."""
    weights = tensors()
    save_file(weights, tmp_path / "i3d.safetensors")
    module, variables = load(tmp_path / "i3d.safetensors")
    assert module.num_classes == CLASSES
    videos = np.random.default_rng(0).uniform(-1, 1, (2, 10, 6, 7, 1)).astype(np.float32)
    ours = np.asarray(jax.jit(i3d_features)(variables, videos))
    frames = torch.from_numpy(videos.transpose(0, 4, 1, 2, 3)).expand(-1, 3, -1, -1, -1)
    resized = functional.interpolate(frames, (10, 224, 224), mode="trilinear", align_corners=False)
    with torch.no_grad():
        theirs = original(weights, resized).mean(2).numpy()
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05 * np.abs(theirs).max()
    # float32 on both sides: some twenty layers, each rounded by about 1e-7
    for expected in (theirs, AUTHOR):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_faults(tmp_path):
    weights = tensors()
    weights["other"] = weights.pop("Mixed_5c.b3b.bn.bias")
    save_file(weights, tmp_path / "i3d.safetensors")
    with pytest.raises(ValueError, match=r"missing: Mixed_5c.b3b.bn.bias[^$]*extra: other"):
        load(tmp_path / "i3d.safetensors")
