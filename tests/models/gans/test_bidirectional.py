"""The encoder and the discriminator of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.bidirectional import Encoder, JointDiscriminator

SMALL = dict(width=4, doublings=2, hidden=8)
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 8, 8, 1))
Z = jax.random.normal(KEY, (3, 5))
LABELS = jnp.array([0, 1, 1])


def test_shapes_and_parameter_counts():
    encoder = Encoder(features=5, num_classes=2, **SMALL)
    z, variables = encoder.init_with_output(KEY, X, LABELS)
    assert z.shape == (3, 5) and variables.keys() == {"params"}
    convolutions = (16 * 4 + 4) + (16 * 4 * 8 + 8)
    count = lambda variables: sum(a.size for a in jax.tree.leaves(variables["params"]))
    # 2×2×8 features beside an embedding of 8
    assert count(variables) == convolutions + 2 * 8 + (40 * 8 + 8) + (8 * 5 + 5)

    discriminator = JointDiscriminator(num_classes=2, **SMALL)
    scores, variables = discriminator.init_with_output(KEY, X, Z, LABELS)
    assert scores.shape == (3, 1)
    of_latents, joint = (13 * 8 + 8) + (8 * 8 + 8), (40 * 8 + 8) + (8 * 8 + 8) + 9
    assert count(variables) == convolutions + 2 * 8 + of_latents + joint


@pytest.mark.parametrize("num_classes", [0, 2])
def test_unary_scores_see_their_own_part_alone(num_classes):
    network = JointDiscriminator(unary=True, num_classes=num_classes, **SMALL)
    labels = LABELS if num_classes else None
    scores, variables = network.init_with_output(KEY, X, Z, labels)
    assert scores.shape == (3, 3)
    changed = [network.apply(variables, *pair, labels) != scores for pair in ((-X, Z), (X, -Z))]
    np.testing.assert_array_equal(changed[0], [[True, False, True]] * 3)
    np.testing.assert_array_equal(changed[1], [[False, True, True]] * 3)
    if num_classes:  # a class changes all scores
        assert jnp.all(network.apply(variables, X, Z, 1 - labels) != scores)


def test_spectral_norm_bounds_every_layer():
    """Weights times a hundred make the same scores, once the singular vectors have settled."""
    network = JointDiscriminator(unary=True, spectral_norm=True, **SMALL)
    variables = network.init(KEY, X, Z)
    biases = lambda path: jax.tree_util.keystr(path).endswith("['bias']")
    large = jax.tree.map_with_path(
        lambda path, a: a if biases(path) else 100 * a, variables["params"]
    )

    @jax.jit
    def scores(params):
        kept = variables["batch_stats"]
        for _ in range(20):
            found, updated = network.apply(
                {"params": params, "batch_stats": kept}, X, Z, train=True, mutable=["batch_stats"]
            )
            kept = updated["batch_stats"]
        return found

    np.testing.assert_allclose(scores(large), scores(variables["params"]), rtol=1e-3)
    plain = JointDiscriminator(unary=True, **SMALL)
    assert plain.init(KEY, X, Z).keys() == {"params"}


def test_a_stochastic_encoder_draws_in_training_and_gives_the_mean_after_it():
    network = Encoder(features=5, stochastic=True, **SMALL)
    variables = network.init({"params": KEY, "noise": KEY}, X)
    mean = network.apply(variables, X)
    draw = lambda key: network.apply(variables, X, train=True, rngs={"noise": key})
    drawn = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2000))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.05)
    assert 0.005 < drawn.std(0).min() and drawn.std(0).max() < 1.0
    plain = Encoder(features=5, **SMALL)
    params = {name: each for name, each in variables["params"].items() if name != "deviation"}
    np.testing.assert_array_equal(plain.apply({"params": params}, X, train=True), mean)
