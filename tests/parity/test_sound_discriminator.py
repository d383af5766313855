"""Discriminators of sound compared with PyTorch modules written from the papers."""

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from genjax.models.gans.sound_discriminator import (
    DAC_BANDS,
    PeriodDiscriminator,
    SpectrumDiscriminator,
)

WAVE = np.random.default_rng(0).uniform(-1, 1, (2, 331, 1)).astype(np.float32)


class Period(nn.Module):
    """HiFi-GAN, section 2.3 and appendix A.2."""

    def __init__(self, period, widths):
        super().__init__()
        self.period, inputs = period, [1, *widths[:-1]]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (5, 1), (1 if n == len(widths) else 3, 1), (2, 0)))
            for n, (i, o) in enumerate(zip(inputs, widths, strict=True), start=1)
        )
        self.head = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x):
        x = functional.pad(x, (0, -x.shape[-1] % self.period), mode="reflect")
        x = x.reshape(len(x), 1, -1, self.period)
        features = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.1)
            features.append(x)
        return [*features, self.head(x)]


class Spectrum(nn.Module):
    """EnCodec, section 3.4, and DAC's bands, section 3.4."""

    def __init__(self, n_fft, width, dilations, bands, slope):
        super().__init__()
        self.n_fft, self.slope = n_fft, slope
        ends = [int(share * (n_fft // 2 + 1)) for share in bands]
        self.bands = list(zip(ends[:-1], ends[1:], strict=True))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [weight_norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4)))]
                + [
                    weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), (d, 4), (d, 1)))
                    for d in dilations
                ]
                + [weight_norm(nn.Conv2d(width, width, (3, 3), padding=(1, 1)))]
            )
            for _ in self.bands
        )
        self.head = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, x):
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(
            x[:, 0], self.n_fft, self.n_fft // 4, window=window, center=False, return_complex=True
        )
        spectrum = spectrum.transpose(1, 2) / window.square().sum().sqrt()
        x, parts, features = torch.stack([spectrum.real, spectrum.imag], 1), [], []
        for (start, end), layers in zip(self.bands, self.layers, strict=True):
            part = x[..., start:end]
            for layer in layers:
                part = functional.leaky_relu(layer(part), self.slope)
                features.append(part)
            parts.append(part)
        return [*features, self.head(torch.cat(parts, -1))]


def variables_of(theirs, names):
    """Return our parameters from those of PyTorch's layers, by our names."""
    array = lambda tensor: tensor.detach().numpy()
    layer = lambda conv: dict(
        kernel=array(conv.parametrizations.weight.original1).transpose(2, 3, 1, 0),
        gain=array(conv.parametrizations.weight.original0).reshape(-1),
        bias=array(conv.bias),
    )
    convolutions = [each for each in theirs.modules() if isinstance(each, nn.Conv2d)]
    return {"params": {n: layer(c) for n, c in zip(names, convolutions, strict=True)}}


CASES = dict(
    period=(PeriodDiscriminator(3, (4, 6, 8)), Period(3, (4, 6, 8)), 1, 3),
    encodec=(SpectrumDiscriminator(64, 4), Spectrum(64, 4, (1, 2, 4), (0, 1), 0.2), 1, 5),
    dac=(
        SpectrumDiscriminator(64, 4, (1, 1, 1), DAC_BANDS, 0.1),
        Spectrum(64, 4, (1, 1, 1), DAC_BANDS, 0.1),
        5,
        5,
    ),
)


@pytest.mark.parametrize("case", sorted(CASES))
def test_logits_and_features_agree(case):
    ours, theirs, bands, layers = CASES[case]
    prefix = lambda band: f"band{band}_" if isinstance(ours, SpectrumDiscriminator) else ""
    names = [f"{prefix(band)}conv_{i}" for band in range(bands) for i in range(layers)]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # gains are not norms
        expected = theirs(torch.from_numpy(WAVE.transpose(0, 2, 1)))
    logits, features = jax.jit(ours.apply)(variables_of(theirs, [*names, "head"]), WAVE)
    for found, tensor in zip([*features, logits[..., None]], expected, strict=True):
        wanted = tensor.numpy().transpose(0, 2, 3, 1)
        # float32 on both sides, in up to six layers
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
