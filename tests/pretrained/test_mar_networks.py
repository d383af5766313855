"""MAR compared with outputs of its authors' PyTorch code.

data/README_mar.md says how the outputs were made.
"""

from pathlib import Path

import jax
import numpy as np

from genjax.models.autoregressive.mar import MAR
from genjax.pretrained.mar import load

DATA = Path(__file__).with_name("data")
MODULE = MAR(3, (3, 3), 16, 2, 2, denoiser_width=8, denoiser_depth=2, num_classes=5, buffer=4)


def test_outputs_agree():
    arrays, variables = np.load(DATA / "mar.npz"), load(DATA / "mar.safetensors", MODULE)
    states = jax.jit(lambda *a: MODULE.apply(variables, *a, method="states"))
    denoise = jax.jit(lambda *a: MODULE.apply(variables, *a, method="denoise"))
    # float32 on both sides: some 50 operations, each rounded by about 1e-7.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    close(states(arrays["tokens"], arrays["mask"], arrays["labels"]), arrays["states"])
    close(
        denoise(arrays["x_t"], arrays["t"] / np.float32(1000), arrays["states"]), arrays["output"]
    )
