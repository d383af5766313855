"""The vocoder compared with a PyTorch module written from the paper, in the published layout."""

import jax
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from genjax.models.autoencoders.vocos import Vocos
from genjax.pretrained.vocos import load

WIDTH, MLP, DEPTH, MELS, N_FFT, HOP = 12, 20, 2, 9, 64, 16


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.dwconv = nn.Conv1d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(WIDTH, MLP), nn.Linear(MLP, WIDTH)
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        h = self.norm(self.dwconv(x).mT)
        return x + (self.gamma * self.pwconv2(functional.gelu(self.pwconv1(h)))).mT


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(MELS, WIDTH, 7, padding=3)
        self.norm, self.final_layer_norm = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.convnext = nn.ModuleList(ConvNeXt() for _ in range(DEPTH))

    def forward(self, bands):
        x = self.norm(self.embed(bands).mT).mT
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.mT)


class Theirs(nn.Module):
    """Siuzdak 2023, section 3; bands are [batch mels frames]."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.ModuleDict(dict(out=nn.Linear(WIDTH, N_FFT + 2)))

    def forward(self, bands):
        magnitude, phase = self.head["out"](self.backbone(bands)).mT.chunk(2, dim=1)
        spectrum = magnitude.exp().clip(max=100) * torch.exp(1j * phase)
        return torch.istft(spectrum, N_FFT, HOP, N_FFT, torch.hann_window(N_FFT), center=True)


def test_waveforms_agree(tmp_path):
    torch.manual_seed(0)
    theirs = Theirs()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tables = {"head.istft.window": torch.hann_window(N_FFT)}
    save_file(theirs.state_dict() | tables, tmp_path / "model.safetensors")
    ours = Vocos(8000, N_FFT, HOP, MELS, WIDTH, MLP, DEPTH)
    variables = load(tmp_path, ours)
    bands = 2 * np.random.default_rng(0).standard_normal((2, 30, MELS)).astype(np.float32)
    decode = jax.jit(lambda variables, bands: ours.apply(variables, bands, method="decode"))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(bands.transpose(0, 2, 1))).numpy()
    assert expected.shape == (2, 29 * HOP) and expected.std() > 0.05
    # float32 on both sides, through exponentials and a transform
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(decode(variables, bands)[..., 0], expected, rtol=0, atol=atol)
