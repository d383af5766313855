import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import autoencoding


@pytest.mark.parametrize(
    "distance, best",
    [(autoencoding.l1, "median"), (autoencoding.l2, "mean"), (autoencoding.charbonnier, "median")],
)
def test_the_best_single_guess_of_many_values_is_their_median_or_mean(distance, best):
    values = jax.random.gamma(jax.random.key(0), 1.0, (1001,))
    guesses = jnp.linspace(0, 2, 4001)
    losses = jax.vmap(lambda guess: distance(jnp.full((1, 1001), guess), values[None])[0])(guesses)
    expected = getattr(np, best)(values)
    # The grid's step, and for Charbonnier the width of its rounding.
    np.testing.assert_allclose(guesses[losses.argmin()], expected, atol=2e-3)


def test_distances_do_not_depend_on_size():
    x, y = jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5)
    for distance in (autoencoding.l1, autoencoding.l2, autoencoding.charbonnier):
        np.testing.assert_allclose(distance(x, y), distance(x[:, :1, :1], y[:, :1, :1]), rtol=1e-6)
        assert distance(x, y).shape == (2,)
    np.testing.assert_allclose(autoencoding.l1(x, y), 0.5)
    np.testing.assert_allclose(autoencoding.l2(x, y), 0.25)
    np.testing.assert_allclose(autoencoding.charbonnier(x, y, 0.5), np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(autoencoding.charbonnier(x, x), 1e-3, rtol=1e-6)


def test_charbonnier_is_smooth_at_zero():
    slope = jax.grad(lambda x: autoencoding.charbonnier(x, jnp.zeros((1, 1)))[0])(jnp.zeros((1, 1)))
    assert slope == 0


def test_adaptive_weight_makes_both_gradients_equally_long():
    reconstruction = {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}
    adversarial = {"kernel": jnp.array([0.0, 0.6]), "bias": jnp.array([0.8])}
    weight = autoencoding.adaptive_weight(reconstruction, adversarial)
    np.testing.assert_allclose(weight, 5.0, rtol=2e-4)  # 1e-4 keeps the denominator from 0
    nothing = jax.tree.map(jnp.zeros_like, adversarial)
    np.testing.assert_allclose(autoencoding.adaptive_weight(reconstruction, nothing), 1e4)
    slope = jax.grad(lambda g: autoencoding.adaptive_weight(reconstruction, g))(adversarial)
    assert all(np.all(a == 0) for a in jax.tree.leaves(slope))


@pytest.mark.parametrize("name", ["l1", "l2", "charbonnier"])
def test_other_shapes_and_bytes_are_refused(name, unchecked_annotations):
    """Shapes would broadcast, and differences of bytes wrap around: 1 − 2 is 255."""
    distance, x = getattr(autoencoding, name), jnp.zeros((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"of one shape; got .*4, 3\] and float32 \[2, 4, 4, 1\]"):
        distance(x, x[..., :1])
    with pytest.raises(ValueError, match="are floats of one shape; got uint8"):
        distance(x.astype(jnp.uint8), x.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"got float32 .* and uint8"):
        distance(x, x.astype(jnp.uint8))
