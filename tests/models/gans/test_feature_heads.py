import jax
import numpy as np
from scipy.special import expit

from genjax.models.gans.feature_heads import FeatureHeads


def test_the_logit_is_the_mean_over_blocks_and_tokens():
    """Written out in float64; every block has parameters of its own."""
    random = np.random.default_rng(0)
    features = 1 + 3 * random.standard_normal((2, 3, 5, 6), np.float32)
    module = FeatureHeads(width=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), features)
    variables = jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32), shapes)
    layers, logits = variables["params"]["heads"], []
    for block, x in enumerate(features.astype(float)):
        apply = lambda x, layer, i=block: x @ layer["kernel"][i] + layer["bias"][i]
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        h = apply(x, layers["linear_in"])
        logits.append(apply(h * expit(h), layers["linear_out"])[..., 0].mean(1))
    found = jax.jit(module.apply)(variables, features)
    np.testing.assert_allclose(found, np.mean(logits, axis=0), rtol=1e-5, atol=1e-5)
