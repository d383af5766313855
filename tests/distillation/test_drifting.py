"""The drift against the authors' code and a loop, and banks against queues."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from genjax.distillation import drifting

# Computed by drift_loss of lambertae/drifting@accd0cf on `points()`, negatives of weight 0.7.
LOSS = 8.205609321594238
GRADIENT = [
    [0.7150645852088928, -1.0045803785324097, -0.3148728907108307],
    [0.21681919693946838, -0.23716376721858978, 0.03835323080420494],
    [-0.19302743673324585, -0.16832414269447327, -0.027471594512462616],
    [-0.11394555866718292, -0.0961766317486763, -0.04757775366306305],
    [-0.011865195818245411, -0.009922079741954803, -0.0038423892110586166],
]


# The same of two groups with negatives of weight 0.7 and 0.2. The second is three times as wide.
LOSSES = [3.967228889465332, 12.44301986694336]
GRADIENTS = [
    [
        [0.20492546260356903, -0.3639931082725525, -0.12753978371620178],
        [0.05665641650557518, -0.11881903558969498, -0.006146071944385767],
        [-0.10911170393228531, -0.09770304709672928, -0.011995851993560791],
        [-0.057289253920316696, -0.0539262481033802, -0.03742779791355133],
        [-0.01186336763203144, -0.012943071313202381, -0.0049994634464383125],
    ],
    [
        [0.4942432641983032, -0.6647546291351318, -0.16315816342830658],
        [0.11632606387138367, -0.08222195506095886, 0.08824870735406876],
        [-0.05131452903151512, -0.03534668684005737, -0.0038396490272134542],
        [-0.018230443820357323, -0.013161656446754932, -0.006348050199449062],
        [-0.003412209451198578, -0.002296159043908119, -0.0007751028751954436],
    ],
]


def points():
    generator = np.random.default_rng(0)
    draw = lambda count: generator.standard_normal((1, count, 3)).astype(np.float32)[0]
    x, positive = draw(5), draw(6) + np.float32(0.5)
    return jnp.asarray(x), jnp.asarray(positive), jnp.asarray(draw(4) - np.float32(0.5))


def test_loss_and_gradient_are_those_of_the_authors():
    x, positive, negative = points()
    loss = lambda x: drifting.drifting_loss(x, positive, negative, negative_weight=0.7)
    value, gradient = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(value, LOSS, rtol=1e-5)
    np.testing.assert_allclose(gradient, GRADIENT, atol=1e-5)


def test_groups_share_their_normalization_as_in_the_authors_code():
    widths = np.array([1, 3], np.float32)[:, None, None]
    x, *data = (jnp.asarray(widths * np.asarray(a)) for a in points())
    losses = lambda x: drifting.drifting_loss(x, *data, negative_weight=jnp.array([0.7, 0.2]))
    np.testing.assert_allclose(losses(x), LOSSES, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: losses(x).sum())(x), GRADIENTS, atol=1e-5)


def test_the_field_is_the_sum_over_pairs(float64):
    """V_i = Σ_j⁺ Σ_k⁻ a_ij·a_ik·(y_j⁺ − y_k⁻) by a loop, up to its root mean square."""
    x, positive, negative = (np.asarray(a, np.float64) for a in points())
    temperature = 0.2
    field, scale = drifting.drift(
        *(jnp.asarray(a) for a in (x, positive, negative)), temperatures=(temperature,)
    )
    others = np.concatenate([x, negative, positive])
    distances = np.sqrt(np.maximum(((x[:, None] - others) ** 2).sum(-1), 1e-8))
    mean = distances.mean()
    np.testing.assert_allclose(scale, mean / np.sqrt(3), rtol=1e-12)
    kernel = np.exp(-distances / mean / temperature)
    kernel[np.arange(5), np.arange(5)] = 0
    a = np.sqrt(kernel / kernel.sum(1, keepdims=True) * kernel / kernel.sum(0))
    a = np.maximum(a, 1e-3)  # as published: no affinity is less
    by_hand = np.zeros_like(x)
    for i in range(5):
        for j in range(9, 15):
            for k in range(9):
                by_hand[i] += a[i, j] * a[i, k] * (others[j] - others[k])
    by_hand /= np.sqrt((by_hand**2).mean())
    np.testing.assert_allclose(field, by_hand, atol=1e-7)


def test_the_field_does_not_see_a_common_offset():
    """1000 deviations away, float32 has three digits of a deviation left, and so has the field."""
    points_far_away = [a + 1000 for a in points()]
    back = [a - 1000 for a in points_far_away]  # exact
    (far, _), (near, _) = drifting.drift(*points_far_away), drifting.drift(*back)
    np.testing.assert_allclose(far, near, atol=1e-3)


def test_points_drift_towards_data_and_stay_where_they_are_data():
    """Points and data symmetric about 0 have a field without a mean; data 3 away pull that way."""
    key, other = jax.random.split(jax.random.key(0))
    both = lambda a: jnp.concatenate([a, -a])
    x, data = (both(jax.random.normal(key, (200, 2))) for key in (key, other))
    stay, _ = drifting.drift(x, data, temperatures=(0.2,))
    assert np.abs(stay.mean(0)).max() < 1e-4  # relative to a root mean square of 1
    away = data + jnp.array([3.0, 0.0])
    towards, _ = drifting.drift(x, away, temperatures=(0.2,))
    assert towards.mean(0)[0] > 0.5 and abs(towards.mean(0)[1]) < 0.2
    gradient = jax.grad(drifting.drifting_loss)(x, away)
    assert (x - 10 * gradient).mean(0)[0] > x.mean(0)[0]


def test_negatives_weigh_as_guidance_says():
    """(w − 1)·(generated − 1)/negatives: none at scale 1."""
    assert drifting.guidance_weight(1.0, 64, 32) == 0
    assert drifting.guidance_weight(3.0, 65, 32) * 32 == 2 * 64


def test_banks_hold_the_last_examples_of_each_class():
    """Against a queue per class, with more examples of a class in a batch than it holds."""
    bank = drifting.Bank.empty(3, 4, (2,))
    queues = [collections.deque(maxlen=4) for _ in range(3)]
    generator = np.random.default_rng(0)
    push = jax.jit(drifting.Bank.push)
    for size in (2, 7, 7, 7):
        labels = generator.integers(0, 2 if size == 7 else 3, size)
        x = generator.standard_normal((size, 2)).astype(np.float32)
        bank = push(bank, jnp.asarray(x), jnp.asarray(labels))
        for example, label in zip(x, labels, strict=True):
            queues[label].append(example)
    for label, queue in enumerate(queues):
        held = np.asarray(bank.examples[label])[: min(int(bank.pushed[label]), 4)]
        assert sorted(map(tuple, held.tolist())) == sorted(tuple(e.tolist()) for e in queue)


def test_draws_are_distinct_while_there_are_enough():
    bank = drifting.Bank.empty(3, 4, ())
    bank = bank.push(jnp.array([1.0, 2.0, 3.0, 10.0]), jnp.array([0, 0, 0, 1]))
    drawn = np.asarray(bank.draw(jax.random.key(0), jnp.array([0, 0, 1, 2]), 3))
    assert sorted(drawn[0].tolist()) == sorted(drawn[1].tolist()) == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(drawn[2:], [[10.0] * 3, [np.nan] * 3])  # the last has had none
    orders = {
        tuple(np.asarray(bank.draw(jax.random.key(i), jnp.array([0]), 3))[0]) for i in range(20)
    }
    assert len(orders) > 3
