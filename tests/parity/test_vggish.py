"""VGGish compared with its PyTorch port, torchvggish, written out here from the architecture.

The names of the tensors are those of the public weights. `AUTHORS` are the first features of the
port's own code (commit f3f9096), from the weights and sounds of this test. Measured: features
differ by 1e-6 of their largest value.
"""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genjax.models.encoders.vggish import vggish_features, vggish_patches
from genjax.pretrained.vggish import load

# With the rectifier at the end, which the published TensorFlow model does not have.
AUTHORS = np.array(
    [
        [0, 3.4245102, 0, 0, 9.654492, 3.0202415],
        [0, 3.7005172, 0, 0, 9.912564, 3.2752664],
        [0, 0.3303731, 0, 0, 6.695664, 0],
        [0, 2.6983573, 0, 0, 9.413331, 2.1402218],
    ]
)


class TorchVGGish(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [], 1
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        widths = (512 * 4 * 6, 4096, 4096, 128)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        dense = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
        self.embeddings = nn.Sequential(*dense[:-1])  # the features are not rectified

    def forward(self, patches):
        """Flatten maps as TensorFlow does: time, bands, channels."""
        return self.embeddings(self.features(patches).permute(0, 2, 3, 1).flatten(1))


def network():
    """Return the network with random weights; wide ones, which keep differences visible."""
    torch.manual_seed(0)
    theirs = TorchVGGish()
    with torch.no_grad():
        for layer in theirs.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                layer.bias.uniform_(-0.2, 0.2)
    return theirs


def test_features_agree(tmp_path):
    waveforms = np.random.default_rng(0).uniform(-1, 1, (2, 31_000, 1)).astype(np.float32)
    waveforms[1] *= np.linspace(0, 1, 31_000)[:, None]
    patches = torch.from_numpy(np.array(vggish_patches(jax.numpy.asarray(waveforms), 16_000)))
    theirs = network()
    with torch.no_grad():
        expected = theirs(patches.reshape(4, 1, 96, 64)).numpy()
    tensors = theirs.state_dict() | {"pproc.pca_means": torch.zeros(128, 1)}
    save_file(tensors, tmp_path / "vggish.safetensors")
    del theirs, tensors  # 0.3 GiB
    _, variables = load(tmp_path / "vggish.safetensors")
    ours = np.asarray(jax.jit(vggish_features, static_argnums=2)(variables, waveforms, 16_000))
    assert np.abs(expected[0] - expected[2]).max() > 0.05 * np.abs(expected).max()
    # float32 on both sides: nine layers, each rounded by about 1e-7
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(ours.reshape(4, 128), expected, rtol=0, atol=atol)
    rectified = np.maximum(ours.reshape(4, 128)[:, :6], 0)
    np.testing.assert_allclose(rectified, AUTHORS, rtol=0, atol=atol)


def test_faults(tmp_path):
    tensors = {"features.0.weight": torch.zeros(64, 1, 3, 3), "other": torch.zeros(1)}
    save_file(tensors, tmp_path / "vggish.safetensors")
    with pytest.raises(ValueError, match=r"missing: embeddings.0.bias[^$]*extra: other"):
        load(tmp_path / "vggish.safetensors")
