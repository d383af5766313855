"""SSIM compared with pytorch-msssim, in float64."""

import numpy as np
import pytest
import torch
from pytorch_msssim import ssim as reference

from genjax.data import load_dataset, to_float
from genjax.metrics import ssim


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_ssim_agrees(kind):
    a, b = np.split(load_dataset("emoji", "test").source[:16]["image"], 2)
    if kind == "floats":
        a, b = to_float(a)[:, :, :21], to_float(b)[:, :, :21]
    theirs = reference(
        *(torch.from_numpy(np.float64(images).transpose(0, 3, 1, 2).copy()) for images in (a, b)),
        data_range=255 if kind == "bytes" else 2,
        size_average=False,
    )
    assert np.std(theirs.numpy()) > 0.05
    # Their float32 window sums to 1 up to 1e-7. Differences of squares amplify that; 3e-6 was seen.
    np.testing.assert_allclose(ssim(a, b), theirs, rtol=0, atol=1e-5)
