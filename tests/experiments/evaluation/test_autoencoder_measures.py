import json

import numpy as np

from experiments.evaluation.autoencoders import latent_moments


def test_small_deviations_of_latents_keep_their_digits():
    """A collapsed channel and another keep their deviations in a report's JSON."""
    latents = np.random.default_rng(0).standard_normal((500, 2, 2, 2), np.float32)
    latents = latents * np.float32([2e-5, 3.0]) + np.float32([1e-5, -2.0])
    moments = json.loads(json.dumps(latent_moments(latents)))
    axes = (0, 1, 2)
    latents = latents.astype(np.float64)
    # 1e-3: unbiased deviations are 1/4,000 larger.
    np.testing.assert_allclose(moments["latent_deviation"], latents.std(axes), rtol=1e-3)
    np.testing.assert_allclose(moments["latent_mean"], latents.mean(axes), rtol=1e-4)
    assert all(len(f"{value:.9g}") <= 12 for values in moments.values() for value in values)
