import jax
import jax.numpy as jnp
import numpy as np

from genjax.nn.attention.multi_head import MultiHeadAttention


def test_against_loops_in_float64():
    random = np.random.default_rng(0)
    x, context = random.standard_normal((2, 3, 8), np.float32), random.standard_normal((2, 5, 6), np.float32)
    mask = np.arange(5) < np.array([[5], [2]])
    module = MultiHeadAttention(num_heads=2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, context, jnp.asarray(mask))
    variables = jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32), shapes)
    output = jax.jit(module.apply)(variables, x, context, jnp.asarray(mask))

    layers = jax.tree.map(np.float64, variables["params"])
    layer = lambda name, a: a @ layers[name]["kernel"] + layers[name]["bias"]
    expected = np.zeros((2, 3, 8))
    for example in range(2):
        query = layer("query", x[example])
        key, value = (layer(name, context[example][mask[example]]) for name in ("key", "value"))
        for head in (slice(0, 4), slice(4, 8)):
            weights = np.exp(query[:, head] @ key[:, head].T / np.sqrt(4))
            expected[example][:, head] = weights / weights.sum(axis=1, keepdims=True) @ value[:, head]
    # float32 against float64, logits of up to about 30 that are exponentiated.
    np.testing.assert_allclose(output, layer("projection", expected), rtol=0, atol=1e-4)
