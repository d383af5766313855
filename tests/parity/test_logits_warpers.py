"""The filters of logits against those of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from genjax.autoregression import filtered

LOGITS = 2 * np.random.default_rng(0).standard_normal((4, 11), np.float32)
WARPERS = dict(top_k=TopKLogitsWarper, top_p=TopPLogitsWarper, min_p=MinPLogitsWarper)


@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=3),
        dict(top_p=0.8),
        dict(min_p=0.1),
        dict(temperature=0.6),
        dict(temperature=1.7, top_k=6, top_p=0.7, min_p=0.2),
    ],
    ids=str,
)
def test_the_law_is_that_of_transformers(options):
    warpers = [TemperatureLogitsWarper(options.get("temperature", 1.0))]
    warpers += [WARPERS[name](options[name]) for name in WARPERS if name in options]
    expected = torch.from_numpy(LOGITS)
    for warper in warpers:
        expected = warper(None, expected)
    np.testing.assert_allclose(filtered(jnp.asarray(LOGITS), **options), expected, rtol=1e-6)
